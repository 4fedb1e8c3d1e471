package kbs

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	josecipher "github.com/go-jose/go-jose/v4/cipher"

	"github.com/coffer-project/coffer/secret"
)

// encA256GCM is the content encryption of every response, and the sizes that
// follow from it, in bytes.
const (
	encA256GCM = "A256GCM"
	cekSize    = 32
	ivSize     = 12
	tagSize    = 16
	// wrappedSize is a CEK under RFC 3394 key wrap.
	wrappedSize = cekSize + 8
	// maxHeaderBytes bounds the decoded protected header.
	maxHeaderBytes = 4 << 10
)

// Response is an encrypted resource: a JWE (RFC 7516) in flattened JSON
// serialisation. All members are unpadded base64url.
type Response struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// ParseResponse decodes an encrypted resource. Additional authenticated data
// and unprotected headers, which no server of the protocol writes, are
// refused.
func ParseResponse(data []byte) (*Response, error) {
	o, err := parseObject("response", data, MaxResponseBytes)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"aad", "header", "unprotected", "recipients"} {
		if raw, ok, err := o.get(name); err != nil {
			return nil, err
		} else if ok && kind(raw) != "null" {
			return nil, fmt.Errorf("kbs: response: member %q is not supported", name)
		}
	}
	r := &Response{}
	for _, m := range []struct {
		name string
		to   *string
	}{{"protected", &r.Protected}, {"encrypted_key", &r.EncryptedKey}, {"iv", &r.IV}, {"ciphertext", &r.Ciphertext}, {"tag", &r.Tag}} {
		if *m.to, err = o.str(m.name); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// header is the protected header. The order of the members is part of the
// protocol: stock guests parse the header and write it again to compute the
// authenticated data, so a server must emit these very bytes.
type header struct {
	Alg string `json:"alg"`
	Enc string `json:"enc"`
	EPK *epk   `json:"epk,omitempty"`
}

type epk struct {
	Crv string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// EncryptResponse encrypts plaintext to a guest's key. It reads from rand the
// ephemeral private key (EC only), the content key and the IV, in this order.
// (With RSA the padding uses the standard library's own randomness.) A key
// for RSA1_5 is refused: PKCS #1 v1.5 decryption leaks, and only guests of
// protocol 0.1 knew nothing better.
func EncryptResponse(rand io.Reader, key TEEPubKey, plaintext []byte) (*Response, error) {
	if len(plaintext) > MaxResourceBytes {
		return nil, fmt.Errorf("kbs: response: resource has %d bytes, the limit is %d", len(plaintext), MaxResourceBytes)
	}
	var (
		h   = header{Alg: key.Alg, Enc: encA256GCM}
		kek []byte
		pub *rsa.PublicKey
		err error
	)
	switch {
	case key.KTY == ktyEC:
		if kek, h.EPK, err = agree(rand, key); err != nil {
			return nil, err
		}
		defer clear(kek)
	case key.KTY == ktyRSA && key.Alg == AlgOAEP:
		if pub, err = key.rsa(); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("kbs: response: cannot encrypt to a %q key with algorithm %q: expected %s or %s", clip(key.KTY, 32), clip(key.Alg, 32), AlgECDH, AlgOAEP)
	}
	random := make([]byte, cekSize+ivSize)
	defer clear(random)
	if _, err := io.ReadFull(rand, random); err != nil {
		return nil, fmt.Errorf("kbs: response: read randomness: %w", err)
	}
	cek, iv := random[:cekSize], random[cekSize:]
	var wrapped []byte
	if pub != nil {
		wrapped, err = rsa.EncryptOAEP(sha256.New(), rand, pub, cek, nil)
	} else {
		wrapped, err = wrapKey(kek, cek)
	}
	if err != nil {
		return nil, fmt.Errorf("kbs: response: wrap content key: %w", err)
	}
	head, err := marshal(h)
	if err != nil {
		return nil, fmt.Errorf("kbs: response: %w", err)
	}
	protected := b64.EncodeToString(head)
	gcm, err := newGCM(cek)
	if err != nil {
		return nil, err
	}
	sealed := gcm.Seal(nil, iv, plaintext, []byte(protected))
	return &Response{
		Protected:    protected,
		EncryptedKey: b64.EncodeToString(wrapped),
		IV:           b64.EncodeToString(iv),
		Ciphertext:   b64.EncodeToString(sealed[:len(plaintext)]),
		Tag:          b64.EncodeToString(sealed[len(plaintext):]),
	}, nil
}

// agree makes an ephemeral key and derives the key encryption key from it.
func agree(rand io.Reader, key TEEPubKey) ([]byte, *epk, error) {
	pub, err := key.ecdh()
	if err != nil {
		return nil, nil, err
	}
	eph, err := generate(rand, key.Crv)
	if err != nil {
		return nil, nil, fmt.Errorf("kbs: response: ephemeral key: %w", err)
	}
	kek, err := deriveKEK(eph, pub)
	if err != nil {
		return nil, nil, err
	}
	e := &epk{Crv: key.Crv, KTY: ktyEC}
	e.X, e.Y = encodePoint(eph.PublicKey())
	return kek, e, nil
}

// deriveKEK is ECDH followed by the Concat KDF of RFC 7518 section 4.6.2 with
// empty party information, for ECDH-ES+A256KW.
func deriveKEK(priv *ecdh.PrivateKey, pub *ecdh.PublicKey) ([]byte, error) {
	z, err := priv.ECDH(pub)
	if err != nil {
		return nil, fmt.Errorf("kbs: response: key agreement: %w", err)
	}
	defer clear(z)
	empty := make([]byte, 4)
	algID := append(binary.BigEndian.AppendUint32(nil, uint32(len(AlgECDH))), AlgECDH...)
	keyBits := binary.BigEndian.AppendUint32(nil, 256)
	kek := make([]byte, 32)
	if _, err := io.ReadFull(josecipher.NewConcatKDF(crypto.SHA256, z, algID, empty, empty, keyBits, nil), kek); err != nil {
		return nil, fmt.Errorf("kbs: response: derive key: %w", err)
	}
	return kek, nil
}

func wrapKey(kek, cek []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return josecipher.KeyWrap(block, cek)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// errDecrypt does not say which step failed: whoever altered a response
// learns nothing from it.
var errDecrypt = errors.New("kbs: response: cannot be decrypted with this handshake's key: it was encrypted to another key or altered")

// Decrypt opens a response that was encrypted to this key. Only
// ECDH-ES+A256KW with A256GCM is accepted.
func (k *TEEKey) Decrypt(r Response) (secret.Bytes, error) {
	eph, err := k.parseHeader(r.Protected)
	if err != nil {
		return secret.Bytes{}, err
	}
	var wrapped, iv, tag []byte
	for _, m := range []struct {
		name, in string
		size     int
		out      *[]byte
	}{
		{"encrypted_key", r.EncryptedKey, wrappedSize, &wrapped},
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
	kek, err := deriveKEK(k.priv, eph)
	if err != nil {
		return secret.Bytes{}, errDecrypt
	}
	defer clear(kek)
	block, err := aes.NewCipher(kek)
	if err != nil {
		return secret.Bytes{}, err
	}
	cek, err := josecipher.KeyUnwrap(block, wrapped)
	if err != nil {
		return secret.Bytes{}, errDecrypt
	}
	defer clear(cek)
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

// parseHeader checks the protected header and returns the ephemeral key.
func (k *TEEKey) parseHeader(protected string) (*ecdh.PublicKey, error) {
	if b64.DecodedLen(len(protected)) > maxHeaderBytes {
		return nil, fmt.Errorf("kbs: response: protected header is longer than %d bytes", maxHeaderBytes)
	}
	raw, err := decode64(protected)
	if err != nil {
		return nil, errors.New("kbs: response: member \"protected\": expected unpadded base64url")
	}
	o, err := parseObject("response: protected header", raw, maxHeaderBytes)
	if err != nil {
		return nil, err
	}
	// These change how the rest is to be understood.
	for _, name := range []string{"crit", "zip", "apu", "apv", "b64"} {
		if _, ok, err := o.get(name); err != nil {
			return nil, err
		} else if ok {
			return nil, fmt.Errorf("kbs: %s: member %q is not supported", o.what, name)
		}
	}
	for name, want := range map[string]string{"alg": AlgECDH, "enc": encA256GCM} {
		got, err := o.str(name)
		if err != nil {
			return nil, err
		}
		if got != want {
			return nil, fmt.Errorf("kbs: %s: member %q: expected %q, got %q", o.what, name, want, clip(got, 32))
		}
	}
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
