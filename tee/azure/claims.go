package azure

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/coffer-project/coffer/internal/strictjson"
)

const (
	// UserDataSize is the size of the guest's data in the runtime claims.
	UserDataSize = 64

	akKid    = "HCLAkPub"
	maxKeys  = 8
	maxDepth = 8
	maxRSA   = 1 << 10 // bytes of a modulus: 8192 bits
)

// RuntimeClaims are what the paravisor says of itself and its TPM.
type RuntimeClaims struct {
	// AK is the TPM's attestation key.
	AK *rsa.PublicKey
	// UserData is what the guest had written into the index for it, padded
	// with zeros: 64 bytes.
	UserData []byte
	// Configuration is the member "vm-configuration" as it is: whether secure
	// boot and the console are enabled, the machine's identifier, and so on.
	// Nil where it is missing.
	Configuration map[string]any
}

// limits of the runtime claims, all of which fit into an HCL report.
func limits() strictjson.Limits { return strictjson.Limits{Bytes: MaxReport, Depth: maxDepth} }

// ParseRuntimeClaims reads the runtime claims in an HCL report. Azure adds
// members from time to time, so unknown ones are no error; duplicates are.
func ParseRuntimeClaims(varData []byte) (*RuntimeClaims, error) {
	var top map[string]json.RawMessage
	if err := strictjson.Decode(varData, &top, limits()); err != nil {
		return nil, fmt.Errorf("azure: runtime claims: %w", err)
	}
	out := new(RuntimeClaims)
	var err error
	if out.AK, err = attestationKey(top["keys"]); err != nil {
		return nil, fmt.Errorf("azure: runtime claims: keys: %w", err)
	}
	userData, err := member[string](top, "user-data")
	if err != nil {
		return nil, fmt.Errorf("azure: runtime claims: %w", err)
	}
	if len(userData) != hex.EncodedLen(UserDataSize) {
		return nil, fmt.Errorf("azure: runtime claims: user-data: expected %d hex digits, got %d", hex.EncodedLen(UserDataSize), len(userData))
	}
	if out.UserData, err = hex.DecodeString(userData); err != nil {
		return nil, fmt.Errorf("azure: runtime claims: user-data: %w", err)
	}
	if raw, ok := top["vm-configuration"]; ok {
		if err := strictjson.Decode(raw, &out.Configuration, limits()); err != nil {
			return nil, fmt.Errorf("azure: runtime claims: vm-configuration: %w", err)
		}
	}
	return out, nil
}

// member decodes one member that has to be there.
func member[T any](object map[string]json.RawMessage, name string) (T, error) {
	var out T
	raw, ok := object[name]
	if !ok {
		return out, fmt.Errorf("%s: missing", name)
	}
	if err := strictjson.Decode(raw, &out, limits()); err != nil {
		return out, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// attestationKey finds the one key HCLAkPub among JSON web keys (RFC 7517).
func attestationKey(keys json.RawMessage) (*rsa.PublicKey, error) {
	var list []map[string]json.RawMessage
	if err := strictjson.Decode(keys, &list, limits()); err != nil {
		return nil, err
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("expected at most %d, got %d", maxKeys, len(list))
	}
	var found *rsa.PublicKey
	for i, k := range list {
		kid, err := member[string](k, "kid")
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		if kid != akKid {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("[%d]: %s occurs twice", i, akKid)
		}
		if found, err = rsaKey(k); err != nil {
			return nil, fmt.Errorf("[%d]: %s: %w", i, akKid, err)
		}
	}
	if found == nil {
		return nil, fmt.Errorf("expected a key %s, got none", akKid)
	}
	return found, nil
}

// rsaKey reads an RSA key (RFC 7518, §6.3.1).
func rsaKey(k map[string]json.RawMessage) (*rsa.PublicKey, error) {
	kty, err := member[string](k, "kty")
	if err != nil {
		return nil, err
	}
	if kty != "RSA" {
		return nil, fmt.Errorf("kty: expected RSA, got %.20q", kty)
	}
	n, err := number(k, "n")
	if err != nil {
		return nil, err
	}
	e, err := number(k, "e")
	if err != nil {
		return nil, err
	}
	if e.BitLen() > 31 {
		return nil, fmt.Errorf("e: expected at most 31 bits, got %d", e.BitLen())
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func number(k map[string]json.RawMessage, name string) (*big.Int, error) {
	text, err := member[string](k, name)
	if err != nil {
		return nil, err
	}
	enc := base64.RawURLEncoding.Strict()
	raw, err := enc.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s: expected base64url without padding: %w", name, err)
	}
	if len(raw) == 0 || len(raw) > maxRSA || raw[0] == 0 {
		return nil, fmt.Errorf("%s: expected 1 to %d bytes that begin with no zero, got %d", name, maxRSA, len(raw))
	}
	return new(big.Int).SetBytes(raw), nil
}
