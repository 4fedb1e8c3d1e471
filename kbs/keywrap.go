package kbs

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	josecipher "github.com/go-jose/go-jose/v4/cipher"
)

// wrapper prepares the wrapping of a content key under k and completes the
// header with what the guest needs to unwrap it.
func (k TEEPubKey) wrapper(rand io.Reader, h *header) (func(cek []byte) ([]byte, error), error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	var kek []byte
	switch k.Alg {
	case AlgECDH:
		var err error
		if kek, h.EPK, err = agree(rand, k); err != nil {
			return nil, err
		}
	case AlgMLKEM:
		pub, err := k.mlkem()
		if err != nil {
			return nil, err
		}
		shared, encapsulated := pub.Encapsulate()
		defer clear(shared)
		kek, h.EK = mlkemKEK(shared), b64.EncodeToString(encapsulated)
	default: // RSA: the key is valid
		pub, err := k.rsa()
		if err != nil {
			return nil, err
		}
		return func(cek []byte) ([]byte, error) {
			if k.Alg == AlgRSA15 {
				return rsa.EncryptPKCS1v15(rand, pub, cek) //nolint:staticcheck // the guest's choice, see EncryptResponse
			}
			return rsa.EncryptOAEP(sha256.New(), rand, pub, cek, nil)
		}, nil
	}
	return func(cek []byte) ([]byte, error) {
		defer clear(kek)
		return wrapKey(kek, cek)
	}, nil
}

// wrapKey is RFC 3394 key wrap.
func wrapKey(kek, cek []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return josecipher.KeyWrap(block, cek)
}

func unwrapKey(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return josecipher.KeyUnwrap(block, wrapped)
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
	keyBits := binary.BigEndian.AppendUint32(nil, 256)
	kek := make([]byte, 32)
	if _, err := io.ReadFull(josecipher.NewConcatKDF(crypto.SHA256, z, algorithmID(AlgECDH), empty, empty, keyBits, nil), kek); err != nil {
		return nil, fmt.Errorf("kbs: response: derive key: %w", err)
	}
	return kek, nil
}

// algorithmID is an algorithm's name with its length before it.
func algorithmID(alg string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(alg))), alg...)
}

// mlkemKEK derives the AES-192 key encryption key of ML-KEM-768+A192KW out of
// the shared secret, as the protocol's guests do: KMAC256 over the algorithm's
// id and the key's length in bits (32-bit big endian), without customisation.
func mlkemKEK(shared []byte) []byte {
	const bits = 192
	return kmac256(shared, binary.BigEndian.AppendUint32(algorithmID(AlgMLKEM), bits), bits/8, "")
}
