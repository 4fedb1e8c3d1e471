package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/secret"
)

const kid = "kbs:///shop/sealing/key"

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ParsePrivateKey(secret.New(read(t, "test-key.json")))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// signed signs any header and payload.
func signed(t testing.TB, header, payload string) string {
	t.Helper()
	text := b64(header) + "." + b64(payload)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, testKey(t), digest[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return "sealed." + text + "." + b64(string(sig))
}

const (
	header   = `{"alg":"ES256","kid":"` + kid + `"}`
	vault    = `{"version":"0.1.0","type":"vault","name":"kbs:///one/2/trois","provider":"kbs","provider_settings":{},"annotations":{}}`
	envelope = `{"version":"0.1.0","type":"envelope","key_id":"k","encrypted_key":"AA==","encrypted_data":"AA==","wrap_type":"A256GCM","iv":"AA==",` +
		`"provider":"aws","provider_settings":{"region":"eu-west-1"},"annotations":{}}`
)

func TestSamples(t *testing.T) {
	t.Parallel()
	none := Object("{}")
	for name, want := range map[string]Payload{
		"vault-1.json": {Type: Vault, Name: "xxx", Provider: Aliyun, Settings: none, Annotations: none},
		"vault-2.json": {Type: Vault, Name: "kbs:///one/2/trois", Provider: KBS, Settings: none, Annotations: none},
		"envelope-1.json": {
			Type: Envelope, KeyID: "xxx", EncryptedKey: "yyy", EncryptedData: "zzz", Wrap: A256GCM, IV: "www", Provider: Aliyun, Settings: none, Annotations: none,
		},
	} {
		data := read(t, name)
		got, err := ParsePayload(data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		// Written again it is the same document.
		doc, err := got.JSON()
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if json.Unmarshal(data, &a) != nil || json.Unmarshal(doc, &b) != nil || !cmp.Equal(a, b) {
			t.Errorf("%s became %s", name, doc)
		}
	}
}

func TestSealAndVerify(t *testing.T) {
	t.Parallel()
	key := testKey(t)
	p, err := ParsePayload([]byte(vault))
	if err != nil {
		t.Fatal(err)
	}
	text, err := Seal(rand.Reader, p, kid, key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse("\n" + text + " \r\n")
	if err != nil {
		t.Fatal(err)
	}
	if s.Header() != (Header{"ES256", kid}) {
		t.Errorf("header %+v", s.Header())
	}
	got, err := s.Verify(&key.PublicKey)
	if err != nil || !cmp.Equal(got, p) || !cmp.Equal(s.Unverified(), p) {
		t.Errorf("got %+v, %v", got, err)
	}
	// The signature excludes the prefix and is r and s, as JOSE has it.
	parts := strings.Split(text, ".")
	digest := sha256.Sum256([]byte(parts[1] + "." + parts[2]))
	sig, err := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil || len(sig) != 64 {
		t.Fatalf("signature %x, %v", sig, err)
	}
	if !ecdsa.Verify(&key.PublicKey, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the signature is not over HEADER.PAYLOAD")
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]*ecdsa.PublicKey{"another key": &other.PublicKey, "P-384": &p384.PublicKey, "no key": nil} {
		if p, err := s.Verify(k); err == nil || p.Type != "" {
			t.Errorf("%s: verified", name)
		}
	}
	if _, err := Seal(rand.Reader, p, kid, p384); err == nil {
		t.Error("sealed with a key on P-384")
	}
	if _, err := Seal(rand.Reader, Payload{Type: Vault, Provider: KBS}, kid, key); err == nil {
		t.Error("sealed a vault without a name")
	}
	if _, err := Seal(rand.Reader, p, "", key); err == nil {
		t.Error("sealed without a kid")
	}
}

func TestEveryPartIsSigned(t *testing.T) {
	t.Parallel()
	key := testKey(t)
	good := signed(t, header, vault)
	for i := len(Prefix); i < len(good); i++ {
		if good[i] == '.' {
			continue
		}
		for _, c := range []byte{'A', 'B'} {
			if good[i] == c {
				continue
			}
			changed := good[:i] + string(c) + good[i+1:]
			s, err := Parse(changed)
			if err != nil {
				continue
			}
			if _, err := s.Verify(&key.PublicKey); err == nil {
				t.Fatalf("byte %d changed, and it verifies", i)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	sig := b64(strings.Repeat("s", 64))
	for name, tt := range map[string]struct {
		text, want string
		unsigned   bool
	}{
		"plain":             {"hunter2", "expected sealed.HEADER", false},
		"legacy":            {"sealed.fakejwsheader." + b64(vault) + ".fakesignature", "coffer secret seal", true},
		"legacy, two parts": {"sealed." + b64(vault), "coffer secret seal", true},
		"alg none":          {"sealed." + b64(`{"alg":"none","kid":"k"}`) + "." + b64(vault) + ".", "header.alg: none", true},
		"no signature":      {"sealed." + b64(header) + "." + b64(vault) + ".", "no signature", true},
		"five parts":        {"sealed.a.b.c.d", "4 parts", false},
		"alg":               {"sealed." + b64(`{"alg":"HS256","kid":"k"}`) + "." + b64(vault) + "." + sig, `expected ES256, got "HS256"`, false},
		"kid":               {"sealed." + b64(`{"alg":"ES256"}`) + "." + b64(vault) + "." + sig, "header.kid: expected 1 to", false},
		"header member":     {"sealed." + b64(`{"alg":"ES256","kid":"k","crit":["b64"]}`) + "." + b64(vault) + "." + sig, "header: JSON", false},
		"header twice":      {"sealed." + b64(`{"alg":"ES256","kid":"k","kid":"l"}`) + "." + b64(vault) + "." + sig, "header: JSON", false},
		"payload":           {"sealed." + b64(header) + ".%%%." + sig, "payload: expected unpadded base64url", false},
		"padding":           {"sealed." + b64(header) + "." + b64(vault) + "=." + sig, "payload: expected unpadded base64url", false},
		"line break":        {"sealed." + b64(header) + "." + b64(vault)[:8] + "\n" + b64(vault)[8:] + "." + sig, "payload: expected unpadded base64url", false},
		"short signature":   {"sealed." + b64(header) + "." + b64(vault) + "." + b64("x"), "signature: expected 64 bytes", false},
		"too long":          {"sealed." + strings.Repeat("a", MaxBytes), "at most 262144 are read", false},
	} {
		_, err := Parse(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrUnsigned) != tt.unsigned {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestParsePayloadRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ from, old, with, want string }{
		"version":           {vault, "0.1.0", "0.2.0", `payload.version: expected 0.1.0, got "0.2.0"`},
		"no version":        {vault, `"version":"0.1.0",`, "", "payload.version: expected 0.1.0, got nothing"},
		"null version":      {vault, `"0.1.0"`, "null", "payload.version: expected 0.1.0, got nothing"},
		"type":              {vault, `"vault"`, `"safe"`, `payload.type: expected vault or envelope, got "safe"`},
		"no type":           {vault, `"type":"vault",`, "", "payload.type: expected vault or envelope, got nothing"},
		"unknown member":    {vault, `"name"`, `"x":1,"name"`, "payload: JSON x"},
		"twice":             {vault, `"name"`, `"name":"a","name"`, "payload: JSON name"},
		"case":              {vault, `"name"`, `"Name"`, "payload: JSON Name"},
		"no name":           {vault, `"name":"kbs:///one/2/trois",`, "", "payload.name: is missing"},
		"no provider":       {vault, `"provider":"kbs",`, "", "payload.provider: is missing"},
		"empty provider":    {vault, `"kbs"`, `""`, "payload.provider: is missing"},
		"no annotations":    {vault, `,"annotations":{}`, "", "payload.annotations: must be an object, {} if there are none"},
		"null annotations":  {vault, `"annotations":{}`, `"annotations":null`, "payload.annotations: must be an object"},
		"annotations":       {vault, `"annotations":{}`, `"annotations":[]`, "payload.annotations: must be an object"},
		"no settings":       {vault, `"provider_settings":{},`, "", "payload.provider_settings: must be an object"},
		"vault with a key":  {vault, `"name"`, `"key_id":"k","name"`, "payload.key_id: does not belong to a secret of type vault"},
		"envelope's name":   {envelope, `"key_id"`, `"name":"n","key_id"`, "payload.name: does not belong to a secret of type envelope"},
		"envelope without":  {envelope, `"encrypted_data":"AA==",`, "", "payload.encrypted_data: is missing"},
		"wrap type":         {envelope, "A256GCM", "A128GCM", `payload.wrap_type: expected A256GCM or A256CTR, got "A128GCM"`},
		"no wrap type":      {envelope, `"wrap_type":"A256GCM",`, "", "payload.wrap_type: is missing"},
		"deep":              {vault, `{},"ann`, strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9) + `,"ann`, "payload: JSON"},
		"something after":   {vault, `"annotations":{}}`, `"annotations":{}}{}`, "payload: JSON"},
		"not an object":     {vault, vault, `[]`, "payload: JSON"},
		"number for a name": {vault, `"kbs:///one/2/trois"`, `1`, "payload: JSON name"},
	} {
		_, err := ParsePayload([]byte(strings.Replace(tt.from, tt.old, tt.with, 1)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

const (
	vectorKey = "ZyP0OOHA5DylaL2gncRWQrPntQfETmlLAF7fviFUPo10lD4qJpv0/guJ0OSMfN0B"
	vectorGCM = "il8iWVsdY9C4M4GGrfZTJI111EImHEveLEEHLA=="
	vectorCTR = "yGpysgjmm2w0CUtO"
)

// FuzzParse must refuse everything that the one key did not sign.
func FuzzParse(f *testing.F) {
	good := signed(f, header, vault)
	f.Add(good)
	f.Add(signed(f, header, envelope))
	f.Add("sealed..." + good)
	f.Add("sealed.fakejwsheader." + b64(vault) + ".fakesignature")
	key := testKey(f)
	known := map[string]bool{}
	for _, s := range []string{good, signed(f, header, envelope)} {
		known[s[:strings.LastIndex(s, ".")]] = true
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if (s == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if err != nil {
			return
		}
		if _, err := s.Verify(&key.PublicKey); err == nil && !known["sealed."+s.signed] {
			t.Fatal("something was accepted that was not signed")
		}
	})
}

func FuzzParsePayload(f *testing.F) {
	for _, name := range []string{"vault-1.json", "vault-2.json", "envelope-1.json"} {
		f.Add(read(f, name))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := ParsePayload(in)
		if err != nil {
			return
		}
		doc, err := p.JSON()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParsePayload(doc)
		if err != nil || back.Type != p.Type || back.Name != p.Name || back.KeyID != p.KeyID || back.Provider != p.Provider {
			t.Fatalf("%+v became %+v, %v", p, back, err)
		}
		_, _ = p.DecryptData(secret.New(make([]byte, KeySize)))
		_, _ = p.UnwrapKey(secret.New(make([]byte, KeySize)))
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(read(f, "test-key.json"))
	f.Fuzz(func(t *testing.T, in []byte) {
		pub, err := ParsePublicKey(in)
		if (pub == nil) == (err == nil) {
			t.Fatal("neither a key nor an error")
		}
		if _, err := ParsePrivateKey(secret.New(in)); err == nil && pub == nil && !strings.Contains(string(in), "PRIVATE KEY") {
			t.Fatal("a private key without a public one")
		}
	})
}
