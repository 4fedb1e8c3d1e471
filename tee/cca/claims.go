package cca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// wirePlatform is the CBOR of the platform's claims
// (draft-ffm-rats-cca-token-00, "cca-platform-claims").
type wirePlatform struct {
	Profile          string          `cbor:"265,keyasint"`
	Challenge        byteString      `cbor:"10,keyasint"`
	ImplementationID byteString      `cbor:"2396,keyasint"`
	InstanceID       byteString      `cbor:"256,keyasint"`
	Config           byteString      `cbor:"2401,keyasint"`
	Lifecycle        *uint16         `cbor:"2395,keyasint"`
	Components       []wireComponent `cbor:"2399,keyasint"`
	ServiceIndicator string          `cbor:"2400,keyasint"`
	HashAlgorithm    string          `cbor:"2402,keyasint"`
}

type wireComponent struct {
	Type          string     `cbor:"1,keyasint"`
	Value         byteString `cbor:"2,keyasint"`
	Version       string     `cbor:"4,keyasint"`
	SignerID      byteString `cbor:"5,keyasint"`
	HashAlgorithm string     `cbor:"6,keyasint"`
}

func (c *wireComponent) check() error {
	return errors.Join(
		size("measurement-value", c.Value, 32, 48, 64), size("signer-id", c.SignerID, 32, 48, 64),
		text("measurement-type", c.Type, false), text("version", c.Version, false), text("hash algorithm", c.HashAlgorithm, false))
}

func parsePlatform(payload []byte) (Platform, error) {
	var w wirePlatform
	if err := decode("platform token: claims", payload, &w); err != nil {
		return Platform{}, err
	}
	if w.Profile != ProfileLegacy && w.Profile != ProfilePlatform {
		return Platform{}, fmt.Errorf("cca: cca-platform-profile: expected %q or %q, got %.80q", ProfilePlatform, ProfileLegacy, w.Profile)
	}
	if w.Lifecycle == nil {
		return Platform{}, errors.New("cca: cca-platform-lifecycle: expected a number, got none")
	}
	if len(w.Config) == 0 || len(w.Config) > maxConfig {
		return Platform{}, fmt.Errorf("cca: cca-platform-config: expected 1 to %d bytes, got %d", maxConfig, len(w.Config))
	}
	if len(w.Components) == 0 {
		return Platform{}, errors.New("cca: cca-platform-sw-components: expected at least one, got none")
	}
	err := errors.Join(
		size("cca-platform-challenge", w.Challenge, 32, 48, 64),
		size("cca-platform-implementation-id", w.ImplementationID, ImplementationIDSize),
		size("cca-platform-instance-id", w.InstanceID, InstanceIDSize),
		text("cca-platform-service-indicator", w.ServiceIndicator, false),
		text("cca-platform-hash-algo-id", w.HashAlgorithm, true),
	)
	p := Platform{
		Profile: w.Profile, Challenge: w.Challenge, ImplementationID: w.ImplementationID, InstanceID: w.InstanceID, Config: w.Config,
		Lifecycle: *w.Lifecycle, ServiceIndicator: w.ServiceIndicator, HashAlgorithm: w.HashAlgorithm,
		Components: make([]Component, len(w.Components)),
	}
	const ueidRandom = 1 // RFC 9711, section 4.2.1
	if len(w.InstanceID) > 0 && w.InstanceID[0] != ueidRandom {
		err = errors.Join(err, fmt.Errorf("cca: cca-platform-instance-id: expected type %d, got %d", ueidRandom, w.InstanceID[0]))
	}
	for i, c := range w.Components {
		if wrong := c.check(); wrong != nil {
			err = errors.Join(err, fmt.Errorf("cca: cca-platform-sw-components[%d]: %w", i, wrong))
		}
		p.Components[i] = Component{c.Type, c.Version, c.HashAlgorithm, c.Value, c.SignerID}
	}
	if err != nil {
		return Platform{}, err
	}
	return p, nil
}

// wireRealm is the CBOR of the realm's claims (draft-ffm-rats-cca-token-00,
// "cca-realm-claims").
type wireRealm struct {
	Profile                *string      `cbor:"265,keyasint"`
	Challenge              byteString   `cbor:"10,keyasint"`
	Personalization        byteString   `cbor:"44235,keyasint"`
	HashAlgorithm          string       `cbor:"44236,keyasint"`
	PublicKey              byteString   `cbor:"44237,keyasint"`
	InitialMeasurement     byteString   `cbor:"44238,keyasint"`
	ExtensibleMeasurements []byteString `cbor:"44239,keyasint"`
	PublicKeyHash          string       `cbor:"44240,keyasint"`
}

