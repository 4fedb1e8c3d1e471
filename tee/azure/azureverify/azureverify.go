package azureverify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// ReportVerifier judges the SNP report; *snpverify.Verifier does.
type ReportVerifier interface {
	VerifyReport(ctx context.Context, l *checks.List, report []byte, certs []snp.Certificate) (*snp.Report, map[string]any, bool)
}

// QuoteVerifier judges the TDX quote; *tdxverify.Verifier does.
type QuoteVerifier interface {
	VerifyQuote(ctx context.Context, l *checks.List, quote []byte) (*tdx.Quote, map[string]any, bool)
}

// Options configure a verifier.
type Options struct {
	// RequireV2 refuses evidence of versions 0 and 1, whose hardware report may
	// be of any age.
	RequireV2 bool
	// AllowMissingCollateral makes a warning of what could not be checked for
	// want of collateral. What is stale is for the hardware's verifier to judge,
	// by an option of its own.
	AllowMissingCollateral bool
}

// hardware judges the hardware's part of the evidence. The report data is nil
// where there is none.
type hardware func(ctx context.Context, l *checks.List, e *azure.Evidence, r *azure.Report) (reportData []byte, claims map[string]any, simulated bool)

type verifier struct {
	name     tee.Name
	options  Options
	hardware hardware
}

// NewSNP returns a verifier of az-snp-vtpm evidence. v is shared with the
// verifier of plain SNP evidence, so that a chip's chain is verified once.
func NewSNP(v ReportVerifier, o Options) tee.Verifier {
	return &verifier{tee.AzureSNPVTPM, o, snpHardware(v)}
}

// NewTDX returns a verifier of az-tdx-vtpm evidence. v is shared with the
// verifier of plain TDX evidence.
func NewTDX(v QuoteVerifier, o Options) tee.Verifier {
	return &verifier{tee.AzureTDXVTPM, o, tdxHardware(v)}
}

// TEE implements [tee.Verifier].
func (v *verifier) TEE() tee.Name { return v.name }

func (v *verifier) check(name string) string { return string(v.name) + "." + name }

// Verify implements [tee.Verifier].
func (v *verifier) Verify(ctx context.Context, raw json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := azure.ParseEvidence(v.name, raw)
	if err != nil {
		return nil, v.refuse("format", "evidence", err)
	}
	r, err := azure.ParseReport(e.HCLReport)
	if err != nil {
		return nil, v.refuse("hcl_report", "hcl_report", err)
	}
	if got := r.Type.TEE(); got != v.name {
		return nil, v.refuse("hcl_report", "hcl_report.report_type", fmt.Errorf("a report of %s", got))
	}
	runtime, err := azure.ParseRuntimeClaims(r.VarData)
	if err != nil {
		return nil, v.refuse("hcl_report", "hcl_report.var_data", err)
	}
	l := checks.New(v.name, v.options.AllowMissingCollateral)
	v.checkVersion(l, e)
	reportData, claims, simulated := v.hardware(ctx, l, e, r)
	v.checkVarData(l, r, reportData)
	sig := &tpm.Signature{Scheme: tpm.AlgRSASSA, Hash: tpm.AlgSHA256, RSA: e.Quote.Signature}
	a := tpmverify.CheckQuote(l, string(v.name), runtime.AK, sig, e.Quote.Message, &e.Quote.PCRs, tpmverify.AllPCRs)
	if a != nil {
		v.checkBinding(l, e, runtime, a, want)
		tpmverify.CheckInitData(l, v.check("init_data"), a, &e.Quote.PCRs, want)
	}
	if err := l.Err(); err != nil {
		if ctx.Err() != nil && !l.Failed() {
			return nil, ctx.Err() // collateral is lacking because nobody waited for it
		}
		return nil, err
	}
	v.addClaims(claims, e, r, runtime, a, reportData)
	claims["simulated"] = simulated
	return &tee.Result{
		TEE: v.name, Class: tee.CPU, Claims: claims, ReportData: a.ExtraData, InitData: e.Quote.PCRs[tpm.InitDataPCR][:],
		Simulated: simulated, Warnings: l.Warnings(),
	}, nil
}

