// Package sealed is the format of sealed secrets, as the guest components of
// Confidential Containers define it ("Sealed Secret", version 0.1.0), on both
// sides: a line of text that can stand in a Kubernetes manifest because only an
// attested guest can turn it into a value.
//
//	sealed.<header>.<payload>.<signature>
//
// The three parts are unpadded base64url, and a compact JWS together. The header
// names the signature's algorithm, ES256, and the resource of the key broker
// that holds the key to check it with. The payload names a secret somewhere else
// ([Vault]) or carries it, encrypted under a key that a key management service
// or the key broker opens ([Envelope]).
//
// [Parse] takes the text apart; what the payload says is reached only through
// [Secret.Verify], or through [Secret.Unverified] by tools that say so. [Seal]
// makes the text. Fetching keys and secrets is the caller's business.
package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
)

const (
	// Prefix begins every sealed secret.
	Prefix = "sealed."
	// MaxBytes bounds a sealed secret.
	MaxBytes = 256 << 10
	// Version is the payload's only version.
	Version = "0.1.0"
	// algES256 is the only algorithm (RFC 7518 §3.4).
	algES256 = "ES256"

	maxHeader = 4 << 10
	maxKid    = 2 << 10
)

// ErrUnsigned is a sealed secret of the older form, which has no signature.
// Guests that accept it, accept what the host writes.
var ErrUnsigned = errors.New("has no signature (the older form, sealed.fakejwsheader.….fakesignature, or none): anyone could have made it; " +
	"seal the secret again with a signing key, see `coffer secret seal`")

// Is tells whether a value is meant to be a sealed secret: whether it begins
// with [Prefix].
func Is[T string | []byte](value T) bool {
	return len(value) >= len(Prefix) && string(value[:len(Prefix)]) == Prefix
}

// Header is the protected header.
type Header struct {
	Alg string `json:"alg"`
	// Kid is where the verification key is: a resource URI.
	Kid string `json:"kid"`
}

// Secret is a sealed secret that was taken apart and not verified.
type Secret struct {
	header    Header
	payload   Payload
	signed    string // header.payload as received, which the signature is over
	signature []byte
}

// decode64 accepts one spelling per value.
func decode64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// Parse takes a sealed secret apart. White space around it, as files tend to
// end with, is ignored. A value without a signature is [ErrUnsigned].
func Parse(text string) (*Secret, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("sealed secret: %d bytes, at most %d are read", len(text), MaxBytes)
	}
	text = strings.TrimSpace(text)
	if !Is(text) {
		return nil, fmt.Errorf("sealed secret: expected %sHEADER.PAYLOAD.SIGNATURE", Prefix)
	}
	parts := strings.Split(text[len(Prefix):], ".")
	switch n := len(parts); {
	case n < 3:
		return nil, fmt.Errorf("sealed secret: %d parts after %q, expected 3: it %w", n, Prefix, ErrUnsigned)
	case n > 3:
		return nil, fmt.Errorf("sealed secret: %d parts after %q, expected 3", n, Prefix)
	}
	s := &Secret{signed: parts[0] + "." + parts[1]}
	if err := s.parseHeader(parts[0]); err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	payload, err := decode64(parts[1])
	if err != nil {
		return nil, errors.New("sealed secret: payload: expected unpadded base64url")
	}
	if s.payload, err = ParsePayload(payload); err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	s.signature, err = decode64(parts[2])
	switch {
	case len(parts[2]) == 0:
		return nil, fmt.Errorf("sealed secret: it %w", ErrUnsigned)
	case err != nil || len(s.signature) != signatureSize:
		return nil, fmt.Errorf("sealed secret: signature: expected %d bytes in unpadded base64url", signatureSize)
	}
	return s, nil
}

func (s *Secret) parseHeader(text string) error {
	// Unsigned values have any text here; what is no JSON object was none.
	raw, err := decode64(text)
	if err != nil || len(raw) == 0 || raw[0] != '{' {
		return fmt.Errorf("header: not a JSON object in unpadded base64url: it %w", ErrUnsigned)
	}
	if err := strictjson.Decode(raw, &s.header, strictjson.Limits{Bytes: maxHeader, Depth: 2}); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	switch h := s.header; {
	case h.Alg == "none":
		return fmt.Errorf("header.alg: none: it %w", ErrUnsigned)
	case h.Alg != algES256:
		return fmt.Errorf("header.alg: expected %s, got %.32q", algES256, h.Alg)
	case h.Kid == "" || len(h.Kid) > maxKid:
		return fmt.Errorf("header.kid: expected 1 to %d bytes that name the verification key, got %d", maxKid, len(h.Kid))
	}
	return nil
}

// Header returns the header. It is nobody's word before [Secret.Verify] has
// succeeded; that the key it names is the owner's is for the key broker to
// see to.
func (s *Secret) Header() Header { return s.header }

// Unverified returns what the payload claims, for tools that show it as such.
func (s *Secret) Unverified() Payload { return s.payload }

// signatureSize is that of r and s (RFC 7518 §3.4).
const signatureSize = 64

// Verify checks the signature and returns the payload that it is over.
func (s *Secret) Verify(key *ecdsa.PublicKey) (Payload, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return Payload{}, errors.New("sealed secret: verification key: expected one on P-256")
	}
	// The prefix is not part of what is signed.
	digest := sha256.Sum256([]byte(s.signed))
	r, v := new(big.Int).SetBytes(s.signature[:32]), new(big.Int).SetBytes(s.signature[32:])
	if !ecdsa.Verify(key, digest[:], r, v) {
		return Payload{}, fmt.Errorf("sealed secret: signature: does not verify under the key %s: it was made with another key, or changed", s.header.Kid)
	}
	return s.payload, nil
}

// Seal writes a payload as a sealed secret, signed with a key on P-256. kid is
// the resource URI under which guests find the key's public half.
func Seal(rand io.Reader, p Payload, kid string, key *ecdsa.PrivateKey) (string, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return "", errors.New("sealed secret: signing key: expected one on P-256")
	}
	header, err := json.Marshal(Header{Alg: algES256, Kid: kid})
	if err != nil {
		return "", fmt.Errorf("sealed secret: header: %w", err)
	}
	payload, err := p.marshal()
	if err != nil {
		return "", fmt.Errorf("sealed secret: %w", err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64(header) + "." + b64(payload)
	digest := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand, key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sealed secret: sign: %w", err)
	}
	signature := make([]byte, signatureSize)
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	text := Prefix + signed + "." + b64(signature)
	// What guests would refuse is not handed out.
	back, err := Parse(text)
	if err != nil {
		return "", err
	}
	if _, err := back.Verify(&key.PublicKey); err != nil {
		return "", err
	}
	return text, nil
}
