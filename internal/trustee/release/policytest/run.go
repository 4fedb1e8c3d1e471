package policytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// Run puts every case to a policy; name stands in messages as its file name.
// An error is about the policy's text (a *policy.CompileError) or about ctx; a
// case that fails, or cannot be evaluated, is in the report.
func Run(ctx context.Context, name, text string, f *File) (Report, error) {
	run, rules, functions := resourceCase, []string{"allow", "deny"}, map[string]policy.Function(nil)
	if f.Kind == KindAttestation {
		run, rules, functions = attestationCase, []string{ruleClaims, ruleFindings, ruleExtensions}, referenceFunctions()
	}
	p, err := policy.Compile(ctx, policy.Options{Name: name, Text: text, Rules: rules, Functions: functions})
	if err != nil {
		return Report{}, err
	}
	cov, err := newCoverage(ctx, p, rules, functions)
	if err != nil {
		return Report{}, err
	}
	r := Report{Policy: name, Kind: f.Kind}
	for _, c := range f.Cases {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		start := time.Now()
		one := Result{Name: c.Name}
		in, data, err := run(ctx, &one, name, text, p, c)
		if err != nil {
			one.Failures = append(one.Failures, err.Error())
		} else {
			cov.add(ctx, c, in, data)
		}
		one.OK, one.Took = len(one.Failures) == 0, time.Since(start)
		if one.OK {
			r.Passed++
		} else {
			r.Failed++
		}
		r.Results = append(r.Results, one)
	}
	r.OK = r.Failed == 0
	r.Coverage = cov.report()
	return r, nil
}

func (r *Result) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// resourceCase decides as the trustee would.
func resourceCase(ctx context.Context, r *Result, name, text string, _ *policy.Policy, c Case) (json.RawMessage, json.RawMessage, error) {
	if c.Claims.JSON == nil {
		return nil, nil, fmt.Errorf("claims: file %s was not read", c.Claims.File)
	}
	data, err := c.data()
	if err != nil {
		return nil, nil, err
	}
	d, err := release.Replay(ctx, name, text, c.Claims.JSON, data)
	if err != nil {
		return nil, nil, err
	}
	if want := c.Expect == "allow"; d.Granted != want {
		got := "allow"
		if !d.Granted {
			got = "deny: " + list(d.Reasons)
		}
		r.fail("expect: expected %s, got %s", c.Expect, got)
	} else if c.ExpectRule != "" {
		r.rule(c.ExpectRule, d.Reasons)
	}
	return c.Claims.JSON, data, nil
}

func (r *Result) rule(want string, reasons []kbs.Reason) {
	for _, reason := range reasons {
		if reason.Rule == want {
			return
		}
	}
	r.fail("expect_rule: expected %s, got %s", want, list(reasons))
}

func list(reasons []kbs.Reason) string {
	if len(reasons) == 0 {
		return "no reason"
	}
	out := make([]string, len(reasons))
	for i, r := range reasons {
		out[i] = r.String()
	}
	return strings.Join(out, "; ")
}

// data is the data document that the trustee would make for the case.
func (c Case) data() (json.RawMessage, error) {
	plugin, path, err := parseURI(c.Resource)
	if err != nil {
		return nil, err
	}
	if _, err := release.Scopes(plugin, path); err != nil {
		return nil, err
	}
	t := tenant.Default
	if c.Tenant != "" {
		if t, err = tenant.Parse(c.Tenant); err != nil {
			return nil, err
		}
	}
	var claims ear.Claims
	if err := json.Unmarshal(c.Claims.JSON, &claims); err != nil {
		return nil, fmt.Errorf("claims: expected those of an attestation token: %w", err)
	}
	bindings := make([]release.Binding, len(c.RegisteredInitData))
	for i, digest := range c.RegisteredInitData {
		bindings[i] = release.Binding{InitData: digest}
	}
	digests, description, err := release.Registered(bindings, &claims)
	if err != nil {
		return nil, fmt.Errorf("registered_initdata: %w", err)
	}
	d := release.Data{Plugin: plugin, Path: path, Query: c.Query, Coffer: release.Coffer{
		Tenant: t, RegisteredInitData: digests, RegisteredDescription: description, AllowSimulated: c.AllowSimulated}}
	if d.Query == nil {
		d.Query = map[string]string{}
	}
	return json.Marshal(d)
}

