// Package appraisal turns genuine evidence into attestation results: it lays
// the claims out as annotated evidence, has a Rego policy judge them against
// reference values, and makes sure that evidence of a development root is
// never affirmed, whatever the policy says.
package appraisal

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// DefaultPolicy is the id of the policy where a request selects none. The
// class is appended with an underscore: "default_cpu".
const DefaultPolicy = "default"

// HardwareSimulated is the hardware value of evidence under a development
// root: the lowest warning.
const HardwareSimulated = 32

// Values for a part that no policy judges.
const (
	hardwareUnknown      = 97
	executablesUnknown   = 33
	configurationUnknown = 36
)

// maxFindings bounds the findings in one submodule.
const maxFindings = 32

// maxTokenInitData bounds the copy of the initdata claims in a token, which
// has to fit into a request header.
const maxTokenInitData = 64 << 10

// References looks reference values up. found is false for an unknown name.
// A reference is asked for once per generation of the policies' source, which
// has to change with the reference values as well.
type References interface {
	Reference(ctx context.Context, t tenant.Name, name string) (ref refvalues.Reference, found bool, err error)
}

// Options of [New].
type Options struct {
	Policies   policy.Source
	References References
	Now        func() time.Time
	// Verbose keeps additional evidence and initdata claims in the token.
	Verbose bool
	// Timeout bounds one policy evaluation.
	Timeout time.Duration
}

// Engine appraises. It is safe for concurrent use.
type Engine struct {
	o          Options
	set        *policy.Set
	references *references
}

// New returns an engine with the built-in policies as defaults.
func New(o Options) *Engine {
	e := &Engine{o: o, references: newReferences(o.References)}
	e.set = policy.NewSet(policy.SetOptions{
		Source:    o.Policies,
		Defaults:  defaults(),
		Rules:     []string{ruleClaims, ruleFindings, ruleExtensions},
		Lines:     ruleFindings,
		Timeout:   o.Timeout,
		Functions: functions(),
	})
	return e
}

// Part is one environment or device that was found genuine.
type Part struct {
	Result *tee.Result
	// Runtime is the document its report data is the digest of; nil where
	// only the digest is known.
	Runtime map[string]any
	// InitData are the claims of initdata whose digest the evidence holds
	// ([InitDataClaims]); nil where it was not presented.
	InitData map[string]any
}

// Evidence is what one handshake proved.
type Evidence struct {
	Tenant tenant.Name
	// Parts are at least one, the primary environment first.
	Parts []Part
	// PolicyID selects the policy; empty means [DefaultPolicy].
	PolicyID string
}

// Results of an appraisal.
type Results struct {
	// Names are the submodules' names in the order of the parts: class and
	// index, "cpu0" first.
	Names []string
	// Submods by name.
	Submods map[string]ear.Submod
	// Labels are the policies that judged, by the submodule's name:
	// "default_cpu@3", "default_cpu (built in)", or "" where there was none.
	Labels map[string]string
}

// Appraise judges every part. All see one generation of policies and
// reference values.
func (e *Engine) Appraise(ctx context.Context, ev Evidence) (Results, error) {
	if len(ev.Parts) == 0 {
		return Results{}, errors.New("appraisal: there is no evidence")
	}
	id := ev.PolicyID
	if id == "" {
		id = DefaultPolicy
	}
	view, err := e.set.View(ctx, ev.Tenant)
	if err != nil {
		return Results{}, fmt.Errorf("appraisal: %w", err)
	}
	ctx = e.references.in(ctx, ev.Tenant, view.Generation(), e.o.Now())
	out := Results{Submods: map[string]ear.Submod{}, Labels: map[string]string{}}
	count := map[tee.Class]int{}
	for _, p := range ev.Parts {
		name := fmt.Sprintf("%s%d", p.Result.Class, count[p.Result.Class])
		count[p.Result.Class]++
		m, label, err := e.appraise(ctx, view, p, id)
		if err != nil {
			return Results{}, fmt.Errorf("appraisal: %s: %w", name, err)
		}
		out.Names = append(out.Names, name)
		out.Submods[name], out.Labels[name] = m, label
	}
	return out, nil
}

