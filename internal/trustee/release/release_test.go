package release

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// fakePolicies are policies by scope, of every tenant, all of version 1.
type fakePolicies map[string]string

func (f fakePolicies) Generation(context.Context, tenant.Name) (int64, error) { return 1, nil }

func (f fakePolicies) ResourcePolicies(context.Context, tenant.Name) (map[string]int64, error) {
	out := map[string]int64{}
	for scope := range f {
		out[scope] = 1
	}
	return out, nil
}

func (f fakePolicies) ResourcePolicy(_ context.Context, _ tenant.Name, scope string, version int64) (string, error) {
	text, ok := f[scope]
	if !ok || version != 1 {
		return "", errors.New("no such policy")
	}
	return text, nil
}

type fakeBindings []Binding

func (f fakeBindings) BindingsFor(context.Context, tenant.Name, []string) ([]Binding, error) {
	if len(f) > 0 && f[0].InitData == "broken" {
		return nil, errors.New("store is down")
	}
	return f, nil
}

// digest is a SHA-384 sized digest that begins with b; field is what SNP holds of it.
func digest(b string) string { return strings.Repeat(b, 48) }
func field(b string) string  { return strings.Repeat(b, 32) }

func submod(status ear.Status, v ear.Vector, simulated bool, initdata string, findings ...ear.Finding) ear.Submod {
	doc := map[string]any{"snp": map[string]any{}, "simulated": simulated}
	if initdata != "" {
		doc["init_data"] = initdata
	}
	b, _ := json.Marshal(doc)
	return ear.Submod{Status: status, Vector: v, PolicyID: "default", Evidence: b, Findings: findings}
}

// selected is a submodule that another attestation policy judged.
func selected(m ear.Submod, policy string) ear.Submod {
	m.PolicyID = policy
	return m
}

var (
	good      = ear.Vector{Hardware: 2, Executables: 3, Configuration: 3}
	soft      = ear.Vector{Hardware: 32, Executables: 3, Configuration: 3}
	softDrift = ear.Vector{Hardware: 32, Executables: 33, Configuration: 3}
	simulated = ear.Finding{Affects: "hardware", Reason: kbs.Reason{Rule: "evidence.simulated", Claim: "simulated", Expected: "false", Got: "true", Help: "h"}}
	drift     = ear.Finding{Affects: "executables", Reason: kbs.Reason{Rule: "snp.launch-measurement", Claim: "measurement", Expected: "[A]", Got: "X", Help: "h"}}
)

func decide(t *testing.T, e *Engine, submods map[string]ear.Submod) (Decision, error) {
	t.Helper()
	c := &ear.Claims{Submods: submods}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return e.Decide(t.Context(), Request{Tenant: tenant.Default, Plugin: kbs.PluginResource, Path: []string{"demo", "key", "1"}, Claims: c, Payload: payload})
}

