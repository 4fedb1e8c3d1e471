// Package hsm keeps resources as data objects in a PKCS#11 token. It needs a
// program built with cgo, see package cryptoki.
//
// Each version is one object, created in a single call, so that nobody sees
// half of one:
//
//	CKA_CLASS        CKO_DATA, with CKA_TOKEN and CKA_PRIVATE true
//	CKA_APPLICATION  "coffer/TENANT"
//	CKA_LABEL        the path, "repository/type/tag"
//	CKA_OBJECT_ID    DER of the object identifier 2.25.1.VERSION.CREATED.SIZE.STATE:
//	                 creation in milliseconds since 1970, size in bytes, state 0
//	                 for a content, 1 for a deletion, which hides all lower versions
//	CKA_VALUE        the content as it is
//
// An object without CKA_OBJECT_ID, as "pkcs11-tool --write-object --private"
// makes it, counts as version 1 where nothing else has that number.
//
// Tokens know neither transactions nor exclusive creation. Writers of one
// process exclude each other; a writer that finds its number taken by another
// process takes its object back and tries the next. Tokens are slow at finding
// and small: this backend is for few resources.
package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Defaults of [Options].
const (
	DefaultVersions   = 5
	DefaultMaxContent = 64 << 10
	// maxObjects bounds a tenant's objects.
	maxObjects  = 100_000
	application = "coffer/"
)

// Token lends sessions that may write; [cryptoki.Token] implements it.
type Token interface {
	Label() string
	Do(ctx context.Context, f func(context.Context, cryptoki.Session) error) error
}

// Options of [New].
type Options struct {
	// Versions is how many versions of a resource are kept, 0 for
	// [DefaultVersions].
	Versions int
	// MaxContent is the longest content in bytes, 0 for [DefaultMaxContent].
	MaxContent int
	Now        func() time.Time
}

// Backend implements [resource.Backend]. It is safe for concurrent use.
type Backend struct {
	o     Options
	token Token
	// writer is held by the one writer of this process.
	writer chan struct{}
	// call is held during each call into the token: SoftHSM, for one, gives odd
	// answers about objects that another thread is destroying.
	call chan struct{}
}

// New keeps resources in a token.
func New(token Token, o Options) (*Backend, error) {
	if o.Versions == 0 {
		o.Versions = DefaultVersions
	}
	if o.MaxContent == 0 {
		o.MaxContent = DefaultMaxContent
	}
	if o.Versions < 1 || o.MaxContent < 1 || o.MaxContent > math.MaxInt32 {
		return nil, fmt.Errorf("resources in a PKCS#11 token: expected at least 1 version and 1 byte, got %d and %d", o.Versions, o.MaxContent)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Backend{o, token, make(chan struct{}, 1), make(chan struct{}, 1)}, nil
}

// entry is what an object's attributes say.
type entry struct {
	object  cryptoki.Object
	path    string
	version int64
	created time.Time
	size    int
	mark    bool
	foreign bool
}

func check(t tenant.Name, p resource.Path) error {
	if _, err := tenant.Parse(string(t)); err != nil {
		return err
	}
	_, err := resource.Parse(p.String())
	return err
}

// find lists a tenant's objects, or those of one path. No value is read.
func find(s cryptoki.Session, t tenant.Name, path string) ([]entry, error) {
	template := []cryptoki.Attribute{
		{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)},
		{Type: cryptoki.AttrToken, Value: true},
		// Public objects can be made by whoever reaches the token, without its PIN
		// (PKCS #11: R/W public sessions may write public token objects).
		{Type: cryptoki.AttrPrivate, Value: true},
		{Type: cryptoki.AttrApplication, Value: []byte(application + string(t))},
	}
	if path != "" {
		template = append(template, cryptoki.Attribute{Type: cryptoki.AttrLabel, Value: []byte(path)})
	}
	objects, err := s.Find(template, maxObjects)
	if err != nil {
		return nil, err
	}
	out := make([]entry, 0, len(objects))
	for _, o := range objects {
		values, err := s.Attributes(o, cryptoki.AttrApplication, cryptoki.AttrLabel, cryptoki.AttrObjectID)
		if errors.Is(err, cryptoki.ObjectHandleInvalid) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		// The token is asked what the object is, not only whether it matches.
		if len(values) != 3 || string(values[0]) != application+string(t) || path != "" && string(values[1]) != path {
			return nil, errors.New("the token returned an object of another name than was asked for: do not use it")
		}
		e, ok := parseIdentifier(values[2])
		if _, err := resource.Parse(string(values[1])); err != nil || !ok {
			continue // not ours
		}
		e.object, e.path = o, string(values[1])
		out = append(out, e)
	}
	return out, nil
}

// history is one path's entries.
type history struct {
	live   []entry // newest first
	mark   *entry
	stale  []entry
	newest int64
}

