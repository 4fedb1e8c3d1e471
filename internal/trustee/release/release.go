// Package release decides whether an attested guest may have a resource, by
// the resource policy that is bound to it most specifically, and says why not.
// What a decision depended on is handed back as one document, so that a record
// of it can be replayed (package explain).
package release

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// Options of [New].
type Options struct {
	Policies Source
	Bindings Bindings
	// AllowSimulated is handed to the policy.
	AllowSimulated bool
	// Timeout bounds one evaluation; zero means [policy.DefaultTimeout].
	Timeout time.Duration
}

// Engine decides. It is safe for concurrent use.
type Engine struct {
	o   Options
	set *policy.Set
}

// New returns an engine with the built-in policy as default.
func New(o Options) *Engine { return &Engine{o: o, set: newSet(o.Policies, o.Timeout)} }

// CheckPolicy reports whether a text can be stored as the resource policy of a
// scope ([ParseScope]). An error about the text is a *[policy.CompileError].
func (e *Engine) CheckPolicy(ctx context.Context, scope, text string) error {
	if _, err := ParseScope(scope); err != nil {
		return err
	}
	_, err := prepare(ctx, id(scope), text, e.o.Timeout)
	return err
}

// Request is one guest asking for one resource.
type Request struct {
	Tenant tenant.Name
	// Plugin serves the resource: [kbs.PluginResource] for stored ones.
	Plugin string
	// Path are the segments after the plugin's name: repository, type and tag
	// of a stored resource.
	Path []string
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
	// PolicyID is the [Label] of the policy that decided.
	PolicyID string
	// Data is the document beside the claims that the policy saw as data, in
	// JSON: what a record has to keep. See [Data].
	Data json.RawMessage
}

// Decide evaluates the policy. An error is no decision: nothing is released.
func (e *Engine) Decide(ctx context.Context, r Request) (Decision, error) {
	scopes, err := Scopes(r.Plugin, r.Path)
	if err != nil {
		return Decision{}, err
	}
	p, err := e.inForce(ctx, r.Tenant, scopes)
	if err != nil {
		return Decision{}, err
	}
	data, err := e.data(ctx, r, scopes)
	if err != nil {
		return Decision{}, err
	}
	in, err := policy.NewInput(r.Payload)
	if err != nil {
		return Decision{}, err
	}
	d, err := p.decide(ctx, in, data, r.Claims)
	if err != nil {
		return Decision{}, err
	}
	data.Query = withoutCredentials(data.Query)
	if d.Data, err = json.Marshal(data); err != nil {
		return Decision{}, fmt.Errorf("resource policy: data: %w", err)
	}
	return d, nil
}

// Replay decides again from a record: with the policy text given, the claims
// and the data document as they were recorded. An error about the text is a
// *[policy.CompileError].
func Replay(ctx context.Context, label, text string, claims, data json.RawMessage) (Decision, error) {
	p, err := prepare(ctx, label, text, 0)
	if err != nil {
		return Decision{}, err
	}
	var c ear.Claims
	if err := json.Unmarshal(claims, &c); err != nil {
		return Decision{}, fmt.Errorf("recorded claims: %w", err)
	}
	in, err := policy.NewInput(claims)
	if err != nil {
		return Decision{}, fmt.Errorf("recorded claims: %w", err)
	}
	var doc Data
	if err := json.Unmarshal(data, &doc); err != nil {
		return Decision{}, fmt.Errorf("recorded data: %w", err)
	}
	d, err := p.decide(ctx, in, doc, &c)
	if err != nil {
		return Decision{}, err
	}
	d.Data = data
	return d, nil
}

// PolicyText is the text that a [Label] names, of a tenant.
func (e *Engine) PolicyText(ctx context.Context, t tenant.Name, label string) (string, error) {
	scope, version, err := ParseLabel(label)
	if err != nil {
		return "", err
	}
	if version == 0 {
		return defaultPolicy, nil
	}
	return e.o.Policies.ResourcePolicy(ctx, t, scope, version)
}