func TestDefaultPolicy(t *testing.T) {
	t.Parallel()
	bound := fakeBindings{{InitData: digest("11")}, {InitData: digest("ab"), Description: "web v3"}}
	for _, tc := range []struct {
		name     string
		submods  map[string]ear.Submod
		bindings fakeBindings
		allow    bool
		granted  bool
		rules    []string
		expected string
		got      string
	}{
		{name: "affirmed", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab"))}, bindings: bound, granted: true},
		{name: "affirmed, two parts", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab")), "gpu0": submod(ear.Affirming, good, false, "")}, bindings: bound, granted: true},
		{name: "second part is not", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab")), "gpu0": submod(ear.Warning, softDrift, false, "")}, bindings: bound,
			rules: []string{"appraisal.status"}, expected: "affirming", got: `warning, trustworthiness vector {"configuration":3`},
		{name: "no submods", bindings: bound, rules: []string{"appraisal.submods", "initdata.sealed"}},
		{name: "status none", submods: map[string]ear.Submod{"cpu0": submod(ear.None, ear.Vector{}, false, field("ab"))}, bindings: bound, rules: []string{"appraisal.status"}},
		{name: "measurement", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, false, field("ab"), drift)}, bindings: bound,
			rules: []string{"snp.launch-measurement"}, expected: "[A]", got: "X"},
		{name: "simulated", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, soft, true, field("ab"), simulated)}, bindings: bound,
			rules: []string{"evidence.simulated"}, expected: "false", got: "true"},
		{name: "simulated, allowed", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, soft, true, field("ab"), simulated)}, bindings: bound, allow: true, granted: true},
		{name: "simulated, allowed, but drifted", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, true, field("ab"), simulated, drift)}, bindings: bound, allow: true,
			rules: []string{"snp.launch-measurement"}},
		{name: "simulated, allowed, contraindicated", submods: map[string]ear.Submod{"cpu0": submod(ear.Contraindicated, ear.Vector{Hardware: 97, Executables: 3}, true, field("ab"), simulated)}, bindings: bound, allow: true,
			rules: []string{"appraisal.status"}},
		{name: "hardware 32 without simulation", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, soft, false, field("ab"))}, bindings: bound, allow: true, rules: []string{"appraisal.status"}},
		{name: "affirming but simulated", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, true, field("ab"))}, bindings: bound, rules: []string{"appraisal.status"}},
		{name: "other initdata", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("cd"))}, bindings: bound,
			rules: []string{"initdata.registered"}, expected: "demo/key/1: [" + field("11") + ", " + field("ab") + " (web v3)]", got: field("cd")},
		{name: "nothing registered", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab"))},
			rules: []string{"initdata.registered"}, expected: "nothing is registered", got: field("ab")},
		{name: "unsealed", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("00"))}, bindings: bound,
			rules: []string{"initdata.sealed"}, got: "no initdata"},
		{name: "unsealed, zeros registered", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("00"))}, bindings: fakeBindings{{InitData: digest("00")}},
			rules: []string{"initdata.sealed"}},
		{name: "no field", submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, "")}, bindings: bound, rules: []string{"initdata.sealed"}},
		{name: "affirmed by a policy the guest selected", submods: map[string]ear.Submod{"cpu0": selected(submod(ear.Affirming, good, false, field("ab")), "lenient")}, bindings: bound,
			rules: []string{"appraisal.policy"}, expected: "default", got: "lenient"},
		{name: "simulated, allowed, by a policy the guest selected", submods: map[string]ear.Submod{"cpu0": selected(submod(ear.Warning, soft, true, field("ab"), simulated), "lenient")}, bindings: bound, allow: true,
			rules: []string{"appraisal.policy"}},
		{name: "judged by no policy that is named", submods: map[string]ear.Submod{"cpu0": selected(submod(ear.Affirming, good, false, field("ab")), "")}, bindings: bound,
			rules: []string{"appraisal.policy"}},
		{name: "everything wrong", submods: map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, true, field("cd"), drift, simulated)}, bindings: bound,
			rules: []string{"evidence.simulated", "snp.launch-measurement", "initdata.registered"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := New(Options{Policies: fakePolicies{}, Bindings: tc.bindings, AllowSimulated: tc.allow})
			d, err := decide(t, e, tc.submods)
			if err != nil {
				t.Fatal(err)
			}
			if d.Granted != tc.granted || d.PolicyID != "resource-policy (built in)" {
				t.Fatalf("%+v", d)
			}
			if d.Granted != (len(d.Reasons) == 0) {
				t.Fatalf("reasons %+v", d.Reasons)
			}
			if tc.granted {
				return
			}
			var rules []string
			for _, r := range d.Reasons {
				rules = append(rules, r.Rule)
				if r.Expected == "" || r.Got == "" || r.Help == "" || r.Claim == "" {
					t.Errorf("incomplete reason %+v", r)
				}
			}
			if got, want := strings.Join(rules, " "), strings.Join(tc.rules, " "); got != want {
				t.Errorf("rules %s, want %s", got, want)
			}
			if r := d.Reasons[0]; !strings.Contains(r.Expected, tc.expected) || !strings.Contains(r.Got, tc.got) {
				t.Errorf("reason %+v", r)
			}
		})
	}
}

func TestOwnPolicies(t *testing.T) {
	t.Parallel()
	cpu := map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, false, field("ab"), drift)}
	for _, tc := range []struct {
		name, text string
		granted    bool
		rule       string
		fails      bool
	}{
		{name: "allow all", text: "package policy\nallow := true", granted: true},
		{name: "deny all", text: "package policy\ndefault allow := false", rule: "resource-policy"},
		{name: "undefined", text: "package policy\nother := 1", rule: "resource-policy"},
		{name: "a string is no yes", text: "package policy\nallow := \"true\"", rule: "resource-policy"},
		{name: "by path", text: "package policy\nimport rego.v1\ndefault allow = false\nallow if data[\"resource-path\"][0] == \"demo\"", granted: true},
		{name: "by query", text: "package policy\nallow if data.query.a == \"b\"", rule: "resource-policy"},
		{name: "own reason", text: "package policy\ndeny contains {\"rule\": \"mine\", \"claim\": \"c\"} if true", rule: "mine"},
		{name: "bad reason", text: "package policy\ndeny := 7", rule: "resource-policy"},
		{name: "error", text: "package policy\nallow if to_number(\"x\") == 1", fails: true},
	} {
		d, err := decide(t, New(Options{Policies: fakePolicies{"": tc.text}, Bindings: fakeBindings(nil)}), cpu)
		if (err != nil) != tc.fails || d.Granted != tc.granted {
			t.Errorf("%s: %+v, %v", tc.name, d, err)
		}
		if tc.rule != "" && (len(d.Reasons) == 0 || d.Reasons[0].Rule != tc.rule) {
			t.Errorf("%s: reasons %+v", tc.name, d.Reasons)
		}
	}
	if d, err := decide(t, New(Options{Policies: fakePolicies{}, Bindings: fakeBindings{{InitData: "broken"}}}), cpu); err == nil || d.Granted {
		t.Errorf("store failure: %+v, %v", d, err)
	}
}

func TestInitDataField(t *testing.T) {
	t.Parallel()
	c := &ear.Claims{Submods: map[string]ear.Submod{"cpu0": submod(ear.None, ear.Vector{}, false, field("ab"))}}
	if got := hex.EncodeToString(InitDataField(c)); got != field("ab") {
		t.Error(got)
	}
	if got := InitDataField(&ear.Claims{}); got != nil {
		t.Error(got)
	}
}
