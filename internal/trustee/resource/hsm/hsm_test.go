package hsm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/hsmtest"
	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/backendtest"
	"github.com/coffer-project/coffer/secret"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }

func token(t testing.TB) *cryptoki.Token {
	t.Helper()
	h := hsmtest.New(t)
	m, err := cryptoki.Load(h.Module)
	if errors.Is(err, cryptoki.ErrNoCgo) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	tok, err := m.Token(t.Context(), cryptoki.Options{Label: h.Label, PIN: cryptoki.PINFile(h.PINFile), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tok
}

func open(t testing.TB, tok Token) *Backend {
	t.Helper()
	b, err := New(tok, Options{MaxContent: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// empty destroys all objects.
func empty(t testing.TB, tok Token) {
	t.Helper()
	err := tok.Do(context.Background(), func(_ context.Context, s cryptoki.Session) error {
		all, err := s.Find([]cryptoki.Attribute{{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)}}, maxObjects)
		for _, o := range all {
			err = errors.Join(err, s.Destroy(o))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBackend(t *testing.T) {
	tok := token(t)
	backendtest.Run(t, backendtest.Options{Many: 12, Rounds: 5}, func(t testing.TB) resource.Backend {
		empty(t, tok)
		return open(t, tok)
	})
}

var key = resource.Path{Repository: "repo", Type: "key", Tag: "one"}

func create(t testing.TB, tok Token, app, label string, id, value []byte) {
	t.Helper()
	template := []cryptoki.Attribute{
		{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)}, {Type: cryptoki.AttrToken, Value: true}, {Type: cryptoki.AttrPrivate, Value: true},
		{Type: cryptoki.AttrApplication, Value: []byte(app)}, {Type: cryptoki.AttrLabel, Value: []byte(label)}, {Type: cryptoki.AttrValue, Value: value},
	}
	if id != nil {
		template = append(template, cryptoki.Attribute{Type: cryptoki.AttrObjectID, Value: id})
	}
	err := tok.Do(t.Context(), func(_ context.Context, s cryptoki.Session) error { _, err := s.Create(template); return err })
	if err != nil {
		t.Fatal(err)
	}
}

// What the operator wrote with pkcs11-tool is version 1; what others keep in the
// token is not touched.
func TestForeignObjects(t *testing.T) {
	tok := token(t)
	b := open(t, tok)
	create(t, tok, "coffer/default", key.String(), nil, []byte("by the operator"))
	create(t, tok, "coffer/default", "../../x", nil, []byte("no path"))
	create(t, tok, "coffer/default", "a/b/c", []byte{6, 1, 42}, []byte("other identifier"))
	create(t, tok, "coffer", "a/b/d", nil, []byte("other application"))
	create(t, tok, "coffer/default/a", "b/c/d", nil, []byte("no tenant"))
	if got, v, err := b.Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "by the operator" {
		t.Fatalf("got version %d, %v", v, err)
	}
	if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 1 || list[0].Size != -1 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if v, err := b.Put(t.Context(), "default", key, secret.New([]byte("ours"))); err != nil || v != 2 {
		t.Errorf("put: version %d, %v", v, err)
	}
	if was, err := b.Delete(t.Context(), "default", key); err != nil || !was {
		t.Errorf("delete: %v, %v", was, err)
	}
	if _, _, err := b.Get(t.Context(), "default", key, 1); !errors.Is(err, resource.ErrNotFound) {
		t.Errorf("the operator's object after deletion: %v", err)
	}
	err := tok.Do(t.Context(), func(_ context.Context, s cryptoki.Session) error {
		all, err := s.Find([]cryptoki.Attribute{{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)}}, 100)
		if len(all) != 5 { // four of others, and the mark
			t.Errorf("%d objects are left", len(all))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Anybody who reaches the token can make public objects.
func TestPublicObject(t *testing.T) {
	tok := token(t)
	b := open(t, tok)
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("ours"))); err != nil {
		t.Fatal(err)
	}
	forged := entry{version: 9, size: 6}.identifier()
	err := tok.Do(t.Context(), func(_ context.Context, s cryptoki.Session) error {
		_, err := s.Create([]cryptoki.Attribute{
			{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)}, {Type: cryptoki.AttrToken, Value: true}, {Type: cryptoki.AttrPrivate, Value: false},
			{Type: cryptoki.AttrApplication, Value: []byte("coffer/default")}, {Type: cryptoki.AttrLabel, Value: []byte(key.String())},
			{Type: cryptoki.AttrObjectID, Value: forged}, {Type: cryptoki.AttrValue, Value: []byte("theirs")},
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, v, err := b.Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "ours" {
		t.Errorf("got version %d, %v", v, err)
	}
}

func TestRetention(t *testing.T) {
	tok := token(t)
	b, err := New(tok, Options{Versions: 2, MaxContent: 4})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("data"))); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := b.Versions(t.Context(), "default", key)
	if err != nil || len(infos) != 2 || infos[0].Version != 4 || infos[0].Size != 4 {
		t.Errorf("got %+v, %v", infos, err)
	}
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("data!"))); err == nil {
		t.Error("too long: want an error")
	}
	for _, o := range []Options{{Versions: -1}, {MaxContent: -1}} {
		if _, err := New(tok, o); err == nil {
			t.Errorf("%+v: want an error", o)
		}
	}
}

// serial carries out one call at a time, as SoftHSM needs it.
type serial struct {
	*cryptoki.Token
	mu *sync.Mutex
}

func (s serial) Do(ctx context.Context, f func(context.Context, cryptoki.Session) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Token.Do(ctx, f)
}

// Two backends without a common lock stand for two processes: their calls
// interleave.
func TestTwoProcesses(t *testing.T) {
	tok := serial{token(t), &sync.Mutex{}}
	a, b := open(t, tok), open(t, tok)
	type put struct {
		version int64
		err     error
	}
	const rounds = 10
	results := make(chan put, 2*rounds)
	for _, backend := range []*Backend{a, b} {
		go func() {
			for range rounds {
				v, err := backend.Put(t.Context(), "default", key, secret.New([]byte("x")))
				results <- put{v, err}
			}
		}()
	}
	seen := map[int64]bool{}
	for range 2 * rounds {
		r := <-results
		if r.err != nil || seen[r.version] {
			t.Errorf("version %d, seen before: %v, %v", r.version, seen[r.version], r.err)
		}
		seen[r.version] = true
	}
}

// down is a token that fails, lying one that returns what nobody asked for.
type fakeToken struct {
	cryptoki.Session
	err    error
	values [][]byte
}

func (f fakeToken) Label() string { return "fake" }
func (f fakeToken) Do(ctx context.Context, do func(context.Context, cryptoki.Session) error) error {
	if f.err != nil {
		return f.err
	}
	return do(ctx, f)
}
func (f fakeToken) Find([]cryptoki.Attribute, int) ([]cryptoki.Object, error) {
	return []cryptoki.Object{1}, nil
}
func (f fakeToken) Attributes(_ cryptoki.Object, types ...uint) ([][]byte, error) {
	if len(types) == 1 {
		return [][]byte{make([]byte, 10)}, nil
	}
	return f.values, nil
}

func TestBrokenToken(t *testing.T) {
	t.Parallel()
	sized := entry{version: 1, created: time.UnixMilli(1), size: 11}.identifier()
	huge := entry{version: 1, created: time.UnixMilli(1), size: 1 << 30}.identifier()
	for name, f := range map[string]fakeToken{
		"another tenant's":  {values: [][]byte{[]byte("coffer/acme"), []byte(key.String()), nil}},
		"another path's":    {values: [][]byte{[]byte("coffer/default"), []byte("repo/key/two"), nil}},
		"no attributes":     {values: [][]byte{}},
		"another size":      {values: [][]byte{[]byte("coffer/default"), []byte(key.String()), sized}},
		"more than allowed": {values: [][]byte{[]byte("coffer/default"), []byte(key.String()), huge}},
	} {
		got, _, err := open(t, f).Get(t.Context(), "default", key, 0)
		if err == nil || errors.Is(err, resource.ErrNotFound) || got.Len() != 0 {
			t.Errorf("%s: got %d bytes, %v", name, got.Len(), err)
		}
	}
	b := open(t, fakeToken{err: cryptoki.ErrUnavailable})
	if _, _, err := b.Get(t.Context(), "default", key, 0); !errors.Is(err, resource.ErrUnavailable) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("x"))); !errors.Is(err, resource.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if _, err := b.List(t.Context(), "default", "", "", 1); !errors.Is(err, resource.ErrUnavailable) {
		t.Errorf("list: %v", err)
	}
}

func FuzzParseIdentifier(f *testing.F) {
	f.Add(entry{version: 1, created: time.UnixMilli(1_790_000_000_000), size: 32}.identifier())
	f.Add(entry{version: 1 << 40, size: 1 << 20, mark: true}.identifier())
	f.Add([]byte{6, 1, 0x69})
	f.Add([]byte{6, 6, 0x69, 1, 0x80, 1, 1, 1})
	f.Fuzz(func(t *testing.T, der []byte) {
		e, ok := parseIdentifier(der)
		if ok && !e.foreign && !bytes.Equal(e.identifier(), der) {
			t.Errorf("%x reads as %+v, which is %x", der, e, e.identifier())
		}
	})
}
