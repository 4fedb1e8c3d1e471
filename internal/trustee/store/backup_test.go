package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func backupOf(t testing.TB, s *Store) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Backup(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func restored(t testing.TB, o Options, backup []byte) *Store {
	t.Helper()
	if err := Restore(t.Context(), o, bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	return openData(t, o)
}

// linesOf are a backup's rows by table, sorted.
func linesOf(t testing.TB, backup []byte) map[string][]string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	table := ""
	for line := range strings.Lines(string(data)) {
		switch {
		case strings.HasPrefix(line, `{"table"`):
			table = line
			out[table] = nil
		case strings.HasPrefix(line, "["):
			out[table] = append(out[table], line)
		}
	}
	for _, rows := range out {
		slices.Sort(rows)
	}
	return out
}

// verifyChain recomputes every hash of a tenant's chain and returns its length.
func verifyChain(t testing.TB, s *Store, n tenant.Name) int64 {
	t.Helper()
	seq, hash, err := s.Head(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	previous, after := audit.Genesis, int64(0)
	for after < seq {
		list, err := s.Entries(t.Context(), n, audit.Query{After: after, Limit: audit.MaxLimit})
		if err != nil || after == 0 && len(list) == 0 {
			t.Fatalf("entries after %d of %d: %d, %v", after, seq, len(list), err)
		}
		if after == 0 {
			list, err = s.Entries(t.Context(), n, audit.Query{Before: audit.MaxLimit, Limit: audit.MaxLimit})
			if err != nil {
				t.Fatal(err)
			}
			slices.Reverse(list)
		}
		for _, e := range list {
			if e.Seq != after+1 || e.Previous != previous || e.Hash != audit.Hash(n, e.Seq, previous, e.Body) {
				t.Fatalf("the chain of %s breaks at %d: %+v", n, after+1, e)
			}
			previous, after = e.Hash, e.Seq
		}
	}
	if previous != hash {
		t.Errorf("the chain of %s ends with %s, its head is %s", n, previous, hash)
	}
	return seq
}

// fillEverything puts something into every table.
func fillEverything(t testing.TB, s *Store, c *testClock) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []tenant.Name{tenant.Default, acme} {
		put(t, s, n, "demo/key/1", "one of "+string(n))
		put(t, s, n, "demo/key/1", string([]byte{0, 0xff, '\n'})+string(n))
		put(t, s, n, "demo/key/gone", "x")
		_, err := s.Resources().Delete(ctx, n, mustPath(t, "demo/key/gone"))
		must(err)
		_, err = s.SetPolicy(ctx, n, ResourcePolicy, "", "package policy\n# é \u2028 \"\\", "ann")
		must(err)
		must(s.SetReferences(ctx, n, listOf("m", `"<a>"`, "7")))
		_, err = s.DeleteReference(ctx, n, "m")
		must(err)
		must(s.SetReferences(ctx, n, listOf("n", `"\u0000"`)))
		must(s.Bind(ctx, n, Binding{Resource: "demo", InitData: strings.Repeat("ab", 32), Description: "ü"}))
		_, err = s.AddAdmin(ctx, testAdmin(n, 1, "admin"))
		must(err)
		for i := range 5 {
			must(s.Finish(ctx, n, Finished{Session: fmt.Sprint("session-", i), Token: "token", Expires: c.now().Add(time.Hour)},
				audit.Record{Kind: audit.KindAttestation, Session: fmt.Sprint("session-", i), Detail: "<é>\n\x7f", Granted: true, Status: 200}))
		}
		seq, _, err := s.Head(ctx, n)
		must(err)
		must(s.SaveCheckpoint(ctx, n, seq, "a.b.c", c.now()))
		must(s.SetCursor(ctx, n, "hook", 3))
	}
	_, err := s.Secret(ctx, "token-keys", func() ([]byte, error) { return []byte("a private key"), nil })
	must(err)
	must(s.RotateDataKey(ctx))
	put(t, s, acme, "demo/key/2", "under the second data key")
}

func checkEverything(t testing.TB, s *Store) {
	t.Helper()
	ctx := t.Context()
	for _, n := range []tenant.Name{tenant.Default, acme} {
		for v, want := range map[int64]string{1: "one of " + string(n), 0: "\x00\xff\n" + string(n)} {
			if got, _, err := s.Resources().Get(ctx, n, mustPath(t, "demo/key/1"), v); err != nil || string(got.Expose()) != want {
				t.Errorf("%s, version %d: got %q, %v", n, v, got.Expose(), err)
			}
		}
		if _, _, err := s.Resources().Get(ctx, n, mustPath(t, "demo/key/gone"), 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was deleted: got %v", err)
		}
		if got := verifyChain(t, s, n); got < 5 {
			t.Errorf("%s: %d records", n, got)
		}
		// A challenge that was used stays used.
		if used, err := s.SessionUsed(ctx, n, "session-3"); err != nil || !used {
			t.Errorf("session: used %v, %v", used, err)
		}
	}
	if got, _, err := s.Resources().Get(ctx, acme, mustPath(t, "demo/key/2"), 0); err != nil || string(got.Expose()) != "under the second data key" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	got, err := s.Secret(ctx, "token-keys", func() ([]byte, error) { return nil, errors.New("is not there") })
	if err != nil || string(got.Expose()) != "a private key" {
		t.Errorf("secret: %v", err)
	}
	if v := put(t, s, acme, "demo/key/gone", "again"); v != 3 {
		t.Errorf("numbering goes on: got version %d", v)
	}
	e, err := s.Append(ctx, acme, audit.Record{Kind: audit.KindAdmin, Detail: "after the restore"})
	if err != nil || verifyChain(t, s, acme) != e.Seq {
		t.Errorf("append after the restore: %+v, %v", e, err)
	}
}

// TestBackupRoundTrip goes from SQLite to PostgreSQL and back.
func TestBackupRoundTrip(t *testing.T) {
	t.Parallel()
	c := newTestClock()
	s := openData(t, dataOptions(t, "sqlite", c.now))
	if err := s.CreateTenant(t.Context(), acme, "Acme"); err != nil {
		t.Fatal(err)
	}
	fillEverything(t, s, c)
	first := backupOf(t, s)
	for table, rows := range linesOf(t, first) {
		if len(rows) == 0 {
			t.Errorf("the test covers nothing of %s", table)
		}
	}
	for _, plain := range []string{"one of acme", "a private key", "under the second"} {
		for _, rows := range linesOf(t, first) {
			if strings.Contains(strings.Join(rows, ""), plain) {
				t.Errorf("the backup holds %q", plain)
			}
		}
	}
	pg := restored(t, dataOptions(t, "postgres", c.now), first)
	second := backupOf(t, pg)
	if diff := cmp.Diff(linesOf(t, first), linesOf(t, second)); diff != "" {
		t.Errorf("SQLite to PostgreSQL:\n%s", diff)
	}
	back := restored(t, dataOptions(t, "sqlite", c.now), second)
	third := backupOf(t, back)
	if diff := cmp.Diff(linesOf(t, first), linesOf(t, third)); diff != "" {
		t.Errorf("and back:\n%s", diff)
	}
	checkEverything(t, pg)
	checkEverything(t, back)
}

// TestBackupCoversAllTables: a table that is added to the schema and not to
// the backup is noticed here.
func TestBackupCoversAllTables(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		stmt := "SELECT name FROM sqlite_master WHERE type = 'table'"
		if s.pool != nil {
			stmt = "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = current_schema()"
		}
		got, err := collect(t.Context(), s.reader(), stmt, nil, scanString)
		if err != nil {
			t.Fatal(err)
		}
		want := append(tables(), "schema_version", "transactions")
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestBackupIsOneSnapshot takes backups while everything is written to.
func TestBackupIsOneSnapshot(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for w := range 3 {
			put(t, s, acme, fmt.Sprint("demo/key/", w), "0")
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					put(t, s, acme, fmt.Sprint("demo/key/", w), fmt.Sprint(i))
					if _, err := s.Append(t.Context(), acme, audit.Record{Kind: audit.KindAdmin}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var backups [][]byte
		for range 3 {
			backups = append(backups, backupOf(t, s))
		}
		cancel()
		wg.Wait()
		for _, b := range backups {
			r := restored(t, dataOptions(t, "sqlite", c.now), b)
			verifyChain(t, r, acme)
			for w := range 3 {
				p := mustPath(t, fmt.Sprint("demo/key/", w))
				list, err := r.Resources().List(t.Context(), acme, "demo/key", "demo/key/.", 10)
				if err != nil || len(list) != 3 {
					t.Fatal(list, err)
				}
				versions, err := r.Resources().Versions(t.Context(), acme, p)
				if err != nil || versions[0].Version != list[w].Version {
					t.Errorf("%s: the newest version is %d, the listing says %d, %v", p, versions[0].Version, list[w].Version, err)
				}
				if _, _, err := r.Resources().Get(t.Context(), acme, p, 0); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

type brokenPipe struct{ left int }

func (w *brokenPipe) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

func TestBackupToBrokenWriter(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		fillEverything(t, s, c)
		for _, n := range []int{0, 10, 500, 2000} {
			if err := s.Backup(t.Context(), &brokenPipe{left: n}); !errors.Is(err, syscall.EPIPE) || errors.Is(err, ErrUnavailable) {
				t.Errorf("after %d bytes: got %v", n, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Backup(ctx, io.Discard); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: got %v", err)
		}
		// No connection was kept.
		for range 20 {
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestBackupDuringKeyRotation: a backup that could not be verified is none.
func TestBackupDuringKeyRotation(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		var rotate sync.Once
		err := s.Backup(t.Context(), writerFunc(func(p []byte) (int, error) {
			var err error
			rotate.Do(func() { err = s.RotateDataKey(t.Context()) })
			return len(p), err
		}))
		if err == nil || !strings.Contains(err.Error(), "try again") {
			t.Errorf("got %v", err)
		}
		backupOf(t, s)
	})
}
