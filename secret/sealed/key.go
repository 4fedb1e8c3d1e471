package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// maxKey bounds a key document.
const maxKey = 16 << 10

// coordinate is the size of a coordinate on P-256, and of a private key.
const coordinate = 32

// jwk reads members of a JWK. Members that do not matter here may be there
// (RFC 7517 §4), but none twice.
type jwk map[string]json.RawMessage

func parseJWK(data []byte) (jwk, error) {
	var k jwk
	if err := strictjson.Decode(data, &k, strictjson.Limits{Bytes: maxKey, Depth: 8}); err != nil {
		// The error could quote names of what is no JWK at all.
		return nil, errors.New("not a JWK: expected a JSON object, no member twice")
	}
	return k, nil
}

// str reads a string, "" where it is none.
func (k jwk) str(name string) string {
	var s string
	if json.Unmarshal(k[name], &s) != nil {
		return ""
	}
	return s
}

// number reads a coordinate.
func (k jwk) number(name string) ([]byte, error) {
	b, err := decode64(k.str(name))
	if err != nil || len(b) != coordinate {
		return nil, fmt.Errorf("JWK: member %q: expected %d bytes of unpadded base64url", name, coordinate)
	}
	return b, nil
}

// public checks the type and reads the point, which must be on the curve.
func (k jwk) public() (*ecdsa.PublicKey, error) {
	if kty, crv := k.str("kty"), k.str("crv"); kty != "EC" || crv != "P-256" {
		return nil, fmt.Errorf("JWK: expected type EC on P-256, got %.16q on %.16q", kty, crv)
	}
	if _, ok := k["alg"]; ok && k.str("alg") != algES256 {
		return nil, fmt.Errorf("JWK: member \"alg\": expected %s, got %.16q", algES256, k.str("alg"))
	}
	if _, ok := k["use"]; ok && k.str("use") != "sig" {
		return nil, fmt.Errorf("JWK: member \"use\": expected sig, got %.16q", k.str("use"))
	}
	x, err := k.number("x")
	if err != nil {
		return nil, err
	}
	y, err := k.number("y")
	if err != nil {
		return nil, err
	}
	// Uncompressed point (SEC 1 §2.3.3).
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, errors.New("JWK: x and y are no point on P-256")
	}
	return pub, nil
}

// ParsePublicKey reads a verification key: a JWK of type EC on P-256. The
// private half may be there, too, and is ignored. Errors show nothing of the
// document.
func ParsePublicKey(data []byte) (*ecdsa.PublicKey, error) {
	k, err := parseJWK(data)
	if err != nil {
		return nil, err
	}
	return k.public()
}

// ParsePrivateKey reads a signing key: a JWK of type EC on P-256 with its
// private half, or the same in PEM (PKCS #8 or SEC 1). Errors show nothing of
// it.
func ParsePrivateKey(data secret.Bytes) (*ecdsa.PrivateKey, error) {
	if data.Len() > maxKey {
		return nil, fmt.Errorf("signing key: %d bytes, at most %d are read", data.Len(), maxKey)
	}
	if block, _ := pem.Decode(data.Expose()); block != nil {
		defer clear(block.Bytes)
		return parsePEM(block)
	}
	k, err := parseJWK(data.Expose())
	if err != nil {
		return nil, errors.New("signing key: expected a JWK or PEM")
	}
	pub, err := k.public()
	if err != nil {
		return nil, err
	}
	if _, ok := k["d"]; !ok {
		return nil, errors.New("JWK: holds a public key only: the private one is needed to sign")
	}
	d, err := k.number("d")
	if err != nil {
		return nil, err
	}
	defer clear(d)
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil || !key.PublicKey.Equal(pub) {
		return nil, errors.New("JWK: the private key does not belong to the public one")
	}
	return key, nil
}

func parsePEM(block *pem.Block) (*ecdsa.PrivateKey, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("signing key: expected PEM of PRIVATE KEY or EC PRIVATE KEY, got %.32q", block.Type)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("signing key: expected a key on P-256 (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256)")
	}
	return k, nil
}

// PublicJWK writes the verification key. kid is the resource URI it will be
// found under; guests of other implementations compare it with the secret's.
func PublicJWK(key *ecdsa.PublicKey, kid string) ([]byte, error) {
	point, err := key.Bytes()
	if err != nil || key.Curve != elliptic.P256() {
		return nil, errors.New("verification key: expected one on P-256")
	}
	return writeJWK(point, nil, kid)
}

// PrivateJWK writes the signing key.
func PrivateJWK(key *ecdsa.PrivateKey, kid string) (secret.Bytes, error) {
	point, err := key.PublicKey.Bytes()
	if err != nil || key.Curve != elliptic.P256() {
		return secret.Bytes{}, errors.New("signing key: expected one on P-256")
	}
	d, err := key.Bytes()
	if err != nil {
		return secret.Bytes{}, errors.New("signing key: has no private half")
	}
	defer clear(d)
	doc, err := writeJWK(point, d, kid)
	return secret.New(doc), err
}

func writeJWK(point, d []byte, kid string) ([]byte, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	doc := struct {
		Kty string `json:"kty"`
		Crv string `json:"crv"`
		Alg string `json:"alg"`
		Use string `json:"use"`
		Kid string `json:"kid"`
		X   string `json:"x"`
		Y   string `json:"y"`
		D   string `json:"d,omitempty"`
	}{"EC", "P-256", algES256, "sig", kid, b64(point[1 : 1+coordinate]), b64(point[1+coordinate:]), ""}
	if d != nil {
		doc.D = b64(d)
	}
	return json.Marshal(doc)
}
