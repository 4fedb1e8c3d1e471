package kbs

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// rsaKey is made once: it is slow.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func testRSA() TEEPubKey { return testRSAKey(AlgOAEP) }

func testRSAKey(alg string) TEEPubKey {
	return TEEPubKey{KTY: "RSA", Alg: alg, N: b64.EncodeToString(rsaKey().N.Bytes()), E: "AQAB"}
}

func TestParseTEEPubKeyRefuses(t *testing.T) {
	t.Parallel()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	n := testRSA().N
	ec := func(old, new string) string { return strings.Replace(keyEC, old, new, 1) }
	for name, tc := range map[string]struct{ doc, want string }{
		"kty":          {ec(`"EC"`, `"OKP"`), `unsupported key type "OKP"`},
		"akp alg":      {`{"kty":"AKP","alg":"ML-KEM-768","pub":"AA"}`, `expected ML-KEM-768+A192KW`},
		"akp short":    {`{"kty":"AKP","alg":"ML-KEM-768+A192KW","pub":"AA"}`, `exactly 1184 bytes`},
		"akp range":    {`{"kty":"AKP","alg":"ML-KEM-768+A192KW","pub":"` + strings.Repeat("_", 1536) + `ACAAIAAgACAAIAAgACAAIAAgACAAIAAgACAAIAAgACA"}`, "is no ML-KEM-768 encapsulation key"},
		"akp none":     {`{"kty":"AKP","alg":"ML-KEM-768+A192KW"}`, `"pub" is missing`},
		"P-521 short":  {ec(`P-256`, `P-521`), `exactly 66 bytes`},
		"rsa 2047":     {`{"kty":"RSA","alg":"RSA1_5","n":"` + b64.EncodeToString(append([]byte{0x7f}, rsaKey().N.Bytes()[1:]...)) + `","e":"AQAB"}`, "got 2047 bits"},
		"no alg":       {ec(`"alg":"ECDH-ES+A256KW",`, ``), `"alg" is missing`},
		"alg":          {ec(`ECDH-ES+A256KW`, `ECDH-ES`), `got "ECDH-ES"`},
		"crv":          {ec(`P-256`, `P-384`), `unsupported curve "P-384"`},
		"padded":       {ec(vectorX, vectorX+"="), `member "x": expected unpadded base64url of exactly 32 bytes`},
		"short":        {ec(vectorY, vectorY[:42]), `member "y"`},
		"standard":     {ec(vectorX, strings.ReplaceAll(vectorX, "-", "+")), `member "x"`},
		"other bits":   {ec(vectorX, vectorX[:42]+"1"), `member "x"`},
		"not on curve": {ec(vectorX, vectorY), "not a point"},
		"infinity":     {ec(vectorX, strings.Repeat("A", 43)), "not a point"},
		"duplicate":    {ec(`"kty":"EC"`, `"kty":"EC","kty":"RSA"`), "occurs twice"},
		"private":      {`{"kty":"RSA","alg":"RSA-OAEP-256","e":"AQAB"}`, `"n" is missing`},
		"rsa alg":      {`{"kty":"RSA","alg":"RSA-OAEP","n":"` + n + `","e":"AQAB"}`, `got "RSA-OAEP"`},
		"rsa small":    {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + b64.EncodeToString(small.N.Bytes()) + `","e":"AQAB"}`, "got 1024 bits"},
		"rsa huge":     {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + strings.Repeat("A", 4096) + `","e":"AQAB"}`, "longer than 8192 bits"},
		"rsa even":     {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + b64.EncodeToString(append(rsaKey().N.Bytes(), 0)) + `","e":"AQAB"}`, "odd modulus"},
		"rsa e one":    {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + n + `","e":"AQ"}`, "odd exponent"},
		"rsa e huge":   {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + n + `","e":"_____w"}`, "odd exponent"},
		"rsa e even":   {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + n + `","e":"AQAA"}`, "odd exponent"},
		"rsa n":        {`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + n + `=","e":"AQAB"}`, "expected unpadded base64url"},
		"size":         {ec(`{`, `{"x5c":"`+strings.Repeat("A", 20000)+`",`), "the limit is 16384"},
	} {
		got, err := ParseTEEPubKey([]byte(tc.doc))
		if err == nil || got != (TEEPubKey{}) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
		var k TEEPubKey
		if err := json.Unmarshal([]byte(tc.doc), &k); err == nil {
			t.Errorf("%s: Unmarshal gave no error", name)
		}
	}
	for _, mix := range []func(k *TEEPubKey){
		func(k *TEEPubKey) { k.N = n }, func(k *TEEPubKey) { k.Pub = "AA" },
		func(k *TEEPubKey) { *k = testRSA(); k.X = vectorX }, func(k *TEEPubKey) { *k = testRSA(); k.Pub = "AA" },
		func(k *TEEPubKey) { *k = testKey(t, KeyMLKEM).Public(); k.Crv = CurveP256 },
	} {
		mixed := vectorKey
		if mix(&mixed); mixed.Validate() == nil {
			t.Errorf("a key with another's members is valid: %+v", mixed)
		}
	}
}

func TestTEEKeyPrintsNoSecret(t *testing.T) {
	t.Parallel()
	k := vectorTEEKey(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		s := fmt.Sprintf(verb, k)
		if !strings.Contains(s, "TEE key P-256") || strings.Contains(s, vectorTEEKeyD[:8]) {
			t.Errorf("%s prints %s", verb, s)
		}
	}
	if out, err := json.Marshal(map[string]any{"key": k}); err != nil || string(out) != `{"key":{}}` {
		t.Errorf("JSON %s, %v", out, err)
	}
}

func FuzzParseTEEPubKey(f *testing.F) {
	f.Add([]byte(keyEC))
	f.Add([]byte(keyEC2))
	f.Add([]byte(`{"kty":"RSA","alg":"RSA-OAEP-256","n":"` + testRSA().N + `","e":"AQAB"}`))
	akp, err := json.Marshal(testKey(f, KeyMLKEM).Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(akp)
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseTEEPubKey(data)
		if err != nil {
			return
		}
		out, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseTEEPubKey(out); err != nil || back != k {
			t.Fatalf("got %v, %v; want %v", back, err, k)
		}
	})
}
