package appraisal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// maxCached bounds the values kept ready over all tenants and names. Each takes
// some 300 bytes.
const maxCached = 64 << 10

// references keeps reference values in Rego's form, so that an appraisal
// costs the same whether one value is registered or ten thousand.
type references struct {
	source References

	mu     sync.RWMutex
	cached map[cacheKey]*cachedReference
	// size is the sum of the cached references' sizes.
	size int
}

type cacheKey struct {
	tenant tenant.Name
	name   string
}

func newReferences(source References) *references {
	return &references{source: source, cached: map[cacheKey]*cachedReference{}}
}

// lookup is one appraisal's sight of the reference values.
type lookup struct {
	references *references
	tenant     tenant.Name
	generation int64
	now        time.Time
}

type lookupKey struct{}

// in returns a context for evaluations that see one generation at one time.
func (r *references) in(ctx context.Context, t tenant.Name, generation int64, now time.Time) context.Context {
	return context.WithValue(ctx, lookupKey{}, lookup{r, t, generation, now})
}

// functions are the builtins of attestation policies.
func functions() map[string]policy.Function {
	one := func(f func(c *cachedReference, now time.Time) (ast.Value, error)) policy.Function {
		return policy.Function{Args: 1, Call: func(ctx context.Context, args []ast.Value) (ast.Value, error) {
			c, now, err := find(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return f(c, now)
		}}
	}
	return map[string]policy.Function{
		"query_reference_value":      one((*cachedReference).current),
		"reference_value_registered": one(func(c *cachedReference, _ time.Time) (ast.Value, error) { return ast.Boolean(c.found), nil }),
		"describe_reference_value":   one((*cachedReference).describe),
		"reference_value_contains": {Args: 2, Call: func(ctx context.Context, args []ast.Value) (ast.Value, error) {
			c, now, err := find(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return ast.Boolean(c.contains(args[1], now)), nil
		}},
	}
}

func find(ctx context.Context, name ast.Value) (*cachedReference, time.Time, error) {
	l, ok := ctx.Value(lookupKey{}).(lookup)
	if !ok {
		return nil, time.Time{}, errors.New("there are no reference values outside an appraisal")
	}
	s, _ := name.(ast.String)
	c, err := l.references.get(ctx, l, string(s))
	return c, l.now, err
}

func (r *references) get(ctx context.Context, l lookup, name string) (*cachedReference, error) {
	k := cacheKey{l.tenant, name}
	r.mu.RLock()
	c, ok := r.cached[k]
	r.mu.RUnlock()
	if ok && c.generation == l.generation {
		return c, nil
	}
	ref, found, err := r.source.Reference(ctx, l.tenant, name)
	if err != nil {
		return nil, err
	}
	if c, err = newCached(ref, found, l.generation); err != nil {
		return nil, fmt.Errorf("stored reference value: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if have, ok := r.cached[k]; ok {
		if have.generation > l.generation {
			return c, nil
		}
		r.size -= have.size()
	}
	if r.size+c.size() > maxCached {
		clear(r.cached)
		r.size = 0
	}
	r.cached[k] = c
	r.size += c.size()
	return c, nil
}

// size counts values; a name without any takes place too.
func (c *cachedReference) size() int { return 1 + len(c.values) }

// cachedReference is one reference as of one generation.
type cachedReference struct {
	generation int64
	found      bool
	ref        refvalues.Reference
	// values are the parsed entries, index their places by hash.
	values []ast.Value
	index  map[int][]int32

	mu sync.Mutex
	// term and text are right until the first value in them expires.
	term  ast.Value
	text  ast.Value
	until time.Time
}

func newCached(ref refvalues.Reference, found bool, generation int64) (*cachedReference, error) {
	c := &cachedReference{generation: generation, found: found, ref: ref, index: make(map[int][]int32, len(ref.Entries))}
	for i, e := range ref.Entries {
		v, err := ast.ValueFromReader(strings.NewReader(string(e.Value)))
		if err != nil {
			return nil, fmt.Errorf("%q: value %d: %w", ref.Name, i, err)
		}
		c.values = append(c.values, v)
		h := folded(v).Hash()
		c.index[h] = append(c.index[h], int32(i))
	}
	return c, nil
}

// folded makes strings that differ only in case the same: hexadecimal digests
// are written either way.
func folded(v ast.Value) ast.Value {
	if s, ok := v.(ast.String); ok {
		return ast.String(strings.ToLower(string(s)))
	}
	return v
}

// contains reports whether an unexpired value is v. Of a scalar that is an
// array, the scalar itself is meant.
func (c *cachedReference) contains(v ast.Value, now time.Time) bool {
	v = folded(v)
	return slices.ContainsFunc(c.index[v.Hash()], func(i int32) bool {
		return c.ref.Entries[i].Valid(now) && folded(c.values[i]).Compare(v) == 0
	})
}

// current is what query_reference_value returns: the list of unexpired
// values, the scalar, or null.
func (c *cachedReference) current(now time.Time) (ast.Value, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renew(now)
	if c.term != nil {
		return c.term, nil
	}
	var live []*ast.Term
	for i, e := range c.ref.Entries {
		if e.Valid(now) {
			live = append(live, ast.NewTerm(c.values[i]))
		}
	}
	switch {
	case len(live) == 0:
		c.term = ast.NullValue
	case c.ref.Scalar:
		c.term = live[0].Value
	default:
		c.term = ast.NewArray(live...)
	}
	return c.term, nil
}

// describe is the values as text.
func (c *cachedReference) describe(now time.Time) (ast.Value, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renew(now)
	if c.text == nil {
		c.text = ast.String(c.ref.Describe(now))
	}
	return c.text, nil
}

// renew drops what was computed for another time, before the next value
// expires or after the clock was set back.
func (c *cachedReference) renew(now time.Time) {
	if (c.term != nil || c.text != nil) && !c.until.IsZero() && now.Before(c.until) {
		return
	}
	c.term, c.text = nil, nil
	// A year stands for "never".
	c.until = now.AddDate(1, 0, 0)
	for _, e := range c.ref.Entries {
		if !e.Expires.IsZero() && now.Before(e.Expires) && e.Expires.Before(c.until) {
			c.until = e.Expires
		}
	}
}
