// Package sgxverify verifies evidence of Intel SGX, DCAP quotes of version 3.
//
// It checks everything that is not a matter of opinion: the quote's signature,
// the quoting enclave that made the key, the chain to Intel's root, revocation,
// the quoting enclave's identity, that the enclave is no debug enclave, and the
// binding to report data and initdata. Which enclaves and which TCB statuses are
// good is for an appraisal policy to say; it judges the claims. A revoked patch
// level and one that Intel does not list are refused all the same.
//
// Tested with a published quote of a real platform, and with platforms of a
// made-up Intel for what that does not show; not on hardware.
//
// # Checks
//
// A [tee.Failure] names one of: sgx.format, sgx.certificate, sgx.chain,
// sgx.revocation, sgx.qe_report, sgx.qe_identity, sgx.signature, sgx.tcb,
// sgx.collateral, sgx.attributes, sgx.debug, sgx.report_data, sgx.config_id.
// Warnings: sgx.debug and sgx.collateral where options allow it, and sgx.tcb
// for every status but UpToDate.
//
// # Claims
//
// As the confidential containers' attestation service names them, byte strings
// in lower-case hex in their order on the wire; mind the dots inside of names:
//
//   - header.{version, att_key_type, att_key_data_0, qe_svn, pce_svn,
//     vendor_id, user_data}
//   - body.{cpu_svn, misc_select, reserved1, isv_ext_prod_id,
//     "attributes.flags", "attributes.xfrm", mr_enclave, reserved2, mr_signer,
//     reserved3, config_id, isv_prod_id, isv_svn, config_svn, reserved4,
//     isv_family_id, report_data}
//   - report_data, init_data (CONFIGID)
//   - those of the platform and of Intel's collateral, see
//     [dcap.Verifier.Verify]; among them tcb_status, advisory_ids, simulated
package sgxverify

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/sgx"
)

// Options configure a verifier. The zero value takes real hardware only, and
// lacks the collateral to judge it.
type Options struct {
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// DevelopmentRoots are accepted beside Intel's root; evidence under them
	// is Simulated.
	DevelopmentRoots []dcap.DevelopmentRoot
	// Collateral gives Intel's documents. Nil: there are none.
	Collateral dcap.Collateral
	// AllowDebug makes a debug enclave a warning.
	AllowDebug bool
	// AllowStaleCollateral makes it a warning where collateral is past its date:
	// the platform is judged by what Intel said then.
	AllowStaleCollateral bool
	// AllowMissingCollateral makes it a warning, too, where there is none at all:
	// a revoked platform, and one at any patch level, then counts as genuine.
	AllowMissingCollateral bool
}

// Verifier judges SGX evidence. It is safe for concurrent use.
type Verifier struct {
	options Options
	dcap    *dcap.Verifier
}

// New returns a verifier.
func New(o Options) (*Verifier, error) {
	v, err := dcap.New(dcap.Options{
		Kind: dcap.SGX, Now: o.Now, Collateral: o.Collateral,
		AllowStaleCollateral: o.AllowStaleCollateral || o.AllowMissingCollateral, DevelopmentRoots: o.DevelopmentRoots,
	})
	if err != nil {
		return nil, fmt.Errorf("sgxverify: %w", err)
	}
	return &Verifier{options: o, dcap: v}, nil
}

// TEE implements [tee.Verifier].
func (*Verifier) TEE() tee.Name { return tee.SGX }