func parseRealm(payload []byte) (Realm, error) {
	var w wireRealm
	if err := decode("realm token: claims", payload, &w); err != nil {
		return Realm{}, err
	}
	r := Realm{
		Challenge: w.Challenge, Personalization: w.Personalization, InitialMeasurement: w.InitialMeasurement,
		HashAlgorithm: w.HashAlgorithm, PublicKey: w.PublicKey, PublicKeyHash: w.PublicKeyHash,
	}
	parseKey := parsePoint
	if w.Profile != nil {
		if *w.Profile != ProfileRealm {
			return Realm{}, fmt.Errorf("cca: cca-realm-profile: expected %q or none, got %.80q", ProfileRealm, *w.Profile)
		}
		r.Profile, parseKey = *w.Profile, parseCOSEKey
	}
	if len(w.ExtensibleMeasurements) != len(r.ExtensibleMeasurements) {
		return Realm{}, fmt.Errorf("cca: cca-realm-extensible-measurements: expected %d, got %d", len(r.ExtensibleMeasurements), len(w.ExtensibleMeasurements))
	}
	err := errors.Join(
		size("cca-realm-challenge", w.Challenge, ChallengeSize),
		size("cca-realm-personalization-value", w.Personalization, ChallengeSize),
		size("cca-realm-initial-measurement", w.InitialMeasurement, 32, 48, 64),
		text("cca-realm-hash-algo-id", w.HashAlgorithm, true),
		text("cca-realm-public-key-hash-algo-id", w.PublicKeyHash, true),
	)
	for i, m := range w.ExtensibleMeasurements {
		err = errors.Join(err, size(fmt.Sprintf("cca-realm-extensible-measurements[%d]", i), m, 32, 48, 64))
		r.ExtensibleMeasurements[i] = m
	}
	if err != nil {
		return Realm{}, err
	}
	if r.Key, err = parseKey(w.PublicKey); err != nil {
		return Realm{}, fmt.Errorf("cca: cca-realm-public-key: %w", err)
	}
	return r, nil
}

// parsePoint reads the legacy profile's key: an uncompressed point of P-384.
func parsePoint(raw []byte) (*ecdsa.PublicKey, error) {
	const p384Point = 97
	if len(raw) != p384Point {
		return nil, fmt.Errorf("expected a point of P-384 in %d bytes, got %d", p384Point, len(raw))
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P384(), raw)
}

// wireKey is a COSE_Key of type EC2 (RFC 9052, section 7; RFC 9053, section
// 7.1.1).
type wireKey struct {
	Type  uint64     `cbor:"1,keyasint"`
	Curve int64      `cbor:"-1,keyasint"`
	X     byteString `cbor:"-2,keyasint"`
	Y     byteString `cbor:"-3,keyasint"`
	D     any        `cbor:"-4,keyasint"`
}

func parseCOSEKey(raw []byte) (*ecdsa.PublicKey, error) {
	var w wireKey
	if err := decode("COSE_Key", raw, &w); err != nil {
		return nil, err
	}
	const ec2 = 2
	if w.Type != ec2 {
		return nil, fmt.Errorf("COSE_Key: key type: expected %d, EC2, got %d", ec2, w.Type)
	}
	if w.D != nil {
		return nil, errors.New("COSE_Key: expected a public key, got a private one")
	}
	curve := map[int64]elliptic.Curve{1: elliptic.P256(), 2: elliptic.P384(), 3: elliptic.P521()}[w.Curve]
	if curve == nil {
		return nil, fmt.Errorf("COSE_Key: curve: expected 1 (P-256), 2 (P-384) or 3 (P-521), got %d", w.Curve)
	}
	coordinate := (curve.Params().BitSize + 7) / 8
	if len(w.X) != coordinate || len(w.Y) != coordinate {
		return nil, fmt.Errorf("COSE_Key: coordinates: expected %d bytes each, got %d and %d", coordinate, len(w.X), len(w.Y))
	}
	point := append([]byte{4}, w.X...)
	return ecdsa.ParseUncompressedPublicKey(curve, append(point, w.Y...))
}

// Claims returns the claims of both tokens, unverified, as ccaverify documents
// them.
func (t *Token) Claims() map[string]any {
	return map[string]any{
		"platform": t.Platform.claims(), "realm": t.Realm.claims(),
		"report_data": hex.EncodeToString(t.Realm.Challenge), "init_data": hex.EncodeToString(t.Realm.Personalization),
	}
}

func (p *Platform) claims() map[string]any {
	b64 := base64.StdEncoding.EncodeToString
	components := make([]any, len(p.Components))
	for i, c := range p.Components {
		m := map[string]any{"measurement-value": b64(c.Value), "signer-id": b64(c.SignerID)}
		setText(m, "measurement-type", c.Type)
		setText(m, "version", c.Version)
		setText(m, "measurement-description", c.HashAlgorithm)
		components[i] = m
	}
	m := map[string]any{
		"cca-platform-profile": p.Profile, "cca-platform-implementation-id": b64(p.ImplementationID),
		"cca-platform-instance-id": b64(p.InstanceID), "cca-platform-challenge": b64(p.Challenge), "cca-platform-config": b64(p.Config),
		"cca-platform-lifecycle": int(p.Lifecycle), "cca-platform-lifecycle-state": LifecycleOf(p.Lifecycle).String(),
		"cca-platform-sw-components": components, "cca-platform-hash-algo-id": p.HashAlgorithm,
	}
	setText(m, "cca-platform-service-indicator", p.ServiceIndicator)
	return m
}

func (r *Realm) claims() map[string]any {
	b64 := base64.StdEncoding.EncodeToString
	extensible := make([]any, len(r.ExtensibleMeasurements))
	for i, m := range r.ExtensibleMeasurements {
		extensible[i] = b64(m)
	}
	m := map[string]any{
		"cca-realm-challenge": b64(r.Challenge), "cca-realm-personalization-value": b64(r.Personalization),
		"cca-realm-initial-measurement": b64(r.InitialMeasurement), "cca-realm-extensible-measurements": extensible,
		"cca-realm-hash-algo-id": r.HashAlgorithm, "cca-realm-public-key": b64(r.PublicKey), "cca-realm-public-key-hash-algo-id": r.PublicKeyHash,
	}
	setText(m, "cca-realm-profile", r.Profile)
	return m
}

func setText(m map[string]any, name, value string) {
	if value != "" {
		m[name] = value
	}
}
