package kbs

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// KeyType is a kind of TEE key, by the name that configurations of guests in
// the ecosystem use.
type KeyType string

// The kinds that a guest can make. RSA with PKCS #1 v1.5 is none of them.
const (
	KeyP256  KeyType = "ECDH-ES+A256KW-P256"
	KeyP521  KeyType = "ECDH-ES+A256KW-P521"
	KeyRSA   KeyType = "RSA-OAEP-256"
	KeyMLKEM KeyType = "ML-KEM-768+A192KW"
)

// rsaBits is the size of the RSA keys that guests make.
const rsaBits = 3072

// TEEKey is the private key of a handshake. It never leaves the guest, and
// prints as nothing but its public half. It is safe for concurrent use.
type TEEKey struct {
	pub TEEPubKey
	// One of these is set, after pub.Alg.
	ec  *ecdh.PrivateKey
	rsa *rsa.PrivateKey
	kem *mlkem.DecapsulationKey768
}

// GenerateTEEKey makes a P-256 key out of bytes read from rand.
func GenerateTEEKey(rand io.Reader) (*TEEKey, error) { return GenerateTEEKeyOf(rand, KeyP256) }

// GenerateTEEKeyOf makes a key of a kind out of bytes read from rand. (RSA
// keys come out of the standard library's own randomness.)
func GenerateTEEKeyOf(rand io.Reader, kind KeyType) (*TEEKey, error) {
	k, err := generateTEEKey(rand, kind)
	if err != nil {
		return nil, fmt.Errorf("kbs: TEE key: %w", err)
	}
	return k, nil
}

func generateTEEKey(rand io.Reader, kind KeyType) (*TEEKey, error) {
	switch kind {
	case KeyP256, KeyP521:
		crv := CurveP256
		if kind == KeyP521 {
			crv = CurveP521
		}
		priv, err := generate(rand, crv)
		if err != nil {
			return nil, err
		}
		return NewTEEKey(priv)
	case KeyRSA:
		priv, err := rsa.GenerateKey(rand, rsaBits)
		if err != nil {
			return nil, err
		}
		e := big.NewInt(int64(priv.E)).Bytes()
		return &TEEKey{rsa: priv, pub: TEEPubKey{
			KTY: ktyRSA, Alg: AlgOAEP, N: b64.EncodeToString(priv.N.Bytes()), E: b64.EncodeToString(e),
		}}, nil
	case KeyMLKEM:
		seed := make([]byte, mlkem.SeedSize)
		defer clear(seed)
		if _, err := io.ReadFull(rand, seed); err != nil {
			return nil, fmt.Errorf("read randomness: %w", err)
		}
		priv, err := mlkem.NewDecapsulationKey768(seed)
		if err != nil {
			return nil, err
		}
		return &TEEKey{kem: priv, pub: TEEPubKey{
			KTY: ktyAKP, Alg: AlgMLKEM, Pub: b64.EncodeToString(priv.EncapsulationKey().Bytes()),
		}}, nil
	}
	return nil, fmt.Errorf("unknown kind %q: expected %s, %s, %s or %s", clip(string(kind), 32), KeyP256, KeyP521, KeyRSA, KeyMLKEM)
}

// check tells whether there is such a kind.
func (k KeyType) check() error {
	switch k {
	case KeyP256, KeyP521, KeyRSA, KeyMLKEM:
		return nil
	}
	_, err := generateTEEKey(nil, k)
	return err
}

// NewTEEKey uses an existing key on P-256 or P-521.
func NewTEEKey(priv *ecdh.PrivateKey) (*TEEKey, error) {
	k := &TEEKey{ec: priv}
	k.pub.KTY, k.pub.Alg = ktyEC, AlgECDH
	switch priv.Curve() {
	case ecdh.P256():
		k.pub.Crv = CurveP256
	case ecdh.P521():
		k.pub.Crv = CurveP521
	default:
		return nil, errors.New("kbs: TEE key: expected a key on P-256 or P-521")
	}
	k.pub.X, k.pub.Y = encodePoint(priv.PublicKey())
	return k, nil
}

// Public returns the public half.
func (k *TEEKey) Public() TEEPubKey { return k.pub }

// Format prints the public half whatever the verb.
func (k *TEEKey) Format(f fmt.State, _ rune) {
	kind := k.pub.Alg
	if k.pub.Crv != "" {
		kind = k.pub.Crv
	}
	_, _ = fmt.Fprintf(f, "TEE key %s %s", kind, clip(k.pub.X+k.pub.N+k.pub.Pub, 64))
}

// encodePoint writes an uncompressed point as a JWK's x and y.
func encodePoint(pub *ecdh.PublicKey) (x, y string) {
	p := pub.Bytes()[1:]
	return b64.EncodeToString(p[:len(p)/2]), b64.EncodeToString(p[len(p)/2:])
}

// generate draws a private key by rejection from the bytes of rand. The
// standard library's generator ignores its reader.
func generate(rand io.Reader, crv string) (*ecdh.PrivateKey, error) {
	c, size, err := curve(crv)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	defer clear(buf)
	// One draw in 2^32 or fewer is out of range on either curve.
	for range 8 {
		if _, err := io.ReadFull(rand, buf); err != nil {
			return nil, fmt.Errorf("read randomness: %w", err)
		}
		if crv == CurveP521 {
			buf[0] &= 1
		}
		if priv, err := c.NewPrivateKey(buf); err == nil {
			return priv, nil
		}
	}
	return nil, errors.New("randomness gives no valid private key: the source is broken")
}
