package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// checkChain reads a tenant's whole chain and checks every link. It returns
// the records by ID.
func checkChain(t testing.TB, s *Store, n tenant.Name) map[string]audit.Record {
	t.Helper()
	records := make(map[string]audit.Record)
	seq, previous := int64(0), audit.Genesis
	for {
		q := audit.Query{After: -1, Limit: audit.MaxLimit}
		if seq > 0 {
			q.After = seq
		}
		page, err := s.Entries(t.Context(), n, q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			if e.Seq != seq+1 || e.Previous != previous || e.Hash != audit.Hash(n, e.Seq, previous, e.Body) {
				t.Fatalf("%s: entry %d (%s after %s) after entry %d (%s)", n, e.Seq, e.Hash, e.Previous, seq, previous)
			}
			var r audit.Record
			if err := json.Unmarshal(e.Body, &r); err != nil || r.Tenant != n {
				t.Fatalf("entry %d: %v, %s", e.Seq, err, e.Body)
			}
			if _, ok := records[r.ID]; ok {
				t.Fatalf("record %s stands twice", r.ID)
			}
			records[r.ID] = r
			seq, previous = e.Seq, e.Hash
		}
	}
	if have, hash, err := s.Head(t.Context(), n); err != nil || have != seq || hash != previous {
		t.Fatalf("%s: head %d %s, %v; the chain ends at %d %s", n, have, hash, err, seq, previous)
	}
	return records
}

func attestation(session string) audit.Record {
	return audit.Record{Kind: audit.KindAttestation, Session: session, TEE: "snp", Granted: true, Status: 200, InitData: "AB12"}
}

func TestAppend(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		if seq, hash, err := s.Head(ctx, acme); seq != 0 || hash != audit.Genesis || err != nil {
			t.Errorf("empty chain: %d, %s, %v", seq, hash, err)
		}
		// Whatever JSON holds is kept: NUL, markup, what is not UTF-8.
		odd := audit.Record{Kind: audit.KindAdmin, Subject: "a\x00b\xff", Detail: "<&>\u2028 \x00", Claims: json.RawMessage("{\"x\":\"\xff<\"}"), Resource: "kbs:///a\x00"}
		e, err := s.Append(ctx, tenant.Default, odd)
		if err != nil || e.Seq != 1 {
			t.Fatalf("%+v, %v", e, err)
		}
		var r audit.Record
		if err := json.Unmarshal(e.Body, &r); err != nil || len(r.ID) != 32 || !r.At.Equal(c.now()) || r.Tenant != tenant.Default {
			t.Errorf("%s, %v", e.Body, err)
		}
		if again, err := s.EntryByID(ctx, tenant.Default, r.ID); err != nil || cmp.Diff(e, again) != "" {
			t.Errorf("%v %s", err, cmp.Diff(e, again))
		}
		if _, err := s.EntryByID(ctx, acme, r.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("another tenant's record: %v", err)
		}
		// A repeated record is there once.
		fixed := audit.Record{ID: "fixed", Kind: audit.KindResource}
		first, err := s.Append(ctx, tenant.Default, fixed)
		if err != nil {
			t.Fatal(err)
		}
		c.advance(time.Hour)
		if second, err := s.Append(ctx, tenant.Default, fixed); err != nil || cmp.Diff(first, second) != "" {
			t.Errorf("%v %s", err, cmp.Diff(first, second))
		}
		if other, err := s.Append(ctx, acme, fixed); err != nil || other.Seq != 1 {
			t.Errorf("another tenant's: %+v, %v", other, err)
		}
		for name, bad := range map[string]audit.Record{
			"no kind":            {},
			"bad JSON":           {Kind: "x", Claims: json.RawMessage(`{`)},
			"too large":          {Kind: "x", Claims: json.RawMessage(`"` + strings.Repeat("x", audit.MaxBody) + `"`)},
			"too large as UTF-8": {Kind: "x", Claims: json.RawMessage(`"` + strings.Repeat("x\xff", 100_000) + `"`)},
			"long id":            {Kind: "x", ID: strings.Repeat("x", maxID+1)},
		} {
			if _, err := s.Append(ctx, tenant.Default, bad); err == nil {
				t.Errorf("%s: want an error", name)
			}
		}
		if _, err := s.Append(ctx, "nobody", fixed); !errors.Is(err, ErrNoTenant) {
			t.Errorf("unknown tenant: %v", err)
		}
		if got := checkChain(t, s, tenant.Default); len(got) != 2 {
			t.Errorf("%d records", len(got))
		}
		checkChain(t, s, acme)
	})
}

