// Package backendtest is the conformance test of [resource.Backend]: every
// backend runs it, so that a guest cannot tell which one answers.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// The two tenants of the tests; a backend that knows its tenants must know
// these before [Run] is called.
const (
	TenantA tenant.Name = "default"
	TenantB tenant.Name = "acme"
)

// Options tell what a backend is allowed to do differently.
type Options struct {
	// MaxContent is the largest content that the backend must keep, in bytes;
	// 0 stands for 1 MiB, the protocol's limit.
	MaxContent int
	// NoEmpty: empty contents are refused.
	NoEmpty bool
	// Versions is how many versions of a resource must stay readable; 0 stands
	// for 5.
	Versions int
	// Writers and Rounds shape the concurrent tests; 0 stands for 4 and 8.
	Writers, Rounds int
	// Many is how many resources the listings are tested with; 0 stands for 40.
	Many int
}

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxContent, 1<<20)
	def(&o.Versions, 5)
	def(&o.Writers, 4)
	def(&o.Rounds, 8)
	def(&o.Many, 40)
	return o
}

// Run tests the backends that open returns: a new and empty one on each call,
// closed by its own clean-up. The subtests run one after another, so that open
// may share what is behind the backends.
func Run(t *testing.T, o Options, open func(testing.TB) resource.Backend) {
	t.Helper()
	o = o.withDefaults()
	for _, c := range []struct {
		name string
		test func(suite, *testing.T)
	}{
		{"put and get", suite.putGet},
		{"versions", suite.versions},
		{"delete", suite.deletion},
		{"tenants", suite.tenants},
		{"list", suite.list},
		{"list in pages", suite.pages},
		{"sizes", suite.sizes},
		{"the caller's buffer", suite.buffers},
		{"paths", suite.paths},
		{"cancelled", suite.cancelled},
		{"concurrent readers", suite.readers},
		{"concurrent writers", suite.writers},
		{"deletion under writers", suite.deletionUnderWriters},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(suite{o, open(t)}, t) })
	}
}

type suite struct {
	Options
	b resource.Backend
}

