package appraisal

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

var now = time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)

// fakePolicies are every tenant's, at one generation.
type fakePolicies map[string]string

func (f fakePolicies) Generation(context.Context, tenant.Name) (int64, error) { return 1, nil }

func (f fakePolicies) PolicyVersions(context.Context, tenant.Name) (map[string]int64, error) {
	out := map[string]int64{}
	for id := range f {
		out[id] = 1
	}
	return out, nil
}

func (f fakePolicies) PolicyText(_ context.Context, _ tenant.Name, id string, _ int64) (string, error) {
	return f[id], nil
}

type fakeReferences map[string]refvalues.Reference

func (f fakeReferences) Reference(_ context.Context, _ tenant.Name, name string) (refvalues.Reference, bool, error) {
	if name == "broken" {
		return refvalues.Reference{}, false, errors.New("store is down")
	}
	r, ok := f[name]
	return r, ok, nil
}

func one(r *tee.Result) Evidence { return Evidence{Tenant: "acme", Parts: []Part{{Result: r}}} }

func list(values ...string) refvalues.Reference {
	var r refvalues.Reference
	for _, v := range values {
		r.Entries = append(r.Entries, refvalues.Entry{Value: json.RawMessage(v), Description: "d" + v[1:2]})
	}
	return r
}

func expired(r refvalues.Reference) refvalues.Reference {
	for i := range r.Entries {
		r.Entries[i].Expires = now
	}
	return r
}

func snp(change func(map[string]any, *tee.Result)) *tee.Result {
	r := &tee.Result{TEE: tee.SNP, Class: tee.CPU, ReportData: make([]byte, 64), InitData: make([]byte, 32), Claims: map[string]any{
		"measurement": "aabb", "policy_debug_allowed": false, "policy_migrate_ma": false, "reported_tcb_snp": 23,
		"platform_smt_enabled": true, "report_data": "zz", "init_data": "zz",
	}}
	if change != nil {
		change(r.Claims, r)
	}
	return r
}