func order(entries []entry) history {
	var h history
	// Of two with one number, ours comes first, then the older handle.
	slices.SortStableFunc(entries, func(a, b entry) int {
		switch {
		case a.version != b.version:
			return compare(b.version, a.version)
		case a.foreign != b.foreign:
			if b.foreign {
				return -1
			}
			return 1
		}
		return compare(int64(a.object), int64(b.object))
	})
	for i, e := range entries {
		h.newest = max(h.newest, e.version)
		switch {
		case h.mark != nil:
			h.stale = append(h.stale, e)
		case e.mark:
			h.mark = &entries[i]
		case len(h.live) == 0 || h.live[len(h.live)-1].version != e.version:
			h.live = append(h.live, e)
		}
	}
	return h
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Get implements [resource.Backend].
func (b *Backend) Get(ctx context.Context, t tenant.Name, p resource.Path, version int64) (secret.Bytes, int64, error) {
	if err := check(t, p); err != nil {
		return secret.Bytes{}, 0, err
	}
	type result struct {
		content secret.Bytes
		version int64
	}
	got, err := look(ctx, b, func(s cryptoki.Session) (result, error) {
		for range 100 { // until no writer removes what was found
			entries, err := find(s, t, p.String())
			if err != nil {
				return result{}, err
			}
			live := order(entries).live
			if len(live) == 0 {
				return result{}, resource.ErrNotFound
			}
			i := 0
			if version != 0 {
				if i = slices.IndexFunc(live, func(e entry) bool { return e.version == version }); i < 0 {
					return result{}, resource.ErrNotFound
				}
			}
			content, err := b.read(s, live[i])
			if errors.Is(err, cryptoki.ObjectHandleInvalid) {
				continue
			}
			return result{content, live[i].version}, err
		}
		return result{}, fmt.Errorf("%w: it is replaced all the time", resource.ErrUnavailable)
	})
	if err != nil {
		return secret.Bytes{}, 0, b.wrap("get", p.String(), err)
	}
	return got.content, got.version, nil
}

func (b *Backend) read(s cryptoki.Session, e entry) (secret.Bytes, error) {
	if e.size > b.o.MaxContent {
		return secret.Bytes{}, fmt.Errorf("version %d: expected at most %d bytes, got %d", e.version, b.o.MaxContent, e.size)
	}
	values, err := s.Attributes(e.object, cryptoki.AttrValue)
	if err != nil {
		return secret.Bytes{}, err
	}
	if len(values) != 1 || e.size >= 0 && len(values[0]) != e.size || len(values[0]) > b.o.MaxContent {
		return secret.Bytes{}, fmt.Errorf("version %d: the token returned another number of bytes than the %d that were stored", e.version, e.size)
	}
	return secret.New(values[0]), nil
}

// Versions implements [resource.Backend].
func (b *Backend) Versions(ctx context.Context, t tenant.Name, p resource.Path) ([]resource.Info, error) {
	if err := check(t, p); err != nil {
		return nil, err
	}
	entries, err := look(ctx, b, func(s cryptoki.Session) ([]entry, error) { return find(s, t, p.String()) })
	if err != nil {
		return nil, b.wrap("list versions of", p.String(), err)
	}
	h := order(entries)
	if len(entries) == 0 {
		return nil, resource.ErrNotFound
	}
	out := []resource.Info{}
	for _, e := range h.live {
		out = append(out, e.info())
	}
	if h.mark != nil {
		out = append(out, h.mark.info())
	}
	return out, nil
}

func (e entry) info() resource.Info {
	return resource.Info{Path: e.path, Version: e.version, Size: e.size, Created: e.created, Deleted: e.mark}
}

// List implements [resource.Backend].
func (b *Backend) List(ctx context.Context, t tenant.Name, prefix, after string, limit int) ([]resource.Info, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return nil, err
	}
	if prefix != "" {
		if _, err := resource.ParsePrefix(prefix); err != nil {
			return nil, err
		}
	}
	entries, err := look(ctx, b, func(s cryptoki.Session) ([]entry, error) { return find(s, t, "") })
	if err != nil {
		return nil, b.wrap("list", prefix, err)
	}
	paths := map[string][]entry{}
	for _, e := range entries {
		if e.path > after && (prefix == "" || bytes.HasPrefix([]byte(e.path), []byte(prefix+"/"))) {
			paths[e.path] = append(paths[e.path], e)
		}
	}
	names := make([]string, 0, len(paths))
	for name := range paths {
		names = append(names, name)
	}
	slices.Sort(names)
	out := []resource.Info{}
	for _, name := range names {
		if len(out) >= limit {
			break
		}
		if live := order(paths[name]).live; len(live) > 0 {
			out = append(out, live[0].info())
		}
	}
	return out, nil
}

// do carries out f with a session. f may be called twice, and may go on after
// the caller has gone.
func do[T any](ctx context.Context, b *Backend, f func(context.Context, cryptoki.Session) (T, error)) (T, error) {
	result := make(chan T, 8)
	err := b.token.Do(ctx, func(ctx context.Context, s cryptoki.Session) error {
		select {
		case b.call <- struct{}{}:
			defer func() { <-b.call }()
		case <-ctx.Done():
			return ctx.Err()
		}
		v, err := f(ctx, s)
		if err == nil {
			result <- v
		}
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-result, nil
}

// looks is how often a look is repeated after the token failed.
const looks = 4

// look is do for what may be done twice: looking and destroying. Some tokens,
// SoftHSM among them, fail with CKR_GENERAL_ERROR when an object goes away
// while they look at it.
func look[T any](ctx context.Context, b *Backend, f func(cryptoki.Session) (T, error)) (T, error) {
	for n := 1; ; n++ {
		v, err := do(ctx, b, func(_ context.Context, s cryptoki.Session) (T, error) { return f(s) })
		if n == looks || !errors.Is(err, cryptoki.GeneralError) && !errors.Is(err, cryptoki.FunctionFailed) {
			return v, err
		}
	}
}

func (b *Backend) wrap(what, name string, err error) error {
	switch {
	case errors.Is(err, resource.ErrNotFound):
		return resource.ErrNotFound
	case errors.Is(err, cryptoki.ErrUnavailable) && !errors.Is(err, resource.ErrUnavailable):
		err = fmt.Errorf("%w: %w", resource.ErrUnavailable, err)
	}
	return fmt.Errorf("%s %s in token %q: %w", what, name, b.token.Label(), err)
}
