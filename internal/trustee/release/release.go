// Package release decides whether an attested guest may have a resource, by
// the resource policy, and says why not.
package release

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// PolicyID is the id of the one resource policy.
const PolicyID = "resource-policy"

//go:embed default.rego
var defaultPolicy string

// Binding is an initdata digest that a resource's owner has registered.
type Binding struct {
	// InitData is the whole digest in hex.
	InitData    string
	Description string
}

// Bindings looks up what is registered for a resource and its prefixes.
type Bindings interface {
	BindingsFor(ctx context.Context, p resource.Path) ([]Binding, error)
}

// Options of [New].
type Options struct {
	Policies policy.Source
	Bindings Bindings
	// AllowSimulated is handed to the policy.
	AllowSimulated bool
	Timeout        time.Duration
}

// Engine decides. It is safe for concurrent use.
type Engine struct {
	o   Options
	set *policy.Set
}

// New returns an engine with the built-in policy as default.
func New(o Options) *Engine {
	return &Engine{o: o, set: policy.NewSet(policy.SetOptions{
		Source:   o.Policies,
		Defaults: map[string]string{PolicyID: defaultPolicy},
		Rules:    []string{"allow", "deny"},
		Timeout:  o.Timeout,
	})}
}

// CheckPolicy reports whether a text can be stored as the resource policy.
func (e *Engine) CheckPolicy(ctx context.Context, text string) error {
	return e.set.Check(ctx, PolicyID, text)
}

// Request is one guest asking for one resource.
type Request struct {
	Path resource.Path
	// Query are the URL's query parameters.
	Query map[string]string
	// Claims are the verified token's, Payload the same as it was signed.
	Claims  *ear.Claims
	Payload json.RawMessage
}

// Decision says yes, or why not.
type Decision struct {
	Granted bool
	// Reasons are never empty for a denial; the first matters most.
	Reasons []kbs.Reason
	// PolicyID is the policy that decided, with its version.
	PolicyID string
}

// Decide evaluates the policy. An error is no decision: nothing is released.
func (e *Engine) Decide(ctx context.Context, r Request) (Decision, error) {
	p, label, ok, err := e.set.Get(ctx, PolicyID)
	if err != nil || !ok {
		return Decision{}, fmt.Errorf("resource policy: %w", err)
	}
	coffer, err := e.data(ctx, r)
	if err != nil {
		return Decision{}, err
	}
	data := map[string]any{"plugin": kbs.PluginResource, "resource-path": r.Path.Segments(), "query": r.Query, "coffer": coffer}
	if r.Query == nil {
		data["query"] = map[string]string{}
	}
	in, err := policy.NewInput(r.Payload)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{PolicyID: label}
	// Anything but the boolean true denies.
	var allow any
	if _, err := p.Eval(ctx, "allow", in, data, &allow); err != nil {
		return Decision{}, err
	}
	if d.Granted = allow == true; d.Granted {
		return d, nil
	}
	d.Reasons, err = reasons(ctx, p, in, data)
	if err != nil || len(d.Reasons) == 0 {
		d.Reasons = fallback(label, r.Claims)
	}
	return d, nil
}

// maxReasons bounds what a denial lists.
const maxReasons = 16

func reasons(ctx context.Context, p *policy.Policy, in policy.Input, data map[string]any) ([]kbs.Reason, error) {
	type reason struct {
		Priority *float64 `json:"priority"`
		kbs.Reason
	}
	var deny []reason
	if _, err := p.Eval(ctx, "deny", in, data, &deny); err != nil {
		return nil, err
	}
	const unordered = 100
	priority := func(r reason) float64 {
		if r.Priority == nil {
			return unordered
		}
		return *r.Priority
	}
	slices.SortStableFunc(deny, func(a, b reason) int { return cmp.Compare(priority(a), priority(b)) })
	var out []kbs.Reason
	for _, r := range deny[:min(len(deny), maxReasons)] {
		if r.Rule == "" {
			r.Rule = "resource-policy"
		}
		out = append(out, r.Reason)
	}
	return out, nil
}

// fallback explains the denial of a policy that explains nothing: by the
// appraisal's own findings, else by its status.
func fallback(label string, c *ear.Claims) []kbs.Reason {
	r := kbs.Reason{
		Rule: "resource-policy", Claim: "data.policy.allow", Expected: "true", Got: "false or undefined",
		Help: "the operator's resource policy " + label + " refuses and gives no reason: it may define a set `deny` of objects with rule, claim, expected, got and help",
	}
	out := []kbs.Reason{r}
	for _, name := range slices.Sorted(maps.Keys(c.Submods)) {
		for _, f := range c.Submods[name].Findings {
			out = append(out, f.Reason)
		}
	}
	return out[:min(len(out), maxReasons)]
}

// describeMax is how many digests a denial lists.
const describeMax = 8

// data is data.coffer. Digests are fitted to the evidence's field here, so
// that a policy compares plain strings.
func (e *Engine) data(ctx context.Context, r Request) (map[string]any, error) {
	bindings, err := e.o.Bindings.BindingsFor(ctx, r.Path)
	if err != nil {
		return nil, err
	}
	field := InitDataField(r.Claims)
	fitted, text := []string{}, []string{}
	for _, b := range bindings {
		digest, err := hex.DecodeString(b.InitData)
		if err != nil {
			return nil, fmt.Errorf("stored binding for %s: initdata is no hex: %w", r.Path, err)
		}
		line := b.InitData
		if len(field) > 0 {
			fit := hex.EncodeToString(tee.Fit(digest, len(field)))
			// A digest too short to tell anything, or of zeros, is not handed over at all.
			if !initdata.MatchesField(digest, tee.Fit(digest, len(field))) {
				continue
			}
			fitted = append(fitted, fit)
			line = fit
		}
		if b.Description != "" {
			line += " (" + b.Description + ")"
		}
		text = append(text, line)
	}
	return map[string]any{
		"registered_initdata":    fitted,
		"registered_description": describe(text),
		"allow_simulated":        e.o.AllowSimulated,
	}, nil
}

func describe(text []string) string {
	if len(text) == 0 {
		return "nothing is registered"
	}
	if more := len(text) - describeMax; more > 0 {
		text = append(slices.Clip(text[:describeMax]), fmt.Sprintf("and %d more", more))
	}
	return "[" + strings.Join(text, ", ") + "]"
}

// InitDataField is the initdata field of the CPU's evidence as the token
// holds it, nil where it has none.
func InitDataField(c *ear.Claims) []byte {
	var e struct {
		InitData string `json:"init_data"`
	}
	if json.Unmarshal(c.Submods[ear.CPU].Evidence, &e) != nil {
		return nil
	}
	field, err := hex.DecodeString(e.InitData)
	if err != nil {
		return nil
	}
	return field
}
