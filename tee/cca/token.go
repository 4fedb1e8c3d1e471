// Package cca reads the evidence of Arm's Confidential Compute Architecture: a
// CBOR collection of two signed tokens, one of the platform and one of the
// realm. The same package serves the guest and the verifier; nothing here
// checks a signature (see ccaverify).
//
// Formats: Realm Management Monitor specification (DEN0137) 1.0, chapter A7,
// and draft-ffm-rats-cca-token-00; also the profile
// "http://arm.com/CCA-SSD/1.0.0" that came before them, in which the realm's
// public key is a bare curve point. The 2024 profiles of draft 03 are refused.
package cca

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// Limits on what comes from the other side, and the sizes that the
// specification fixes.
const (
	// MaxEvidence is the greatest size of evidence JSON in bytes.
	MaxEvidence = 160 << 10
	// MaxToken is the greatest size of the binary token in bytes.
	MaxToken = 32 << 10
	// ChallengeSize is that of the realm's challenge and its personalization
	// value.
	ChallengeSize = 64
	// ImplementationIDSize and InstanceIDSize are those of the platform's
	// identifiers; an instance identifier is an EAT UEID of type RAND.
	ImplementationIDSize = 32
	InstanceIDSize       = 33

	maxText       = 512
	maxConfig     = 4 << 10
	maxComponents = 64
)

// The profiles that are understood (EAT claim 265).
const (
	ProfileLegacy   = "http://arm.com/CCA-SSD/1.0.0"
	ProfilePlatform = "tag:arm.com,2023:cca_platform#1.0.0"
	ProfileRealm    = "tag:arm.com,2023:realm#1.0.0"
)

// Tags and labels of the collection and of COSE_Sign1 (RFC 9052, section 2).
const (
	tagCollection = 399
	tagSign1      = 18
	labelPlatform = 44234
	labelRealm    = 44241
)

// Algorithm is a COSE signature algorithm (RFC 9053, section 2.1).
type Algorithm int64

// The algorithms that tokens may be signed with.
const (
	ES256 Algorithm = -7
	ES384 Algorithm = -35
	ES512 Algorithm = -36
)

// String returns the name of the COSE registry.
func (a Algorithm) String() string {
	switch a {
	case ES256:
		return "ES256"
	case ES384:
		return "ES384"
	case ES512:
		return "ES512"
	}
	return fmt.Sprintf("COSE algorithm %d", int64(a))
}

// Signed is a COSE_Sign1 message, as yet unverified.
type Signed struct {
	// Raw is the whole tagged message.
	Raw []byte
	// Algorithm is that of the protected header.
	Algorithm Algorithm
	// Payload is what the message signs: the CBOR of the claims.
	Payload []byte
}

// Token is a decoded CCA token.
type Token struct {
	PlatformToken, RealmToken Signed
	Platform                  Platform
	Realm                     Realm
}

// Platform are the claims of the platform token. Byte strings are as the token
// holds them.
type Platform struct {
	Profile          string
	Challenge        []byte // the digest of the realm's public key
	ImplementationID []byte // 32 bytes: the kind of platform
	InstanceID       []byte // 33 bytes: this platform, by its key
	Config           []byte
	Lifecycle        uint16
	Components       []Component
	ServiceIndicator string // a verifier's address; may be empty
	HashAlgorithm    string
}

// Component is one measured piece of the platform's firmware.
type Component struct {
	Type, Version, HashAlgorithm string // each may be empty
	Value, SignerID              []byte
}

// Realm are the claims of the realm token.
type Realm struct {
	Profile                string // empty: the legacy profile
	Challenge              []byte // 64 bytes: report data
	Personalization        []byte // 64 bytes: the digest of initdata, padded
	InitialMeasurement     []byte
	ExtensibleMeasurements [4][]byte
	HashAlgorithm          string
	PublicKey              []byte // as in the token; what PublicKeyHash is over
	PublicKeyHash          string // name of the hash
	// Key is PublicKey decoded: on P-256, P-384 or P-521, never infinity.
	Key *ecdsa.PublicKey
}

// ParseToken decodes a token. Refused are other tags, profiles and algorithms,
// claims that are missing, duplicate or of the wrong type or size, indefinite
// lengths, bytes behind the token, and everything beyond the limits. Claims
// that the profiles do not know are ignored (RFC 9711, section 4.1). The result
// refers to raw, which must not change afterwards.
func ParseToken(raw []byte) (*Token, error) {
	platform, realm, err := parseCollection(raw)
	if err != nil {
		return nil, err
	}
	t := new(Token)
	if t.PlatformToken, err = parseSign1("platform token", platform); err != nil {
		return nil, err
	}
	if t.RealmToken, err = parseSign1("realm token", realm); err != nil {
		return nil, err
	}
	if t.Platform, err = parsePlatform(t.PlatformToken.Payload); err != nil {
		return nil, err
	}
	if t.Realm, err = parseRealm(t.RealmToken.Payload); err != nil {
		return nil, err
	}
	return t, nil
}

// strict are the rules for CBOR from the other side; they are made once, as
// fxamacker builds tables for them.
var strict = sync.OnceValues(func() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 8, MaxArrayElements: maxComponents, MaxMapPairs: 64, FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
})

// decode reads one item without tags that fills data.
func decode(what string, data []byte, v any) error {
	r, err := strict()
	if err == nil {
		err = r.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("cca: %s: %w", what, err)
	}
	return nil
}

