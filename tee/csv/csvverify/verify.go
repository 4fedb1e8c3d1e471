// Package csvverify checks the evidence of Hygon CSV: the chain from Hygon's root
// (HRK) over HSK and CEK to the PEK that signed the report, the guest's policy,
// the report data, and the event log.
//
// Version 1 has been checked against two reports of real machines, one of them
// with its whole chain. Of versions 2 and 3 nobody has published any: they are
// tested with reports that the tests mint, by the layouts that csv-rs has.
//
// # What the formats leave open
//
// Hygon's certificates hold no dates and cannot be revoked. No certificate holds
// the chip's serial number: serial_number is what the guest says. To tell one
// chip from another rely on cek_digest.
//
// A report of version 1 does not sign its mask (anonce). Who alters the mask
// alters all of the report's fields by the same four bytes; sig_usage and
// sig_algo give it away, but they are not signed either. What protects is that
// report data and measurement are compared whole: neither can be found to order.
//
// # Checks
//
//   - csv.format: the evidence, the report and the certificates are what package
//     csv reads.
//   - csv.chain: usages and key identifiers of the certificates; that HSK and CEK
//     are there (they come with the evidence, or from Options.Collateral).
//   - csv.hsk_signature, csv.cek_signature, csv.pek_signature,
//     csv.report_signature: SM2 with SM3.
//   - csv.signature_algorithm: the report says that a PEK signed it, with SM2.
//   - csv.signer: the PEK and the serial number behind the report are those of the
//     evidence.
//   - csv.mac: the MAC over PEK and serial number, where the guest left what it is
//     over.
//   - csv.debug: the policy forbids debugging (Options.AllowDebug makes it a
//     warning).
//   - csv.event_log: the log replays with SM3 to RTMR 1 to 4. Version 1 has no
//     such registers: a log with events is then a warning, and not a claim.
//   - csv.report_data.
//   - csv.host_data: the digest of initdata, padded to 64 bytes (version 3).
//   - csv.init_data: versions 1 and 2 have no field for initdata. Where initdata
//     is given to compare with, nothing binds it to the guest, which is a failure.
//
// # Claims
//
// Byte strings are in hex. version ("1", "2", "3"); policy.{nodbg, noks, es,
// nosend, domain, csv, csv3, asid_reuse, hsk_version, cek_version, api_major,
// api_minor}, numbers; user_pubkey_digest, vm_id, vm_version, report_data, mnonce,
// measure; sig_usage, sig_algo (four bytes, little-endian); serial_number (text);
// version 1: anonce; versions 2 and 3: build, rtmr_version (numbers), reserved0,
// reserved1, rtmr0 to rtmr4, uefi_event_logs where there is a log; version 3:
// host_data. Ours: cek_digest, the SHA-256 of the CEK's signed part, and
// simulated, both only where the chain was checked.
package csvverify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
)

// Collateral is where HSK and CEK come from when the evidence does not have them.
type Collateral interface {
	// HSKCEK returns the certificates of a chip, [HSKCEKSize] bytes. The serial
	// number is 1 to 64 letters and digits. The error is *[tee.CollateralError]
	// where they cannot be had.
	HSKCEK(ctx context.Context, chipSerial string) ([]byte, error)
}

// DevelopmentRoot is an HRK of somebody's own. Guests under it are simulated.
type DevelopmentRoot struct {
	Name string
	// HRK is the certificate, 832 bytes, signed by itself.
	HRK []byte
}

// Options of [New].
type Options struct {
	// Now is the clock; nil: time.Now. Nothing here expires: it only says how
	// long a verified chain is remembered.
	Now func() time.Time
	// AllowDebug makes a guest that may be debugged a warning.
	AllowDebug bool
	// AllowMissingCollateral makes it a warning that HSK and CEK cannot be had.
	// Then anybody can have made the report: it is for tools that look at one,
	// and nothing that decides by the result may set it.
	AllowMissingCollateral bool
	// Collateral may be nil.
	Collateral Collateral
	// DevelopmentRoots are accepted beside Hygon's.
	DevelopmentRoots []DevelopmentRoot
}

const (
	maxChains     = 4096
	rememberedFor = 24 * time.Hour
)

type verifier struct {
	o      Options
	roots  []*root
	chains *memo.Memo[*root]
}

