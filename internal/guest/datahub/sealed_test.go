package datahub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"encoding/json"
	"encoding/pem"
	"log/slog"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
	"github.com/coffer-project/coffer/tee"
)

// attestationError is what a client returns whose trustee answers /auth with a
// status.
func attestationError(t *testing.T, status int) error {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	defer srv.Close()
	c, err := kbs.NewClient(kbs.ClientOptions{
		URL: srv.URL, RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}),
		Attester: nobody{}, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err = c.Attest(context.Background()); err == nil {
		t.Fatal("attested")
	}
	return err
}

type nobody struct{}

func (nobody) TEE() tee.Name { return tee.Sample }
func (nobody) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, errors.New("no")
}
func (nobody) InitData(context.Context) ([]byte, error) { return nil, errors.New("no") }

const (
	kid = "kbs:///shop/sealing/key"
)

type sealer struct{ key *ecdsa.PrivateKey }

func newSealer(t testing.TB) sealer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sealer{key}
}

func (s sealer) jwk(t testing.TB) string {
	t.Helper()
	doc, err := sealed.PublicJWK(&s.key.PublicKey, kid)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func (s sealer) seal(t testing.TB, kid string, p sealed.Payload) string {
	t.Helper()
	text, err := sealed.Seal(rand.Reader, p, kid, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func vault(name string) sealed.Payload {
	return sealed.Payload{Type: sealed.Vault, Provider: sealed.KBS, Name: name}
}

// envelope seals a value for the key broker's key.
func envelope(t testing.TB, value string, kek []byte, keyID string, wrap sealed.Wrap) sealed.Payload {
	t.Helper()
	p := sealed.Payload{Type: sealed.Envelope}
	key, err := p.EncryptData(rand.Reader, secret.New([]byte(value)), wrap)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WrapKey(rand.Reader, key, secret.New(kek), keyID); err != nil {
		t.Fatal(err)
	}
	return p
}

func kek() []byte { return []byte(strings.Repeat("k", 32)) }

func TestUnseal(t *testing.T) {
	t.Parallel()
	s := newSealer(t)
	broker := newBroker(map[string]string{"/shop/sealing/key": s.jwk(t), "/shop/db/password": "hunter2", "/shop/sealing/kek": string(kek())})
	other := newBroker(map[string]string{"/shop/db/password": "hunter3"})
	hub := Open(Options{Default: broker, Named: map[string]Broker{"payments": other}})
	for name, tt := range map[string]struct {
		p    sealed.Payload
		want string
	}{
		"vault":                  {vault("kbs:///shop/db/password"), "hunter2"},
		"vault, another trustee": {vault("kbs://payments/shop/db/password"), "hunter3"},
		"envelope, GCM":          {envelope(t, "hunter4", kek(), "kbs:///shop/sealing/kek", sealed.A256GCM), "hunter4"},
		"envelope, CTR":          {envelope(t, "hunter5", kek(), "kbs:///shop/sealing/kek", sealed.A256CTR), "hunter5"},
	} {
		if got, err := hub.Unseal(t.Context(), s.seal(t, kid, tt.p)); err != nil || string(got.Expose()) != tt.want {
			t.Errorf("%s: got %q, %v", name, got.Expose(), err)
		}
	}
}

func TestUnsealFailsClosed(t *testing.T) {
	t.Parallel()
	s, other := newSealer(t), newSealer(t)
	hub := New(newBroker(map[string]string{"/shop/sealing/key": s.jwk(t), "/shop/db/password": "hunter2", "/shop/sealing/kek": string(kek())}))
	good := s.seal(t, kid, vault("kbs:///shop/db/password"))
	payload := func(p sealed.Payload) string { return s.seal(t, kid, p) }
	with := func(change func(*sealed.Payload)) string {
		p := vault("kbs:///shop/db/password")
		change(&p)
		return payload(p)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	for _, tt := range []struct{ name, sealed, err string }{
		{"not sealed", "hunter2", "expected sealed."},
		{"no signature", "sealed.fakejwsheader." + b64([]byte("{}")) + ".fakesignature", "coffer secret seal"},
		{"another key", other.seal(t, kid, vault("kbs:///shop/db/password")), "does not verify under the key " + kid},
		{"tampered", good[:len(good)-6] + "AAAAAA", "sealed secret: signature"},
		{"local key", s.seal(t, "../key", vault("kbs:///a/b/c")), "header.kid: expected a resource"},
		{"kid of nobody", s.seal(t, "kbs://nobody/a/b/c", vault("kbs:///a/b/c")), `there is no trustee "nobody"`},
		{"kid is missing", s.seal(t, "kbs:///a/b/c", vault("kbs:///a/b/c")), "no such resource"},
		{"kid is no key", s.seal(t, "kbs:///shop/db/password", vault("kbs:///a/b/c")), "not a JWK"},
		{"kid is no URI", s.seal(t, "kbs:///../b/c", vault("kbs:///a/b/c")), "header.kid"},
		{"name", payload(vault("/etc/passwd")), "expected kbs:///repository/type/tag"},
		{"name of nothing", payload(vault("kbs:///shop/db/other")), "no such resource"},
		{"provider", with(func(p *sealed.Payload) { p.Provider = "aws" }), `payload.provider: this guest knows kbs, got "aws"`},
		{"settings", with(func(p *sealed.Payload) { p.Settings = sealed.Object(`{"x":1}`) }), "provider_settings"},
		{"annotations", with(func(p *sealed.Payload) { p.Annotations = sealed.Object(`{"x":1}`) }), "annotations"},
		{"kek is missing", payload(envelope(t, "x", kek(), "kbs:///a/b/c", sealed.A256GCM)), "payload.key_id"},
		{"kek is no key", payload(envelope(t, "x", kek(), "kbs:///shop/db/password", sealed.A256GCM)), "holds 7 bytes"},
		{"another kek", payload(envelope(t, "x", []byte(strings.Repeat("o", 32)), "kbs:///shop/sealing/kek", sealed.A256GCM)), "encrypted_key: cannot be decrypted"},
		{"too long", "sealed." + strings.Repeat("a", sealed.MaxBytes), "at most"},
	} {
		v, err := hub.Unseal(t.Context(), tt.sealed)
		if err == nil || !strings.Contains(err.Error(), tt.err) || v.Len() != 0 || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
		}
	}
}

// fakeKMS answers with what it is asked, and shows what it got.
type fakeKMS struct{ got atomic.Pointer[kms.Request] }

func (k *fakeKMS) Secret(ctx context.Context, r kms.Request) (secret.Bytes, error) {
	k.got.Store(&r)
	return r.Credential(ctx, "aws/credential.json")
}

func (k *fakeKMS) Decrypt(_ context.Context, r kms.Request) (secret.Bytes, error) {
	k.got.Store(&r)
	return secret.New(r.Ciphertext), nil // "encrypted" as it is
}

func TestKeyManagementServices(t *testing.T) {
	t.Parallel()
	s := newSealer(t)
	broker := newBroker(map[string]string{"/shop/sealing/key": s.jwk(t), "/kms/aws/credential": "the credential"})
	service := &fakeKMS{}
	credentials := []guestconfig.Credential{{Path: guestconfig.CredentialDir + "aws/credential.json", URI: "kbs:///kms/aws/credential"}}
	hub := Open(Options{Default: broker, Providers: map[string]kms.Provider{"aws": service}, Credentials: credentials})

	p := sealed.Payload{Type: sealed.Vault, Provider: "aws", Name: "prod/db", Settings: sealed.Object(`{"region":"eu-west-1"}`), Annotations: sealed.Object(`{"version_id":"1"}`)}
	got, err := hub.Unseal(t.Context(), s.seal(t, kid, p))
	if err != nil || string(got.Expose()) != "the credential" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if r := service.got.Load(); r.Name != "prod/db" || string(r.Settings) != `{"region":"eu-west-1"}` || string(r.Annotations) != `{"version_id":"1"}` {
		t.Errorf("request %+v", r)
	}

	p = sealed.Payload{Type: sealed.Envelope, Provider: "aws", KeyID: "alias/app"}
	key, err := p.EncryptData(rand.Reader, secret.New([]byte("hunter2")), sealed.A256GCM)
	if err != nil {
		t.Fatal(err)
	}
	p.EncryptedKey = base64.StdEncoding.EncodeToString(key.Expose())
	if got, err := hub.Unseal(t.Context(), s.seal(t, kid, p)); err != nil || string(got.Expose()) != "hunter2" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if r := service.got.Load(); r.Name != "alias/app" {
		t.Errorf("request %+v", r)
	}
	p.EncryptedKey = "AAEC"
	if _, err := hub.Unseal(t.Context(), s.seal(t, kid, p)); err == nil || !strings.Contains(err.Error(), "a key of 3 bytes, expected 32") {
		t.Errorf("got %v", err)
	}
	p.EncryptedKey = "!"
	if _, err := hub.Unseal(t.Context(), s.seal(t, kid, p)); err == nil || !strings.Contains(err.Error(), "encrypted_key: expected padded base64") {
		t.Errorf("got %v", err)
	}

	p = sealed.Payload{Type: sealed.Vault, Provider: "aws", Name: "x"}
	bare := Open(Options{Default: broker, Providers: map[string]kms.Provider{"aws": service}})
	if _, err := bare.Unseal(t.Context(), s.seal(t, kid, p)); err == nil || !strings.Contains(err.Error(), "cdh.toml has no [[credentials]] entry with the path "+guestconfig.CredentialDir+"aws/credential.json") {
		t.Errorf("got %v", err)
	}
	p.Provider = "aliyun"
	if _, err := hub.Unseal(t.Context(), s.seal(t, kid, p)); err == nil || !strings.Contains(err.Error(), `this guest knows aws, kbs, got "aliyun"`) {
		t.Errorf("got %v", err)
	}
}

func TestReveal(t *testing.T) {
	t.Parallel()
	s := newSealer(t)
	hub := New(newBroker(map[string]string{"/shop/sealing/key": s.jwk(t), "/shop/db/password": "hunter2"}))
	good := s.seal(t, kid, vault("kbs:///shop/db/password"))
	for in, want := range map[string]string{good: "hunter2", good + "\n": "hunter2", "plain": "plain", "": "", "seal": "seal", " sealed.x": " sealed.x"} {
		got, was, err := hub.Reveal(t.Context(), []byte(in))
		if err != nil || string(got.Expose()) != want || was != strings.HasPrefix(in, "sealed.") {
			t.Errorf("%.20q: got %q, %v, %v", in, got.Expose(), was, err)
		}
	}
	for _, in := range []string{"sealed.", "sealed.x.y.z", good[:len(good)-8], "sealed.fakejwsheader.e30.fakesignature"} {
		if got, _, err := hub.Reveal(t.Context(), []byte(in)); err == nil || got.Len() != 0 {
			t.Errorf("%.20q: got %q: what cannot be opened must not be handed on", in, got.Expose())
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := newSealer(t)
	resources := map[string]string{"/shop/sealing/key": s.jwk(t), "/shop/db/password": "hunter2"}
	hub := New(newBroker(resources))
	good := s.seal(t, kid, vault("kbs:///shop/db/password"))
	got, err := hub.Files(t.Context(), map[string]string{"a/b.conf": good}, map[string]string{"raw": "kbs:///shop/db/password", "key": kid})
	if err != nil || len(got) != 3 {
		t.Fatalf("got %v, %v", got, err)
	}
	for name, want := range map[string]string{"a/b.conf": "hunter2", "raw": "hunter2", "key": s.jwk(t)} {
		if v := got[name]; string(v.Expose()) != want {
			t.Errorf("%s: got %q", name, v.Expose())
		}
	}
	if got, err := hub.Files(t.Context(), nil, nil); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	// One that fails fails all, and is named.
	many := map[string]string{"bad": "kbs:///no/such/thing"}
	for range 30 {
		many[rand.Text()] = "kbs:///shop/db/password"
	}
	if got, err := hub.Files(t.Context(), map[string]string{"a": good}, many); err == nil || got != nil || !strings.Contains(err.Error(), `file "bad": resource kbs:///no/such/thing`) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := hub.Files(t.Context(), map[string]string{"a": good}, map[string]string{"a": kid}); err == nil || !strings.Contains(err.Error(), `file "a": is both`) {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := hub.Files(ended, nil, many); !errors.Is(err, context.Canceled) || got != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

// FuzzUnseal must refuse everything that the one key did not sign.
func FuzzUnseal(f *testing.F) {
	s := newSealer(f)
	good := s.seal(f, kid, vault("kbs:///shop/db/password"))
	f.Add(good)
	f.Add("sealed..." + good)
	f.Add("sealed.fakejwsheader.e30.fakesignature")
	hub := New(newBroker(map[string]string{"/shop/sealing/key": s.jwk(f), "/shop/db/password": "hunter2"}))
	f.Fuzz(func(t *testing.T, in string) {
		v, err := hub.Unseal(t.Context(), in)
		if (err == nil) != (v.Len() != 0) {
			t.Fatal("neither a value nor an error")
		}
		if err == nil && strings.Join(strings.Split(strings.TrimSpace(in), ".")[:3], ".") != strings.Join(strings.Split(good, ".")[:3], ".") {
			t.Fatal("something was accepted that was not signed")
		}
	})
}
