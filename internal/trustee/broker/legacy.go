package broker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/coffer-project/coffer/kbs"
)

// isLegacy reports whether a protocol version is of before 0.2.0, whose
// responses are no RFC 7516 JWE.
func isLegacy(v kbs.Version) bool { return v == kbs.V010 || v == kbs.V011 }

// encryptLegacy makes a response as protocol 0.1 had it: RSA PKCS #1 v1.5
// around an AES-256-GCM key, `protected` as plain JSON text that is not
// authenticated, and the tag at the end of the ciphertext.
func encryptLegacy(random io.Reader, key kbs.TEEPubKey, plaintext []byte) (*kbs.Response, error) {
	if key.Alg != kbs.AlgRSA15 {
		return nil, fmt.Errorf("legacy response: expected a key for %s, got %s", kbs.AlgRSA15, key.Alg)
	}
	n, err1 := base64.RawURLEncoding.DecodeString(key.N)
	e, err2 := base64.RawURLEncoding.DecodeString(key.E)
	exponent := new(big.Int).SetBytes(e)
	if err := errors.Join(err1, err2); err != nil || exponent.BitLen() > 31 {
		return nil, errors.New("legacy response: the RSA key's n or e is malformed")
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}
	random32 := make([]byte, 32+12)
	if _, err := io.ReadFull(random, random32); err != nil {
		return nil, fmt.Errorf("legacy response: %w", err)
	}
	cek, iv := random32[:32], random32[32:]
	defer clear(cek)
	wrapped, err := rsa.EncryptPKCS1v15(random, pub, cek) //nolint:staticcheck // what the protocol's first version prescribes
	if err != nil {
		return nil, fmt.Errorf("legacy response: %w", err)
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, fmt.Errorf("legacy response: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("legacy response: %w", err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return &kbs.Response{
		Protected:    `{"alg":"RSA1_5","enc":"A256GCM"}`,
		EncryptedKey: b64(wrapped), IV: b64(iv), Ciphertext: b64(aead.Seal(nil, iv, plaintext, nil)),
	}, nil
}
