// Package appraisal turns genuine evidence into attestation results: it lays
// the claims out as annotated evidence, has a Rego policy judge them against
// reference values, and makes sure that evidence of a development root is
// never affirmed, whatever the policy says.
package appraisal

import (
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
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

//go:embed default_cpu.rego
var defaultCPU string

// References looks reference values up. found is false for an unknown name.
type References interface {
	LookupReference(ctx context.Context, name string) (ref refvalues.Reference, found bool, err error)
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
	o   Options
	set *policy.Set
}

// New returns an engine with the built-in policies as defaults.
func New(o Options) *Engine {
	e := &Engine{o: o}
	e.set = policy.NewSet(policy.SetOptions{
		Source:   o.Policies,
		Defaults: map[string]string{DefaultPolicy + "_" + string(tee.CPU): defaultCPU},
		Rules:    []string{"trust_claims", "findings", "extensions"},
		Timeout:  o.Timeout,
		Functions: map[string]policy.Function{
			"query_reference_value":      e.query,
			"reference_value_registered": e.registered,
			"describe_reference_value":   e.describe,
		},
	})
	return e
}

// CheckPolicy reports whether a text can be stored as an attestation policy.
func (e *Engine) CheckPolicy(ctx context.Context, id, text string) error {
	return e.set.Check(ctx, id, text)
}

func (e *Engine) query(ctx context.Context, name string) (json.RawMessage, error) {
	r, found, err := e.o.References.LookupReference(ctx, name)
	if err != nil || !found {
		return nil, err
	}
	return r.Current(e.o.Now()), nil
}

func (e *Engine) registered(ctx context.Context, name string) (json.RawMessage, error) {
	_, found, err := e.o.References.LookupReference(ctx, name)
	if err != nil {
		return nil, err
	}
	return json.Marshal(found)
}

func (e *Engine) describe(ctx context.Context, name string) (json.RawMessage, error) {
	r, _, err := e.o.References.LookupReference(ctx, name)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r.Describe(e.o.Now()))
}

// Evidence is what one handshake proved.
type Evidence struct {
	// Results of the verifiers, the primary environment first.
	Results []*tee.Result
	// Nonce, Key and Additional are the runtime data the results are bound to.
	Nonce      string
	Key        kbs.TEEPubKey
	Additional *string
	// InitData are the claims of initdata whose digest the evidence holds
	// ([InitDataClaims]); nil when the guest did not present it.
	InitData map[string]any
	// PolicyID selects the policy; empty means [DefaultPolicy].
	PolicyID string
}

// Appraise judges every result and returns the submodules of the attestation
// result by name: class and index, "cpu0" first.
func (e *Engine) Appraise(ctx context.Context, ev Evidence) (map[string]ear.Submod, error) {
	id := ev.PolicyID
	if id == "" {
		id = DefaultPolicy
	}
	out := map[string]ear.Submod{}
	count := map[tee.Class]int{}
	for _, r := range ev.Results {
		name := fmt.Sprintf("%s%d", r.Class, count[r.Class])
		count[r.Class]++
		m, err := e.appraise(ctx, ev, r, id)
		if err != nil {
			return nil, fmt.Errorf("appraisal: %s: %w", name, err)
		}
		out[name] = m
	}
	return out, nil
}

func (e *Engine) appraise(ctx context.Context, ev Evidence, r *tee.Result, id string) (ear.Submod, error) {
	id += "_" + string(r.Class)
	annotated := annotate(ev, r)
	doc, err := json.Marshal(annotated)
	if err != nil {
		return ear.Submod{}, err
	}
	m := ear.Submod{PolicyID: strings.TrimSuffix(id, "_"+string(r.Class))}
	p, label, ok, err := e.set.Get(ctx, id)
	switch {
	case err != nil:
		return ear.Submod{}, err
	case !ok:
		m.Vector = ear.Vector{Hardware: hardwareUnknown, Executables: executablesUnknown, Configuration: configurationUnknown}
		m.Findings = []ear.Finding{{Affects: "hardware", Reason: kbs.Reason{
			Rule: "appraisal.no-policy", Claim: "class", Expected: "an attestation policy " + id, Got: "none",
			Help: "store one with POST /kbs/v0/attestation-policy",
		}}}
	default:
		if err := judge(ctx, p, doc, &m); err != nil {
			return ear.Submod{}, fmt.Errorf("%s: %w", label, err)
		}
	}
	lowerSimulated(r, &m)
	m.Findings = m.Findings[:min(len(m.Findings), maxFindings)]
	m.Status = m.Vector.Status()
	m.Evidence, err = json.Marshal(e.forToken(annotated))
	return m, err
}

func judge(ctx context.Context, p *policy.Policy, doc json.RawMessage, m *ear.Submod) error {
	in, err := policy.NewInput(doc)
	if err != nil {
		return err
	}
	var claims map[string]json.Number
	if _, err := p.Eval(ctx, "trust_claims", in, nil, &claims); err != nil {
		return err
	}
	if m.Vector, err = ear.ParseVector(claims); err != nil {
		return err
	}
	if _, err := p.Eval(ctx, "findings", in, nil, &m.Findings); err != nil {
		return err
	}
	var extensions []struct {
		Name  string          `json:"name"`
		Key   json.Number     `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	if _, err := p.Eval(ctx, "extensions", in, nil, &extensions); err != nil {
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
func annotate(ev Evidence, r *tee.Result) map[string]any {
	claims := maps.Clone(r.Claims)
	delete(claims, "report_data")
	delete(claims, "init_data")
	runtime := map[string]any{"nonce": ev.Nonce, "tee-pubkey": ev.Key}
	if ev.Additional != nil {
		runtime["additional-evidence"] = *ev.Additional
	}
	out := map[string]any{
		string(r.TEE):         claims,
		"report_data":         hex.EncodeToString(r.ReportData),
		"runtime_data_claims": runtime,
		"simulated":           r.Simulated,
	}
	if r.InitData != nil {
		out["init_data"] = hex.EncodeToString(r.InitData)
		if ev.InitData != nil {
			out["init_data_claims"] = ev.InitData
		}
	}
	return out
}

// forToken leaves out of the token what would not fit into a request header.
func (e *Engine) forToken(annotated map[string]any) map[string]any {
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
	return out
}