// New returns the verifier. It fails where a root is none.
func New(o Options) (tee.Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	first, err := hygon()
	if err != nil {
		return nil, err
	}
	v := &verifier{o: o, roots: []*root{first}, chains: memo.New[*root](maxChains)}
	for _, d := range o.DevelopmentRoots {
		r, err := newRoot(d.Name, d.HRK, true)
		if err != nil {
			return nil, fmt.Errorf("csvverify: development root %q: %w", d.Name, err)
		}
		if find(v.roots, r.cert) != nil {
			return nil, fmt.Errorf("csvverify: development root %q: expected a key identifier of its own, got %x again", d.Name, r.cert.KeyID)
		}
		v.roots = append(v.roots, r)
	}
	return v, nil
}

// TEE implements [tee.Verifier].
func (*verifier) TEE() tee.Name { return tee.CSV }

// judgement is one piece of evidence on its way through the checks.
type judgement struct {
	*checks.List
	e      *csv.Evidence
	r      *csv.Report
	pek    *csv.Certificate
	serial string
	claims map[string]any
}

// Verify implements [tee.Verifier].
func (v *verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := csv.ParseEvidence(evidence)
	if err != nil {
		return nil, malformed(err)
	}
	return v.verify(ctx, e, want)
}

func malformed(err error) error {
	return checks.Refuse(tee.CSV, tee.Failure{
		Check: "csv.format", Field: "evidence", Expected: "evidence of Hygon CSV", Got: err.Error(),
		Help: "the evidence was cut, altered, or made by software that this verifier does not know",
	})
}

func (v *verifier) verify(ctx context.Context, e *csv.Evidence, want tee.Expected) (*tee.Result, error) {
	j, err := parse(e, v.o.AllowMissingCollateral)
	if err != nil {
		return nil, malformed(err)
	}
	chainRoot, err := v.checkChain(ctx, j)
	if err != nil {
		return nil, err
	}
	j.checkReport(v.o.AllowDebug)
	j.checkEventLog()
	j.checkBinding(want)
	if err := j.Err(); err != nil {
		return nil, err
	}
	simulated := false
	if chainRoot != nil { // without a chain nobody knows
		simulated = chainRoot.development
		j.claims["simulated"] = simulated
	}
	return &tee.Result{
		TEE: tee.CSV, Class: tee.CPU, Claims: j.claims, ReportData: j.r.ReportData, InitData: j.r.HostData, Simulated: simulated, Warnings: j.Warnings(),
	}, nil
}

// parse decodes what the evidence consists of.
func parse(e *csv.Evidence, allowMissing bool) (*judgement, error) {
	j := &judgement{List: checks.New(tee.CSV, allowMissing), e: e}
	var err error
	if j.r, err = j.e.Report(); err != nil {
		return nil, err
	}
	if j.pek, err = csv.ParseCertificate(j.e.PEK); err != nil {
		return nil, err
	}
	if j.serial, err = j.e.SerialNumber(); err != nil {
		return nil, err
	}
	j.claims = j.r.Claims()
	j.claims["serial_number"] = j.serial
	return j, nil
}

// pair returns HSK and CEK, one after the other: the evidence's, or else the
// collateral's. It is nil where a failure says why.
func (v *verifier) pair(ctx context.Context, j *judgement) ([]byte, error) {
	if j.e.HSK != nil {
		return append(bytes.Clone(j.e.HSK), j.e.CEK...), nil
	}
	item := "HSK and CEK certificates of Hygon chip " + j.serial
	missing := func(err error) {
		f := tee.Failure{Check: "csv.chain", Field: "cert_chain.hsk_cek", Expected: item, Help: unchained}
		if c, ok := errors.AsType[*tee.CollateralError](err); ok {
			f.Help += ": " + c.Help()
		}
		j.Missing(f, err)
	}
	if v.o.Collateral == nil {
		missing(&tee.CollateralError{Item: item, Reason: tee.CollateralMissing})
		return nil, nil
	}
	raw, err := v.o.Collateral.HSKCEK(ctx, j.serial)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && len(raw) != HSKCEKSize {
		err = &tee.CollateralError{Item: item, Reason: tee.CollateralInvalid, Err: fmt.Errorf("expected %d bytes, got %d", HSKCEKSize, len(raw))}
	}
	if err != nil {
		missing(err)
		return nil, nil
	}
	return raw, nil
}

const unchained = "without HSK and CEK nothing leads from the report to Hygon: anybody can have made it"