// Verify implements [tee.Verifier].
func (v *Verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := sgx.ParseEvidence(evidence)
	if err != nil {
		return nil, checks.Refuse(tee.SGX, tee.Failure{Check: "sgx.format", Field: "evidence", Expected: "SGX evidence", Got: err.Error()})
	}
	q, err := sgx.ParseQuote(e.Quote)
	if err != nil {
		return nil, checks.Refuse(tee.SGX, tee.Failure{Check: "sgx.format", Field: "quote", Expected: "an SGX quote of version 3", Got: err.Error()})
	}
	l := checks.New(tee.SGX, v.options.AllowMissingCollateral)
	v.checkEnclave(l, q.Report)
	l.ReportData("sgx", "report_data", q.Report.ReportData[:], want)
	l.InitData("sgx.config_id", "config_id", q.Report.ConfigID[:], want)
	claims := quoteClaims(q)
	simulated := false
	if p := v.dcap.Verify(ctx, l, dcap.Quote{Signed: q.Signed, Signature: q.Signature}); p != nil {
		maps.Copy(claims, p.Claims)
		simulated = p.Root.Development
	}
	if err := l.Err(); err != nil {
		if ctx.Err() != nil && !l.Failed() {
			return nil, ctx.Err() // collateral is lacking because nobody waited for it
		}
		return nil, err
	}
	return &tee.Result{
		TEE: tee.SGX, Class: tee.CPU, Claims: claims, ReportData: q.Report.ReportData[:], InitData: q.Report.ConfigID[:],
		Simulated: simulated, Warnings: l.Warnings(),
	}, nil
}

// checkEnclave checks how the enclave was made, as far as it can only be wrong.
func (v *Verifier) checkEnclave(l *checks.List, r *dcapquote.EnclaveReport) {
	flags := fmt.Sprintf("%#016x", r.Flags)
	if r.Flags&dcapquote.AttributeDebug != 0 {
		l.FailUnless(v.options.AllowDebug, tee.Failure{
			Check: "sgx.debug", Field: "attributes.flags", Expected: "no debug attribute", Got: flags,
			Help: "the host can read the enclave's memory: build and launch it as a production enclave",
		})
	}
	if r.Flags&dcapquote.AttributeInit == 0 || !r.ReservedZero() {
		l.Fail(tee.Failure{Check: "sgx.attributes", Field: "attributes.flags, reserved", Expected: "an initialised enclave, reserved bytes zero", Got: flags})
	}
}

func claim(b []byte) string { return hex.EncodeToString(b) }

func claim16(n uint16) string { return claim(binary.LittleEndian.AppendUint16(nil, n)) }
func claim32(n uint32) string { return claim(binary.LittleEndian.AppendUint32(nil, n)) }
func claim64(n uint64) string { return claim(binary.LittleEndian.AppendUint64(nil, n)) }

// quoteClaims are documented in the package comment.
func quoteClaims(q *sgx.Quote) map[string]any {
	qe, pce, r := q.QESVN(), q.PCESVN(), q.Report
	return map[string]any{
		"header": map[string]any{
			"version":        claim16(q.Header.Version),
			"att_key_type":   claim16(q.Header.AttestationKeyType),
			"att_key_data_0": claim32(q.Header.TEEType),
			"qe_svn":         claim(qe[:]),
			"pce_svn":        claim(pce[:]),
			"vendor_id":      claim(q.Header.VendorID[:]),
			"user_data":      claim(q.Header.UserData[:]),
		},
		"body": map[string]any{
			"cpu_svn":          claim(r.CPUSVN[:]),
			"misc_select":      claim32(r.MiscSelect),
			"reserved1":        claim(r.Reserved1[:]),
			"isv_ext_prod_id":  claim(r.ISVExtProdID[:]),
			"attributes.flags": claim64(r.Flags),
			"attributes.xfrm":  claim64(r.XFRM),
			"mr_enclave":       claim(r.MREnclave[:]),
			"reserved2":        claim(r.Reserved2[:]),
			"mr_signer":        claim(r.MRSigner[:]),
			"reserved3":        claim(r.Reserved3[:]),
			"config_id":        claim(r.ConfigID[:]),
			"isv_prod_id":      claim16(r.ISVProdID),
			"isv_svn":          claim16(r.ISVSVN),
			"config_svn":       claim16(r.ConfigSVN),
			"reserved4":        claim(r.Reserved4[:]),
			"isv_family_id":    claim(r.ISVFamilyID[:]),
			"report_data":      claim(r.ReportData[:]),
		},
		"report_data": claim(r.ReportData[:]),
		"init_data":   claim(r.ConfigID[:]),
	}
}