func (v *verifier) refuse(check, field string, err error) error {
	return checks.Refuse(v.name, tee.Failure{Check: v.check(check), Field: field, Expected: "evidence of " + string(v.name), Got: err.Error()})
}

func (v *verifier) checkVersion(l *checks.List, e *azure.Evidence) {
	if e.Version >= 2 {
		return
	}
	l.FailUnless(!v.options.RequireV2, tee.Failure{
		Check: v.check("version"), Field: "version", Expected: "2", Got: fmt.Sprint(e.Version),
		Help: "in older evidence only the quote is fresh, and nothing shows when the hardware made its report: update the guest's attester",
	})
}

// checkVarData compares the hardware's report data with the digest of the
// runtime claims: SHA-256, padded with zeros to 64 bytes.
func (v *verifier) checkVarData(l *checks.List, r *azure.Report, reportData []byte) {
	if reportData == nil {
		return
	}
	sum := sha256.Sum256(r.VarData)
	if want := tee.Fit(sum[:], len(reportData)); !bytes.Equal(want, reportData) {
		l.Fail(tee.Failure{
			Check: v.check("var_data"), Field: "hcl_report.var_data", Expected: "runtime claims with the digest " + hex.EncodeToString(reportData), Got: hex.EncodeToString(want),
			Help: "the TPM's key is not the one that the hardware vouches for",
		})
	}
}

// checkBinding compares the nonce, exactly, and in version 2 the user data.
func (v *verifier) checkBinding(l *checks.List, e *azure.Evidence, runtime *azure.RuntimeClaims, a *tpm.Attest, want tee.Expected) {
	switch {
	case want.ReportData == nil:
		l.ReportData(string(v.name), "extraData", a.ExtraData, want)
	case len(want.ReportData) == 0 || subtle.ConstantTimeCompare(want.ReportData, a.ExtraData) != 1:
		l.Fail(tee.Failure{
			Check: v.check("report_data"), Field: "extraData", Expected: hex.EncodeToString(want.ReportData) + " (nothing behind it)", Got: hex.EncodeToString(a.ExtraData),
			Help: "the evidence was made for another handshake or another key",
		})
	}
	bound := want.ReportData
	if bound == nil {
		bound = a.ExtraData
	}
	if e.Version >= 2 && (len(bound) == 0 || !bytes.HasPrefix(runtime.UserData, bound)) {
		l.Fail(tee.Failure{
			Check: v.check("user_data"), Field: "hcl_report.var_data: user-data", Expected: "data that begin with " + hex.EncodeToString(bound), Got: hex.EncodeToString(runtime.UserData),
			Help: "the hardware report was not made for this handshake: it may be of any age",
		})
	}
}

// addClaims adds what the TPM and the paravisor say.
func (v *verifier) addClaims(claims map[string]any, e *azure.Evidence, r *azure.Report, runtime *azure.RuntimeClaims, a *tpm.Attest, reportData []byte) {
	claims["tpm"] = tpmverify.PCRClaims(a, &e.Quote.PCRs)
	claims["init_data"] = hex.EncodeToString(e.Quote.PCRs[tpm.InitDataPCR][:])
	claims["report_data"] = hex.EncodeToString(a.ExtraData)
	claims["evidence_version"] = e.Version
	claims["hardware_report_fresh"] = e.Version >= 2
	claims["hcl_version"] = int(r.Version)
	claims["user_data"] = hex.EncodeToString(runtime.UserData)
	claims["hardware_report_data"] = hex.EncodeToString(reportData)
	if runtime.Configuration != nil {
		claims["vm_configuration"] = runtime.Configuration
	}
	claims["tpm_clock"] = a.Clock
	claims["tpm_reset_count"] = a.ResetCount
	claims["tpm_restart_count"] = a.RestartCount
	claims["tpm_firmware_version"] = fmt.Sprintf("%016x", a.FirmwareVersion)
}
