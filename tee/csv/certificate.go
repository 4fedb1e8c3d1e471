package csv

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the two kinds of certificates in bytes.
const (
	// CACertificateSize is that of HRK and HSK.
	CACertificateSize = 832
	// CertificateSize is that of CEK and PEK.
	CertificateSize = 2084
)

// Usage says what a key is for.
type Usage uint32

// The usages (csv-rs@b35dd21b, src/certs/mod.rs).
const (
	UsageHRK Usage = 0x0000 // Hygon's root
	UsageHSK Usage = 0x0013 // Hygon's signing key
	UsageOCA Usage = 0x1001 // the owner's authority
	UsagePEK Usage = 0x1002 // the platform's endorsement key
	UsagePDH Usage = 0x1003 // the platform's Diffie-Hellman key
	UsageCEK Usage = 0x1004 // the chip's endorsement key
)

// String returns the name of the key.
func (u Usage) String() string {
	switch u {
	case UsageHRK:
		return "HRK"
	case UsageHSK:
		return "HSK"
	case UsageOCA:
		return "OCA"
	case UsagePEK:
		return "PEK"
	case UsagePDH:
		return "PDH"
	case UsageCEK:
		return "CEK"
	}
	return fmt.Sprintf("usage %#x", uint32(u))
}

// AlgorithmSM2 is the one signature algorithm: SM2 with SM3.
const AlgorithmSM2 = 4

const (
	curveSM2    = 3
	maxUserID   = 254
	coordinate  = 72 // little-endian, of which a number has 32
	numberSize  = 32
	pointSize   = 4 + 2*coordinate
	sigSize     = 2 * coordinate
	caBodySize  = 576
	keyIDSize   = 16
	bodySize    = 1044
	slotSize    = 4 + 4 + sigSize + 368
	slotPadding = 368
)

// PublicKey is a key with the identifier that SM2 signatures hash in.
type PublicKey struct {
	Usage Usage
	// X and Y are big-endian. That they are on the curve is not checked here.
	X, Y   [numberSize]byte
	UserID []byte
}

// Signature are the two numbers of an SM2 signature, big-endian.
type Signature struct{ R, S [numberSize]byte }

// CACertificate is an HRK or an HSK. It holds no dates.
type CACertificate struct {
	Version uint32
	// KeyID is that of its key, SignerID that of the key that signed it.
	KeyID, SignerID [keyIDSize]byte
	Key             PublicKey
	// Signed is what Signature is over; it shares memory with the input.
	Signed    []byte
	Signature Signature
}

// ParseCACertificate decodes the 832 bytes of an HRK or HSK certificate
// (csv-rs@b35dd21b, src/certs/ca/cert/mod.rs).
func ParseCACertificate(raw []byte) (*CACertificate, error) {
	if len(raw) != CACertificateSize {
		return nil, fmt.Errorf("csv: CA certificate: expected %d bytes, got %d", CACertificateSize, len(raw))
	}
	le := binary.LittleEndian
	c := &CACertificate{Version: le.Uint32(raw), KeyID: [keyIDSize]byte(raw[4:]), SignerID: [keyIDSize]byte(raw[20:]), Signed: raw[:caBodySize]}
	var err error
	if c.Key, err = parseKey(raw[64:], raw[64+pointSize:]); err != nil {
		return nil, fmt.Errorf("csv: CA certificate: %w", err)
	}
	c.Key.Usage = Usage(le.Uint32(raw[36:]))
	if c.Signature, err = parseSignature(raw[caBodySize:]); err != nil {
		return nil, fmt.Errorf("csv: %s certificate: %w", c.Key.Usage, err)
	}
	if !zero(raw[caBodySize+sigSize:]) {
		return nil, fmt.Errorf("csv: %s certificate: reserved bytes behind the signature: expected zeros", c.Key.Usage)
	}
	return c, nil
}

// Slot is one signature of a certificate.
type Slot struct {
	Usage     Usage // of the key that signed
	Algorithm uint32
	Signature []byte // as in the certificate: see ParseSignature
}

