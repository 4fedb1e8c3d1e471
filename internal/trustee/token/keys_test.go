package token

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/ear"
)

// shared is what replicas share.
type shared struct {
	mu      sync.Mutex
	keys    []Key
	version int64
	asked   int
	err     error
}

func (s *shared) TokenKeys(context.Context) ([]Key, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.keys, s.version, s.err
}

func (s *shared) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.version++
}

// versioned can say which version it has.
type versioned struct{ *shared }

func (v versioned) TokenKeyVersion(context.Context) (int64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.version, v.err
}

// TestRotatedAtOnce: where the source says that it has other keys, all
// replicas sign with the new one from then on, and publish it.
func TestRotatedAtOnce(t *testing.T) {
	t.Parallel()
	now := start
	src := versioned{&shared{keys: []Key{{Private: key(t, elliptic.P256())}}, version: 1}}
	var replicas []*Authority
	for range 2 {
		a, err := New(t.Context(), Options{Keys: src, Issuer: "i", Audience: "a", Lifetime: time.Minute, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, a)
	}
	for i := range 3 { // the clock stands still
		src.change(func() { src.keys = append([]Key{{Private: key(t, elliptic.P384())}}, src.keys...) })
		want, err := KeyID(&src.keys[0].Private.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for j, a := range replicas {
			if set := jwks(t, a); len(set.Keys) != i+2 || set.Keys[0].KeyID != want {
				t.Errorf("rotation %d, replica %d: JWKS %+v", i, j, set)
			}
			if _, _, err := replicas[1-j].Verify(t.Context(), "acme", mint(t, a)); err != nil {
				t.Errorf("rotation %d, replica %d: %v", i, j, err)
			}
		}
	}
	asked := src.asked
	other := authority(t, &now, key(t, elliptic.P256()))
	for range 20 {
		mint(t, replicas[0])
		if _, _, err := replicas[1].Verify(t.Context(), "acme", mint(t, other)); err == nil {
			t.Fatal("foreign token verified")
		}
	}
	if src.asked != asked {
		t.Errorf("asked %d times for keys that had not changed", src.asked-asked)
	}
	src.err = errors.New("store is down")
	mint(t, replicas[0])
	now = now.Add(stale)
	if _, err := replicas[0].Mint(t.Context(), "acme", ear.Claims{}); err == nil {
		t.Error("source down for long: want an error")
	}
}

func TestReplicasRotate(t *testing.T) {
	t.Parallel()
	now := start
	first, err := Generate(rand.Reader, "ES256", now)
	if err != nil {
		t.Fatal(err)
	}
	src := &shared{keys: []Key{first}, version: 1}
	replica := func() *Authority {
		a, err := New(t.Context(), Options{Keys: src, Issuer: "i", Audience: "a", Lifetime: 5 * time.Minute, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a, b := replica(), replica()
	old := mint(t, a)
	now = now.Add(time.Second)
	src.change(func() {
		if src.keys, err = Rotate(rand.Reader, src.keys, "ES384", now, 5*time.Minute); err != nil {
			t.Fatal(err)
		}
	})
	c := replica() // has the new key at once
	fresh := mint(t, c)
	if _, _, err := b.Verify(t.Context(), "acme", fresh); err != nil {
		t.Errorf("a key that another replica has just made: %v", err)
	}
	for name, x := range map[string]*Authority{"old": a, "other": b, "new": c} {
		if _, _, err := x.Verify(t.Context(), "acme", old); err != nil {
			t.Errorf("%s replica, token of before: %v", name, err)
		}
	}
	if set := jwks(t, c); len(set.Keys) != 2 || set.Keys[0].Algorithm != "ES384" {
		t.Errorf("JWKS %+v", set)
	}
	// Unknown ids do not make it ask at every turn.
	asked := src.asked
	forged := strings.Replace(fresh, ".", "!.", 1)
	other := authority(t, &now, key(t, elliptic.P256()))
	for range 50 {
		if _, _, err := b.Verify(t.Context(), "acme", mint(t, other)); err == nil {
			t.Fatal("foreign token verified")
		}
		if _, _, err := b.Verify(t.Context(), "acme", forged); err == nil {
			t.Fatal("malformed token verified")
		}
	}
	if n := src.asked - asked; n > 1 {
		t.Errorf("asked %d times for keys that are not there", n)
	}
	// The source fails: keys are used on for a while, not for ever.
	src.change(func() { src.err = errors.New("store is down") })
	now = now.Add(time.Minute)
	if _, _, err := b.Verify(t.Context(), "acme", fresh); err != nil {
		t.Errorf("source down for a minute: %v", err)
	}
	now = now.Add(stale)
	if _, err := b.Mint(t.Context(), "acme", ear.Claims{}); err == nil {
		t.Error("source down for long: want an error")
	}
	// The clock goes back: nothing is taken for fresh.
	src.change(func() { src.err = nil })
	now = start.Add(-time.Hour)
	if _, err := b.JWKS(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRotateForgets(t *testing.T) {
	t.Parallel()
	now := start
	var list []Key
	for i, want := range []int{1, 2, 3, 3} {
		var err error
		if list, err = Rotate(rand.Reader, list, "", now, 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		if len(list) != want || !list[0].Retired.IsZero() {
			t.Errorf("rotation %d: %d keys, want %d", i, len(list), want)
		}
		now = now.Add(6 * time.Minute)
	}
	if _, err := Rotate(rand.Reader, nil, "RS256", now, 0); err == nil {
		t.Error("RS256: want an error")
	}
	for range maxKeys {
		list = append(list, list[0])
	}
	if _, err := Rotate(rand.Reader, list, "", now, time.Hour); err == nil {
		t.Error("too many keys: want an error")
	}
}

// Keys are rotated because the old one may have been stolen: it is not to
// verify until somebody rotates again.
func TestRetiredKeysEnd(t *testing.T) {
	t.Parallel()
	now := start
	const lifetime = 5 * time.Minute
	stolen := key(t, elliptic.P256())
	fresh, err := Generate(rand.Reader, "ES256", now)
	if err != nil {
		t.Fatal(err)
	}
	thief := authority(t, &now, stolen)
	src := &shared{keys: []Key{fresh, {Private: stolen, Retired: now}}, version: 1}
	a, err := New(t.Context(), Options{Keys: src, Issuer: thief.o.Issuer, Audience: thief.o.Audience, Lifetime: lifetime, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		keys  int
	}{{0, 2}, {lifetime + stale + skew, 2}, {lifetime + stale + skew + time.Second, 1}} {
		now = start.Add(step.after)
		_, _, err := a.Verify(t.Context(), "acme", mint(t, thief))
		if (err == nil) != (step.keys == 2) {
			t.Errorf("%s after it was retired: %v", step.after, err)
		}
		if n := len(jwks(t, a).Keys); n != step.keys {
			t.Errorf("%s after it was retired: %d keys are published, want %d", step.after, n, step.keys)
		}
		if _, _, err := a.Verify(t.Context(), "acme", mint(t, a)); err != nil {
			t.Errorf("the key that signs: %v", err)
		}
	}
}

func TestBundle(t *testing.T) {
	t.Parallel()
	list, err := Rotate(rand.Reader, nil, "ES256", start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if list, err = Rotate(rand.Reader, list, "ES384", start.Add(time.Minute), time.Hour); err != nil {
		t.Fatal(err)
	}
	text, err := EncodeKeys(list)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d keys", len(got))
	}
	for i := range got {
		if !got[i].Private.Equal(list[i].Private) || !got[i].Created.Equal(list[i].Created) || !got[i].Retired.Equal(list[i].Retired) {
			t.Errorf("key %d differs", i)
		}
	}
	for name, bad := range map[string][]byte{
		"empty":    nil,
		"no PEM":   []byte("x"),
		"trailing": append(bytes.Clone(text), 'x'),
		"type":     bytes.ReplaceAll(text, []byte("EC PRIVATE"), []byte("RSA PRIVATE")),
		"time":     bytes.ReplaceAll(text, []byte("2026-"), []byte("soon-")),
		"long":     bytes.Repeat([]byte("\n"), maxBundle+1),
		"many":     bytes.Repeat(text, maxKeys),
	} {
		if list, err := DecodeKeys(bad); err == nil || list != nil {
			t.Errorf("%s: got %d keys, want an error", name, len(list))
		}
	}
	if _, err := EncodeKeys(nil); err == nil {
		t.Error("no key: want an error")
	}
}

func FuzzDecodeKeys(f *testing.F) {
	k, err := Generate(rand.Reader, "", start)
	if err != nil {
		f.Fatal(err)
	}
	text, err := EncodeKeys([]Key{k})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nCreated: x\n\nAA==\n-----END EC PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := DecodeKeys(text)
		if (list == nil) == (err == nil) {
			t.Fatalf("keys %v, error %v", list, err)
		}
		if err != nil {
			return
		}
		again, err := EncodeKeys(list)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeKeys(again); err != nil {
			t.Error(err)
		}
	})
}
