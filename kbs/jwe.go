package kbs

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
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
	// EPK is the ephemeral key of ECDH-ES, EK the encapsulated key of ML-KEM.
	EPK *epk   `json:"epk,omitempty"`
	EK  string `json:"ek,omitempty"`
}

type epk struct {
	Crv string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// EncryptResponse encrypts plaintext to a guest's key. It reads from rand the
// ephemeral private key (EC only), the content key and the IV, in this order.
// (RSA's padding and ML-KEM use the standard library's own randomness.)
//
// A key for RSA1_5 is served, because a guest's evidence is bound to the
// algorithm with the key: only who holds the private key can have asked for
// it. The form of protocol 0.1 is not written here.
func EncryptResponse(rand io.Reader, key TEEPubKey, plaintext []byte) (*Response, error) {
	if len(plaintext) > MaxResourceBytes {
		return nil, fmt.Errorf("kbs: response: resource has %d bytes, the limit is %d", len(plaintext), MaxResourceBytes)
	}
	h := header{Alg: key.Alg, Enc: encA256GCM}
	wrap, err := key.wrapper(rand, &h)
	if err != nil {
		return nil, err
	}
	random := make([]byte, cekSize+ivSize)
	defer clear(random)
	if _, err := io.ReadFull(rand, random); err != nil {
		return nil, fmt.Errorf("kbs: response: read randomness: %w", err)
	}
	cek, iv := random[:cekSize], random[cekSize:]
	wrapped, err := wrap(cek)
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

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
