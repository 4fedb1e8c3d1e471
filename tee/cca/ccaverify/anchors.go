package ccaverify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee/cca"
)

// Limits on files of the operator's.
const (
	maxStore   = 16 << 20
	maxEntries = 1 << 16
)

// TrustAnchor is the public part of one platform's attestation key (CPAK), as
// its maker endorses it.
type TrustAnchor struct {
	// InstanceID is the claim cca-platform-instance-id of the platform, 33
	// bytes. No two anchors have the same.
	InstanceID []byte
	// ImplementationID is its claim cca-platform-implementation-id, 32 bytes.
	ImplementationID []byte
	// Key is on P-256, P-384 or P-521.
	Key *ecdsa.PublicKey
	// Development marks the key of an emulated platform: the private part may
	// be known to anybody. What it signs is genuine, and simulated.
	Development bool
}

func (a *TrustAnchor) check() error {
	switch {
	case len(a.InstanceID) != cca.InstanceIDSize:
		return fmt.Errorf("instance-id: expected %d bytes, got %d", cca.InstanceIDSize, len(a.InstanceID))
	case len(a.ImplementationID) != cca.ImplementationIDSize:
		return fmt.Errorf("implementation-id: expected %d bytes, got %d", cca.ImplementationIDSize, len(a.ImplementationID))
	case a.Key == nil:
		return fmt.Errorf("pkey: expected a public key, got none")
	}
	if _, err := a.Key.Bytes(); err != nil {
		return fmt.Errorf("pkey: %w", err)
	}
	_, err := algorithmOf(a.Key)
	return err
}

// fingerprint identifies the key.
func (a *TrustAnchor) fingerprint() []byte {
	point, err := a.Key.Bytes()
	if err != nil { // check has passed
		return nil
	}
	sum := sha256.Sum256(append([]byte(a.Key.Curve.Params().Name), point...))
	return sum[:]
}

// jwk is an elliptic curve key of RFC 7518, section 6.2.
type jwk struct {
	Type      string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y"`
	Algorithm string `json:"alg,omitempty"`
	Use       string `json:"use,omitempty"`
	KeyID     string `json:"kid,omitempty"`
}

func (j jwk) key() (*ecdsa.PublicKey, error) {
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[j.Curve]
	if j.Type != "EC" || curve == nil {
		return nil, fmt.Errorf("pkey: expected an EC key on P-256, P-384 or P-521, got %.20q on %.20q", j.Type, j.Curve)
	}
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4}
	for i, text := range []string{j.X, j.Y} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil || len(b) != size {
			return nil, fmt.Errorf("pkey: %c: expected %d bytes in base64url without padding, got %.100q", 'x'+i, size, text)
		}
		point = append(point, b...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("pkey: %w", err)
	}
	return key, nil
}

type storedAnchor struct {
	Key              jwk    `json:"pkey"`
	ImplementationID string `json:"implementation-id"`
	InstanceID       string `json:"instance-id"`
}

// ParseTrustAnchors reads a trust anchor store of the upstream trustee
// (tastore.json): an array of objects "pkey" (JWK), "implementation-id" and
// "instance-id" (hex). development marks all of them as keys of emulated
// platforms.
func ParseTrustAnchors(data []byte, development bool) ([]TrustAnchor, error) {
	var stored []storedAnchor
	if err := strictjson.Decode(data, &stored, strictjson.Limits{Bytes: maxStore, Depth: 4}); err != nil {
		return nil, fmt.Errorf("ccaverify: trust anchors: %w", err)
	}
	if len(stored) > maxEntries {
		return nil, fmt.Errorf("ccaverify: trust anchors: expected at most %d, got %d", maxEntries, len(stored))
	}
	out := make([]TrustAnchor, len(stored))
	for i, s := range stored {
		var err error
		a := TrustAnchor{Development: development}
		if a.Key, err = s.Key.key(); err == nil {
			a.ImplementationID, err = hex.DecodeString(s.ImplementationID)
		}
		if err == nil {
			a.InstanceID, err = hex.DecodeString(s.InstanceID)
		}
		if err == nil {
			err = a.check()
		}
		if err != nil {
			return nil, fmt.Errorf("ccaverify: trust anchors: [%d]: %w", i, err)
		}
		out[i] = a
	}
	return out, nil
}

