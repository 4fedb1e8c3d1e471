package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/backendtest"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

func TestResourceBackend(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			backendtest.Run(t, backendtest.Options{Versions: MaxReadable}, func(tb testing.TB) resource.Backend {
				s := openData(tb, dataOptions(tb, kind, time.Now))
				if err := s.CreateTenant(tb.Context(), backendtest.TenantB, ""); err != nil {
					tb.Fatal(err)
				}
				return s.Resources()
			})
		})
	}
}

func TestOldVersionsAreErased(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		p := mustPath(t, "demo/key/1")
		const more = 3
		for i := range MaxReadable + more {
			put(t, s, acme, p.String(), fmt.Sprint(i+1))
		}
		for v := int64(1); v <= MaxReadable+more; v++ {
			got, n, err := s.Resources().Get(t.Context(), acme, p, v)
			if v <= more && !errors.Is(err, resource.ErrNotFound) || v > more && (err != nil || n != v || string(got.Expose()) != fmt.Sprint(v)) {
				t.Fatalf("version %d: got %q, %d, %v", v, got.Expose(), n, err)
			}
		}
		list, err := s.Resources().Versions(t.Context(), acme, p)
		if err != nil || len(list) != MaxReadable+more || list[len(list)-1].Version != 1 || !list[len(list)-1].Deleted || list[0].Deleted {
			t.Errorf("got %d versions, %+v, %v", len(list), list[len(list)-1], err)
		}
		var n int64
		if err := s.get(t.Context(), "left over", "SELECT COUNT(*) FROM resource_versions WHERE state <> ? AND LENGTH(content) > 0", []any{stateReadable}, &n); err != nil || n != 0 {
			t.Errorf("%d erased versions have content, %v", n, err)
		}
	})
}

// TestContentCannotBeMoved: whoever writes to the database cannot have one
// resource, version or tenant read as another.
func TestContentCannotBeMoved(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		put(t, s, acme, "demo/key/1", "one")
		put(t, s, acme, "demo/key/1", "two")
		put(t, s, tenant.Default, "demo/key/1", "of default")
		for what, stmt := range map[string]string{
			"version": "UPDATE resource_versions SET content = (SELECT content FROM resource_versions WHERE tenant = 'acme' AND version = 1) WHERE tenant = 'acme' AND version = 2",
			"tenant":  "UPDATE resource_versions SET content = (SELECT content FROM resource_versions WHERE tenant = 'default') WHERE tenant = 'acme' AND version = 2",
			"bytes":   "UPDATE resource_versions SET content = '' WHERE tenant = 'acme' AND version = 2",
		} {
			if _, err := s.exec(t.Context(), what, stmt); err != nil {
				t.Fatal(err)
			}
			got, _, err := s.Resources().Get(t.Context(), acme, mustPath(t, "demo/key/1"), 0)
			if err == nil || errors.Is(err, resource.ErrNotFound) || got.Len() != 0 {
				t.Errorf("another %s: got %d bytes, %v", what, got.Len(), err)
			}
		}
	})
}

func TestResourceRefusals(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx, b, p := t.Context(), s.Resources(), mustPath(t, "demo/key/1")
		if _, err := b.Put(ctx, "nobody", p, secret.New(nil)); !errors.Is(err, ErrNoTenant) {
			t.Errorf("unknown tenant: got %v", err)
		}
		put(t, s, acme, p.String(), "content")
		if err := s.SetTenantEnabled(ctx, acme, false); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Put(ctx, acme, p, secret.New(nil)); !errors.Is(err, ErrNoTenant) {
			t.Errorf("put of a disabled tenant: got %v", err)
		}
		if _, err := b.Delete(ctx, acme, p); !errors.Is(err, ErrNoTenant) {
			t.Errorf("delete of a disabled tenant: got %v", err)
		}
		if _, err := b.Put(ctx, tenant.Default, p, secret.New(make([]byte, MaxContent+1))); !errors.Is(err, ErrFull) {
			t.Errorf("too large: got %v", err)
		}
		if _, err := b.List(ctx, tenant.Default, "", "\x00\xff", 10); err != nil {
			t.Errorf("list after nonsense: %v", err)
		}
		if list, err := b.List(ctx, tenant.Default, "", "", 1<<40); err != nil || len(list) != 0 {
			t.Errorf("list: %v, %v", list, err)
		}
	})
}

