package datahub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// Limits of a sealed secret.
const (
	maxSealed     = 64 << 10
	maxSealedJWK  = 16 << 10
	sealedVersion = "0.1.0"
)

// sealedLimits bound the header and the payload.
func sealedLimits() strictjson.Limits { return strictjson.Limits{Bytes: maxSealed, Depth: 8} }

// sealedHeader is the protected header: alg and kid, nothing else.
type sealedHeader struct {
	Alg string `json:"alg"`
	Kid string `json:"kid"`
}

// sealedPayload is either kind of secret.
type sealedPayload struct {
	Version          string          `json:"version"`
	Type             string          `json:"type"`
	Name             string          `json:"name"`
	Provider         string          `json:"provider"`
	ProviderSettings json.RawMessage `json:"provider_settings"`
	Annotations      json.RawMessage `json:"annotations"`
	// Envelope secrets only; read so that the refusal can say what it is.
	KeyID         string `json:"key_id"`
	EncryptedKey  string `json:"encrypted_key"`
	EncryptedData string `json:"encrypted_data"`
	WrapType      string `json:"wrap_type"`
	IV            string `json:"iv"`
}

// Unseal opens a sealed secret of the form sealed.HEADER.PAYLOAD.SIGNATURE
// (guest components, "Sealed secrets"): the signature is ES256 by a key the
// broker holds, and the payload names a resource of the broker (type vault).
// The form without a signature is refused, and so is the envelope type, whose
// key management services this guest does not speak.
func (h *Hub) Unseal(ctx context.Context, sealed string) (secret.Bytes, error) {
	payload, err := h.openSealed(ctx, sealed)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %w", err)
	}
	return h.Resource(ctx, payload.Name)
}

func (h *Hub) openSealed(ctx context.Context, sealed string) (*sealedPayload, error) {
	if len(sealed) > maxSealed {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(sealed), maxSealed)
	}
	parts := strings.Split(sealed, ".")
	if len(parts) != 4 || parts[0] != "sealed" {
		return nil, fmt.Errorf("expected sealed.HEADER.PAYLOAD.SIGNATURE, got %d parts", len(parts))
	}
	var decoded [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i+1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w; a secret that was sealed without a signature is not accepted", name, err)
		}
		decoded[i] = b
	}
	var header sealedHeader
	if err := strictjson.Decode(decoded[0], &header, sealedLimits()); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if header.Alg != "ES256" {
		return nil, fmt.Errorf("header.alg: expected ES256, got %q", header.Alg)
	}
	if !strings.HasPrefix(header.Kid, "kbs") {
		return nil, fmt.Errorf("header.kid: expected a resource of the key broker (kbs:///…), got %q", header.Kid)
	}
	key, err := h.verificationKey(ctx, header.Kid)
	if err != nil {
		return nil, fmt.Errorf("header.kid: %w", err)
	}
	// The signature is over the encoded parts, the prefix excluded.
	digest := sha256.Sum256([]byte(parts[1] + "." + parts[2]))
	sig := decoded[2]
	if len(sig) != 64 || !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return nil, fmt.Errorf("signature: does not verify under %s", header.Kid)
	}
	var p sealedPayload
	if err := strictjson.Decode(decoded[1], &p, sealedLimits()); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	switch {
	case p.Version != sealedVersion:
		return nil, fmt.Errorf("payload.version: expected %s, got %q", sealedVersion, p.Version)
	case p.Type == "envelope":
		return nil, fmt.Errorf("payload.type: envelope secrets (key management service %q) are not supported by this guest; seal a reference (type vault, provider kbs)", p.Provider)
	case p.Type != "vault":
		return nil, fmt.Errorf("payload.type: expected vault, got %q", p.Type)
	case p.Provider != "kbs":
		return nil, fmt.Errorf("payload.provider: expected kbs, got %q", p.Provider)
	case p.ProviderSettings == nil || p.Annotations == nil:
		return nil, errors.New("payload: provider_settings and annotations must be present, {} if there are none")
	}
	return &p, nil
}

// verificationKey fetches a public key, a JWK of type EC on P-256.
func (h *Hub) verificationKey(ctx context.Context, kid string) (*ecdsa.PublicKey, error) {
	raw, err := h.Resource(ctx, kid)
	if err != nil {
		return nil, err
	}
	if raw.Len() > maxSealedJWK {
		return nil, fmt.Errorf("JWK of %d bytes, at most %d are read", raw.Len(), maxSealedJWK)
	}
	// A JWK may carry members that do not matter here (RFC 7517 §4).
	var jwk struct{ Kty, Crv, X, Y string }
	if err := json.Unmarshal(raw.Expose(), &jwk); err != nil {
		return nil, errors.New("the resource is not a JWK")
	}
	if jwk.Kty != "EC" || jwk.Crv != "P-256" {
		return nil, fmt.Errorf("JWK: expected type EC on P-256, got %q on %q", jwk.Kty, jwk.Crv)
	}
	x, errX := base64.RawURLEncoding.DecodeString(jwk.X)
	y, errY := base64.RawURLEncoding.DecodeString(jwk.Y)
	if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, errors.New("JWK: x and y must be 32 bytes of unpadded base64url")
	}
	// Uncompressed point (SEC 1 §2.3.4); the parser checks it is on the curve.
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
}