// Major types (RFC 8949, section 3.1).
const (
	majorBytes = 2
	majorTag   = 6
)

// head reads the beginning of an item: its major type and argument (RFC 8949,
// section 3). Indefinite lengths have none.
func head(data []byte) (major byte, argument uint64, rest []byte, ok bool) {
	const short, long = 24, 27
	if len(data) == 0 {
		return 0, 0, nil, false
	}
	major, info, rest := data[0]>>5, data[0]&31, data[1:]
	if info < short {
		return major, uint64(info), rest, true
	}
	if info > long || len(rest) < 1<<(info-short) {
		return 0, 0, nil, false
	}
	n := 1 << (info - short)
	for _, b := range rest[:n] {
		argument = argument<<8 | uint64(b)
	}
	return major, argument, rest[n:], true
}

// untag returns the item under a tag. Whether there is one, and only one, is
// for [decode] to find out.
func untag(what string, data []byte, tag uint64) ([]byte, error) {
	major, got, content, ok := head(data)
	if !ok || major != majorTag {
		return nil, fmt.Errorf("cca: %s: expected CBOR tag %d, got another item or none", what, tag)
	}
	if got != tag {
		return nil, fmt.Errorf("cca: %s: expected CBOR tag %d, got %d", what, tag, got)
	}
	return content, nil
}

// byteString is a CBOR byte string and nothing that could be taken for one. It
// refers to what was decoded: a token is strings in strings in a string, which
// copies would multiply.
type byteString []byte

// UnmarshalCBOR implements cbor.Unmarshaler; data is well-formed.
func (b *byteString) UnmarshalCBOR(data []byte) error {
	major, length, content, ok := head(data)
	if !ok || major != majorBytes || uint64(len(content)) != length {
		return errors.New("expected a byte string")
	}
	*b = slices.Clip(content)
	return nil
}

func parseCollection(raw []byte) (platform, realm []byte, err error) {
	if len(raw) > MaxToken {
		return nil, nil, fmt.Errorf("cca: token: expected at most %d bytes, got %d", MaxToken, len(raw))
	}
	content, err := untag("token", raw, tagCollection)
	if err != nil {
		return nil, nil, err
	}
	var tokens map[uint64]byteString
	if err := decode("token", content, &tokens); err != nil {
		return nil, nil, err
	}
	platform, realm = tokens[labelPlatform], tokens[labelRealm]
	switch {
	case platform == nil:
		return nil, nil, fmt.Errorf("cca: token: expected a platform token under label %d", labelPlatform)
	case realm == nil:
		return nil, nil, fmt.Errorf("cca: token: expected a realm token under label %d", labelRealm)
	case len(tokens) != 2:
		return nil, nil, fmt.Errorf("cca: token: expected two tokens, got %d entries", len(tokens))
	}
	return platform, realm, nil
}

// sign1 is COSE_Sign1 (RFC 9052, section 4.2).
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   byteString
	Unprotected map[int64]cbor.RawMessage
	Payload     byteString
	Signature   byteString
}

// Header labels (RFC 9052, section 3.1).
const (
	headerAlgorithm   = 1
	headerContentType = 3
	headerKeyID       = 4
)

func parseSign1(what string, raw []byte) (Signed, error) {
	fail := func(format string, args ...any) (Signed, error) {
		return Signed{}, fmt.Errorf("cca: "+what+": "+format, args...)
	}
	content, err := untag(what, raw, tagSign1)
	if err != nil {
		return Signed{}, err
	}
	var m sign1
	if err := decode(what, content, &m); err != nil {
		return Signed{}, err
	}
	var protected map[int64]cbor.RawMessage
	if err := decode(what+": protected header", m.Protected, &protected); err != nil {
		return Signed{}, err
	}
	for label := range protected {
		if label != headerAlgorithm && label != headerContentType && label != headerKeyID {
			return fail("protected header: expected algorithm, content type and key identifier at most, got label %d", label)
		}
	}
	for label := range m.Unprotected {
		if label != headerKeyID {
			return fail("unprotected header: expected nothing but a key identifier, got label %d", label)
		}
	}
	if protected[headerAlgorithm] == nil {
		return fail("protected header: expected an algorithm")
	}
	out := Signed{Raw: raw, Payload: m.Payload}
	if err := decode(what+": protected header: algorithm", protected[headerAlgorithm], &out.Algorithm); err != nil {
		return Signed{}, err
	}
	switch out.Algorithm {
	case ES256, ES384, ES512:
		return out, nil
	}
	return fail("protected header: algorithm: expected ES256, ES384 or ES512, got %s", out.Algorithm)
}

// text checks a text claim.
func text(name, s string, required bool) error {
	switch {
	case required && s == "":
		return fmt.Errorf("cca: %s: expected text, got none", name)
	case len(s) > maxText:
		return fmt.Errorf("cca: %s: expected at most %d bytes, got %d", name, maxText, len(s))
	}
	return nil
}

// size checks the length of a byte string.
func size(name string, b []byte, allowed ...int) error {
	if slices.Contains(allowed, len(b)) {
		return nil
	}
	names := make([]string, len(allowed))
	for i, n := range allowed {
		names[i] = strconv.Itoa(n)
	}
	return fmt.Errorf("cca: %s: expected %s bytes, got %d", name, strings.Join(names, " or "), len(b))
}