func TestResourcesAreSealedAtRest(t *testing.T) {
	t.Parallel()
	o := dataOptions(t, "sqlite", newTestClock().now)
	s := openData(t, o)
	const marker = "PLAINTEXT-MARKER-1234567890"
	put(t, s, tenant.Default, "demo/key/1", marker)
	if _, err := s.Resources().Delete(t.Context(), tenant.Default, mustPath(t, "demo/key/1")); err != nil {
		t.Fatal(err)
	}
	put(t, s, tenant.Default, "demo/key/2", marker)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(o.Path + "*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || bytes.Contains(data, []byte(marker)) {
			t.Errorf("%s holds the plaintext, or %v", f, err)
		}
	}
}

// TestReplicaLearnsOfDataKey: what one replica seals under a new data key is
// read by another that was started before.
func TestReplicaLearnsOfDataKey(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := dataOptions(t, kind, newTestClock().now)
			a, b := openData(t, o), openData(t, o)
			put(t, a, tenant.Default, "demo/key/1", "before")
			if err := a.RotateDataKey(t.Context()); err != nil {
				t.Fatal(err)
			}
			put(t, a, tenant.Default, "demo/key/2", "after")
			for p, want := range map[string]string{"demo/key/1": "before", "demo/key/2": "after"} {
				if got, _, err := b.Resources().Get(t.Context(), tenant.Default, mustPath(t, p), 0); err != nil || string(got.Expose()) != want {
					t.Errorf("%s: got %q, %v", p, got.Expose(), err)
				}
			}
		})
	}
}

// TestPlans: what a guest waits for goes by an index, whatever else is stored.
func TestPlans(t *testing.T) {
	t.Parallel()
	s := openData(t, dataOptions(t, "sqlite", newTestClock().now))
	for _, stmt := range []string{
		selectNewest, selectVersion, selectReference + "= ?",
		"SELECT resource, initdata FROM bindings WHERE tenant = ? AND resource IN (?, ?) ORDER BY resource, initdata",
		"SELECT path FROM resources WHERE tenant = ? AND path > ? AND path < ? AND deleted = 0 ORDER BY path LIMIT ?",
	} {
		plan, err := query(t.Context(), s, "plan", "EXPLAIN QUERY PLAN "+stmt, make([]any, strings.Count(stmt, "?")), func(scan func(...any) error) (detail string, err error) {
			err = scan(new(int), new(int), new(int), &detail)
			return detail, err
		})
		if err != nil || len(plan) == 0 {
			t.Fatalf("%s: got %q, %v", stmt, plan, err)
		}
		for _, step := range plan {
			if !strings.HasPrefix(step, "SEARCH") {
				t.Errorf("%s: the plan scans or sorts: %q", stmt, plan)
			}
		}
	}
}

// BenchmarkGet shows that a read costs the same however much is stored.
func BenchmarkGet(b *testing.B) {
	for _, kind := range []string{"sqlite", "postgres"} {
		for _, n := range []int{1, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				s := openData(b, dataOptions(b, kind, time.Now))
				fillResources(b, s, n)
				i := 0
				for b.Loop() {
					p := resource.Path{Repository: "repo", Type: "key", Tag: fmt.Sprint(i * 7919 % n)}
					if _, _, err := s.Resources().Get(b.Context(), tenant.Default, p, 0); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// fillResources stores many resources in few transactions.
func fillResources(tb testing.TB, s *Store, n int) {
	tb.Helper()
	tx, err := s.write.BeginTx(tb.Context(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	c := conn{s: s, tx: tx}
	column := func(names ...string) (out []backupColumn) {
		for _, x := range names {
			out = append(out, backupColumn{Name: x})
		}
		return out
	}
	heads := newInserter(tb.Context(), c, backupTable{Name: "resources", Columns: column("tenant", "path", "version", "deleted", "size", "created")})
	versions := newInserter(tb.Context(), c, backupTable{Name: "resource_versions", Columns: column("tenant", "path", "version", "state", "size", "created", "content")})
	for i := range n {
		p := fmt.Sprintf("repo/key/%d", i)
		sealed, err := s.seal(resourceName(tenant.Default, p, 1), bytes.Repeat([]byte{1}, 64))
		if err != nil {
			tb.Fatal(err)
		}
		if err := errors.Join(heads.add([]any{"default", p, 1, 0, 64, 1}), versions.add([]any{"default", p, 1, 0, 64, 1, sealed})); err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(heads.flush(), versions.flush(), tx.Commit()); err != nil {
		tb.Fatal(err)
	}
	if _, err := s.exec(tb.Context(), "analyze", "ANALYZE resources"); err != nil {
		tb.Fatal(err)
	}
}
