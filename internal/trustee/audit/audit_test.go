package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// fakeSecrets keeps secrets in memory, as a store does.
type fakeSecrets struct {
	mu   sync.Mutex
	kept map[string][]byte
}

func (f *fakeSecrets) Secret(_ context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil {
		f.kept = map[string][]byte{}
	}
	if f.kept[name] == nil {
		b, err := create()
		if err != nil {
			return secret.Bytes{}, err
		}
		f.kept[name] = b
	}
	return secret.New(f.kept[name]), nil
}

// fill is randomness that is none.
type fill byte

func (f fill) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(f)
	}
	return len(p), nil
}

func signer(t testing.TB, b byte) *Signer {
	t.Helper()
	s, err := NewSigner(context.Background(), &fakeSecrets{}, fill(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var start = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

// chain is a chain of n entries of the default tenant.
func chain(t testing.TB, n int) []Entry {
	t.Helper()
	var out []Entry
	previous := Genesis
	for i := range n {
		body, err := json.Marshal(Record{ID: fmt.Sprint(i), At: start.Add(time.Duration(i) * time.Second), Tenant: tenant.Default,
			Kind: KindResource, Resource: "kbs:///demo/key/<1>", Claims: json.RawMessage(`{"a":"b & c"}`)})
		if err != nil {
			t.Fatal(err)
		}
		e := Entry{Seq: int64(i + 1), Previous: previous, Body: body}
		e.Hash = Hash(tenant.Default, e.Seq, previous, body)
		previous = e.Hash
		out = append(out, e)
	}
	return out
}

func sequence(entries []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func sign(t testing.TB, s *Signer, e Entry) string {
	t.Helper()
	jws, err := s.Sign(Checkpoint{Tenant: tenant.Default, Seq: e.Seq, Hash: e.Hash, At: start.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return jws
}

// rehash makes a chain consistent again, as a forger who knows the hash does.
func rehash(entries []Entry) {
	for i := range entries {
		if i > 0 {
			entries[i].Previous = entries[i-1].Hash
		}
		entries[i].Hash = Hash(tenant.Default, entries[i].Seq, entries[i].Previous, entries[i].Body)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s, other := signer(t, 1), signer(t, 2)
	good := chain(t, 10)
	forged := bytes.Replace(good[4].Body, []byte("granted\":false"), []byte("granted\":true"), 1)
	for _, tc := range []struct {
		name string
		// change gets a copy of ten entries; checkpoints are of entries 3 and 8.
		change func([]Entry) []Entry
		o      func(*VerifyOptions)
		seq    int64
		what   string
		check  func(*testing.T, Report)
	}{
		{name: "as it was written", check: func(t *testing.T, r Report) {
			if r.First != 1 || r.Last != 10 || r.Entries != 10 || r.Checkpoints != 2 || r.Unsigned != 2 || r.LastCheckpoint.Seq != 8 || r.Head != good[9].Hash ||
				!r.From.Equal(start) || !r.To.Equal(start.Add(9*time.Second)) || r.Expired != 0 {
				t.Errorf("%+v", r)
			}
		}},
		{name: "empty", change: func([]Entry) []Entry { return nil }, o: func(o *VerifyOptions) { o.Checkpoints = nil }},
		{name: "emptied", change: func([]Entry) []Entry { return nil }, seq: 8, what: "cut off"},
		{name: "changed", change: func(e []Entry) []Entry { e[4].Body = forged; return e }, seq: 5, what: "hash"},
		{name: "changed and hashed again", change: func(e []Entry) []Entry { e[4].Body = forged; rehash(e); return e }, seq: 8, what: "checkpoint of 2026-10-01T13:00:00Z"},
		{name: "changed where nothing is signed yet", change: func(e []Entry) []Entry { e[9].Body = forged; rehash(e); return e }},
		{name: "the same with a checkpoint kept elsewhere", change: func(e []Entry) []Entry { e[9].Body = forged; rehash(e); return e },
			o: func(o *VerifyOptions) { o.Pinned = []string{sign(t, s, good[9])} }, seq: 10, what: "checkpoint of 2026-10-01T13:00:00Z"},
		{name: "left out", change: func(e []Entry) []Entry { return slices.Delete(e, 4, 5) }, seq: 5, what: "seq"},
		{name: "left out and numbered again", change: func(e []Entry) []Entry {
			e = slices.Delete(e, 4, 5)
			for i := range e {
				e[i].Seq = int64(i + 1)
			}
			rehash(e)
			return e
		}, seq: 8, what: "checkpoint of 2026-10-01T13:00:00Z"},
		{name: "twice", change: func(e []Entry) []Entry { return slices.Insert(e, 4, e[4]) }, seq: 6, what: "seq"},
		{name: "cut off", change: func(e []Entry) []Entry { return e[:7] }, seq: 8, what: "cut off"},
		{name: "other previous", change: func(e []Entry) []Entry {
			e[5].Previous = Genesis
			e[5].Hash = Hash(tenant.Default, e[5].Seq, Genesis, e[5].Body)
			return e
		}, seq: 6, what: "previous"},
		{name: "beginning removed after a checkpoint", change: func(e []Entry) []Entry { return e[3:] }, check: func(t *testing.T, r Report) {
			if r.Anchor == nil || r.Anchor.Seq != 3 || r.First != 4 || r.Entries != 7 || r.Checkpoints != 2 {
				t.Errorf("%+v", r)
			}
		}},
		{name: "beginning removed before a checkpoint", change: func(e []Entry) []Entry { return e[2:] }, check: func(t *testing.T, r Report) {
			if r.Anchor == nil || r.Anchor.Seq != 3 || r.First != 3 || r.Entries != 8 || r.Checkpoints != 2 {
				t.Errorf("%+v", r)
			}
		}},
		{name: "the same, with another entry there", change: func(e []Entry) []Entry { e[2].Body = e[3].Body; rehash(e); return e[2:] }, seq: 3, what: "checkpoint of 2026-10-01T13:00:00Z"},
		{name: "the same, but all are wanted", change: func(e []Entry) []Entry { return e[3:] }, o: func(o *VerifyOptions) { o.Complete = true }, seq: 4, what: "seq"},
		{name: "beginning removed elsewhere", change: func(e []Entry) []Entry { return e[4:] }, seq: 5, what: "seq"},
		{name: "older checkpoints than entries", change: func(e []Entry) []Entry { return e[8:] }, check: func(t *testing.T, r Report) {
			if r.Expired != 1 || r.Checkpoints != 1 {
				t.Errorf("%+v", r)
			}
		}},
		{name: "beginning removed beyond what was kept elsewhere", change: func(e []Entry) []Entry { return e[8:] },
			o: func(o *VerifyOptions) { o.Pinned = []string{sign(t, s, good[2])} }, seq: 3, what: "newest checkpoint that was kept elsewhere"},
		{name: "beginning removed up to what was kept elsewhere", change: func(e []Entry) []Entry { return e[8:] },
			o: func(o *VerifyOptions) { o.Pinned = []string{sign(t, s, good[2]), sign(t, s, good[7])} }, check: func(t *testing.T, r Report) {
				if r.Expired != 2 || r.Pinned != 1 {
					t.Errorf("%+v", r)
				}
			}},
		{name: "record of another tenant", change: func(e []Entry) []Entry {
			e[0].Body = bytes.Replace(e[0].Body, []byte(`"tenant":"default"`), []byte(`"tenant":"acme"`), 1)
			rehash(e)
			return e
		}, seq: 1, what: "record: tenant"},
		{name: "no record", change: func(e []Entry) []Entry { e[0].Body = []byte(`[]`); rehash(e); return e }, seq: 1, what: "record"},
		{name: "record without a kind", change: func(e []Entry) []Entry { e[0].Body = []byte(`{}`); rehash(e); return e }, seq: 1, what: "record"},
		{name: "chain of another tenant", o: func(o *VerifyOptions) { o.Tenant = "acme"; o.Checkpoints = nil }, seq: 1, what: "hash"},
		{name: "checkpoint of another tenant", o: func(o *VerifyOptions) { o.Tenant = "acme" }, seq: 3, what: "checkpoint: tenant"},
		{name: "checkpoint of another key", o: func(o *VerifyOptions) { o.Checkpoints = []string{sign(t, other, good[7])} }, what: "checkpoint"},
		{name: "two chains were signed", o: func(o *VerifyOptions) {
			o.Checkpoints = append(o.Checkpoints, sign(t, s, Entry{Seq: 3, Hash: Genesis}))
		}, seq: 3, what: "checkpoint: another one for the same entry"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			entries := slices.Clone(good)
			if tc.change != nil {
				entries = tc.change(entries)
			}
			o := VerifyOptions{Tenant: tenant.Default, Keys: s.Keys(), Checkpoints: []string{sign(t, s, good[2]), sign(t, s, good[7])}}
			if tc.o != nil {
				tc.o(&o)
			}
			r, err := Verify(t.Context(), sequence(entries), o)
			if err != nil {
				t.Fatal(err)
			}
			if r.OK != (tc.what == "") || r.OK != (r.Problem == nil) {
				t.Fatalf("%+v, problem %v", r, r.Problem)
			}
			if p := r.Problem; p != nil && (p.Seq != tc.seq || p.What != tc.what || p.Expected == "" || p.Got == "") {
				t.Errorf("problem %v", p)
			}
			if tc.check != nil {
				tc.check(t, r)
			}
		})
	}
	broken := func(yield func(Entry, error) bool) { yield(Entry{}, errors.New("store is down")) }
	if r, err := Verify(t.Context(), broken, VerifyOptions{Tenant: tenant.Default}); err == nil || r.OK {
		t.Errorf("cannot be read: %+v, %v", r, err)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	all := chain(t, MaxLimit+5)
	list := func(_ context.Context, _ tenant.Name, q Query) ([]Entry, error) {
		var out []Entry
		for _, e := range all {
			if e.Seq > q.After && len(out) < q.Limit {
				out = append(out, e)
			}
		}
		return out, nil
	}
	r, err := Verify(t.Context(), Pages(t.Context(), list, tenant.Default), VerifyOptions{Tenant: tenant.Default})
	if err != nil || !r.OK || r.Entries != int64(len(all)) {
		t.Errorf("%+v, %v", r, err)
	}
	stuck := func(context.Context, tenant.Name, Query) ([]Entry, error) { return all[:1], nil }
	if r, err := Verify(t.Context(), Pages(t.Context(), stuck, tenant.Default), VerifyOptions{Tenant: tenant.Default}); err == nil && r.OK {
		t.Error("a listing that repeats itself: want a problem")
	}
	failing := func(context.Context, tenant.Name, Query) ([]Entry, error) { return nil, errors.New("down") }
	if _, err := Verify(t.Context(), Pages(t.Context(), failing, tenant.Default), VerifyOptions{Tenant: tenant.Default}); err == nil {
		t.Error("a listing that fails: want an error")
	}
}

func TestSigner(t *testing.T) {
	t.Parallel()
	kept := &fakeSecrets{}
	s, err := NewSigner(t.Context(), kept, fill(7))
	if err != nil {
		t.Fatal(err)
	}
	again, err := NewSigner(t.Context(), kept, fill(9)) // another replica
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(again.Keys())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(doc)
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	want := Checkpoint{Tenant: "acme", Seq: 5, Hash: strings.Repeat("ab", 32), At: start}
	jws, err := s.Sign(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := keys.Checkpoint(jws + "\n")
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	parts := strings.Split(jws, ".")
	none := b64([]byte(`{"alg":"none","kid":"` + s.kid + `","typ":"` + checkpointType + `"}`))
	foreign := b64([]byte(`{"alg":"EdDSA","kid":"` + s.kid + `","typ":"JWT"}`))
	signed := func(head, payload string) string {
		return head + "." + payload + "." + b64(ed25519.Sign(s.key, []byte(head+"."+payload)))
	}
	payload := func(doc string) string { return signed(parts[0], b64([]byte(doc))) }
	for name, bad := range map[string]string{
		"empty":             "",
		"parts":             parts[0] + "." + parts[1],
		"no signature":      parts[0] + "." + parts[1] + ".",
		"none":              none + "." + parts[1] + ".",
		"typ":               signed(foreign, parts[1]),
		"other payload":     parts[0] + "." + b64([]byte(`{"tenant":"acme","seq":6,"hash":"`+want.Hash+`","at":"2026-10-01T12:00:00Z"}`)) + "." + parts[2],
		"padding":           parts[0] + "=." + parts[1] + "." + parts[2],
		"too long":          jws + strings.Repeat("a", maxCheckpoint),
		"payload no object": payload(`7`),
		"payload tenant":    payload(`{"tenant":"*","seq":6,"hash":"` + want.Hash + `","at":"2026-10-01T12:00:00Z"}`),
		"payload seq":       payload(`{"tenant":"acme","seq":0,"hash":"` + want.Hash + `","at":"2026-10-01T12:00:00Z"}`),
		"payload hash":      payload(`{"tenant":"acme","seq":1,"hash":"AB","at":"2026-10-01T12:00:00Z"}`),
		"payload twice":     payload(`{"tenant":"acme","seq":1,"seq":2,"hash":"` + want.Hash + `","at":"2026-10-01T12:00:00Z"}`),
	} {
		if c, err := keys.Checkpoint(bad); err == nil {
			t.Errorf("%s: got %+v, want an error", name, c)
		}
	}
	if _, err := signer(t, 1).Keys().Checkpoint(jws); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("another key: %v", err)
	}
	if _, err := s.Sign(Checkpoint{Tenant: "acme", At: start, Hash: Genesis}); err == nil {
		t.Error("a checkpoint of nothing: want an error")
	}
	kept.kept[SecretName] = []byte("short")
	if _, err := NewSigner(t.Context(), kept, fill(7)); err == nil {
		t.Error("a short seed: want an error")
	}
	for _, bad := range []string{``, `{"keys":[]}`, strings.Replace(string(doc), `"x":"`, `"x":"A`, 1), strings.Replace(string(doc), "Ed25519", "X25519", 1), strings.Replace(string(doc), s.kid, "k", 1)} {
		if _, err := ParseKeys([]byte(bad)); err == nil {
			t.Errorf("ParseKeys(%s): want an error", bad)
		}
	}
}