func TestEntries(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		start := c.now()
		for i := range 10 {
			r := audit.Record{Kind: audit.KindResource, Resource: fmt.Sprintf("kbs:///demo/key/%d", i%5), Session: fmt.Sprint("s", i%2),
				Subject: fmt.Sprint("u", i%3), InitData: fmt.Sprintf("%02Xff", 0xa0+i), Granted: i%2 == 0}
			if i == 9 {
				r.Kind, r.Resource = audit.KindAdmin, "kbs:///demo-2/key/1"
			}
			if _, err := s.Append(ctx, acme, r); err != nil {
				t.Fatal(err)
			}
			c.advance(time.Second)
		}
		if _, err := s.Append(ctx, tenant.Default, attestation("s1")); err != nil {
			t.Fatal(err)
		}
		yes := true
		for name, tc := range map[string]struct {
			q    audit.Query
			want []int64
		}{
			"all":             {audit.Query{}, []int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
			"limit":           {audit.Query{Limit: 2}, []int64{10, 9}},
			"before":          {audit.Query{Before: 4, Limit: 2}, []int64{3, 2}},
			"from the start":  {audit.Query{After: -1, Limit: 2}, []int64{1, 2}},
			"after":           {audit.Query{After: 7}, []int64{8, 9, 10}},
			"kind":            {audit.Query{Kind: audit.KindAdmin}, []int64{10}},
			"resource":        {audit.Query{Resource: "kbs:///demo/key/1"}, []int64{7, 2}},
			"resource prefix": {audit.Query{Resource: "kbs:///demo/key/", Limit: 3}, []int64{9, 8, 7}},
			"resource part":   {audit.Query{Resource: "kbs:///demo/key", Limit: 3}, []int64{9, 8, 7}},
			"no prefix":       {audit.Query{Resource: "kbs:///demo/ke"}, nil},
			"initdata":        {audit.Query{InitData: "a3FF"}, []int64{4}},
			"initdata prefix": {audit.Query{InitData: "A", After: 8}, []int64{9, 10}},
			"session":         {audit.Query{Session: "s1", Subject: "u0"}, []int64{10, 4}},
			"granted":         {audit.Query{Granted: &yes, After: 4}, []int64{5, 7, 9}},
			"time":            {audit.Query{From: start.Add(2 * time.Second), To: start.Add(4 * time.Second)}, []int64{4, 3}},
			"hostile":         {audit.Query{Session: "' OR 1=1 --\x00\xff"}, nil},
		} {
			got, err := s.Entries(ctx, acme, tc.q)
			var seqs []int64
			for _, e := range got {
				seqs = append(seqs, e.Seq)
			}
			if err != nil || cmp.Diff(tc.want, seqs) != "" {
				t.Errorf("%s: %v %s", name, err, cmp.Diff(tc.want, seqs))
			}
		}
		for _, q := range []audit.Query{{Before: 1, After: 1}, {Limit: audit.MaxLimit + 1}, {Limit: -1}, {Before: -1}} {
			if _, err := s.Entries(ctx, acme, q); err == nil {
				t.Errorf("%+v: want an error", q)
			}
		}
	})
}

func TestFinish(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		f := Finished{Session: "s1", Token: "token", Expires: c.now().Add(5 * time.Minute)}
		if used, err := s.SessionUsed(ctx, acme, "s1"); used || err != nil {
			t.Errorf("%v, %v", used, err)
		}
		if err := s.Finish(ctx, acme, f, attestation("s1")); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(ctx, acme, f, attestation("s1")); !errors.Is(err, ErrUsed) {
			t.Errorf("second: %v", err)
		}
		if token, err := s.SessionToken(ctx, acme, "s1"); token != "token" || err != nil {
			t.Errorf("%q, %v", token, err)
		}
		if used, err := s.SessionUsed(ctx, acme, "s1"); !used || err != nil {
			t.Errorf("%v, %v", used, err)
		}
		// The same name is another session with another tenant.
		if _, err := s.SessionToken(ctx, tenant.Default, "s1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("another tenant's: %v", err)
		}
		refused := Finished{Session: "s1", Expires: f.Expires}
		r := attestation("s1")
		r.ID = "mine"
		for range 2 { // a repeated call is answered as the first was
			if err := s.Finish(ctx, tenant.Default, refused, r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.SessionToken(ctx, tenant.Default, "s1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("refused: %v", err)
		}
		for name, bad := range map[string]Finished{
			"no session": {Expires: f.Expires}, "no expiry": {Session: "x"}, "NUL": {Session: "\x00", Expires: f.Expires},
			"long": {Session: "x", Token: strings.Repeat("x", MaxToken+1), Expires: f.Expires},
		} {
			if err := s.Finish(ctx, acme, bad, attestation("")); err == nil {
				t.Errorf("%s: want an error", name)
			}
		}
		if err := s.Finish(ctx, "nobody", f, attestation("s1")); !errors.Is(err, ErrNoTenant) {
			t.Errorf("unknown tenant: %v", err)
		}
		if got := checkChain(t, s, acme); len(got) != 1 {
			t.Errorf("%d records, expected 1", len(got))
		}
		c.advance(5 * time.Minute)
		if _, err := s.SessionToken(ctx, acme, "s1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("expired: %v", err)
		}
		// Expired, and yet used: a clock may be set back.
		if err := s.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		c.advance(-time.Hour)
		if err := s.Finish(ctx, acme, f, attestation("s1")); !errors.Is(err, ErrUsed) {
			t.Errorf("after the clock was set back: %v", err)
		}
		if e, err := s.Append(ctx, acme, attestation("s2")); err != nil || e.Seq != 2 {
			t.Errorf("after the clock was set back: %+v, %v", e, err)
		}
		c.advance(2*time.Hour + time.Minute)
		if err := s.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if used, err := s.SessionUsed(ctx, acme, "s1"); used || err != nil {
			t.Errorf("swept: %v, %v", used, err)
		}
	})
}

