// Package tpmverify verifies quotes of a TPM 2.0.
//
// It checks the quote's signature by the attestation key that comes with it, the
// digest of the registers, and what the quote is bound to. A quote proves that
// somebody has that key, and nothing more, until the key is known to be a
// TPM's: anybody can make a key and sign a structure that looks like a quote.
// Either Options says which keys are trusted, or the appraisal policy does, by
// the claim ak_public (built-in policies compare it with the reference value
// trusted_aks). Without one of the two the evidence is worth nothing.
//
// What a TPM reports depends on the firmware before it, and a discrete TPM can
// be cut off from the machine that it speaks for. It is no confidential
// computing platform.
//
// Verified against a published quote, and against quotes of a software TPM; not
// against discrete hardware.
//
// # Checks
//
// A [tee.Failure] names one of: tpm.format, tpm.key, tpm.ak (not a trusted key),
// tpm.ak_certificate, tpm.signature, tpm.quote, tpm.pcr_selection,
// tpm.pcr_digest, tpm.report_data, tpm.init_data, tpm.event_log (also a warning:
// of registers 8 and above, which others than the firmware extend).
//
// # Binding
//
// The nonce is the first 32 bytes of the report data, padded with zeros; a nonce
// of 64 bytes, as attesters sent it until 2025, is compared with 64. Initdata is
// bound by register 8, which is SHA-256(32 zeros ‖ digest), so that its digest
// has to be SHA-256.
//
// # Claims
//
// As the confidential containers' attestation service names them: pcr00 to
// pcr23, init_data (register 8) and report_data (the nonce) in lower-case hex,
// and ak_public (base64 of the key, as in the evidence). Registers that were
// not quoted are left out.
//
// In addition: ak_sha256 (hex, of the key's DER), ak_trusted (boolean: one of
// Options.TrustedAKs, or certified), ak_certified (boolean: a certificate under
// Options.AKRoots), ak_certificate_subject (only then), signature_scheme
// ("RSASSA-SHA256"), qualified_signer (hex), clock (milliseconds), clock_safe
// (boolean), reset_count, restart_count (numbers), firmware_version (hex,
// 8 bytes), and, where the evidence has an event log, uefi_event_logs: those of
// its events that were measured into registers whose value they account for, in
// the form of tee/eventlog.
package tpmverify

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tpm"
)

// Options configure a verifier.
type Options struct {
	// Now is the clock for the validity of certificates. Nil: time.Now.
	Now func() time.Time
	// TrustedAKs are attestation keys (SubjectPublicKeyInfo, DER) that are
	// known to be a TPM's. Where both TrustedAKs and AKRoots are nil, any key is
	// accepted and the claims say which one it was: a policy has to judge it.
	// Otherwise the key must be in TrustedAKs or certified under AKRoots; an
	// empty list that is not nil trusts none.
	TrustedAKs [][]byte
	// AKRoots are certificates (DER) of authorities that certify attestation
	// keys of TPMs and nothing else.
	AKRoots [][]byte
	// RequiredPCRs has bit i set for each register i that a quote must cover.
	// Zero: all 24, as all known attesters quote.
	RequiredPCRs uint32
}

// Verifier verifies TPM evidence. It is safe for concurrent use.
type Verifier struct {
	now      func() time.Time
	trusted  map[[sha256.Size]byte]bool
	roots    *x509.CertPool
	anyKey   bool
	required uint32
}

// New returns a verifier. It fails where the options hold what is no key or
// certificate.
func New(o Options) (*Verifier, error) {
	v := &Verifier{now: o.Now, required: o.RequiredPCRs, trusted: map[[sha256.Size]byte]bool{}, anyKey: o.TrustedAKs == nil && o.AKRoots == nil}
	if v.now == nil {
		v.now = time.Now
	}
	if v.required == 0 {
		v.required = AllPCRs
	}
	if v.required&^AllPCRs != 0 {
		return nil, fmt.Errorf("tpmverify: RequiredPCRs: expected registers 0 to 23, got %#x", o.RequiredPCRs)
	}
	for i, der := range o.TrustedAKs {
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			return nil, fmt.Errorf("tpmverify: TrustedAKs[%d]: %w", i, err)
		}
		v.trusted[sha256.Sum256(der)] = true
	}
	for i, der := range o.AKRoots {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("tpmverify: AKRoots[%d]: %w", i, err)
		}
		if v.roots == nil {
			v.roots = x509.NewCertPool()
		}
		v.roots.AddCert(c)
	}
	return v, nil
}