// storedReferences is a reference value store of the upstream trustee.
type storedReferences struct {
	Platform []struct {
		ImplementationID string `json:"implementation-id"`
		Components       []struct {
			Value    string `json:"measurement-value"`
			SignerID string `json:"signer-id"`
			Type     string `json:"component-type,omitempty"`
			Version  string `json:"version,omitempty"`
			Hash     string `json:"hash-algo-id,omitempty"`
		} `json:"sw-components"`
		Config string `json:"platform-configuration"`
	} `json:"platform,omitempty"`
	Realm []struct {
		Initial         string   `json:"initial-measurement"`
		Hash            string   `json:"rak-hash-algorithm"`
		Extensible      []string `json:"extensible-measurements,omitempty"`
		Personalization string   `json:"personalization-value,omitempty"`
	} `json:"realm,omitempty"`
}

// ReferenceValues converts a reference value store of the upstream trustee
// (rvstore.json) into reference values by the names that the attestation policy
// uses, each a list of base64 strings without repetitions:
// cca_platform_implementation_id, cca_platform_config,
// cca_platform_sw_components, cca_realm_initial_measurement and
// cca_realm_extensible_measurement_0 to 3.
//
// What a value belongs together with is lost: the store pairs a platform with
// the firmware that is good on it, these lists do not. Signers and
// personalization values are left out; the latter are checked against initdata.
func ReferenceValues(store []byte) (map[string][]string, error) {
	var s storedReferences
	if err := strictjson.Decode(store, &s, strictjson.Limits{Bytes: maxStore, Depth: 6}); err != nil {
		return nil, fmt.Errorf("ccaverify: reference values: %w", err)
	}
	c := converter{out: map[string][]string{}, seen: map[string]bool{}}
	for i, p := range s.Platform {
		where := fmt.Sprintf("platform[%d]: ", i)
		c.add(where+"implementation-id", "cca_platform_implementation_id", p.ImplementationID)
		c.add(where+"platform-configuration", "cca_platform_config", p.Config)
		for j, component := range p.Components {
			c.add(fmt.Sprintf("%ssw-components[%d]: measurement-value", where, j), "cca_platform_sw_components", component.Value)
		}
	}
	for i, r := range s.Realm {
		where := fmt.Sprintf("realm[%d]: ", i)
		c.add(where+"initial-measurement", "cca_realm_initial_measurement", r.Initial)
		if n := len(r.Extensible); n != 0 && n != 4 {
			return nil, fmt.Errorf("ccaverify: reference values: %sextensible-measurements: expected 4, got %d", where, n)
		}
		for j, m := range r.Extensible {
			c.add(fmt.Sprintf("%sextensible-measurements[%d]", where, j), fmt.Sprintf("cca_realm_extensible_measurement_%d", j), m)
		}
	}
	if c.err != nil {
		return nil, fmt.Errorf("ccaverify: reference values: %w", c.err)
	}
	return c.out, nil
}

type converter struct {
	out  map[string][]string
	seen map[string]bool
	err  error
}

// add puts one hex value into the list of that name; the first error stays.
func (c *converter) add(where, name, text string) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) == 0 {
		if c.err == nil {
			c.err = fmt.Errorf("%s: expected hex digits, got %.40q", where, text)
		}
		return
	}
	value := base64.StdEncoding.EncodeToString(b)
	if key := name + "\x00" + value; !c.seen[key] {
		c.seen[key] = true
		c.out[name] = append(c.out[name], value)
	}
}
