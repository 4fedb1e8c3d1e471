package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/secret"
)

func TestEnvelopeOfTheKeyBroker(t *testing.T) {
	t.Parallel()
	kek := secret.New([]byte(strings.Repeat("k", KeySize)))
	for _, wrap := range []Wrap{A256GCM, A256CTR} {
		for _, text := range []string{"hunter2", "", "a\x00\xff"} {
			p := Payload{Type: Envelope}
			dek, err := p.EncryptData(rand.Reader, secret.New([]byte(text)), wrap)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.WrapKey(rand.Reader, dek, kek, "kbs:///shop/sealing/kek"); err != nil {
				t.Fatal(err)
			}
			if text == "" && wrap == A256CTR {
				// Nothing encrypts to nothing, which reads as missing.
				if _, err := Seal(rand.Reader, p, kid, testKey(t)); err == nil {
					t.Error("an empty secret was sealed without a tag")
				}
				continue
			}
			sealed, err := Seal(rand.Reader, p, kid, testKey(t))
			if err != nil {
				t.Fatal(err)
			}
			s, err := Parse(sealed)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Verify(&testKey(t).PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			key, err := got.UnwrapKey(kek)
			if err != nil || !key.Equal(dek) {
				t.Fatal(err)
			}
			plain, err := got.DecryptData(key)
			if err != nil || string(plain.Expose()) != text {
				t.Errorf("%s: got %q, %v", wrap, plain.Expose(), err)
			}
		}
	}
}

// TestEnvelopeVector pins the form with values computed by another program
// (Python, cryptography 48: AESGCM and AES in counter mode).
func TestEnvelopeVector(t *testing.T) {
	t.Parallel()
	p := Payload{
		Type: Envelope, Provider: KBS, KeyID: "kbs:///a/b/c", Settings: Object("{}"),
		EncryptedKey: vectorKey, Annotations: Object(`{"iv":"AAECAwQFBgcICQoL"}`),
		Wrap: A256GCM, IV: "DA0ODxAREhMUFRYX", EncryptedData: vectorGCM,
	}
	kek := make([]byte, 32)
	for i := range kek {
		kek[i] = byte(i)
	}
	dek, err := p.UnwrapKey(secret.New(kek))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.DecryptData(dek); err != nil || string(got.Expose()) != "hello coffer" {
		t.Errorf("GCM: %q, %v", got.Expose(), err)
	}
	p.Wrap, p.IV, p.EncryptedData = A256CTR, "AAECAwQFBgcICQoLDA0ODw==", vectorCTR
	if got, err := p.DecryptData(dek); err != nil || string(got.Expose()) != "hello coffer" {
		t.Errorf("CTR: %q, %v", got.Expose(), err)
	}
}

func TestEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	kek := secret.New(make([]byte, KeySize))
	good := Payload{Type: Envelope, Settings: Object("{}")}
	dek, err := good.EncryptData(rand.Reader, secret.New([]byte("hunter2")), A256GCM)
	if err != nil {
		t.Fatal(err)
	}
	if err := good.WrapKey(rand.Reader, dek, kek, "kbs:///a/b/c"); err != nil {
		t.Fatal(err)
	}
	other := secret.New([]byte(strings.Repeat("o", KeySize)))
	for name, tt := range map[string]struct {
		change func(*Payload)
		kek    secret.Bytes
		want   string
	}{
		"another kek":     {func(*Payload) {}, other, "payload.encrypted_key: cannot be decrypted"},
		"short kek":       {func(*Payload) {}, secret.New([]byte("short")), "kbs:///a/b/c holds 5 bytes, expected a key of 32"},
		"provider":        {func(p *Payload) { p.Provider = AWS }, kek, "not an envelope of the key broker"},
		"vault":           {func(p *Payload) { p.Type = Vault }, kek, "not an envelope"},
		"settings":        {func(p *Payload) { p.Settings = Object(`{"region":"x"}`) }, kek, "payload.provider_settings: JSON region"},
		"annotation":      {func(p *Payload) { p.Annotations = Object(`{"iv":"","x":1}`) }, kek, "payload.annotations: JSON x"},
		"no nonce":        {func(p *Payload) { p.Annotations = Object(`{}`) }, kek, "expected a nonce of 12 bytes"},
		"nonce":           {func(p *Payload) { p.Annotations = Object(`{"iv":"!"}`) }, kek, "payload.annotations.iv: expected padded base64"},
		"key":             {func(p *Payload) { p.EncryptedKey = "!" }, kek, "payload.encrypted_key: expected padded base64"},
		"short key":       {func(p *Payload) { p.EncryptedKey = "AA==" }, kek, "at least 16 of data"},
		"data":            {func(p *Payload) { p.EncryptedData = "!" }, kek, "payload.encrypted_data: expected padded base64"},
		"short data":      {func(p *Payload) { p.EncryptedData = "AA==" }, kek, "at least 16 of data"},
		"changed data":    {func(p *Payload) { p.EncryptedData = base64.StdEncoding.EncodeToString(make([]byte, 23)) }, kek, "payload.encrypted_data: cannot be decrypted"},
		"data's nonce":    {func(p *Payload) { p.IV = "" }, kek, "expected a nonce of 12 bytes"},
		"CTR's iv":        {func(p *Payload) { p.Wrap = A256CTR }, kek, "payload.iv: expected 16 bytes"},
		"no wrap at all":  {func(p *Payload) { p.Wrap = "" }, kek, "payload.wrap_type"},
		"iv no base64":    {func(p *Payload) { p.IV = "?" }, kek, "payload.iv: expected padded base64"},
		"base64url as iv": {func(p *Payload) { p.IV = "__-_" }, kek, "payload.iv: expected padded base64"},
	} {
		p := good
		tt.change(&p)
		key, err := p.UnwrapKey(tt.kek)
		if err == nil {
			_, err = p.DecryptData(key)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if _, err := good.DecryptData(secret.New([]byte("x"))); err == nil || !strings.Contains(err.Error(), "a key of 1 bytes") {
		t.Errorf("got %v", err)
	}
	if _, err := good.EncryptData(rand.Reader, kek, "A128GCM"); err == nil {
		t.Error("an unknown wrap type was used")
	}
	if err := good.WrapKey(rand.Reader, dek, secret.New(nil), "k"); err == nil {
		t.Error("an empty key was used")
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	key := testKey(t)
	pub, err := PublicJWK(&key.PublicKey, kid)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(pub), `"d"`) || !strings.Contains(string(pub), `"kid":"`+kid+`"`) {
		t.Errorf("public JWK %s", pub)
	}
	if got, err := ParsePublicKey(pub); err != nil || !got.Equal(&key.PublicKey) {
		t.Error(err)
	}
	private, err := PrivateJWK(key, kid)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) secret.Bytes {
		return secret.New(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for name, doc := range map[string]secret.Bytes{
		"JWK": private, "sample": secret.New(read(t, "test-key.json")), "PKCS #8": block("PRIVATE KEY", pkcs8), "SEC 1": block("EC PRIVATE KEY", sec1),
	} {
		if got, err := ParsePrivateKey(doc); err != nil || !got.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der384, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	text := string(private.Expose())
	d := strings.SplitAfter(text, `"d":"`)[1][:43]
	for name, doc := range map[string]secret.Bytes{
		"empty": secret.New(nil), "public": secret.New(pub), "P-384": block("PRIVATE KEY", der384), "a certificate": block("CERTIFICATE", pkcs8),
		"another d": secret.New([]byte(strings.Replace(text, d, b64(strings.Repeat("x", 32)), 1))),
		"d zero":    secret.New([]byte(strings.Replace(text, d, b64(strings.Repeat("\x00", 32)), 1))),
		"too long":  secret.New([]byte(text + strings.Repeat(" ", maxKey))),
		"twice":     secret.New([]byte(strings.Replace(text, `"kty"`, `"d":"x","kty"`, 1))),
	} {
		if _, err := ParsePrivateKey(doc); err == nil || strings.Contains(err.Error(), d) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPublicKeyRefuses(t *testing.T) {
	t.Parallel()
	key := testKey(t)
	good, err := PublicJWK(&key.PublicKey, kid)
	if err != nil {
		t.Fatal(err)
	}
	zero := b64(string(make([]byte, 32)))
	for name, doc := range map[string]string{
		"empty": "", "no members": "{}", "RSA": `{"kty":"RSA"}`, "P-384": `{"kty":"EC","crv":"P-384"}`,
		"short":         `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`,
		"not on curve":  fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, zero, zero),
		"alg":           strings.Replace(string(good), "ES256", "ES384", 1),
		"use":           strings.Replace(string(good), `"sig"`, `"enc"`, 1),
		"twice":         strings.Replace(string(good), `"kty":"EC"`, `"kty":"EC","kty":"EC"`, 1),
		"PEM":           "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
		"array":         "[]",
		"case of names": strings.Replace(string(good), `"x"`, `"X"`, 1),
	} {
		if _, err := ParsePublicKey([]byte(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
