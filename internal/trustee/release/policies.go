package release

import (
	"context"
	_ "embed"
	"fmt"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

//go:embed default.rego
var defaultPolicy string

// DefaultPolicy is the text of the built-in policy.
func DefaultPolicy() string { return defaultPolicy }

// Source is where a tenant's resource policies are kept, by scope.
type Source interface {
	// Generation changes with every change to the tenant's policies. It is
	// asked once for each decision and must be cheap.
	Generation(ctx context.Context, t tenant.Name) (int64, error)
	// ResourcePolicies are the versions in force, by scope: every scope that has
	// a policy of its own. Versions count from 1.
	ResourcePolicies(ctx context.Context, t tenant.Name) (map[string]int64, error)
	// ResourcePolicy is the text of one version.
	ResourcePolicy(ctx context.Context, t tenant.Name, scope string, version int64) (string, error)
}

// maxPrepared bounds the prepared policies that are kept, of all tenants: one
// takes some hundred KiB.
const maxPrepared = 256

// policies hands out the policy in force for a path. What it knows of a tenant
// is valid for one generation; a version's text never changes. No lock is held
// while something is asked or compiled.
type policies struct {
	source  Source
	timeout time.Duration

	mu       sync.RWMutex
	tenants  map[tenant.Name]inForce
	prepared map[policyKey]*prepared
}

type inForce struct {
	generation int64
	versions   map[string]int64
}

type policyKey struct {
	tenant  tenant.Name
	scope   string
	version int64
}

func newPolicies(s Source, timeout time.Duration) *policies {
	return &policies{source: s, timeout: timeout, tenants: map[tenant.Name]inForce{}, prepared: map[policyKey]*prepared{}}
}

// get finds the most specific policy for scopes ([Scopes]), then the one for
// everything, then the built-in one.
func (c *policies) get(ctx context.Context, t tenant.Name, scopes []string) (*prepared, error) {
	// Before the list, so that a change in between makes the list too new for
	// its generation and not too old.
	generation, err := c.source.Generation(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("resource policies of tenant %s: %w", t, err)
	}
	c.mu.RLock()
	known, ok := c.tenants[t]
	c.mu.RUnlock()
	if !ok || known.generation != generation {
		versions, err := c.source.ResourcePolicies(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("resource policies of tenant %s: %w", t, err)
		}
		known = inForce{generation, versions}
		c.mu.Lock()
		c.tenants[t] = known
		c.mu.Unlock()
	}
	for _, scope := range scopes {
		if v, ok := known.versions[scope]; ok {
			return c.version(ctx, policyKey{t, scope, v})
		}
	}
	if v, ok := known.versions[""]; ok {
		return c.version(ctx, policyKey{t, "", v})
	}
	return c.version(ctx, policyKey{})
}

// version returns one version prepared; the zero key is the built-in policy.
func (c *policies) version(ctx context.Context, k policyKey) (*prepared, error) {
	c.mu.RLock()
	p, ok := c.prepared[k]
	c.mu.RUnlock()
	if ok {
		return p, nil
	}
	text, label := defaultPolicy, Label(k.scope, k.version)
	if k != (policyKey{}) {
		var err error
		if text, err = c.source.ResourcePolicy(ctx, k.tenant, k.scope, k.version); err != nil {
			return nil, fmt.Errorf("%s of tenant %s: %w", label, k.tenant, err)
		}
	}
	p, err := prepare(ctx, label, text, c.timeout)
	if err != nil {
		return nil, fmt.Errorf("stored policy %s of tenant %s cannot be used: %w", label, k.tenant, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Any will do: it is prepared again when it is asked for.
	for old := range c.prepared {
		if len(c.prepared) < maxPrepared {
			break
		}
		if old != (policyKey{}) {
			delete(c.prepared, old)
		}
	}
	c.prepared[k] = p
	return p, nil
}

// prepare compiles a resource policy. Its error about the text is a
// *[policy.CompileError].
func prepare(ctx context.Context, label, text string, timeout time.Duration) (*prepared, error) {
	p, err := policy.Compile(ctx, policy.Options{Name: label, Text: text, Rules: []string{ruleAllow, ruleDeny}, Timeout: timeout})
	if err != nil {
		return nil, err
	}
	return &prepared{label: label, policy: p}, nil
}
