package broker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"testing"

	"github.com/coffer-project/coffer/kbs"
)

// TestLegacyTakesEveryValidKey: a key that was good at /attest is good for a
// response, exponents with leading zeros among them.
func TestLegacyTakesEveryValidKey(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding
	for _, e := range [][]byte{{1, 0, 1}, {0, 1, 0, 1}, {0, 0, 0, 1, 0, 1}} {
		pub := kbs.TEEPubKey{KTY: "RSA", Alg: kbs.AlgRSA15, N: b64.EncodeToString(key.N.Bytes()), E: b64.EncodeToString(e)}
		if err := pub.Validate(); err != nil {
			t.Fatal(err)
		}
		r, err := encryptLegacy(rand.Reader, pub, []byte("secret"))
		if err != nil {
			t.Errorf("%x: %v", e, err)
			continue
		}
		wrapped, _ := b64.DecodeString(r.EncryptedKey)
		cek, err := rsa.DecryptPKCS1v15(nil, key, wrapped) //nolint:staticcheck // the protocol's first version
		if err != nil {
			t.Fatal(err)
		}
		block, err := aes.NewCipher(cek)
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		iv, _ := b64.DecodeString(r.IV)
		sealed, _ := b64.DecodeString(r.Ciphertext)
		if plain, err := aead.Open(nil, iv, sealed, nil); err != nil || string(plain) != "secret" {
			t.Errorf("%x: %q, %v", e, plain, err)
		}
	}
	for _, pub := range []kbs.TEEPubKey{{KTY: "RSA", Alg: kbs.AlgOAEP}, {KTY: "RSA", Alg: kbs.AlgRSA15, N: "AQ", E: "/"}, {KTY: "RSA", Alg: kbs.AlgRSA15, N: "AQ", E: "gAAAAA"}} {
		if _, err := encryptLegacy(rand.Reader, pub, nil); err == nil {
			t.Errorf("%+v: want an error", pub)
		}
	}
}
