package kbs

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/secret"
)

// errDecrypt does not say which step failed: whoever altered a response
// learns nothing from it.
var errDecrypt = errors.New("kbs: response: cannot be decrypted with this handshake's key: it was encrypted to another key or altered")

// Decrypt opens a response that was encrypted to this key. Only the key's own
// algorithm and A256GCM are accepted.
func (k *TEEKey) Decrypt(r Response) (secret.Bytes, error) {
	o, err := k.parseHeader(r.Protected)
	if err != nil {
		return secret.Bytes{}, err
	}
	size := wrappedSize
	if k.rsa != nil {
		size = k.rsa.Size()
	}
	var wrapped, iv, tag []byte
	for _, m := range []struct {
		name, in string
		size     int
		out      *[]byte
	}{
		{"encrypted_key", r.EncryptedKey, size, &wrapped},
		{"iv", r.IV, ivSize, &iv},
		{"tag", r.Tag, tagSize, &tag},
	} {
		b, err := decode64(m.in)
		if err != nil || len(b) != m.size {
			return secret.Bytes{}, fmt.Errorf("kbs: response: member %q: expected unpadded base64url of %d bytes", m.name, m.size)
		}
		*m.out = b
	}
	if len(r.Ciphertext) > MaxResponseBytes {
		return secret.Bytes{}, fmt.Errorf("kbs: response: member \"ciphertext\" has %d bytes, the limit is %d", len(r.Ciphertext), MaxResponseBytes)
	}
	ciphertext, err := decode64(r.Ciphertext)
	if err != nil {
		return secret.Bytes{}, errors.New("kbs: response: member \"ciphertext\": expected unpadded base64url")
	}
	cek, err := k.unwrap(o, wrapped)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer clear(cek)
	if len(cek) != cekSize {
		return secret.Bytes{}, errDecrypt
	}
	gcm, err := newGCM(cek)
	if err != nil {
		return secret.Bytes{}, err
	}
	// The authenticated data is the header as received, not as we would
	// write it.
	sealed := append(ciphertext, tag...)
	plaintext, err := gcm.Open(sealed[:0], iv, sealed, []byte(r.Protected))
	if err != nil {
		return secret.Bytes{}, errDecrypt
	}
	return secret.New(plaintext), nil
}

// parseHeader checks what all algorithms' protected headers share.
func (k *TEEKey) parseHeader(protected string) (object, error) {
	if b64.DecodedLen(len(protected)) > maxHeaderBytes {
		return object{}, fmt.Errorf("kbs: response: protected header is longer than %d bytes", maxHeaderBytes)
	}
	raw, err := decode64(protected)
	if err != nil {
		return object{}, errors.New("kbs: response: member \"protected\": expected unpadded base64url")
	}
	o, err := parseObject("response: protected header", raw, maxHeaderBytes)
	if err != nil {
		return object{}, err
	}
	// These change how the rest is to be understood.
	for _, name := range []string{"crit", "zip", "apu", "apv", "b64"} {
		if _, ok, err := o.get(name); err != nil {
			return object{}, err
		} else if ok {
			return object{}, fmt.Errorf("kbs: %s: member %q is not supported", o.what, name)
		}
	}
	for name, want := range map[string]string{"alg": k.pub.Alg, "enc": encA256GCM} {
		got, err := o.str(name)
		if err != nil {
			return object{}, err
		}
		if got != want {
			return object{}, fmt.Errorf("kbs: %s: member %q: expected %q, got %q", o.what, name, want, clip(got, 32))
		}
	}
	return o, nil
}

// unwrap returns the content key.
func (k *TEEKey) unwrap(o object, wrapped []byte) ([]byte, error) {
	var kek []byte
	switch {
	case k.ec != nil:
		eph, err := k.ephemeral(o)
		if err != nil {
			return nil, err
		}
		if kek, err = deriveKEK(k.ec, eph); err != nil {
			return nil, errDecrypt
		}
	case k.kem != nil:
		s, err := o.str("ek")
		if err != nil {
			return nil, err
		}
		encapsulated, err := decode64(s)
		if err != nil || len(encapsulated) != mlkem.CiphertextSize768 {
			return nil, fmt.Errorf("kbs: %s: member \"ek\": expected unpadded base64url of %d bytes", o.what, mlkem.CiphertextSize768)
		}
		shared, err := k.kem.Decapsulate(encapsulated)
		if err != nil {
			return nil, errDecrypt
		}
		defer clear(shared)
		kek = mlkemKEK(shared)
	default:
		cek, err := rsa.DecryptOAEP(sha256.New(), nil, k.rsa, wrapped, nil)
		if err != nil {
			return nil, errDecrypt
		}
		return cek, nil
	}
	defer clear(kek)
	cek, err := unwrapKey(kek, wrapped)
	if err != nil {
		return nil, errDecrypt
	}
	return cek, nil
}

// ephemeral reads the other side's key of an ECDH-ES header.
func (k *TEEKey) ephemeral(o object) (*ecdh.PublicKey, error) {
	e, err := o.sub("epk")
	if err != nil {
		return nil, err
	}
	var key epk
	for name, p := range map[string]*string{"kty": &key.KTY, "crv": &key.Crv, "x": &key.X, "y": &key.Y} {
		if *p, err = e.str(name); err != nil {
			return nil, err
		}
	}
	if key.KTY != ktyEC || key.Crv != k.pub.Crv {
		return nil, fmt.Errorf("kbs: %s: expected an EC key on %s as this handshake's key is, got %q on %q", e.what, k.pub.Crv, clip(key.KTY, 32), clip(key.Crv, 32))
	}
	return ecPoint(e.what, key.Crv, key.X, key.Y)
}
