// Package tdxverify verifies evidence of Intel TDX.
//
// It checks everything that is not a matter of opinion: the quote's signature,
// the quoting enclave that made the key, the chain to Intel's root, revocation,
// the identities of quoting enclave and TDX module, that the TD is not under
// debugging, the event log against the registers, and the binding to report
// data and initdata. Which launch measurements and which TCB statuses are good
// is for an appraisal policy to say; it judges the claims. A revoked patch level
// and one that Intel does not list are refused all the same.
//
// The quote versions are 4 and 5, the TD reports 1.0 and 1.5. Tested with
// published quotes of real platforms and Intel's collateral of their day, and
// with platforms of a made-up Intel for what those do not show; not on hardware.
//
// # Checks
//
// A [tee.Failure] names one of: tdx.format, tdx.certificate, tdx.chain,
// tdx.revocation, tdx.qe_report, tdx.qe_identity, tdx.signature, tdx.module,
// tdx.tcb, tdx.collateral, tdx.debug, tdx.attributes, tdx.xfam, tdx.event_log,
// tdx.report_data, tdx.mr_config_id. Warnings: tdx.debug and tdx.collateral
// where options allow it; tdx.tcb for every status but UpToDate; tdx.attributes
// where the TD can be migrated, or where its host may inject virtualization
// exceptions for pages that it took away.
//
// # Claims
//
// As the confidential containers' attestation service names them, byte strings
// in lower-case hex in their order on the wire:
//
//   - quote.header.{version, att_key_type, tee_type, reserved, vendor_id, user_data}
//   - quote.body.{tcb_svn, mr_seam, mrsigner_seam, seam_attributes,
//     td_attributes, xfam, mr_td, mr_config_id, mr_owner, mr_owner_config,
//     rtmr_0, rtmr_1, rtmr_2, rtmr_3, report_data}; TD report 1.5: also
//     tee_tcb_svn2, mr_servicetd
//   - quote.type, quote.size: quote version 5
//   - td_attributes.{debug, septve_disable, protection_keys, key_locker,
//     perfmon} (booleans)
//   - report_data, init_data (MRCONFIGID)
//   - uefi_event_logs: where the evidence has an event log
//   - those of the platform and of Intel's collateral, see
//     [dcap.Verifier.Verify]; among them tcb_status, advisory_ids, simulated
//
// In addition td_attributes.{migratable, lass, icssd, tpa, profiling}, and boot,
// what the event log says was booted (see eventlog.Boot), where there is one.
package tdxverify

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/tdx"
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
	// AllowDebug makes a TD under debugging a warning.
	AllowDebug bool
	// AllowStaleCollateral makes it a warning where collateral is past its date:
	// the platform is judged by what Intel said then.
	AllowStaleCollateral bool
	// AllowMissingCollateral makes it a warning, too, where there is none at all:
	// a revoked platform, and one at any patch level, then counts as genuine.
	AllowMissingCollateral bool
}

// Verifier judges TDX evidence. It is safe for concurrent use.
type Verifier struct {
	options Options
	dcap    *dcap.Verifier
}

// New returns a verifier.
func New(o Options) (*Verifier, error) {
	v, err := dcap.New(dcap.Options{
		Kind: dcap.TDX, Now: o.Now, Collateral: o.Collateral,
		AllowStaleCollateral: o.AllowStaleCollateral || o.AllowMissingCollateral, DevelopmentRoots: o.DevelopmentRoots,
	})
	if err != nil {
		return nil, fmt.Errorf("tdxverify: %w", err)
	}
	return &Verifier{options: o, dcap: v}, nil
}

// TEE implements [tee.Verifier].
func (*Verifier) TEE() tee.Name { return tee.TDX }

// Verify implements [tee.Verifier].
func (v *Verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := tdx.ParseEvidence(evidence)
	if err != nil {
		return nil, checks.Refuse(tee.TDX, tee.Failure{Check: "tdx.format", Field: "evidence", Expected: "TDX evidence", Got: err.Error()})
	}
	l := checks.New(tee.TDX, v.options.AllowMissingCollateral)
	q, claims, simulated := v.VerifyQuote(ctx, l, e.Quote)
	if q == nil {
		return nil, l.Err()
	}
	l.ReportData("tdx", "report_data", q.ReportData[:], want)
	l.InitData("tdx.mr_config_id", "mr_config_id", q.MRConfigID[:], want)
	claims["report_data"] = claim(q.ReportData[:])
	claims["init_data"] = claim(q.MRConfigID[:])
	if e.EventLog != nil {
		maps.Copy(claims, checkEventLog(l, q, e.EventLog))
	}
	if err := l.Err(); err != nil {
		if ctx.Err() != nil && !l.Failed() {
			return nil, ctx.Err() // collateral is lacking because nobody waited for it
		}
		return nil, err
	}
	return &tee.Result{
		TEE: tee.TDX, Class: tee.CPU, Claims: claims, ReportData: q.ReportData[:], InitData: q.MRConfigID[:],
		Simulated: simulated, Warnings: l.Warnings(),
	}, nil
}

// VerifyQuote judges everything about a quote but report data, initdata and
// event log, and records into l what it finds out. The quote is nil where the
// bytes are none. Claims are the package's, without report_data, init_data and
// uefi_event_logs; simulated says that the chain ends in a development root.
func (v *Verifier) VerifyQuote(ctx context.Context, l *checks.List, quote []byte) (q *tdx.Quote, claims map[string]any, simulated bool) {
	q, err := tdx.ParseQuote(quote)
	if err != nil {
		l.Fail(tee.Failure{Check: "tdx.format", Field: "quote", Expected: "a TDX quote of version 4 or 5", Got: err.Error()})
		return nil, nil, false
	}
	v.checkTD(l, q)
	claims = quoteClaims(q)
	p := v.dcap.Verify(ctx, l, dcap.Quote{
		Signed: q.Signed, Signature: q.Signature,
		TD: &dcap.TD{TCBSVN: q.TEETCBSVN, TCBSVN2: q.TEETCBSVN2, MRSignerSEAM: q.MRSignerSEAM, SEAMAttributes: q.SEAMAttributes},
	})
	if p == nil {
		return q, claims, false
	}
	if !p.ModuleJudged {
		checkIntelModule(l, q)
	}
	maps.Copy(claims, p.Claims)
	return q, claims, p.Root.Development
}