// parseURI splits a resource's URI into the plugin that serves it and the path.
func parseURI(s string) (plugin string, path []string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", nil, fmt.Errorf("resource: %w", err)
	}
	plugin = kbs.PluginResource
	if u.Scheme != "kbs" {
		var ok bool
		if plugin, ok = strings.CutPrefix(u.Scheme, "kbs+"); !ok {
			return "", nil, fmt.Errorf("resource: expected kbs:///repository/type/tag or kbs+plugin:///path, got %q", s)
		}
	}
	if u.Host != "" || u.RawQuery != "" || u.Fragment != "" || u.RawPath != "" || len(u.Path) < 2 {
		return "", nil, fmt.Errorf("resource: expected no host, query or fragment, and a path, got %q", s)
	}
	return plugin, strings.Split(u.Path[1:], "/"), nil
}

// The rules of an attestation policy.
const (
	ruleClaims     = "trust_claims"
	ruleFindings   = "findings"
	ruleExtensions = "extensions"
)

// attestationCase appraises as the trustee would.
func attestationCase(ctx context.Context, r *Result, _, _ string, p *policy.Policy, c Case) (json.RawMessage, json.RawMessage, error) {
	evidence, err := c.evidence()
	if err != nil {
		return nil, nil, err
	}
	in, err := policy.NewInput(evidence)
	if err != nil {
		return nil, nil, err
	}
	ctx, err = withReferences(ctx, c.ReferenceValues)
	if err != nil {
		return nil, nil, err
	}
	result, err := p.EvalAll(ctx, in, nil)
	if err != nil {
		return nil, nil, err
	}
	var claims map[string]json.Number
	if _, err := result.Decode(ruleClaims, &claims); err != nil {
		return nil, nil, err
	}
	v, err := ear.ParseVector(claims)
	if err != nil {
		return nil, nil, err
	}
	var findings []ear.Finding
	if _, err := result.Decode(ruleFindings, &findings); err != nil {
		return nil, nil, err
	}
	if simulated(evidence) {
		if s := ear.Tier(v.Hardware); s == ear.None || s == ear.Affirming {
			v.Hardware = appraisal.HardwareSimulated
		}
		findings = append(findings, ear.Finding{Affects: "hardware", Reason: kbs.Reason{Rule: appraisal.RuleSimulated, Claim: "simulated", Expected: "false", Got: "true"}})
	}
	r.vector(c, v)
	if c.ExpectRule != "" {
		reasons := make([]kbs.Reason, len(findings))
		for i, f := range findings {
			reasons[i] = f.Reason
		}
		r.rule(c.ExpectRule, reasons)
	}
	return evidence, nil, nil
}

// simulated evidence is never affirmed, whatever the policy says.
func simulated(evidence json.RawMessage) bool {
	var e struct {
		Simulated bool `json:"simulated"`
	}
	return json.Unmarshal(evidence, &e) == nil && e.Simulated
}

func (r *Result) vector(c Case, v ear.Vector) {
	have := map[string]int{}
	for _, x := range v.Components() {
		have[x.Name] = int(x.Value)
	}
	for name, want := range c.ExpectTrustClaims {
		if got, ok := have[name]; !ok {
			r.fail("expect_trust_claims: %s: expected one of the eight names of the trustworthiness vector", name)
		} else if got != want {
			r.fail("expect_trust_claims: %s: expected %d, got %d", name, want, got)
		}
	}
	if s := v.Status(); c.ExpectStatus != "" && string(s) != c.ExpectStatus {
		r.fail("expect_status: expected %s, got %s", c.ExpectStatus, s)
	}
}

// evidence is the case's, taken out of a token's claims where it is one.
func (c Case) evidence() (json.RawMessage, error) {
	if c.Evidence.JSON == nil {
		return nil, fmt.Errorf("evidence: file %s was not read", c.Evidence.File)
	}
	var token struct {
		Submods map[string]ear.Submod `json:"submods"`
	}
	if json.Unmarshal(c.Evidence.JSON, &token) != nil || token.Submods == nil {
		if c.Submod != "" {
			return nil, errors.New("submod: the evidence is not a token's claims")
		}
		return c.Evidence.JSON, nil
	}
	name := c.Submod
	if name == "" {
		name = ear.CPU
	}
	m, ok := token.Submods[name]
	if !ok || len(m.Evidence) == 0 {
		return nil, fmt.Errorf("submod: the claims have no evidence of %q", name)
	}
	return m.Evidence, nil
}