func TestDefaultPolicy(t *testing.T) {
	t.Parallel()
	known := fakeReferences{"snp_launch_measurement": list(`"ccdd"`, `"AABB"`)}
	with := func(name string, r refvalues.Reference) fakeReferences {
		return fakeReferences{"snp_launch_measurement": known["snp_launch_measurement"], name: r}
	}
	for _, tc := range []struct {
		name   string
		refs   fakeReferences
		result *tee.Result
		vector ear.Vector
		status ear.Status
		// finding is "rule|expected|got" of the first finding, parts of it.
		rule, expected, got string
	}{
		{name: "known", refs: known, result: snp(nil), vector: ear.Vector{Hardware: 2, Executables: 3, Configuration: 3}, status: ear.Affirming},
		{name: "unknown measurement", refs: fakeReferences{"snp_launch_measurement": list(`"ccdd"`, `"eeff"`)}, result: snp(nil),
			vector: ear.Vector{Hardware: 2, Executables: 33, Configuration: 3}, status: ear.Warning,
			rule: "snp.launch-measurement", expected: "snp_launch_measurement, which allows [ccdd (dc), eeff (de)]", got: "aabb"},
		{name: "nothing registered", refs: fakeReferences{}, result: snp(nil), vector: ear.Vector{Hardware: 2, Executables: 33, Configuration: 3}, status: ear.Warning,
			rule: "snp.launch-measurement", expected: "no value is registered", got: "aabb"},
		{name: "expired", refs: fakeReferences{"snp_launch_measurement": expired(list(`"aabb"`))}, result: snp(nil),
			vector: ear.Vector{Hardware: 2, Executables: 33, Configuration: 3}, status: ear.Warning,
			rule: "snp.launch-measurement", expected: "expired 2026-09-01", got: "aabb"},
		{name: "simulated", refs: known, result: snp(func(_ map[string]any, r *tee.Result) { r.Simulated = true }),
			vector: ear.Vector{Hardware: 32, Executables: 3, Configuration: 3}, status: ear.Warning, rule: RuleSimulated, expected: "false", got: "true"},
		{name: "debug", refs: known, result: snp(func(c map[string]any, _ *tee.Result) { c["policy_debug_allowed"] = true }),
			vector: ear.Vector{Hardware: 2, Executables: 3, Configuration: 36}, status: ear.Warning, rule: "snp.policy", expected: "false", got: "true"},
		{name: "migration", refs: known, result: snp(func(c map[string]any, _ *tee.Result) { delete(c, "policy_migrate_ma") }),
			vector: ear.Vector{Hardware: 2, Executables: 3, Configuration: 36}, status: ear.Warning, rule: "snp.policy", expected: "false", got: "null"},
		{name: "TCB pinned", refs: with("snp_snp_svn", list(`23`)), result: snp(nil), vector: ear.Vector{Hardware: 2, Executables: 3, Configuration: 3}, status: ear.Affirming},
		{name: "TCB violated", refs: with("snp_snp_svn", list(`24`)), result: snp(nil), vector: ear.Vector{Hardware: 97, Executables: 3, Configuration: 3}, status: ear.Contraindicated,
			rule: "snp.snp_snp_svn", expected: "snp_snp_svn", got: "23"},
		{name: "TCB pin expired still pins", refs: with("snp_snp_svn", expired(list(`23`))), result: snp(nil),
			vector: ear.Vector{Hardware: 97, Executables: 3, Configuration: 3}, status: ear.Contraindicated, rule: "snp.snp_snp_svn", expected: "expired", got: "23"},
		{name: "scalar", refs: with("snp_smt_enabled", refvalues.Reference{Scalar: true, Entries: []refvalues.Entry{{Value: json.RawMessage(`false`)}}}), result: snp(nil),
			vector: ear.Vector{Hardware: 2, Executables: 3, Configuration: 36}, status: ear.Warning, rule: "snp.snp_smt_enabled", expected: "false", got: "true"},
		{name: "no measurement claim", refs: known, result: snp(func(c map[string]any, _ *tee.Result) { delete(c, "measurement") }),
			vector: ear.Vector{Hardware: 2, Executables: 33, Configuration: 3}, status: ear.Warning, rule: "snp.launch-measurement", got: "none"},
		{name: "sample", refs: known, result: &tee.Result{TEE: tee.Sample, Class: tee.CPU, Simulated: true, Claims: map[string]any{"svn": "1"}},
			vector: ear.Vector{Hardware: 97, Executables: 33, Configuration: 36}, status: ear.Contraindicated, rule: RuleSimulated},
		{name: "other TEE", refs: known, result: &tee.Result{TEE: "other", Class: tee.CPU, Claims: map[string]any{}},
			vector: ear.Vector{Hardware: 97, Executables: 33, Configuration: 36}, status: ear.Contraindicated, rule: "appraisal.no-policy", got: "other"},
		{name: "other class", refs: known, result: &tee.Result{TEE: tee.NVIDIA, Class: "fpga", Claims: map[string]any{}},
			vector: ear.Vector{Hardware: 97, Executables: 33, Configuration: 36}, status: ear.Contraindicated, rule: "appraisal.no-policy", expected: "default_fpga"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := New(Options{Policies: fakePolicies{}, References: tc.refs, Now: func() time.Time { return now }, Verbose: true})
			out, err := e.Appraise(t.Context(), one(tc.result))
			if err != nil {
				t.Fatal(err)
			}
			m, ok := out.Submods[string(tc.result.Class)+"0"]
			if !ok || len(out.Submods) != 1 {
				t.Fatalf("submods %v", out)
			}
			if m.Vector != tc.vector || m.Status != tc.status || m.PolicyID != "default" {
				t.Errorf("vector %+v, status %s; want %+v, %s", m.Vector, m.Status, tc.vector, tc.status)
			}
			if tc.rule == "" {
				if len(m.Findings) != 0 {
					t.Errorf("findings %+v", m.Findings)
				}
				return
			}
			if len(m.Findings) == 0 {
				t.Fatal("no findings")
			}
			if f := m.Findings[0]; f.Rule != tc.rule || !strings.Contains(f.Expected, tc.expected) || !strings.Contains(f.Got, tc.got) || f.Help == "" {
				t.Errorf("finding %+v", f)
			}
		})
	}
}

