package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/secret"
)

type clock struct{ t atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMilli(c.t.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.t.Add(d.Milliseconds()) }

func testOptions(dir string, c *clock) Options {
	return Options{Path: filepath.Join(dir, "state.db"), KEK: secret.New(bytes.Repeat([]byte{7}, KEKSize)), Now: c.now, Rand: rand.Reader, MaxSessions: 10, MaxVerdicts: 100}
}

func newStore(t *testing.T) (*Store, *clock, string) {
	t.Helper()
	c := &clock{}
	c.t.Store(1_800_000_000_000)
	// A directory with characters that mean something in a URL.
	dir := filepath.Join(t.TempDir(), "a b?c#d%20e")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), testOptions(dir, c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := os.Stat(filepath.Join(dir, "state.db-wal")); err != nil {
		t.Fatalf("the database is not where it should be: %v", err)
	}
	return s, c, dir
}

func path(t *testing.T, s string) resource.Path {
	t.Helper()
	p, err := resource.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestResources(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	ctx := t.Context()
	p := path(t, "demo/key/1")
	if _, err := s.Resource(ctx, p); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	marker := []byte("PLAINTEXT-MARKER-1234567890")
	for range 2 {
		if err := s.SetResource(ctx, p, secret.New(bytes.Clone(marker))); err != nil {
			t.Fatal(err)
		}
		c.advance(time.Second)
	}
	got, err := s.Resource(ctx, p)
	if err != nil || !bytes.Equal(got.Expose(), marker) {
		t.Fatalf("got %q, %v", got.Expose(), err)
	}
	list, err := s.Resources(ctx)
	if err != nil || len(list) != 1 || list[0].Path != "demo/key/1" || list[0].Size != len(marker) || !list[0].Updated.After(list[0].Created) {
		t.Errorf("list %+v, %v", list, err)
	}
	// Encrypted at rest, in a file of its owner.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		data, _ := os.ReadFile(filepath.Join(dir, f.Name()))
		if bytes.Contains(data, marker) {
			t.Errorf("%s holds the plaintext", f.Name())
		}
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), info.Mode())
		}
	}
	// Moved to another name: refused.
	s, err = Open(ctx, testOptions(dir, c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.write.ExecContext(ctx, "UPDATE resources SET path = 'demo/key/2'"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resource(ctx, path(t, "demo/key/2")); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("content moved between names: got %v", err)
	}
	if ok, err := s.DeleteResource(ctx, path(t, "demo/key/2")); !ok || err != nil {
		t.Errorf("delete: %v, %v", ok, err)
	}
	if ok, err := s.DeleteResource(ctx, path(t, "demo/key/2")); ok || err != nil {
		t.Errorf("second delete: %v, %v", ok, err)
	}
}

func TestWrongKEK(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	_ = s.Close()
	o := testOptions(dir, c)
	o.KEK = secret.New(bytes.Repeat([]byte{8}, KEKSize))
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "restore the key file") {
		t.Errorf("got %v", err)
	}
	o.KEK = secret.New([]byte("short"))
	if _, err := Open(t.Context(), o); err == nil {
		t.Error("short key: want an error")
	}
}

