package datahub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// fakeBroker holds resources by URI.
type fakeBroker map[string]string

func (b fakeBroker) Attest(context.Context) error { return nil }

func (b fakeBroker) Resource(_ context.Context, uri kbs.ResourceURI) (secret.Bytes, error) {
	v, ok := b[uri.String()]
	if !ok {
		return secret.Bytes{}, errors.New("no such resource")
	}
	return secret.New([]byte(v)), nil
}

const kid = "kbs:///shop/sealing/key"

type sealer struct {
	key *ecdsa.PrivateKey
}

func newSealer(t testing.TB) sealer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sealer{key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (s sealer) jwk(t testing.TB) string {
	t.Helper()
	point, err := s.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q,"kid":"k","alg":"ES256"}`, b64(point[1:33]), b64(point[33:]))
}

func (s sealer) seal(t testing.TB, header, payload string) string {
	t.Helper()
	signed := b64([]byte(header)) + "." + b64([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return "sealed." + signed + "." + b64(sig)
}

const (
	header = `{"alg":"ES256","kid":"` + kid + `"}`
	vault  = `{"version":"0.1.0","type":"vault","name":"kbs:///shop/db/password","provider":"kbs","provider_settings":{},"annotations":{}}`
)

func TestUnseal(t *testing.T) {
	t.Parallel()
	s := newSealer(t)
	hub := New(fakeBroker{kid: s.jwk(t), "kbs:///shop/db/password": "hunter2"})
	got, err := hub.Unseal(t.Context(), s.seal(t, header, vault))
	if err != nil || string(got.Expose()) != "hunter2" {
		t.Fatalf("%q, %v", got.Expose(), err)
	}
	other := newSealer(t)
	tampered := strings.Replace(s.seal(t, header, vault), ".", ".", 1)
	tampered = tampered[:len(tampered)-5] + "AAAAA"
	for _, tt := range []struct{ name, sealed, err string }{
		{"not sealed", "hunter2", "expected sealed."},
		{"no signature", "sealed.fakejwsheader." + b64([]byte(vault)) + ".fakesignature", "header"},
		{"another key", other.seal(t, header, vault), "does not verify"},
		{"tampered", tampered, "signature"},
		{"alg none", s.seal(t, `{"alg":"none","kid":"`+kid+`"}`, vault), "expected ES256"},
		{"local key", s.seal(t, `{"alg":"ES256","kid":"../key"}`, vault), "expected a resource"},
		{"kid is missing", s.seal(t, `{"alg":"ES256","kid":"kbs:///a/b/c"}`, vault), "no such resource"},
		{"envelope", s.seal(t, header, `{"version":"0.1.0","type":"envelope","provider":"aliyun","key_id":"k","encrypted_key":"","encrypted_data":"","wrap_type":"A256GCM","iv":"","provider_settings":{},"annotations":{}}`), "not supported"},
		{"version", s.seal(t, header, strings.Replace(vault, "0.1.0", "0.2.0", 1)), "payload.version"},
		{"provider", s.seal(t, header, strings.Replace(vault, `"kbs"`, `"aws"`, 1)), "payload.provider"},
		{"no annotations", s.seal(t, header, strings.Replace(vault, `,"annotations":{}`, "", 1)), "annotations must be present"},
		{"duplicate", s.seal(t, header, strings.Replace(vault, `"type":"vault"`, `"type":"vault","type":"vault"`, 1)), "payload"},
		{"too long", "sealed." + strings.Repeat("a", maxSealed), "at most"},
	} {
		if v, err := hub.Unseal(t.Context(), tt.sealed); err == nil || !strings.Contains(err.Error(), tt.err) || v.Len() != 0 {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
		}
	}
}

func TestVerificationKeyRefusesOtherKeys(t *testing.T) {
	t.Parallel()
	for _, jwk := range []string{
		"", "{}", `{"kty":"RSA"}`, `{"kty":"EC","crv":"P-384"}`, `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`,
		`{"kty":"EC","crv":"P-256","x":"` + b64(make([]byte, 32)) + `","y":"` + b64(make([]byte, 32)) + `"}`,
	} {
		if _, err := New(fakeBroker{kid: jwk}).verificationKey(t.Context(), kid); err == nil {
			t.Errorf("JWK %q was accepted", jwk)
		}
	}
}

func TestWithoutBrokerEverythingFails(t *testing.T) {
	t.Parallel()
	hub := New(nil)
	_, err := hub.Resource(t.Context(), "kbs:///a/b/c")
	for _, err := range []error{hub.Attest(t.Context()), err} {
		if !errors.Is(err, ErrNoBroker) {
			t.Errorf("error = %v", err)
		}
	}
	if _, err := hub.Key(t.Context(), "file:///etc/key"); err == nil {
		t.Error("a key that is no resource was accepted")
	}
}

func TestEnvValue(t *testing.T) {
	t.Parallel()
	if s, err := EnvValue("A", secret.New([]byte("x y\n"))); err != nil || s != "x y\n" {
		t.Errorf("%q, %v", s, err)
	}
	for _, bad := range [][]byte{[]byte("a\x00b"), []byte("a\xffb"), make([]byte, maxEnv+1)} {
		if _, err := EnvValue("A", secret.New(bad)); err == nil || strings.Contains(err.Error(), "a\x00b") {
			t.Errorf("error = %v", err)
		}
	}
}

// FuzzUnseal must refuse everything that the one key did not sign.
func FuzzUnseal(f *testing.F) {
	s := newSealer(f)
	good := s.seal(f, header, vault)
	f.Add(good)
	f.Add("sealed..." + good)
	f.Add("sealed.fakejwsheader." + b64([]byte(vault)) + ".fakesignature")
	hub := New(fakeBroker{kid: s.jwk(f), "kbs:///shop/db/password": "hunter2"})
	var want sealedPayload
	if err := json.Unmarshal([]byte(vault), &want); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in string) {
		v, err := hub.Unseal(t.Context(), in)
		if (err == nil) != (v.Len() != 0) {
			t.Fatal("neither a value nor an error")
		}
		if err == nil && strings.Join(strings.Split(in, ".")[:3], ".") != strings.Join(strings.Split(good, ".")[:3], ".") {
			t.Fatal("something was accepted that was not signed")
		}
	})
}