// call bounds one operation: a backend that hangs fails the test with its name.
func call(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func path(t testing.TB, s string) resource.Path {
	t.Helper()
	p, err := resource.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s suite) put(t testing.TB, n tenant.Name, p, content string) int64 {
	t.Helper()
	v, err := s.b.Put(call(t), n, path(t, p), secret.New([]byte(content)))
	if err != nil {
		t.Fatalf("put %s of %s: %v", p, n, err)
	}
	return v
}

// want checks a version's content and number.
func (s suite) want(t testing.TB, n tenant.Name, p string, version int64, content string, number int64) {
	t.Helper()
	got, v, err := s.b.Get(call(t), n, path(t, p), version)
	if err != nil {
		t.Fatalf("get %s of %s, version %d: %v", p, n, version, err)
	}
	if string(got.Expose()) != content || v != number {
		t.Errorf("get %s of %s, version %d: got %s as version %d, want %s as version %d", p, n, version, sum(got.Expose()), v, sum([]byte(content)), number)
	}
}

func (s suite) wantMissing(t testing.TB, n tenant.Name, p string, version int64) {
	t.Helper()
	got, v, err := s.b.Get(call(t), n, path(t, p), version)
	if !errors.Is(err, resource.ErrNotFound) || got.Len() != 0 {
		t.Errorf("get %s of %s, version %d: got %d bytes as version %d, error %v; want ErrNotFound", p, n, version, got.Len(), v, err)
	}
}

// sum names a content in messages; the tests' contents may be long.
func sum(b []byte) string {
	if len(b) <= 40 {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%q… (%d bytes)", b[:40], len(b))
}

func (s suite) putGet(t *testing.T) {
	const p = "repo/key/one"
	s.wantMissing(t, TenantA, p, 0)
	s.wantMissing(t, TenantA, p, 1)
	first := s.put(t, TenantA, p, "first")
	if first < 1 {
		t.Errorf("first version is %d, want at least 1", first)
	}
	s.want(t, TenantA, p, 0, "first", first)
	second := s.put(t, TenantA, p, "second")
	if second != first+1 {
		t.Errorf("version after %d is %d", first, second)
	}
	s.want(t, TenantA, p, 0, "second", second)
	s.want(t, TenantA, p, first, "first", first)
	s.wantMissing(t, TenantA, p, second+1)
	s.wantMissing(t, TenantA, p, -1)
	s.wantMissing(t, TenantA, p, 1<<62)
	for _, other := range []string{"repo/key/on", "repo/key/one1", "repo/ke/one", "rep/key/one"} {
		s.wantMissing(t, TenantA, other, 0)
	}
	// The same content again is a version like any other.
	if v := s.put(t, TenantA, p, "second"); v != second+1 {
		t.Errorf("version after %d is %d", second, v)
	}
}

func (s suite) versions(t *testing.T) {
	const p = "repo/key/many"
	before := time.Now().Add(-time.Minute)
	if got, err := s.b.Versions(call(t), TenantA, path(t, p)); err != nil && !errors.Is(err, resource.ErrNotFound) || len(got) != 0 {
		t.Errorf("versions of nothing: %v, %v", got, err)
	}
	var numbers []int64
	for i := range s.Versions {
		numbers = append(numbers, s.put(t, TenantA, p, fmt.Sprintf("content %d", i)))
	}
	got, err := s.b.Versions(call(t), TenantA, path(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(numbers) {
		t.Fatalf("got %d versions, want %d: %+v", len(got), len(numbers), got)
	}
	for i, info := range got {
		n := len(numbers) - 1 - i
		want := fmt.Sprintf("content %d", n)
		if info.Path != p || info.Version != numbers[n] || info.Deleted || info.Size != len(want) && info.Size != -1 {
			t.Errorf("entry %d: got %+v, want version %d of %s with %d bytes", i, info, numbers[n], p, len(want))
		}
		if info.Created.Before(before) || info.Created.After(time.Now().Add(time.Minute)) {
			t.Errorf("entry %d: created %v", i, info.Created)
		}
		s.want(t, TenantA, p, info.Version, want, info.Version)
	}
}

func (s suite) deletion(t *testing.T) {
	const p, stays = "repo/key/gone", "repo/key/stays"
	if was, err := s.b.Delete(call(t), TenantA, path(t, p)); err != nil || was {
		t.Errorf("delete of nothing: %v, %v", was, err)
	}
	s.put(t, TenantA, stays, "stays")
	s.put(t, TenantA, p, "one")
	last := s.put(t, TenantA, p, "two")
	if was, err := s.b.Delete(call(t), TenantA, path(t, p)); err != nil || !was {
		t.Fatalf("delete: %v, %v", was, err)
	}
	for v := range last + 3 {
		s.wantMissing(t, TenantA, p, v)
	}
	if was, err := s.b.Delete(call(t), TenantA, path(t, p)); err != nil || was {
		t.Errorf("second delete: %v, %v; want false", was, err)
	}
	got, err := s.b.Versions(call(t), TenantA, path(t, p))
	if err != nil && !errors.Is(err, resource.ErrNotFound) {
		t.Errorf("versions after deletion: %v", err)
	}
	for _, info := range got {
		if !info.Deleted {
			t.Errorf("versions after deletion: %+v is not marked as deleted", info)
		}
	}
	if list := s.listed(t, TenantA, "", "", 10); !slices.Equal(list, []string{stays}) {
		t.Errorf("list after deletion: %v", list)
	}
	s.want(t, TenantA, stays, 0, "stays", 1)

	// A number never names two contents, not even across a deletion.
	v := s.put(t, TenantA, p, "again")
	if v <= last {
		t.Errorf("version after the deletion of version %d is %d", last, v)
	}
	s.want(t, TenantA, p, 0, "again", v)
	for old := int64(1); old < v; old++ {
		s.wantMissing(t, TenantA, p, old)
	}
	if list := s.listed(t, TenantA, "", "", 10); !slices.Equal(list, []string{p, stays}) {
		t.Errorf("list after putting it back: %v", list)
	}
}

func (s suite) tenants(t *testing.T) {
	const p = "repo/key/shared"
	s.put(t, TenantA, p, "of A")
	s.wantMissing(t, TenantB, p, 0)
	s.wantMissing(t, TenantB, p, 1)
	if got := s.listed(t, TenantB, "", "", 10); len(got) != 0 {
		t.Errorf("tenant B lists %v", got)
	}
	if got, err := s.b.Versions(call(t), TenantB, path(t, p)); err != nil && !errors.Is(err, resource.ErrNotFound) || len(got) != 0 {
		t.Errorf("tenant B's versions: %v, %v", got, err)
	}
	if was, err := s.b.Delete(call(t), TenantB, path(t, p)); err != nil || was {
		t.Errorf("tenant B deletes: %v, %v", was, err)
	}
	if v := s.put(t, TenantB, p, "of B"); v != 1 {
		t.Errorf("tenant B's first version is %d", v)
	}
	s.want(t, TenantA, p, 0, "of A", 1)
	s.want(t, TenantB, p, 0, "of B", 1)
	if _, err := s.b.Delete(call(t), TenantB, path(t, p)); err != nil {
		t.Fatal(err)
	}
	s.want(t, TenantA, p, 0, "of A", 1)

	// Names that no tenant can have reach nothing.
	for _, bad := range []tenant.Name{"", "..", "a/b", tenant.All, "Acme", "default/repo"} {
		if _, err := s.b.Put(call(t), bad, path(t, p), secret.New([]byte("x"))); err == nil {
			t.Errorf("put for tenant %q: want an error", bad)
		}
		if got, _, err := s.b.Get(call(t), bad, path(t, p), 0); err == nil || got.Len() != 0 {
			t.Errorf("get for tenant %q: want an error", bad)
		}
		if list, err := s.b.List(call(t), bad, "", "", 10); len(list) != 0 {
			t.Errorf("list for tenant %q: %v, %v", bad, list, err)
		}
	}
}

func (s suite) sizes(t *testing.T) {
	sizes := []int{1, 31, 32, 33, 4095, 4096, 65537, s.MaxContent - 1, s.MaxContent}
	if !s.NoEmpty {
		sizes = append(sizes, 0)
	}
	for _, n := range sizes {
		if n > s.MaxContent {
			continue
		}
		content := make([]byte, n)
		for i := range content {
			content[i] = byte(i * 7 >> (i % 3)) // every byte value, also NUL and what is not UTF-8
		}
		p := fmt.Sprintf("repo/size/%d", n)
		v := s.put(t, TenantA, p, string(content))
		got, _, err := s.b.Get(call(t), TenantA, path(t, p), v)
		if err != nil || !bytes.Equal(got.Expose(), content) {
			t.Errorf("%d bytes: got %d bytes, %v", n, got.Len(), err)
		}
	}
}

// buffers: the caller clears what it put, and what it got.
func (s suite) buffers(t *testing.T) {
	const p = "repo/key/cleared"
	content := secret.New([]byte("kept content"))
	v, err := s.b.Put(call(t), TenantA, path(t, p), content)
	if err != nil {
		t.Fatal(err)
	}
	content.Clear()
	got, _, err := s.b.Get(call(t), TenantA, path(t, p), 0)
	if err != nil {
		t.Fatal(err)
	}
	got.Clear()
	s.want(t, TenantA, p, 0, "kept content", v)
}

// paths: values that Parse never returns reach nothing either, and the longest
// that it does return is kept.
func (s suite) paths(t *testing.T) {
	seg := string(bytes.Repeat([]byte("x"), resource.MaxSegment))
	long := seg + "/" + seg + "/" + seg
	s.put(t, TenantA, long, "long")
	s.want(t, TenantA, long, 0, "long", 1)
	s.put(t, TenantA, "A/b/C", "upper") // names differ by case
	s.put(t, TenantA, "a/b/c", "lower")
	s.want(t, TenantA, "A/b/C", 0, "upper", 1)
	s.want(t, TenantA, "a/b/c", 0, "lower", 1)
	for _, p := range []resource.Path{
		{}, {Repository: "a", Type: "b"}, {Repository: "..", Type: "b", Tag: "c"}, {Repository: "a/b", Type: "c", Tag: "d"},
		{Repository: "a", Type: "b", Tag: "c/../../x"}, {Repository: "a", Type: ".b", Tag: "c"}, {Repository: "a", Type: "b", Tag: "c\x00"}, {Repository: seg + "x", Type: "b", Tag: "c"},
	} {
		if v, err := s.b.Put(call(t), TenantA, p, secret.New([]byte("x"))); err == nil {
			t.Errorf("put %q: stored as version %d, want an error", p, v)
		}
		if got, _, err := s.b.Get(call(t), TenantA, p, 0); err == nil || got.Len() != 0 {
			t.Errorf("get %q: want an error", p)
		}
		if was, err := s.b.Delete(call(t), TenantA, p); was {
			t.Errorf("delete %q: %v, %v", p, was, err)
		}
	}
}

func (s suite) cancelled(t *testing.T) {
	const p = "repo/key/cancelled"
	v := s.put(t, TenantA, p, "before")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.b.Put(ctx, TenantA, path(t, p), secret.New([]byte("after"))); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v, want context.Canceled", err)
	}
	if _, _, err := s.b.Get(ctx, TenantA, path(t, p), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v, want context.Canceled", err)
	}
	if _, err := s.b.Delete(ctx, TenantA, path(t, p)); !errors.Is(err, context.Canceled) {
		t.Errorf("delete: %v, want context.Canceled", err)
	}
	if _, err := s.b.List(ctx, TenantA, "", "", 10); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v, want context.Canceled", err)
	}
	if _, err := s.b.Versions(ctx, TenantA, path(t, p)); !errors.Is(err, context.Canceled) {
		t.Errorf("versions: %v, want context.Canceled", err)
	}
	s.want(t, TenantA, p, 0, "before", v)
}
