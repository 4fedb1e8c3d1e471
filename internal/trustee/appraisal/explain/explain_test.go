package explain

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// stored is a tenant's policies and no reference values.
type stored map[string]string

func (s stored) Generation(context.Context, tenant.Name) (int64, error) { return 1, nil }

func (s stored) PolicyVersions(context.Context, tenant.Name) (map[string]int64, error) {
	out := map[string]int64{}
	for id := range s {
		out[id] = 3
	}
	return out, nil
}

func (s stored) PolicyText(_ context.Context, _ tenant.Name, id string, _ int64) (string, error) {
	return s[id], nil
}

func (stored) Reference(context.Context, tenant.Name, string) (refvalues.Reference, bool, error) {
	return refvalues.Reference{}, false, nil
}

func appraise(t *testing.T, policies stored, simulated bool) *ear.Claims {
	t.Helper()
	e := appraisal.New(appraisal.Options{Policies: policies, References: policies, Now: time.Now, Verbose: true})
	r, err := e.Appraise(t.Context(), appraisal.Evidence{Tenant: tenant.Default, Parts: []appraisal.Part{{Result: &tee.Result{
		TEE: tee.SNP, Class: tee.CPU, ReportData: make([]byte, 64), Simulated: simulated,
		Claims: map[string]any{"measurement": "00ff", "policy_debug_allowed": true, "policy_migrate_ma": false},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	return &ear.Claims{Submods: r.Submods}
}

func component(t *testing.T, r Report, name string) Component {
	t.Helper()
	if len(r.Submods) != 1 || r.Submods[0].TEE != "snp" {
		t.Fatalf("submodules: %+v", r.Submods)
	}
	for _, c := range r.Submods[0].Components {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no component %s", name)
	return Component{}
}

func TestBuiltIn(t *testing.T) {
	r := Explain(appraise(t, nil, false), "")
	c := component(t, r, "executables")
	if c.Value != 33 || len(c.SetBy) != 1 || c.SetBy[0].Text != "default executables := 33" || !strings.HasPrefix(c.SetBy[0].Place, "base.rego:") {
		t.Errorf("executables: %+v", c)
	}
	if len(c.Findings) != 1 || c.Findings[0].Rule != "snp.launch-measurement" || !strings.HasPrefix(c.Findings[0].Line, "snp.rego:") || c.Findings[0].Help == "" {
		t.Errorf("findings: %+v", c.Findings)
	}
	// A finding that a function made is placed where the rule stands.
	if c := component(t, r, "configuration"); len(c.Findings) != 1 || !strings.HasPrefix(c.Findings[0].Line, "snp.rego:") {
		t.Errorf("configuration: %+v", c)
	}
	if c := component(t, r, "hardware"); c.Value != 2 || len(c.SetBy) != 1 || !strings.Contains(c.SetBy[0].Text, "affirmed.hardware") || len(c.Otherwise) != 0 {
		t.Errorf("hardware: %+v", c)
	}
	if r.Submods[0].Policy != "default_cpu (built in)" {
		t.Errorf("policy: %s", r.Submods[0].Policy)
	}
}

func TestSimulated(t *testing.T) {
	r := Explain(appraise(t, nil, true), "")
	c := component(t, r, "hardware")
	if c.Value != 32 || len(c.SetBy) != 0 || len(c.Findings) != 1 || c.Findings[0].Rule != appraisal.RuleSimulated || !r.Submods[0].Simulated {
		t.Errorf("hardware: %+v", c)
	}
}

const own = `package policy
import rego.v1
default executables := 33
executables := 3 if {
	input.snp.measurement == "aa"
}
default hardware := 97
hardware := 2 if input.snp
trust_claims := {"executables": executables, "hardware": hardware}
`

func TestOwnPolicy(t *testing.T) {
	claims := appraise(t, stored{"default_cpu": own}, false)
	c := component(t, Explain(claims, own), "executables")
	if len(c.SetBy) != 1 || c.SetBy[0] != (Line{"default_cpu.rego:3", "default executables := 33"}) {
		t.Errorf("set by %+v", c.SetBy)
	}
	if len(c.Otherwise) != 1 || c.Otherwise[0] != (Line{"default_cpu.rego:4", "executables := 3 if {"}) {
		t.Errorf("otherwise %+v", c.Otherwise)
	}
	if c := component(t, Explain(claims, own), "hardware"); len(c.SetBy) != 1 || c.SetBy[0].Place != "default_cpu.rego:8" || len(c.Otherwise) != 0 {
		t.Errorf("hardware: %+v", c)
	}
	// Without its text nothing is guessed.
	if c := component(t, Explain(claims, ""), "executables"); c.SetBy != nil || c.Otherwise != nil {
		t.Errorf("without the text: %+v", c)
	}
}

// A token of the greatest size has thousands of submodules; reading a policy takes
// milliseconds.
func TestManySubmods(t *testing.T) {
	claims := appraise(t, nil, false)
	one := claims.Submods[ear.CPU]
	want := Explain(claims, "").Submods[0]
	for i := range 3000 {
		claims.Submods["cpu"+strconv.Itoa(i)] = one
	}
	start := time.Now()
	r := Explain(claims, "")
	if took := time.Since(start); took > 30*time.Second { // it was minutes
		t.Errorf("took %s", took)
	}
	if len(r.Submods) != 3000 {
		t.Fatalf("%d submodules", len(r.Submods))
	}
	last := r.Submods[len(r.Submods)-1]
	if last.Name = ear.CPU; !reflect.DeepEqual(last, want) {
		t.Errorf("got %+v, want %+v", last, want)
	}
}
