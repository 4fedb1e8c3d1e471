// Package snpverify verifies evidence of AMD SEV-SNP.
//
// It checks everything that is not a matter of opinion: the report's
// signature, the chain from the chip's key to AMD's root, that the certificate
// is for the reported patch levels and for this chip, that the report was
// asked for at VMPL 0 by a guest that can neither be debugged nor migrated, and
// the binding to report data and initdata. Which launch measurements are good
// is for an appraisal policy to say; it judges the claims.
//
// The cryptography is google/go-sev-guest's: its report format and signature
// check, and AMD's certificates as it embeds them, pinned once more by digest.
//
// # Checks
//
// A [tee.Failure] names one of: snp.format, snp.signer, snp.generation,
// snp.certificate, snp.chain, snp.revocation, snp.signature, snp.tcb,
// snp.minimum_tcb, snp.chip_id, snp.vmpl, snp.debug, snp.migration,
// snp.report_data, snp.host_data.
//
// # Claims
//
// As the confidential containers' attestation service names them:
// policy_abi_major, policy_abi_minor, reported_tcb_bootloader, reported_tcb_tee,
// reported_tcb_snp, reported_tcb_microcode (numbers); policy_smt_allowed,
// policy_migrate_ma, policy_debug_allowed, policy_single_socket,
// platform_tsme_enabled, platform_smt_enabled (booleans); measurement,
// report_data, init_data, chip_id (lower-case hex). init_data is HOST_DATA.
//
// In addition: simulated (boolean: the chain ends in a development root),
// development_root and development_root_sha256 (only then), generation, signer
// ("VCEK" or "VLEK"), csp_id (VLEK only), version, guest_svn, vmpl (numbers),
// host_data, family_id, image_id, id_key_digest, author_key_digest, report_id,
// report_id_ma (hex), current_version, committed_version ("1.55.40"),
// {committed,launch,current}_tcb_{bootloader,tee,snp,microcode}, *_tcb_fmc on
// Turin, and launch_mit_vector, current_mit_vector (hex, report version 5).
package snpverify

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// DevelopmentRoot is a root that is not AMD's.
type DevelopmentRoot struct {
	// Name appears in claims and errors.
	Name string
	// PEM is the intermediate and then the root certificate, as the software
	// TEE exports them.
	PEM []byte
}

// Options configure a verifier. The zero value takes real hardware only.
type Options struct {
	// Now is the clock for certificate validity. Nil: time.Now.
	Now func() time.Time
	// DevelopmentRoots are tried where a chain does not end in AMD's root.
	// Evidence under them is Simulated.
	DevelopmentRoots []DevelopmentRoot
	// AllowDebug accepts guests whose memory the host can read; the claim
	// policy_debug_allowed then says so.
	AllowDebug bool
	// MinimumTCB holds, per generation, the least patch levels: the reported,
	// the committed and the launch TCB must reach each of them. Nil: no
	// minimum. Where it is not nil, a generation that it lacks is refused.
	MinimumTCB map[snp.Generation]snp.TCB
	// Getter fetches from AMD's key service what evidence lacks. Nil: nothing
	// is fetched, and evidence without its certificate is refused.
	Getter Getter
	// CheckRevocation demands AMD's current revocation list; it needs Getter.
	// Development roots have no such list.
	CheckRevocation bool
}

type verifier struct {
	now         func() time.Time
	amd         map[snp.Generation]*root
	development []*root
	options     Options
	chains      chains
	collateral  collateral
}

// New returns a verifier of SNP evidence. It is safe for concurrent use.
func New(o Options) (tee.Verifier, error) {
	v := &verifier{now: o.Now, options: o, amd: map[snp.Generation]*root{}}
	if v.now == nil {
		v.now = time.Now
	}
	if o.CheckRevocation && o.Getter == nil {
		return nil, errors.New("snpverify: CheckRevocation needs a Getter: revocation lists come from AMD's key service")
	}
	for _, a := range amdRoots() {
		r, err := a.load()
		if err != nil {
			return nil, err
		}
		v.amd[a.generation] = r
	}
	for _, d := range o.DevelopmentRoots {
		r, err := loadDevelopment(d)
		if err != nil {
			return nil, err
		}
		v.development = append(v.development, r)
	}
	for g := range o.MinimumTCB {
		if v.amd[g] == nil {
			return nil, fmt.Errorf("snpverify: minimum TCB: generation: expected Milan, Genoa or Turin, got %q", g)
		}
	}
	v.collateral = collateral{get: o.Getter, now: v.now}
	return v, nil
}

// TEE implements [tee.Verifier].
func (*verifier) TEE() tee.Name { return tee.SNP }

