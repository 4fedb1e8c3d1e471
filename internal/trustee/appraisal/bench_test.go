package appraisal

import (
	"fmt"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// BenchmarkAppraise is an appraisal alone: no signature is checked or made.
// The cost must not depend on how many reference values there are.
func BenchmarkAppraise(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			refs := fakeReferences{"snp_launch_measurement": manyValues(n)}
			e := New(Options{Policies: fakePolicies{}, References: refs, Now: func() time.Time { return now }})
			runtime := map[string]any{"nonce": "AAEC", "tee-pubkey": map[string]any{"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "tNoh", "y": "A7aR"}}
			ev := Evidence{Parts: []Part{{Result: snp(nil), Runtime: runtime}}}
			check := func() {
				out, err := e.Appraise(b.Context(), ev)
				if err != nil || out.Submods["cpu0"].Status != ear.Affirming {
					b.Fatalf("%+v, %v", out, err)
				}
			}
			check()
			b.ReportAllocs()
			for b.Loop() {
				check()
			}
		})
	}
}

// BenchmarkMembership is the same with a policy that searches the list itself,
// as those of the reference implementation do: its cost is the list's length.
func BenchmarkMembership(b *testing.B) {
	const text = "package policy\ndefault executables := 33\nexecutables := 3 if input.snp.measurement in query_reference_value(\"snp_launch_measurement\")\n" +
		"trust_claims := {\"hardware\": 2, \"executables\": executables, \"configuration\": 3}"
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("values=%d", n), func(b *testing.B) {
			e := New(Options{Policies: fakePolicies{"default_cpu": text}, References: fakeReferences{"snp_launch_measurement": manyValues(n)}, Now: func() time.Time { return now }})
			for b.Loop() {
				if out, err := e.Appraise(b.Context(), one(snp(nil))); err != nil || out.Submods["cpu0"].Status != ear.Affirming {
					b.Fatalf("%+v, %v", out, err)
				}
			}
		})
	}
}

// BenchmarkCompile is what the first attestation of a TEE costs once.
func BenchmarkCompile(b *testing.B) {
	for name, modules := range map[string][]policy.Module{"snp": defaults()[policy.Variant("default_cpu", "snp")], "all": DefaultModules("cpu")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := policy.Compile(b.Context(), policy.Options{Name: "p", Modules: modules, Rules: []string{ruleClaims, ruleFindings, ruleExtensions}, Functions: functions()}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// manyValues has aabb, which snp's evidence holds, as its last value.
func manyValues(n int) refvalues.Reference {
	var values []string
	for i := range n - 1 {
		values = append(values, fmt.Sprintf(`"%096x"`, i))
	}
	return list(append(values, `"aabb"`)...)
}