// TEE implements [tee.Verifier].
func (*Verifier) TEE() tee.Name { return tee.TPM }

// Verify implements [tee.Verifier].
func (v *Verifier) Verify(ctx context.Context, raw json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := tpm.ParseEvidence(raw)
	if err != nil {
		return nil, refuse("evidence", err)
	}
	key, err := x509.ParsePKIXPublicKey(e.AKPublic)
	if err != nil {
		return nil, refuse("ak_public", err)
	}
	// One key has one encoding: what is trusted is compared by its bytes.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || string(again) != string(e.AKPublic) {
		return nil, refuse("ak_public", errors.New("not the DER encoding of the key"))
	}
	sig, err := tpm.ParseSignature(e.Quote.Signature)
	if err != nil {
		return nil, refuse("tpm_quote.signature", err)
	}
	l := checks.New(tee.TPM, false)
	certified := v.certificate(l, e, key)
	sum := sha256.Sum256(e.AKPublic)
	if !v.anyKey && !v.trusted[sum] && certified == nil {
		l.Fail(tee.Failure{
			Check: "tpm.ak", Field: "ak_public", Expected: "a key that is trusted to be a TPM's", Got: "key with SHA-256 " + hex.EncodeToString(sum[:]),
			Help: "anybody can make a key: if this one was read from the machine's TPM, add it to the trusted keys",
		})
	}
	a := CheckQuote(l, "tpm", key, sig, e.Quote.Message, &e.Quote.PCRs, v.required)
	if a == nil {
		return nil, l.Err()
	}
	if n := len(a.ExtraData); n != tpm.NonceSize && n != tpm.OldNonceSize {
		l.Fail(tee.Failure{Check: "tpm.report_data", Field: "extraData", Expected: "a nonce of 32 bytes", Got: fmt.Sprintf("%d bytes", n), Help: "the quote was made for another protocol"})
	} else {
		l.ReportData("tpm", "extraData", a.ExtraData, want)
	}
	CheckInitData(l, "tpm.init_data", a, &e.Quote.PCRs, want)
	var events []any
	if e.EventLog != nil {
		events = checkEventLog(l, e.EventLog, a, &e.Quote.PCRs)
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	claims := v.claims(e, a, sig, sum)
	if e.EventLog != nil {
		claims["uefi_event_logs"] = events
	}
	claims["ak_certified"] = certified != nil
	claims["ak_trusted"] = certified != nil || v.trusted[sum]
	if certified != nil {
		claims["ak_certificate_subject"] = certified.Subject.String()
	}
	r := &tee.Result{TEE: tee.TPM, Class: tee.CPU, Claims: claims, ReportData: a.ExtraData, Warnings: l.Warnings()}
	if a.Selections[0].Has(tpm.InitDataPCR) {
		r.InitData = e.Quote.PCRs[tpm.InitDataPCR][:]
	}
	return r, nil
}

func (v *Verifier) claims(e *tpm.Evidence, a *tpm.Attest, sig *tpm.Signature, ak [sha256.Size]byte) map[string]any {
	out := PCRClaims(a, &e.Quote.PCRs)
	if eight, ok := out["pcr08"]; ok {
		out["init_data"] = eight
	}
	out["report_data"] = hex.EncodeToString(a.ExtraData)
	out["ak_public"] = base64.StdEncoding.EncodeToString(e.AKPublic)
	out["ak_sha256"] = hex.EncodeToString(ak[:])
	out["signature_scheme"] = sig.String()
	out["qualified_signer"] = hex.EncodeToString(a.QualifiedSigner)
	out["clock"] = a.Clock
	out["clock_safe"] = a.Safe
	out["reset_count"] = a.ResetCount
	out["restart_count"] = a.RestartCount
	out["firmware_version"] = fmt.Sprintf("%016x", a.FirmwareVersion)
	return out
}

func refuse(field string, err error) error {
	return checks.Refuse(tee.TPM, tee.Failure{Check: "tpm.format", Field: field, Got: err.Error()})
}