func (e *Engine) appraise(ctx context.Context, view policy.View, part Part, policyID string) (ear.Submod, string, error) {
	r := part.Result
	id := policyID + "_" + string(r.Class)
	annotated := annotate(part)
	doc, err := json.Marshal(annotated)
	if err != nil {
		return ear.Submod{}, "", err
	}
	m := ear.Submod{PolicyID: policyID}
	p, label, ok, err := view.GetVariant(ctx, id, string(r.TEE))
	m.Policy = label
	switch {
	case err != nil:
		return ear.Submod{}, "", err
	case !ok:
		m.Vector = ear.Vector{Hardware: hardwareUnknown, Executables: executablesUnknown, Configuration: configurationUnknown}
		m.Findings = []ear.Finding{{Affects: "hardware", Reason: kbs.Reason{
			Rule: "appraisal.no-policy", Claim: "class", Expected: "an attestation policy " + id, Got: "none",
			Help: "store one with POST /kbs/v0/attestation-policy",
		}}}
	default:
		if err := judge(ctx, p, doc, &m); err != nil {
			return ear.Submod{}, "", fmt.Errorf("%s: %w", label, err)
		}
	}
	lowerSimulated(r, &m)
	m.Findings = m.Findings[:min(len(m.Findings), maxFindings)]
	m.Status = m.Vector.Status()
	m.Evidence, err = e.forToken(annotated, doc)
	return m, label, err
}

// The rules of an attestation policy.
const (
	ruleClaims     = "trust_claims"
	ruleFindings   = "findings"
	ruleExtensions = "extensions"
)

func judge(ctx context.Context, p *policy.Policy, annotated json.RawMessage, m *ear.Submod) error {
	in, err := policy.NewInput(annotated)
	if err != nil {
		return err
	}
	result, err := p.EvalAll(ctx, in, nil)
	if err != nil {
		return err
	}
	var claims map[string]json.Number
	if _, err := result.Decode(ruleClaims, &claims); err != nil {
		return err
	}
	if m.Vector, err = ear.ParseVector(claims); err != nil {
		return err
	}
	if _, err := result.Decode(ruleFindings, &m.Findings); err != nil {
		return err
	}
	var extensions []struct {
		Name  string          `json:"name"`
		Key   json.Number     `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	if _, err := result.Decode(ruleExtensions, &extensions); err != nil {
		return err
	}
	for _, x := range extensions {
		if err := ear.CheckExtension(x.Name); err != nil {
			return err
		}
		if m.Extensions == nil {
			m.Extensions = map[string]json.RawMessage{}
		}
		m.Extensions[x.Name] = x.Value
	}
	return nil
}

// lowerSimulated is in the program and not in the policy, so that a policy
// written for another trustee cannot affirm a development root.
func lowerSimulated(r *tee.Result, m *ear.Submod) {
	if !r.Simulated {
		return
	}
	if s := ear.Tier(m.Vector.Hardware); s == ear.None || s == ear.Affirming {
		m.Vector.Hardware = HardwareSimulated
	}
	m.Findings = slices.Insert(m.Findings, 0, ear.Finding{Affects: "hardware", Reason: kbs.Reason{
		Rule: RuleSimulated, Claim: "simulated", Expected: "false", Got: "true",
		Help: "the evidence is of a software TEE, which protects nothing from its host; run on SEV-SNP hardware, or, for development only, set policy.allow_simulated in the trustee's configuration",
	}})
}

// RuleSimulated is the finding of simulated evidence.
const RuleSimulated = "evidence.simulated"

// annotate lays claims out as relying parties of the ecosystem expect them:
// TEE claims under the TEE's name, report data and initdata beside them.
func annotate(p Part) map[string]any {
	r := p.Result
	claims := maps.Clone(r.Claims)
	delete(claims, "report_data")
	delete(claims, "init_data")
	out := map[string]any{
		string(r.TEE): claims,
		"report_data": hex.EncodeToString(r.ReportData),
		"simulated":   r.Simulated,
	}
	if p.Runtime != nil {
		out["runtime_data_claims"] = p.Runtime
	}
	if r.InitData != nil {
		out["init_data"] = hex.EncodeToString(r.InitData)
		if p.InitData != nil {
			out["init_data_claims"] = p.InitData
		}
	}
	return out
}

// forToken leaves out of the token what would not fit into a request header.
// doc is the JSON of annotated: nearly always the answer.
func (e *Engine) forToken(annotated map[string]any, doc json.RawMessage) (json.RawMessage, error) {
	if e.o.Verbose && len(doc) <= maxTokenInitData {
		return doc, nil
	}
	out := maps.Clone(annotated)
	if !e.o.Verbose {
		if claims, ok := out["runtime_data_claims"].(map[string]any); ok {
			claims = maps.Clone(claims)
			delete(claims, "additional-evidence")
			out["runtime_data_claims"] = claims
		}
		delete(out, "init_data_claims")
	}
	if c, ok := out["init_data_claims"]; ok {
		if doc, err := json.Marshal(c); err != nil || len(doc) > maxTokenInitData {
			delete(out, "init_data_claims")
			out["init_data_claims_omitted"] = true
		}
	}
	return json.Marshal(out)
}
