package kbs

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// b64 is the base64 of JOSE: URL alphabet, no padding. Decode with [decode64].
var b64 = base64.RawURLEncoding.Strict()

// decode64 accepts one spelling per value: unlike the standard library's
// strict decoder it does not skip line breaks.
func decode64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return b64.DecodeString(s)
}

// Key types, curves and algorithms of a TEE key.
const (
	ktyEC  = "EC"
	ktyRSA = "RSA"
	ktyAKP = "AKP"

	// CurveP256 and CurveP521 are the curves of an EC TEE key.
	CurveP256 = "P-256"
	CurveP521 = "P-521"

	// AlgECDH, AlgOAEP and AlgMLKEM wrap a response's key; AlgRSA15 is what
	// protocol 0.1 used and nothing newer should.
	AlgECDH  = "ECDH-ES+A256KW"
	AlgOAEP  = "RSA-OAEP-256"
	AlgMLKEM = "ML-KEM-768+A192KW"
	AlgRSA15 = "RSA1_5"
)

// TEEPubKey is the public key that a guest makes for a handshake and that its
// evidence is bound to. Members hold what the wire holds (unpadded base64url
// for X, Y, N, E and Pub), because the digest is over these strings. It is
// comparable: two equal values are the same key. The zero value is not valid.
type TEEPubKey struct {
	KTY string `json:"kty"`
	Crv string `json:"crv,omitempty"`
	Alg string `json:"alg"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
	Pub string `json:"pub,omitempty"`
}

// ParseTEEPubKey decodes and validates a key. Members that do not belong to
// the key type are dropped, as the protocol requires before hashing.
func ParseTEEPubKey(data []byte) (TEEPubKey, error) {
	const what = "tee-pubkey"
	o, err := parseObject(what, data, 16<<10)
	if err != nil {
		return TEEPubKey{}, err
	}
	var k TEEPubKey
	if k.KTY, err = o.str("kty"); err != nil {
		return TEEPubKey{}, err
	}
	if k.Alg, err = o.str("alg"); err != nil {
		return TEEPubKey{}, err
	}
	var members map[string]*string
	switch k.KTY {
	case ktyEC:
		members = map[string]*string{"crv": &k.Crv, "x": &k.X, "y": &k.Y}
	case ktyRSA:
		members = map[string]*string{"n": &k.N, "e": &k.E}
	case ktyAKP:
		members = map[string]*string{"pub": &k.Pub}
	default:
		return TEEPubKey{}, unsupportedType(k.KTY)
	}
	for name, p := range members {
		if *p, err = o.str(name); err != nil {
			return TEEPubKey{}, err
		}
	}
	if err := k.Validate(); err != nil {
		return TEEPubKey{}, err
	}
	return k, nil
}

// UnmarshalJSON is [ParseTEEPubKey].
func (k *TEEPubKey) UnmarshalJSON(data []byte) error {
	v, err := ParseTEEPubKey(data)
	if err != nil {
		return err
	}
	*k = v
	return nil
}

var _ json.Unmarshaler = (*TEEPubKey)(nil)

func unsupportedType(kty string) error {
	return fmt.Errorf("kbs: tee-pubkey: unsupported key type %q: expected EC, RSA or AKP", clip(kty, 32))
}

// Validate checks that k is a usable key: an EC point on P-256 or P-521 with
// coordinates of full length, an RSA key of 2048 to 8192 bits, or an ML-KEM-768
// encapsulation key.
func (k TEEPubKey) Validate() error {
	foreign := func(members string) error {
		return fmt.Errorf("kbs: tee-pubkey: a key of type %s has no members %s", k.KTY, members)
	}
	var err error
	switch k.KTY {
	case ktyEC:
		if k.N != "" || k.E != "" || k.Pub != "" {
			return foreign("n, e and pub")
		}
		_, err = k.ecdh()
	case ktyRSA:
		if k.Crv != "" || k.X != "" || k.Y != "" || k.Pub != "" {
			return foreign("crv, x, y and pub")
		}
		_, err = k.rsa()
	case ktyAKP:
		if k.Crv != "" || k.X != "" || k.Y != "" || k.N != "" || k.E != "" {
			return foreign("crv, x, y, n and e")
		}
		_, err = k.mlkem()
	default:
		return unsupportedType(k.KTY)
	}
	return err
}

// curve returns a curve and the length of a coordinate in bytes.
func curve(name string) (ecdh.Curve, int, error) {
	switch name {
	case CurveP256:
		return ecdh.P256(), 32, nil
	case CurveP521:
		return ecdh.P521(), 66, nil
	}
	return nil, 0, fmt.Errorf("kbs: unsupported curve %q: expected P-256 or P-521", clip(name, 32))
}

func (k TEEPubKey) ecdh() (*ecdh.PublicKey, error) {
	if k.Alg != AlgECDH {
		return nil, fmt.Errorf("kbs: tee-pubkey: member \"alg\": expected %s for an EC key, got %q", AlgECDH, clip(k.Alg, 32))
	}
	return ecPoint("tee-pubkey", k.Crv, k.X, k.Y)
}

// ecPoint decodes a point in the form of a JWK and checks that it is on the
// curve.
func ecPoint(what, crv, x, y string) (*ecdh.PublicKey, error) {
	c, size, err := curve(crv)
	if err != nil {
		return nil, fmt.Errorf("kbs: %s: %w", what, err)
	}
	point := []byte{4}
	for name, s := range coordinates(x, y) {
		b, err := decode64(s)
		if err != nil || len(b) != size {
			return nil, fmt.Errorf("kbs: %s: member %q: expected unpadded base64url of exactly %d bytes", what, name, size)
		}
		point = append(point, b...)
	}
	pub, err := c.NewPublicKey(point)
	if err != nil {
		return nil, fmt.Errorf("kbs: %s: not a point on %s", what, crv)
	}
	return pub, nil
}

// coordinates yields both in order.
func coordinates(x, y string) func(yield func(string, string) bool) {
	return func(yield func(string, string) bool) {
		_ = yield("x", x) && yield("y", y)
	}
}

func (k TEEPubKey) rsa() (*rsa.PublicKey, error) {
	if k.Alg != AlgOAEP && k.Alg != AlgRSA15 {
		return nil, fmt.Errorf("kbs: tee-pubkey: member \"alg\": expected %s for an RSA key, got %q", AlgOAEP, clip(k.Alg, 32))
	}
	if len(k.N) > 2048 || len(k.E) > 8 {
		return nil, errors.New("kbs: tee-pubkey: RSA key is longer than 8192 bits or its exponent than 4 bytes")
	}
	n, err := decode64(k.N)
	if err != nil {
		return nil, errors.New("kbs: tee-pubkey: member \"n\": expected unpadded base64url")
	}
	e, err := decode64(k.E)
	if err != nil {
		return nil, errors.New("kbs: tee-pubkey: member \"e\": expected unpadded base64url")
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
	if bits := pub.N.BitLen(); bits < 2048 || bits > 8192 || pub.N.Bit(0) == 0 {
		return nil, fmt.Errorf("kbs: tee-pubkey: member \"n\": expected an odd modulus of 2048 to 8192 bits, got %d bits", bits)
	}
	exp := new(big.Int).SetBytes(e)
	if !exp.IsInt64() || exp.Int64() < 3 || exp.Int64() > 1<<31-1 || exp.Bit(0) == 0 {
		return nil, errors.New("kbs: tee-pubkey: member \"e\": expected an odd exponent of 3 to 2^31-1")
	}
	pub.E = int(exp.Int64())
	return pub, nil
}

func (k TEEPubKey) mlkem() (*mlkem.EncapsulationKey768, error) {
	if k.Alg != AlgMLKEM {
		return nil, fmt.Errorf("kbs: tee-pubkey: member \"alg\": expected %s for an AKP key, got %q", AlgMLKEM, clip(k.Alg, 32))
	}
	raw, err := decode64(k.Pub)
	if err != nil || len(raw) != mlkem.EncapsulationKeySize768 {
		return nil, fmt.Errorf("kbs: tee-pubkey: member \"pub\": expected unpadded base64url of exactly %d bytes", mlkem.EncapsulationKeySize768)
	}
	// This checks that the coefficients are reduced (FIPS 203 section 7.2).
	key, err := mlkem.NewEncapsulationKey768(raw)
	if err != nil {
		return nil, errors.New("kbs: tee-pubkey: member \"pub\": is no ML-KEM-768 encapsulation key")
	}
	return key, nil
}
