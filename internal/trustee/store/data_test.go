package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// dataServer is shared by the tests of resources, policies, references,
// bindings, administrators and backups.
var dataServer pgtest.Shared

const acme tenant.Name = "acme"

// testClock stands until it is moved.
type testClock struct{ ms atomic.Int64 }

func newTestClock() *testClock {
	c := &testClock{}
	c.ms.Store(1_800_000_000_000)
	return c
}

func (c *testClock) now() time.Time          { return time.UnixMilli(c.ms.Load()).UTC() }
func (c *testClock) advance(d time.Duration) { c.ms.Add(d.Milliseconds()) }

func testKEK(t testing.TB, fill byte) seal.KEK {
	t.Helper()
	k, err := seal.File(secret.New(bytes.Repeat([]byte{fill}, seal.KeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// dataOptions are those of a new and empty database.
func dataOptions(t testing.TB, kind string, now func() time.Time) Options {
	t.Helper()
	o := Options{KEK: testKEK(t, 7), Now: now, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)}
	if kind == "postgres" {
		o.DatabaseURL = dataServer.URL(t)
	} else {
		o.Path = filepath.Join(t.TempDir(), "state.db")
	}
	return o
}

func openData(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// onBoth runs a test on both databases, with the tenants default and acme.
func onBoth(t *testing.T, test func(t *testing.T, s *Store, c *testClock)) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newTestClock()
			s := openData(t, dataOptions(t, kind, c.now))
			if err := s.CreateTenant(t.Context(), acme, "Acme"); err != nil {
				t.Fatal(err)
			}
			test(t, s, c)
		})
	}
}

func mustPath(t testing.TB, p string) resource.Path {
	t.Helper()
	x, err := resource.Parse(p)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func put(t testing.TB, s *Store, n tenant.Name, p, content string) int64 {
	t.Helper()
	v, err := s.Resources().Put(t.Context(), n, mustPath(t, p), secret.New([]byte(content)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// moves checks that f moves the generation of one tenant on and not the other's.
func moves(t *testing.T, s *Store, n tenant.Name, what string, f func(context.Context) error) {
	t.Helper()
	other := acme
	if n == acme {
		other = tenant.Default
	}
	before, err := s.Generation(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	was, err := s.Generation(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := f(t.Context()); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if after, err := s.Generation(t.Context(), n); err != nil || after <= before {
		t.Errorf("%s: generation %d after %d, %v", what, after, before, err)
	}
	if is, err := s.Generation(t.Context(), other); err != nil || is != was {
		t.Errorf("%s: the other tenant's generation went from %d to %d, %v", what, was, is, err)
	}
}