// checkChain checks the certificates from the root to the PEK. It returns the
// root, nil where the chain could not be checked or is not good.
func (v *verifier) checkChain(ctx context.Context, j *judgement) (*root, error) {
	if j.pek.Key.Usage != csv.UsagePEK || j.pek.Algorithm != csv.AlgorithmSM2 {
		f := wrongKey("pek", csv.UsagePEK, j.pek.Key.Usage)
		f.Got += fmt.Sprintf(", algorithm %d", j.pek.Algorithm)
		j.Fail(f)
	}
	raw, err := v.pair(ctx, j)
	if raw == nil {
		return nil, err
	}
	hsk, cek, err := parsePair(raw)
	if err != nil {
		j.Fail(tee.Failure{
			Check: "csv.format", Field: "cert_chain.hsk_cek", Expected: "certificates of an HSK and a CEK", Got: err.Error(),
			Help: "fetch the certificates of this chip anew",
		})
		return nil, nil //nolint:nilerr // the failure is recorded
	}
	// Each PEK takes one entry: it is made anew when the platform is reset.
	digests := make([][]byte, 0, len(v.roots)+2)
	for _, r := range v.roots {
		digests = append(digests, r.digest[:])
	}
	key := memo.KeyOf(append(digests, raw, j.e.PEK)...)
	now := v.o.Now()
	r, known := v.chains.Get(key, now)
	if !known {
		if r = checkHSK(j.List, v.roots, hsk); r == nil || !checkCEK(j.List, hsk, cek) {
			return nil, nil
		}
		if !checkSlot(j.List, "csv.pek_signature", "cert_chain.pek", &cek.Key, j.pek) {
			return nil, nil
		}
		v.chains.Put(key, now, now.Add(rememberedFor), r)
	}
	digest := sha256.Sum256(cek.Signed)
	j.claims["cek_digest"] = hex.EncodeToString(digest[:])
	return r, nil
}

// checkReport checks what the PEK signed, and what it did not.
func (j *judgement) checkReport(allowDebug bool) {
	if err := verifySM2(&j.pek.Key, j.r.Signed, j.r.Signature); err != nil {
		j.Fail(badSignature("csv.report_signature", "attestation_report", csv.UsagePEK, err))
	}
	if j.r.SigUsage != csv.UsagePEK || j.r.SigAlgorithm != csv.AlgorithmSM2 {
		j.Fail(tee.Failure{
			Check: "csv.signature_algorithm", Field: "sig_usage, sig_algo", Expected: fmt.Sprintf("%s, algorithm %d", csv.UsagePEK, csv.AlgorithmSM2),
			Got: fmt.Sprintf("%s, algorithm %d", j.r.SigUsage, j.r.SigAlgorithm), Help: "the report, or its mask, was altered",
		})
	}
	j.checkSigner()
	if !j.r.Policy.NoDebug() {
		j.FailUnless(allowDebug, tee.Failure{
			Check: "csv.debug", Field: "policy.nodbg", Expected: "1, debugging not allowed", Got: "0, the host may read and write the guest's memory",
			Help: "launch the guest with the policy bit nodbg",
		})
	}
}

func (j *judgement) checkSigner() {
	s := &j.r.Signer
	if !bytes.Equal(s.PEK, j.e.PEK) {
		j.Fail(tee.Failure{
			Check: "csv.signer", Field: "cert_chain.pek", Expected: "the certificate behind the report, sha256 " + digestOf(s.PEK), Got: "sha256 " + digestOf(j.e.PEK),
			Help: "the evidence was put together of two",
		})
	}
	if !bytes.Equal(s.Serial, j.e.Serial) {
		j.Fail(tee.Failure{
			Check: "csv.signer", Field: "serial_number", Expected: fmt.Sprintf("%q, as behind the report", bytes.TrimRight(s.Serial, "\x00")), Got: fmt.Sprintf("%q", j.serial),
			Help: "the evidence was put together of two",
		})
	}
	if s.MACInput == nil {
		return
	}
	h := hmac.New(sm3.New, j.r.MNonce)
	h.Write(s.MACInput)
	if sum := h.Sum(nil); !hmac.Equal(sum, s.MAC) {
		j.Fail(tee.Failure{
			Check: "csv.mac", Field: "attestation_report: MAC", Expected: hex.EncodeToString(sum), Got: hex.EncodeToString(s.MAC),
			Help: "the certificate or the serial number behind the report was altered",
		})
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
