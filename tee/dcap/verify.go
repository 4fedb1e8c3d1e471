package dcap

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
)

// What a verifier remembers at most: one endorsement for each attestation key,
// of which a platform has one for each boot; a document for each platform
// family.
const (
	maxEndorsements = 4096
	maxDocuments    = 256
)

// Options configure a [Verifier].
type Options struct {
	// Kind is what quotes it judges; checks are named after it.
	Kind Kind
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Collateral gives Intel's documents. Nil: there are none.
	Collateral Collateral
	// AllowStaleCollateral turns documents past their date into warnings. That
	// documents are lacking is for the [checks.List] to judge.
	AllowStaleCollateral bool
	// DevelopmentRoots are accepted beside Intel's root.
	DevelopmentRoots []DevelopmentRoot
}

// Verifier judges what quotes of SGX and TDX have in common. It is safe for
// concurrent use.
type Verifier struct {
	kind       Kind
	now        func() time.Time
	roots      *RootSet
	collateral Collateral
	allowStale bool

	// endorsements are keyed by everything of a signature section but the
	// quote's own signature. The roots are the verifier's own; revocation
	// lists are consulted each time.
	endorsements *memo.Memo[*endorsement]
	tcbInfos     *memo.Memo[*TCBInfo]
	identities   *memo.Memo[*QEIdentity]
	crls         *memo.Memo[*crl]
}

// New returns a verifier.
func New(o Options) (*Verifier, error) {
	if o.Kind != SGX && o.Kind != TDX {
		return nil, fmt.Errorf("dcap: kind: expected sgx or tdx, got %.20q", o.Kind)
	}
	roots, err := Roots(o.DevelopmentRoots...)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		kind: o.Kind, now: o.Now, roots: roots, collateral: o.Collateral, allowStale: o.AllowStaleCollateral,
		endorsements: memo.New[*endorsement](maxEndorsements), tcbInfos: memo.New[*TCBInfo](maxDocuments),
		identities: memo.New[*QEIdentity](maxDocuments), crls: memo.New[*crl](maxDocuments),
	}
	if v.now == nil {
		v.now = time.Now
	}
	return v, nil
}

// Quote is the part of a quote that is judged here.
type Quote struct {
	Signed    []byte // header and body
	Signature *dcapquote.Signature
	TD        *TD // nil for SGX
}

// TD is what a TD report says about the TDX module that made it.
type TD struct {
	TCBSVN         [16]byte
	TCBSVN2        *[16]byte // TD report 1.5: of the module that runs now
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
}

// Platform is who made a quote.
type Platform struct {
	PCK  *dcapquote.PCK
	CA   CA
	Root *Root
	// ModuleJudged is true when the TDX module was held against collateral.
	ModuleJudged bool
	// Claims are those of the platform and its collateral; see [Verifier.Verify].
	Claims map[string]any
}

// endorsement is a verified attestation key.
type endorsement struct {
	key      *ecdsa.PublicKey
	certs    []*x509.Certificate // PCK certificate, intermediate, root
	pck      *dcapquote.PCK
	ca       CA
	root     *Root
	qe       *dcapquote.EnclaveReport
	from, to time.Time
}

// Verify judges a quote and records into l what it finds out. The result is nil
// where no genuine platform endorses the attestation key.
//
// Checks, after the kind and a dot: certificate, chain, revocation, qe_report,
// qe_identity, signature, module (TDX), tcb, collateral.
//
// Claims, as the confidential containers' attestation service names them:
// platform_instance_id (hex; bytes reversed with regard to the certificate, a
// little-endian number there; not with the processor CA), platform_provider_id
// (the PPID, hex), sgx_type, is_dynamic_platform, is_cached_keys,
// is_smt_enabled (booleans, not for sgx_type "Standard"), root_key_id (hex);
// with collateral tcb_status, tcb_date, advisory_ids, tcb_eval_num,
// pck_crl_num, root_ca_crl_num, earliest_issue_date, latest_issue_date,
// earliest_expiration_date, collateral_expiration_status ("0", or "1" when
// something has expired); for TD reports 1.5 tcb_status_current,
// tcb_date_current, advisory_ids_current.
//
// In addition: simulated (boolean), development_root and
// development_root_sha256 (only then), fmspc, pce_id (hex), pck_ca.
func (v *Verifier) Verify(ctx context.Context, l *checks.List, q Quote) *Platform {
	now := v.now()
	memoKey := memo.KeyOf(q.Signature.Endorsement)
	e, known := v.endorsements.Get(memoKey, now)
	if !known {
		var failures []tee.Failure
		e, failures = v.endorse(q.Signature, now)
		l.Fail(failures...)
		if len(failures) == 0 {
			v.endorsements.Put(memoKey, e.from, e.to, e)
		}
		if e == nil {
			return nil
		}
	}
	sum := sha256.Sum256(q.Signed)
	if !verifyRaw(e.key, sum[:], q.Signature.Quote[:]) {
		l.Fail(tee.Failure{
			Check: v.check("signature"), Field: "signature", Expected: "a signature by the attestation key over header and body", Got: "another one",
			Help: "the quote was changed on its way",
		})
	}
	p := &Platform{PCK: e.pck, CA: e.ca, Root: e.root, Claims: platformClaims(e)}
	v.judge(ctx, l, q, e, p, now)
	return p
}