// Verify implements [tee.Verifier].
func (v *verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if want.ReportData == nil {
		return nil, errors.New("snpverify: the expected report data is nil; evidence that is bound to nothing proves nothing")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := snp.ParseEvidence(evidence)
	if err != nil {
		return nil, refused(tee.Failure{Check: "snp.format", Field: "evidence", Expected: "SNP evidence of report version 2 to 5", Got: err.Error()})
	}
	raw, err := e.Report()
	if err != nil {
		return nil, refused(tee.Failure{Check: "snp.format", Field: "attestation_report", Got: err.Error()})
	}
	if err := abi.ValidateReportFormat(raw); err != nil {
		return nil, refused(tee.Failure{Check: "snp.format", Field: "attestation_report", Expected: "a report with known policy bits", Got: err.Error()})
	}
	r := &e.AttestationReport
	failures := v.checkReport(r, want)
	endorsement, more, err := v.checkEndorsement(ctx, e, raw)
	if err != nil {
		return nil, err
	}
	if failures = append(more, failures...); len(failures) > 0 {
		return nil, refused(failures...)
	}
	return &tee.Result{
		TEE: tee.SNP, Class: tee.CPU, Claims: claims(r, endorsement),
		ReportData: r.ReportData[:], InitData: r.HostData[:],
		Simulated: endorsement.root.development,
	}, nil
}

func refused(failures ...tee.Failure) error { return &tee.Error{TEE: tee.SNP, Failures: failures} }

// endorsement is who vouches for a report.
type endorsement struct {
	certificate *chipCertificate
	generation  snp.Generation
	root        *root
}

// checkEndorsement checks that a genuine chip signed raw. An error that is not
// a failure means that it could not be found out.
func (v *verifier) checkEndorsement(ctx context.Context, e *snp.Evidence, raw []byte) (*endorsement, []tee.Failure, error) {
	r := &e.AttestationReport
	signer := r.Signer()
	if signer != snp.SignerVCEK && signer != snp.SignerVLEK {
		return nil, []tee.Failure{{Check: "snp.signer", Field: "key_info", Expected: "a report signed with the VCEK or the VLEK", Got: signer.String()}}, nil
	}
	g := r.Generation()
	if g == "" && r.Version >= 3 {
		return nil, []tee.Failure{{
			Check: "snp.generation", Field: "cpuid_fam_id, cpuid_mod_id", Expected: "a Milan, Genoa or Turin processor",
			Got:  fmt.Sprintf("family %#x, model %#x", *r.CPUIDFamily, *r.CPUIDModel),
			Help: "this processor generation is not known to the verifier",
		}}, nil
	}
	der, failure, err := v.chipCertificate(ctx, e, g)
	if failure != nil || err != nil {
		return nil, failure, err
	}
	cert, err := parseChipCertificate(der, signer)
	if err != nil {
		return nil, []tee.Failure{{Check: "snp.certificate", Field: "cert_chain." + signer.String(), Expected: "a certificate as AMD issues them", Got: err.Error()}}, nil //nolint:nilerr // it is the failure
	}
	if g == "" { // version 2 does not name the processor
		if g = cert.generation(); g == "" {
			return nil, []tee.Failure{{Check: "snp.generation", Field: "cert_chain." + signer.String(), Expected: "a Milan, Genoa or Turin processor", Got: fmt.Sprintf("product %.64q", cert.product)}}, nil
		}
	}
	out := &endorsement{certificate: cert, generation: g}
	var failures []tee.Failure
	if err := verify.SnpReportSignature(raw, cert.x509); err != nil {
		failures = append(failures, tee.Failure{
			Check: "snp.signature", Field: "signature", Expected: "a signature by the certificate's key over the report", Got: err.Error(),
			Help: "the report was changed, or the certificate belongs to another chip or patch level",
		})
	}
	root, more := v.findRoot(cert.x509, signer, g, e)
	out.root = root
	failures = append(failures, more...)
	failures = append(failures, checkChip(r, cert)...)
	failures = append(failures, v.checkMinimum(r, g)...)
	if v.options.CheckRevocation && root != nil && !root.development {
		more, err := v.checkRevocation(ctx, root, signer, g)
		if err != nil {
			return nil, nil, err
		}
		failures = append(failures, more...)
	}
	return out, failures, nil
}

// chipCertificate finds the certificate of the key that signed.
func (v *verifier) chipCertificate(ctx context.Context, e *snp.Evidence, g snp.Generation) ([]byte, []tee.Failure, error) {
	r := &e.AttestationReport
	kind := snp.CertType(r.Signer().String())
	if c, ok := e.Certificate(kind); ok {
		return c.Data, nil, nil
	}
	missing := tee.Failure{
		Check: "snp.chain", Field: "cert_chain", Expected: "the " + string(kind) + " certificate", Got: "none",
		Help: "have the host supply it with the report",
	}
	url := certificateURL(r, g)
	switch {
	case kind == snp.CertVLEK:
		// AMD gives a VLEK certificate to the cloud provider only.
	case v.options.Getter == nil:
		missing.Help += ", or let the trustee fetch it from AMD's key service"
	case url == "":
		missing.Help += "; AMD's key service cannot be asked, since the report does not name the chip or its generation"
	default:
		der, err := v.collateral.certificate(ctx, url)
		if err != nil {
			return nil, nil, fmt.Errorf("snpverify: fetching the VCEK certificate: %w", err)
		}
		return der, nil, nil
	}
	return nil, []tee.Failure{missing}, nil
}

// checkChip compares what the report says about the platform with what the
// certificate was issued for.
func checkChip(r *snp.Report, c *chipCertificate) []tee.Failure {
	var out []tee.Failure
	if !c.tcb.Equal(r.ReportedTCB) {
		out = append(out, tee.Failure{
			Check: "snp.tcb", Field: "reported_tcb", Expected: c.tcb.String() + " (certificate)", Got: r.ReportedTCB.String(),
			Help: "the certificate is for another patch level; fetch the one for the reported TCB",
		})
	}
	// A host may mask the identifier: then the certificate alone tells the chip.
	masked := r.ChipID == [64]byte{}
	if r.Signer() == snp.SignerVCEK && !masked && !c.isChip(r.ChipID) {
		out = append(out, tee.Failure{
			Check: "snp.chip_id", Field: "chip_id", Expected: hex.EncodeToString(c.hwid) + " (certificate)", Got: hex.EncodeToString(r.ChipID[:]),
			Help: "the certificate is that of another chip",
		})
	}
	return out
}

// checkMinimum holds the patch levels against the configured minimum.
func (v *verifier) checkMinimum(r *snp.Report, g snp.Generation) []tee.Failure {
	if v.options.MinimumTCB == nil {
		return nil
	}
	minimum, ok := v.options.MinimumTCB[g]
	if !ok {
		return []tee.Failure{{
			Check: "snp.minimum_tcb", Field: "generation", Expected: "a generation with a configured minimum TCB", Got: string(g),
			Help: "configure a minimum TCB for this generation",
		}}
	}
	var out []tee.Failure
	for _, t := range []struct {
		field string
		tcb   snp.TCB
	}{{"reported_tcb", r.ReportedTCB}, {"committed_tcb", r.CommittedTCB}, {"launch_tcb", r.LaunchTCB}} {
		if !t.tcb.AtLeast(minimum) {
			out = append(out, tee.Failure{
				Check: "snp.minimum_tcb", Field: t.field, Expected: "at least " + minimum.String(), Got: t.tcb.String(),
				Help: "the host needs newer firmware or microcode; a guest launched before the update has to be started again",
			})
		}
	}
	return out
}

// checkReport checks the fields that need no certificate.
func (v *verifier) checkReport(r *snp.Report, want tee.Expected) []tee.Failure {
	var out []tee.Failure
	if r.VMPL != 0 {
		out = append(out, tee.Failure{
			Check: "snp.vmpl", Field: "vmpl", Expected: "0", Got: fmt.Sprint(r.VMPL),
			Help: "less privileged software in the guest asked for this report",
		})
	}
	if r.Policy&snp.PolicyDebug != 0 && !v.options.AllowDebug {
		out = append(out, tee.Failure{
			Check: "snp.debug", Field: "policy", Expected: "debugging not allowed", Got: fmt.Sprintf("policy %#x, which lets the host read the guest's memory", r.Policy),
			Help: "launch the guest without the debug bit",
		})
	}
	if r.Policy&snp.PolicyMigrateMA != 0 || !noAgent(r.ReportIDMA) {
		out = append(out, tee.Failure{
			Check: "snp.migration", Field: "policy, report_id_ma", Expected: "no migration agent", Got: fmt.Sprintf("policy %#x, agent %x", r.Policy, r.ReportIDMA),
			Help: "a migration agent can move the guest's memory to another machine; launch the guest without one",
		})
	}
	if data := tee.Fit(want.ReportData, len(r.ReportData)); subtle.ConstantTimeCompare(data, r.ReportData[:]) != 1 {
		out = append(out, tee.Failure{
			Check: "snp.report_data", Field: "report_data", Expected: hex.EncodeToString(data), Got: hex.EncodeToString(r.ReportData[:]),
			Help: "the evidence was made for another handshake or another key",
		})
	}
	if want.InitData != nil {
		if data := tee.Fit(want.InitData, len(r.HostData)); subtle.ConstantTimeCompare(data, r.HostData[:]) != 1 {
			out = append(out, tee.Failure{
				Check: "snp.host_data", Field: "host_data", Expected: hex.EncodeToString(data), Got: hex.EncodeToString(r.HostData[:]),
				Help: "the guest was launched with other initdata than it presents",
			})
		}
	}
	return out
}

// noAgent says whether an identifier is that of no migration agent: all ones,
// in early firmware all zeros.
func noAgent(id [32]byte) bool {
	if id == [32]byte{} {
		return true
	}
	for _, b := range id {
		if b != 0xFF {
			return false
		}
	}
	return true
}