// TestReplicas: several stores on one database, as several trustees are.
func TestReplicas(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const sessions, callers = 60, 8
			ctx := t.Context()
			o := dataOptions(t, kind, newTestClock().now)
			replicas := make([]*Store, 3)
			var wg sync.WaitGroup
			for i := range replicas {
				// They start at once, on an empty database.
				wg.Go(func() {
					var err error
					if replicas[i], err = Open(ctx, o); err != nil {
						t.Error(err)
					}
				})
			}
			if wg.Wait(); t.Failed() {
				t.FailNow()
			}
			for _, s := range replicas {
				t.Cleanup(func() { _ = s.Close() })
			}
			if err := replicas[0].CreateTenant(ctx, acme, ""); err != nil {
				t.Fatal(err)
			}
			var won [sessions]atomic.Int32
			for c := range callers {
				wg.Go(func() {
					for i := range sessions {
						s, n := replicas[(c+i)%len(replicas)], []tenant.Name{tenant.Default, acme}[i%2]
						id := fmt.Sprint(i)
						err := s.Finish(ctx, n, Finished{Session: id, Token: "t", Expires: o.Now().Add(time.Hour)}, attestation(id))
						switch {
						case err == nil:
							won[i].Add(1)
						case !errors.Is(err, ErrUsed):
							t.Error(err)
						}
						if _, err := s.Append(ctx, n, audit.Record{Kind: audit.KindResource, Session: id}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			for i := range won {
				if n := won[i].Load(); n != 1 {
					t.Errorf("session %d was finished %d times", i, n)
				}
			}
			for _, s := range replicas {
				for _, n := range []tenant.Name{tenant.Default, acme} {
					if got := len(checkChain(t, s, n)); got != sessions/2*(1+callers) {
						t.Errorf("%s: %d records", n, got)
					}
				}
			}
		})
	}
}

// TestGroup: what is wrong with one operation is not told to another.
func TestGroup(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx := t.Context()
		var batch []*op
		for i := range 6 {
			r := attestation("")
			n := tenant.Default
			switch i {
			case 1, 2:
				r.ID = "twice"
			case 4:
				n = "nobody"
			}
			o, err := s.newOp(n, r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if i == 3 {
				o.kind = "\x00" // PostgreSQL refuses the row
			}
			batch = append(batch, o)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		for i, c := range []context.Context{ctx, ctx, ctx, ctx, ctx, gone} {
			batch[i].ctx = c //nolint:fatcontext // each operation has its own
		}
		s.group.commit(batch)
		for i, o := range batch[:5] {
			r := <-o.done
			switch {
			case i == 4:
				if !errors.Is(r.err, ErrNoTenant) {
					t.Errorf("%d: %v", i, r.err)
				}
			case i == 3 && s.pool != nil:
				if r.err == nil || errors.Is(r.err, ErrUnavailable) {
					t.Errorf("%d: %v", i, r.err)
				}
			case r.err != nil:
				t.Errorf("%d: %v", i, r.err)
			}
		}
		want := 3 // 0, 1 and 2 as one, 3
		if s.pool != nil {
			want = 2
		}
		if got := checkChain(t, s, tenant.Default); len(got) != want {
			t.Errorf("%d records, expected %d", len(got), want)
		}
		if _, err := s.Append(gone, tenant.Default, attestation("")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.Append(ctx, tenant.Default, attestation("")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("closed: %v", err)
		}
	})
}