func TestOwnPolicies(t *testing.T) {
	t.Parallel()
	affirm := `package policy
trust_claims := {"hardware": 2, "executables": 3, "configuration": 2}
extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": input.snp.measurement}}]`
	for name, text := range map[string]string{
		"unknown claim": `package policy
trust_claims := {"hardwear": 2}`,
		"no integer": `package policy
trust_claims := {"hardware": 2.5}`,
		"too large": `package policy
trust_claims := {"hardware": 200}`,
		"no object": `package policy
trust_claims := [1]`,
		"store": `package policy
trust_claims := {"hardware": 2} if not query_reference_value("broken")`,
		"extension": `package policy
extensions := [{"name": "ear.status", "value": "affirming"}]`,
	} {
		e := New(Options{Policies: fakePolicies{"default_cpu": text}, References: fakeReferences{}, Now: func() time.Time { return now }})
		if out, err := e.Appraise(t.Context(), one(snp(nil))); err == nil {
			t.Errorf("%s: got %+v, want an error", name, out)
		}
	}
	e := New(Options{Policies: fakePolicies{"strict_cpu": affirm}, References: fakeReferences{}, Now: func() time.Time { return now }})
	simulated := snp(func(_ map[string]any, r *tee.Result) { r.Simulated = true })
	out, err := e.Appraise(t.Context(), Evidence{Parts: []Part{{Result: snp(nil)}, {Result: simulated}}, PolicyID: "strict"})
	if err != nil {
		t.Fatal(err)
	}
	if m := out.Submods["cpu0"]; m.Status != ear.Affirming || m.PolicyID != "strict" || string(m.Extensions["ear.trustee.identifiers"]) != `{"validated":"aabb"}` {
		t.Errorf("%+v", m)
	}
	// A policy that knows nothing of simulation cannot affirm it.
	if m := out.Submods["cpu1"]; m.Status != ear.Warning || m.Vector.Hardware != HardwareSimulated || m.Findings[0].Rule != RuleSimulated {
		t.Errorf("simulated: %+v", m)
	}
	if err := e.CheckPolicy(t.Context(), "acme", "x", "package policy\nallow if nothing(1)"); err == nil {
		t.Error("CheckPolicy: want an error")
	}
}

func TestAnnotatedEvidence(t *testing.T) {
	t.Parallel()
	doc, err := initdata.Parse([]byte("version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"aa.toml\" = \"a = 1\"\n\"b.json\" = \"{\\\"x\\\":[1]}\"\n\"broken.json\" = \"{\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	additional := `{"nvidia":{}}`
	for _, verbose := range []bool{true, false} {
		e := New(Options{Policies: fakePolicies{}, References: fakeReferences{}, Now: func() time.Time { return now }, Verbose: verbose})
		out, err := e.Appraise(t.Context(), Evidence{Parts: []Part{{
			Result: snp(nil), Runtime: map[string]any{"nonce": "n", "additional-evidence": additional}, InitData: InitDataClaims(doc),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(out.Submods["cpu0"].Evidence, &got); err != nil {
			t.Fatal(err)
		}
		claims, _ := got["snp"].(map[string]any)
		if _, ok := claims["report_data"]; ok || claims["measurement"] != "aabb" || got["simulated"] != false || got["init_data"] != strings.Repeat("0", 64) {
			t.Errorf("evidence %v", got)
		}
		runtime, _ := got["runtime_data_claims"].(map[string]any)
		_, hasAdditional := runtime["additional-evidence"]
		id, hasInitData := got["init_data_claims"].(map[string]any)
		if hasAdditional != verbose || hasInitData != verbose || runtime["nonce"] != "n" {
			t.Errorf("verbose %v: %v", verbose, got)
		}
		if verbose && (id["aa.toml"].(map[string]any)["a"] != 1.0 || id["broken.json"] != "{") {
			t.Errorf("init_data_claims %v", id)
		}
	}
}
