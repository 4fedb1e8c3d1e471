package policy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Source is where policy texts are kept. Versions count from 1.
type Source interface {
	// Generation changes whenever a policy of the tenant does. It is asked on
	// every request and has to be cheap.
	Generation(ctx context.Context, t tenant.Name) (int64, error)
	// PolicyVersions are the newest versions of the tenant's policies by id;
	// deleted ones are left out. It is asked once per generation.
	PolicyVersions(ctx context.Context, t tenant.Name) (map[string]int64, error)
	// PolicyText is asked once per version.
	PolicyText(ctx context.Context, t tenant.Name, id string, version int64) (string, error)
}

// SetOptions of [NewSet].
type SetOptions struct {
	Source Source
	// Defaults are in force where a tenant has no policy of that id.
	Defaults map[string][]Module
	Rules    []string
	// Lines is as in [Options].
	Lines     string
	Functions map[string]Function
	Timeout   time.Duration
}

// maxPrepared bounds the policies kept ready; each takes some hundred KiB.
const maxPrepared = 128

// maxTenants bounds the tenants whose versions are remembered.
const maxTenants = 4096

// Set hands out prepared policies by tenant and id. Each version is prepared
// once; a new version in the source is in force at the next [Set.Get],
// whichever process stored it. It is safe for concurrent use: what one
// request compiles keeps only those waiting that need the same policy.
type Set struct {
	o SetOptions

	mu       sync.Mutex
	tick     uint64
	prepared map[key]*entry
	versions map[tenant.Name]versions
}

type key struct {
	tenant  tenant.Name
	id      string
	version int64
}

// entry is one policy; whoever holds its turn prepares it.
type entry struct {
	turn   chan struct{}
	policy *Policy
	err    error
	used   uint64
}

// versions is what a tenant has in one generation.
type versions struct {
	generation int64
	byID       map[string]int64
}

// NewSet returns an empty set.
func NewSet(o SetOptions) *Set {
	return &Set{o: o, prepared: map[key]*entry{}, versions: map[tenant.Name]versions{}}
}

// View is a tenant's policies as of one generation.
type View struct {
	set        *Set
	tenant     tenant.Name
	generation int64
	byID       map[string]int64
}

// Generation is the generation the view shows.
func (v View) Generation() int64 { return v.generation }

// View asks the source for the tenant's generation, and for nothing else
// where it is the one it was.
func (s *Set) View(ctx context.Context, t tenant.Name) (View, error) {
	// The generation is read before what it counts: a change in between is
	// seen early and read again, never missed.
	g, err := s.o.Source.Generation(ctx, t)
	if err != nil {
		return View{}, err
	}
	s.mu.Lock()
	have, ok := s.versions[t]
	s.mu.Unlock()
	if ok && have.generation == g {
		return View{s, t, g, have.byID}, nil
	}
	byID, err := s.o.Source.PolicyVersions(ctx, t)
	if err != nil {
		return View{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.versions[t]; !ok || now.generation < g {
		if !ok && len(s.versions) >= maxTenants {
			clear(s.versions)
		}
		s.versions[t] = versions{g, byID}
		s.forget(t, byID)
	}
	return View{s, t, g, byID}, nil
}

// forget drops the tenant's policies that are no longer in force.
func (s *Set) forget(t tenant.Name, byID map[string]int64) {
	for k := range s.prepared {
		if k.tenant == t && byID[k.id] != k.version {
			delete(s.prepared, k)
		}
	}
}

// IDs are the policies that the tenant has, sorted; the defaults are left out.
func (v View) IDs() []string { return slices.Sorted(maps.Keys(v.byID)) }

// Get is [Set.View] and [View.Get] in one.
func (s *Set) Get(ctx context.Context, t tenant.Name, id string) (p *Policy, label string, ok bool, err error) {
	v, err := s.View(ctx, t)
	if err != nil {
		return nil, "", false, err
	}
	return v.Get(ctx, id)
}

// Get returns the policy in force and its label, "id@version" or
// "id (built in)". ok is false where neither the tenant nor the defaults know
// the id.
func (v View) Get(ctx context.Context, id string) (p *Policy, label string, ok bool, err error) {
	return v.GetVariant(ctx, id, "")
}

// Variant is the id of the default that stands in for another in one case.
func Variant(id, variant string) string { return id + "/" + variant }

// GetVariant is [View.Get], but where the default is in force and has a
// [Variant] of that name, it returns this one under the default's label.
func (v View) GetVariant(ctx context.Context, id, variant string) (p *Policy, label string, ok bool, err error) {
	k := key{v.tenant, id, v.byID[id]}
	label = id + "@" + strconv.FormatInt(k.version, 10)
	if k.version == 0 {
		k.tenant, label = "", id+" (built in)"
		if _, ok := v.set.o.Defaults[Variant(id, variant)]; ok {
			k.id = Variant(id, variant)
		} else if _, ok := v.set.o.Defaults[id]; !ok {
			return nil, "", false, nil
		}
	}
	e := v.set.entry(k)
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, "", false, ctx.Err()
	}
	if e.policy == nil && e.err == nil {
		if err := v.set.prepare(ctx, k, e); err != nil {
			return nil, "", false, err
		}
	}
	if e.err != nil {
		return nil, "", false, fmt.Errorf("stored policy %s cannot be used: %w", label, e.err)
	}
	return e.policy, label, true, nil
}

// entry finds or makes a place, at the cost of the one that was used longest ago.
func (s *Set) entry(k key) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick++
	e, ok := s.prepared[k]
	if !ok {
		if len(s.prepared) >= maxPrepared {
			oldest, at := key{}, s.tick
			for k, e := range s.prepared {
				if e.used < at {
					oldest, at = k, e.used
				}
			}
			delete(s.prepared, oldest)
		}
		e = &entry{turn: make(chan struct{}, 1)}
		s.prepared[k] = e
	}
	e.used = s.tick
	return e
}

// prepare compiles the text. Only what is the text's fault is remembered.
func (s *Set) prepare(ctx context.Context, k key, e *entry) error {
	modules := s.o.Defaults[k.id]
	if k.version > 0 {
		text, err := s.o.Source.PolicyText(ctx, k.tenant, k.id, k.version)
		if err != nil {
			return err
		}
		modules = []Module{{k.id + ".rego", text}}
	}
	e.policy, e.err = s.compile(context.WithoutCancel(ctx), k.id, modules)
	return nil
}

// Check reports whether a text could be used under an id. Its error is a
// *[CompileError].
func (s *Set) Check(ctx context.Context, id, text string) error {
	_, err := s.compile(ctx, id, []Module{{id + ".rego", text}})
	return err
}

func (s *Set) compile(ctx context.Context, id string, modules []Module) (*Policy, error) {
	return Compile(ctx, Options{Name: id + ".rego", Modules: modules, Rules: s.o.Rules, Lines: s.o.Lines, Functions: s.o.Functions, Timeout: s.o.Timeout})
}