// Certificate is a CEK or a PEK. It holds no dates.
type Certificate struct {
	Version      uint32
	Major, Minor byte // of the firmware's interface
	Algorithm    uint32
	Key          PublicKey
	// SignerID is the HSK's KeyID in a CEK, and zeros in a PEK.
	SignerID [keyIDSize]byte
	// Signed is what the slots are over; it shares memory with the input.
	Signed []byte
	Slots  [2]Slot
}

// ParseCertificate decodes the 2084 bytes of a CEK or PEK certificate
// (csv-rs@b35dd21b, src/certs/csv/cert/mod.rs).
func ParseCertificate(raw []byte) (*Certificate, error) {
	if len(raw) != CertificateSize {
		return nil, fmt.Errorf("csv: certificate: expected %d bytes, got %d", CertificateSize, len(raw))
	}
	le := binary.LittleEndian
	c := &Certificate{Version: le.Uint32(raw), Major: raw[4], Minor: raw[5], Algorithm: le.Uint32(raw[12:]), SignerID: [keyIDSize]byte(raw[420:]), Signed: raw[:bodySize]}
	var err error
	if c.Key, err = parseKey(raw[16:], raw[16+pointSize:]); err != nil {
		return nil, fmt.Errorf("csv: certificate: %w", err)
	}
	c.Key.Usage = Usage(le.Uint32(raw[8:]))
	for i := range c.Slots {
		slot := raw[bodySize+i*slotSize:][:slotSize]
		c.Slots[i] = Slot{Usage(le.Uint32(slot)), le.Uint32(slot[4:]), slot[8 : 8+sigSize]}
		if !zero(slot[slotSize-slotPadding:]) {
			return nil, fmt.Errorf("csv: %s certificate: reserved bytes behind signature %d: expected zeros", c.Key.Usage, i)
		}
	}
	return c, nil
}

// SignatureOf returns the signature of a key of that usage. It fails where there
// is none, or more than one.
func (c *Certificate) SignatureOf(u Usage) (Signature, error) {
	var found []byte
	for _, s := range c.Slots {
		if s.Usage != u || s.Algorithm != AlgorithmSM2 {
			continue
		}
		if found != nil {
			return Signature{}, fmt.Errorf("csv: %s certificate: expected one signature by %s, got two", c.Key.Usage, u)
		}
		found = s.Signature
	}
	if found == nil {
		return Signature{}, fmt.Errorf("csv: %s certificate: expected a signature by %s, got %s (algorithm %d) and %s (algorithm %d)",
			c.Key.Usage, u, c.Slots[0].Usage, c.Slots[0].Algorithm, c.Slots[1].Usage, c.Slots[1].Algorithm)
	}
	return parseSignature(found)
}

// parseKey reads a curve point and the user identifier, which are not always
// next to each other.
func parseKey(point, userID []byte) (PublicKey, error) {
	var k PublicKey
	if g := binary.LittleEndian.Uint32(point); g != curveSM2 {
		return k, fmt.Errorf("public key: curve: expected %d (SM2), got %d", curveSM2, g)
	}
	var err error
	if k.X, err = parseNumber("public key: x", point[4:]); err != nil {
		return k, err
	}
	if k.Y, err = parseNumber("public key: y", point[4+coordinate:]); err != nil {
		return k, err
	}
	n := int(binary.LittleEndian.Uint16(userID))
	if n > maxUserID {
		return k, fmt.Errorf("user identifier: expected at most %d bytes, got %d", maxUserID, n)
	}
	k.UserID = userID[2 : 2+n]
	return k, nil
}

func parseSignature(b []byte) (Signature, error) {
	var s Signature
	var err error
	if s.R, err = parseNumber("signature: r", b); err != nil {
		return s, err
	}
	s.S, err = parseNumber("signature: s", b[coordinate:])
	return s, err
}

// parseNumber turns a little-endian number of 72 bytes around.
func parseNumber(name string, b []byte) (out [numberSize]byte, err error) {
	if !zero(b[numberSize:coordinate]) {
		return out, fmt.Errorf("%s: expected a number of %d bytes, got a greater one", name, numberSize)
	}
	for i := range out {
		out[i] = b[numberSize-1-i]
	}
	return out, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
