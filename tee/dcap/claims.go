package dcap

import (
	"encoding/hex"
	"math/big"
	"slices"
	"time"

	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// platformClaims are documented at [Verifier.Verify].
func platformClaims(e *endorsement) map[string]any {
	p := e.pck
	id := e.root.KeyID()
	out := map[string]any{
		"platform_provider_id": hex.EncodeToString(p.PPID[:]),
		"sgx_type":             p.SGXType.String(),
		"root_key_id":          hex.EncodeToString(id[:]),
		"fmspc":                hex.EncodeToString(p.FMSPC[:]),
		"pce_id":               hex.EncodeToString(p.PCEID[:]),
		"pck_ca":               string(e.ca),
		"simulated":            e.root.Development,
	}
	if e.root.Development {
		out["development_root"] = e.root.Name
		out["development_root_sha256"] = e.root.SHA256()
	}
	if p.PlatformInstanceID != nil {
		instance := *p.PlatformInstanceID
		slices.Reverse(instance[:])
		out["platform_instance_id"] = hex.EncodeToString(instance[:])
	}
	if p.SGXType != dcapquote.SGXStandard {
		c := p.Configuration
		if c == nil {
			c = new(dcapquote.Configuration)
		}
		out["is_dynamic_platform"] = c.DynamicPlatform
		out["is_cached_keys"] = c.CachedKeys
		out["is_smt_enabled"] = c.SMTEnabled
	}
	return out
}

// dateClaims are about the documents as such.
func dateClaims(out map[string]any, d documents, spans []span, expired bool) {
	if d.pckCRL != nil {
		out["pck_crl_num"] = number(d.pckCRL.list.Number)
	}
	if d.rootCRL != nil {
		out["root_ca_crl_num"] = number(d.rootCRL.list.Number)
	}
	if !d.complete() {
		return
	}
	out["tcb_eval_num"] = min(d.tcb.EvaluationDataNumber, d.qe.EvaluationDataNumber)
	earliest, latest, expiration := spans[0].from, spans[0].from, spans[0].to
	for _, s := range spans[1:] {
		if s.from.Before(earliest) {
			earliest = s.from
		}
		if s.from.After(latest) {
			latest = s.from
		}
		if s.to.Before(expiration) {
			expiration = s.to
		}
	}
	out["earliest_issue_date"] = rfc3339(earliest)
	out["latest_issue_date"] = rfc3339(latest)
	out["earliest_expiration_date"] = rfc3339(expiration)
	out["collateral_expiration_status"] = "0"
	if expired {
		out["collateral_expiration_status"] = "1"
	}
}

// number is a CRL number, which is small with Intel and could be anything.
func number(n *big.Int) any {
	if n.IsInt64() {
		return n.Int64()
	}
	return n.String()
}

func verdictClaims(out map[string]any, v Verdict) {
	out["tcb_status"] = string(v.Status)
	out["tcb_date"] = rfc3339(v.Date)
	out["advisory_ids"] = advisories(v)
}

// currentClaims are those of the TDX module that runs now.
func currentClaims(out map[string]any, v Verdict) {
	out["tcb_status_current"] = string(v.Status)
	out["tcb_date_current"] = rfc3339(v.Date)
	out["advisory_ids_current"] = advisories(v)
}

// advisories is never nil, so that the claim is an array.
func advisories(v Verdict) []string {
	if v.Advisories == nil {
		return []string{}
	}
	return v.Advisories
}
