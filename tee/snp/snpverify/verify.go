package snpverify

import (
	"context"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/internal/p384"
	"github.com/coffer-project/coffer/tee/snp"
)

// Bounds on what is remembered: a chain for each chip and patch level seen, and
// a list for each generation and kind of key.
const (
	maxChains = 4096
	maxLists  = 16
)

// Verifier verifies SNP evidence. It is safe for concurrent use.
type Verifier struct {
	now         func() time.Time
	options     Options
	amd         map[snp.Generation]func() (*root, error) // parsed when first needed
	development []*root
	roots       memo.Key // the digest of all roots: part of what a chain's verdict rests on
	chains      *memo.Memo[endorsement]
	lists       *memo.Memo[*x509.RevocationList]
}

// New returns a verifier of SNP evidence.
func New(o Options) (*Verifier, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	v := &Verifier{
		now: o.Now, options: o, amd: map[snp.Generation]func() (*root, error){},
		chains: memo.New[endorsement](maxChains), lists: memo.New[*x509.RevocationList](maxLists),
	}
	if v.now == nil {
		v.now = time.Now
	}
	if len(o.VMPL) == 0 {
		v.options.VMPL = []uint32{0}
	}
	var digests [][]byte
	for _, g := range generations() {
		v.amd[g] = sync.OnceValues(func() (*root, error) { return loadAMD(g) })
		for _, pin := range amdPins(g) {
			digests = append(digests, []byte(pin))
		}
	}
	for _, d := range o.DevelopmentRoots {
		r, err := loadDevelopment(d)
		if err != nil {
			return nil, err
		}
		v.development = append(v.development, r)
		digests = append(digests, []byte(d.Name), d.PEM)
	}
	v.roots = memo.KeyOf(digests...)
	return v, nil
}

// TEE implements [tee.Verifier].
func (*Verifier) TEE() tee.Name { return tee.SNP }

// Verify implements [tee.Verifier]: evidence is that of [snp.ParseEvidence].
func (v *Verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := snp.ParseEvidence(evidence)
	if err != nil {
		return nil, checks.Refuse(tee.SNP, tee.Failure{Check: "snp.format", Field: "evidence", Expected: "SNP evidence of report version 2 to 5", Got: err.Error()})
	}
	raw, err := e.Report()
	if err != nil {
		return nil, checks.Refuse(tee.SNP, tee.Failure{Check: "snp.format", Field: "attestation_report", Got: err.Error()})
	}
	l := checks.New(tee.SNP, v.options.AllowMissingCollateral)
	r, claims, simulated := v.VerifyReport(ctx, l, raw, e.CertChain)
	if r != nil {
		l.ReportData("snp", "report_data", r.ReportData[:], want)
		l.InitData("snp.host_data", "host_data", r.HostData[:], want)
	}
	if err := l.Err(); err != nil {
		if ctx.Err() != nil && !l.Failed() {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return &tee.Result{
		TEE: tee.SNP, Class: tee.CPU, Claims: claims,
		ReportData: r.ReportData[:], InitData: r.HostData[:],
		Simulated: simulated, Warnings: l.Warnings(),
	}, nil
}

// VerifyReport checks everything about a report of 1184 bytes except report
// data and host data, and records into l what is wrong. certs came with the
// report; those of other types than VCEK, VLEK, ASK and ARK do not matter. The
// report is nil where it cannot be decoded; claims count only where l has
// neither failures nor missing collateral.
func (v *Verifier) VerifyReport(ctx context.Context, l *checks.List, report []byte, certs []snp.Certificate) (r *snp.Report, claims map[string]any, simulated bool) {
	r, err := snp.DecodeReport(report)
	if err != nil {
		l.Fail(tee.Failure{Check: "snp.format", Field: "attestation_report", Expected: "a report of version 2 to 5", Got: err.Error()})
		return nil, nil, false
	}
	for _, p := range r.BitProblems() {
		l.FailUnless(p.Field == "plat_info" && v.options.AllowUnknownPlatform, tee.Failure{Check: "snp.format", Field: p.Field, Expected: p.Expected, Got: p.Got, Help: "the report has fields that this verifier does not understand"})
	}
	e := v.endorse(ctx, l, r, certs)
	if e.certificate != nil {
		checkSignature(l, r, report, e.certificate)
		checkChip(l, r, e.certificate)
	}
	v.checkPlatform(l, r, e.generation)
	v.checkGuest(l, r)
	if e.root == nil {
		return r, nil, false
	}
	status := ""
	if v.options.CheckRevocation && !e.root.development {
		status = v.checkRevocation(ctx, l, e, r.Signer())
	}
	return r, claimsOf(r, e, status), e.root.development
}

// checkSignature checks that the certificate's key signed the report (SHA-384
// and ECDSA over the first 0x2A0 bytes; publication 56860, "Attestation").
func checkSignature(l *checks.List, r *snp.Report, report []byte, c *chipCertificate) {
	f := tee.Failure{Check: "snp.signature", Field: "signature", Expected: "a signature by the certificate's key over the report"}
	switch {
	case r.SigAlgo != snp.SigECDSAP384SHA384:
		f.Field, f.Expected, f.Got = "sig_algo", "1 (ECDSA P-384 with SHA-384)", big.NewInt(int64(r.SigAlgo)).String()
	case r.Signature == snp.Signature{}:
		f.Got, f.Help = "zeros", "the host keeps the chip's key from signing (MASK_CHIP_KEY)"
	default:
		sum := sha512.Sum384(report[:snp.SignedSize])
		if p384.Verify(c.key, sum[:], littleEndian(r.Signature.R), littleEndian(r.Signature.S)) {
			return
		}
		f.Got, f.Help = "one that does not verify", "the report was changed, or the certificate belongs to another chip or patch level"
	}
	l.Fail(f)
}

func littleEndian(b [72]byte) *big.Int {
	slices.Reverse(b[:])
	return new(big.Int).SetBytes(b[:])
}