// TestReadableDatabaseIsRefused: tokens, initdata and verdicts are not encrypted.
func TestReadableDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	_ = s.Close()
	o := testOptions(dir, c)
	if err := os.Chmod(o.Path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "mode 0600") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(o.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil {
		t.Error("a directory: want an error")
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	if _, err := s.write.ExecContext(t.Context(), "INSERT INTO schema_version (version) VALUES (99)"); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if _, err := Open(t.Context(), testOptions(dir, c)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("got %v", err)
	}
}

func session(c *clock, id string) Session {
	return Session{ID: SessionID(id), Protocol: "0.4.0", TEE: "snp", Request: json.RawMessage(`{}`), Nonce: "n-" + id, Created: c.now(), Expires: c.now().Add(5 * time.Minute)}
}

func TestSessionNonceServesOnce(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	ctx := t.Context()
	x := session(c, "one")
	if err := s.CreateSession(ctx, x); err != nil {
		t.Fatal(err)
	}
	// It survives a restart.
	_ = s.Close()
	s, err := Open(ctx, testOptions(dir, c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if got, err := s.OpenSession(ctx, x.ID); err != nil || cmp.Diff(x, got) != "" {
		t.Fatalf("%v\n%s", err, cmp.Diff(x, got))
	}
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := s.TakeSession(ctx, x.ID)
			switch {
			case err == nil:
				taken.Add(1)
			case !errors.Is(err, ErrNotFound):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1 {
		t.Fatalf("taken %d times", taken.Load())
	}
	if _, err := s.AttestedSession(ctx, x.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("taken is not attested: %v", err)
	}
	if err := s.FinishSession(ctx, x.ID, "token", Verdict{Kind: KindAttestation, Session: x.ID, Granted: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.FinishSession(ctx, x.ID, "other", Verdict{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("finished twice: %v", err)
	}
	if got, err := s.AttestedSession(ctx, x.ID); err != nil || got.Token != "token" {
		t.Errorf("got %+v, %v", got, err)
	}
	if v, err := s.Verdicts(ctx, 10, x.ID); err != nil || len(v) != 1 || !v[0].Granted {
		t.Errorf("verdicts %+v, %v", v, err)
	}
	c.advance(5 * time.Minute)
	if _, err := s.AttestedSession(ctx, x.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("expired: %v", err)
	}
}

func TestSessionLimit(t *testing.T) {
	t.Parallel()
	s, c, _ := newStore(t)
	for i := range 11 {
		err := s.CreateSession(t.Context(), session(c, fmt.Sprint(i)))
		if i < 10 && err != nil || i == 10 && !errors.Is(err, ErrFull) {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if _, err := s.OpenSession(t.Context(), SessionID("3")); err != nil {
		t.Error(err)
	}
	c.advance(5 * time.Minute) // expired sessions make room
	if _, err := s.TakeSession(t.Context(), SessionID("3")); !errors.Is(err, ErrNotFound) {
		t.Errorf("expired session taken: %v", err)
	}
	if err := s.CreateSession(t.Context(), session(c, "new")); err != nil {
		t.Error(err)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	s, _, _ := newStore(t)
	ctx := t.Context()
	for i := range 3 {
		p, err := s.SetPolicy(ctx, AttestationPolicy, "default_cpu", fmt.Sprintf("text %d", i))
		if err != nil || p.Version != int64(i+1) {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if v, err := s.PolicyVersion(ctx, AttestationPolicy, "default_cpu"); v != 3 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	if v, err := s.PolicyVersion(ctx, ResourcePolicy, "default_cpu"); v != 0 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	if p, err := s.Policy(ctx, AttestationPolicy, "default_cpu", 2); p.Text != "text 1" || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if l, err := s.Policies(ctx, AttestationPolicy); len(l) != 1 || l[0].Text != "text 2" || err != nil {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	s, c, _ := newStore(t)
	ctx := t.Context()
	list := refvalues.Reference{Name: "m", Entries: []refvalues.Entry{
		{Value: json.RawMessage(`"aa"`), Description: "old", Expires: c.now().Add(time.Hour)},
		{Value: json.RawMessage(`"bb"`), Inputs: json.RawMessage(`{"kernel":"x"}`)},
	}}
	scalar := refvalues.Reference{Name: "n", Scalar: true, Entries: []refvalues.Entry{{Value: json.RawMessage(`1`)}}}
	if err := s.SetReferences(ctx, list, scalar); err != nil {
		t.Fatal(err)
	}
	more := refvalues.Reference{Name: "m", Entries: []refvalues.Entry{{Value: json.RawMessage(`"aa"`), Description: "new"}, {Value: json.RawMessage(`"cc"`)}}}
	if err := s.AddReference(ctx, more); err != nil {
		t.Fatal(err)
	}
	got, err := s.Reference(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	if want := `["bb","aa","cc"]`; string(got.Current(c.now())) != want || got.Entries[1].Description != "new" || !got.Entries[1].Expires.IsZero() {
		t.Errorf("got %+v", got)
	}
	if string(got.Entries[0].Inputs) != `{"kernel":"x"}` {
		t.Errorf("inputs %s", got.Entries[0].Inputs)
	}
	if err := s.AddReference(ctx, refvalues.Reference{Name: "n", Entries: more.Entries}); err == nil {
		t.Error("adding to a scalar: want an error")
	}
	if all, err := s.References(ctx); err != nil || len(all) != 2 || !all[1].Scalar {
		t.Errorf("%+v, %v", all, err)
	}
	if ok, err := s.DeleteReference(ctx, "m"); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if _, err := s.Reference(ctx, "m"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func TestBindings(t *testing.T) {
	t.Parallel()
	s, _, _ := newStore(t)
	ctx := t.Context()
	for _, b := range []Binding{{Resource: "demo", InitData: "aa"}, {Resource: "demo/key", InitData: "bb"}, {Resource: "demo/key/1", InitData: "cc"},
		{Resource: "demo/key/2", InitData: "dd"}, {Resource: "dem", InitData: "ee"}, {Resource: "demo", InitData: "aa", Description: "again"}} {
		if err := s.Bind(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.BindingsFor(ctx, path(t, "demo/key/1"))
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, b := range got {
		digests = append(digests, b.InitData)
	}
	if want := []string{"aa", "bb", "cc"}; cmp.Diff(want, digests) != "" {
		t.Error(cmp.Diff(want, digests))
	}
	if n, err := s.Unbind(ctx, "demo", "zz"); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := s.Unbind(ctx, "demo", ""); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if all, err := s.Bindings(ctx); len(all) != 4 || err != nil {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestVerdictsAreBounded(t *testing.T) {
	t.Parallel()
	s, _, _ := newStore(t)
	for i := range 300 {
		v := Verdict{Kind: KindResource, Session: fmt.Sprint(i % 2), Resource: fmt.Sprint(i), Status: 403}
		if i == 299 {
			v.Claims, _ = json.Marshal(strings.Repeat("x", MaxVerdictClaims))
		}
		if err := s.AddVerdict(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Verdicts(t.Context(), 1000, "")
	if err != nil || len(all) < 100 || len(all) > 100+pruneEvery {
		t.Fatalf("%d, %v", len(all), err)
	}
	if all[0].Resource != "299" || !bytes.Contains(all[0].Claims, []byte("omitted")) || all[0].At.IsZero() {
		t.Errorf("newest: %+v", all[0])
	}
	if one, err := s.Verdicts(t.Context(), 5, "0"); err != nil || len(one) != 5 || one[0].Resource != "298" {
		t.Errorf("%+v, %v", one, err)
	}
}

// TestRefusalsDoNotPushOutReleases: anyone on the network can be refused as
// often as they like.
func TestRefusalsDoNotPushOutReleases(t *testing.T) {
	t.Parallel()
	s, _, _ := newStore(t)
	ctx := t.Context()
	if err := s.AddVerdict(ctx, Verdict{Kind: KindResource, Resource: "demo/key/1", Granted: true, Status: 200}); err != nil {
		t.Fatal(err)
	}
	for i := range 400 {
		if err := s.AddVerdict(ctx, Verdict{Kind: KindAttestation, Status: 403, Granted: i%2 == 0}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Verdicts(ctx, 1000, "")
	if err != nil || len(all) > 201+pruneEvery {
		t.Fatalf("%d, %v", len(all), err)
	}
	if last := all[len(all)-1]; last.Resource != "demo/key/1" || !last.Granted {
		t.Errorf("the release was dropped; the oldest verdict is %+v", last)
	}
}

// TestMigration opens a database of schema version 1.
func TestMigration(t *testing.T) {
	t.Parallel()
	s, c, dir := newStore(t)
	for _, stmt := range []string{
		"DELETE FROM schema_version WHERE version > 1", "DROP INDEX verdicts_class", "ALTER TABLE verdicts DROP COLUMN class",
		`INSERT INTO verdicts (at, session, body) VALUES (1, '', '{"kind":"resource","granted":true}')`,
	} {
		if _, err := s.write.ExecContext(t.Context(), stmt); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	s, err := Open(t.Context(), testOptions(dir, c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for range 200 {
		if err := s.AddVerdict(t.Context(), Verdict{Kind: KindAttestation}); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.Verdicts(t.Context(), 1000, ""); err != nil || len(all) < 100 || len(all) > 101+pruneEvery {
		t.Errorf("%d, %v", len(all), err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	t.Parallel()
	s, c, _ := newStore(t)
	s.o.MaxSessions = 1000
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			p := path(t, fmt.Sprintf("r/t/%d", i))
			for j := range 5 {
				id := fmt.Sprintf("%d-%d", i, j)
				err := errors.Join(
					s.CreateSession(t.Context(), session(c, id)),
					s.SetResource(t.Context(), p, secret.New([]byte(id))),
					s.AddVerdict(t.Context(), Verdict{Kind: KindResource}))
				if got, e := s.Resource(t.Context(), p); e != nil || string(got.Expose()) != id {
					t.Errorf("%q, %v", got.Expose(), e)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}