func (v *Verifier) check(name string) string { return string(v.kind) + "." + name }

// endorse checks who vouches for the attestation key. There is no endorsement
// where it cannot be told whose it would be.
func (v *Verifier) endorse(s *dcapquote.Signature, now time.Time) (*endorsement, []tee.Failure) {
	e, failure := v.openChain(s.Chain)
	if failure != nil {
		return nil, []tee.Failure{*failure}
	}
	var out []tee.Failure
	pckKey, err := p256Key(e.certs[0])
	if err != nil {
		return nil, []tee.Failure{{Check: v.check("certificate"), Field: "certification_data.pck", Expected: "an EC P-256 key", Got: err.Error()}}
	}
	if now.Before(e.from) || now.After(e.to) {
		out = append(out, tee.Failure{
			Check: v.check("certificate"), Field: "certification_data", Expected: "a chain valid at " + now.UTC().Format(time.RFC3339),
			Got: "valid from " + e.from.UTC().Format(time.RFC3339) + " to " + e.to.UTC().Format(time.RFC3339), Help: "check the clock; the platform may need a new PCK certificate",
		})
	}
	refuse := func(field, want, got, help string) {
		out = append(out, tee.Failure{Check: v.check("qe_report"), Field: field, Expected: want, Got: got, Help: help})
	}
	sum := sha256.Sum256(s.QEReport)
	if !verifyRaw(pckKey, sum[:], s.QESignature[:]) {
		refuse("qe_report_signature", "a signature by the PCK certificate's key over the QE report", "another one", "the certificate belongs to another platform or patch level, or the quote was changed")
	}
	if e.qe, err = dcapquote.ParseEnclaveReport(s.QEReport); err != nil {
		return nil, append(out, tee.Failure{Check: v.check("qe_report"), Field: "qe_report", Got: err.Error()})
	}
	bound := sha256.Sum256(append(bytes.Clone(s.AttestationKey[:]), s.QEAuthData...))
	if want := append(bound[:], make([]byte, 32)...); !bytes.Equal(e.qe.ReportData[:], want) {
		refuse("qe_report.report_data", fmt.Sprintf("%x", want), fmt.Sprintf("%x", e.qe.ReportData), "the quoting enclave vouches for another attestation key")
	}
	if e.qe.Flags&dcapquote.AttributeDebug != 0 || e.qe.Flags&dcapquote.AttributeInit == 0 || !e.qe.ReservedZero() {
		refuse("qe_report.attributes", "an initialised quoting enclave without the debug attribute, reserved bytes zero", fmt.Sprintf("attributes %#x", e.qe.Flags), "this is no production quoting enclave")
	}
	e.key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, s.AttestationKey[:]...))
	if err != nil {
		refuse("attestation_key", "a point on P-256", "none", "")
		return nil, out
	}
	return e, out
}

// openChain reads the PCK certificate's chain and checks it, dates aside.
func (v *Verifier) openChain(text []byte) (*endorsement, *tee.Failure) {
	fail := func(check string, err error) (*endorsement, *tee.Failure) {
		return nil, &tee.Failure{Check: v.check(check), Field: "certification_data", Expected: "a PCK certificate, its issuer, and a trusted root", Got: err.Error()}
	}
	certs, root, err := splitChain(text, 3, v.roots)
	if err != nil {
		if unknown, ok := errors.AsType[*unknownRootError](err); ok {
			return nil, &tee.Failure{Check: v.check("chain"), Field: "certification_data", Expected: "a chain to one of " + unknown.want, Got: unknown.ends(), Help: "the quote is not from hardware of Intel; a development root has to be configured to be accepted"}
		}
		return fail("certificate", err)
	}
	e := &endorsement{certs: certs, root: root}
	if e.ca, err = pckIssuer(certs[1], root); err != nil {
		return fail("chain", err)
	}
	if err := leafOf(certs[0], namePCK); err != nil {
		return fail("certificate", err)
	}
	if err := issued(certs[0], certs[1]); err != nil {
		return fail("chain", err)
	}
	if e.pck, err = dcapquote.ParsePCK(certs[0]); err != nil {
		return fail("certificate", err)
	}
	e.from, e.to = window(certs)
	return e, nil
}
