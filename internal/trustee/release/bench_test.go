package release

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

func request(b *testing.B, submods map[string]ear.Submod) Request {
	b.Helper()
	c := &ear.Claims{Submods: submods}
	payload, err := json.Marshal(c)
	if err != nil {
		b.Fatal(err)
	}
	return Request{Tenant: tenant.Default, Plugin: kbs.PluginResource, Path: []string{"demo", "key", "1"}, Claims: c, Payload: payload}
}

// BenchmarkDecide is one decision, with policies for scopes and without.
// BenchmarkTrivial is the least that OPA takes for any.
func BenchmarkDecide(b *testing.B) {
	granted := map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab"))}
	denied := map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, true, field("cd"), drift, simulated)}
	bound := fakeBindings{{InitData: digest("11")}, {InitData: digest("ab")}}
	many := fakePolicies{"": "package policy\nallow := false"}
	for i := range 1000 {
		many[fmt.Sprintf("repo%d", i)] = "package policy\nallow := false"
	}
	many["demo"] = defaultPolicy
	for _, bc := range []struct {
		name     string
		policies fakePolicies
		submods  map[string]ear.Submod
	}{
		{"trivial policy", fakePolicies{"": "package policy\nallow := true"}, granted},
		{"granted", nil, granted},
		{"denied", nil, denied},
		{"granted, 1000 scopes", many, granted},
	} {
		b.Run(bc.name, func(b *testing.B) {
			e := New(Options{Policies: bc.policies, Bindings: bound})
			r := request(b, bc.submods)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Decide(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTrivial(b *testing.B) {
	q, err := rego.New(rego.Query("data.policy.allow"), rego.Module("p.rego", "package policy\nallow := input.a == 1")).PrepareForEval(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := q.Eval(b.Context(), rego.EvalInput(map[string]any{"a": 1})); err != nil {
			b.Fatal(err)
		}
	}
}
