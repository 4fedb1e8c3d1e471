package dcapquote

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
)

// PCK is what the SGX extensions of a PCK certificate say about the platform.
type PCK struct {
	PPID [16]byte
	// Components are the SGX TCB component SVNs 01 to 16.
	Components [16]byte
	PCESVN     uint16
	CPUSVN     [16]byte
	PCEID      [2]byte
	FMSPC      [6]byte
	SGXType    SGXType
	// PlatformInstanceID and Configuration are nil in certificates of the
	// processor CA.
	PlatformInstanceID *[16]byte
	Configuration      *Configuration
}

// SGXType is how the platform protects memory.
type SGXType uint8

// The SGX types.
const (
	SGXStandard          SGXType = 0
	SGXScalable          SGXType = 1
	SGXScalableIntegrity SGXType = 2
)

const (
	extensionArc           = "1.2.840.113741.1.13.1"
	maxExtensions          = 16
	maxTCBFields           = 24
	maxConfigurationFields = 16
)

// String is the name that Intel's quote verification library gives the type.
func (t SGXType) String() string {
	switch t {
	case SGXStandard:
		return "Standard"
	case SGXScalable:
		return "Scalable"
	case SGXScalableIntegrity:
		return "Scalable with Integrity"
	}
	return fmt.Sprintf("Unknown (%d)", uint8(t))
}

// Configuration are the flags of a multi-package platform.
type Configuration struct {
	DynamicPlatform bool // packages can be added without a new certificate
	CachedKeys      bool // Intel's registration service keeps the platform's keys
	SMTEnabled      bool // simultaneous multithreading is on
}

// member is one element of the extension: SEQUENCE { OID, value }.
type member struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// ParsePCK reads the extension 1.2.840.113741.1.13.1 of a certificate.
// Elements that are not known are ignored: the CA signed them, and Intel adds
// some; known ones must be there once and have their exact type and size.
func ParsePCK(c *x509.Certificate) (*PCK, error) {
	for _, e := range c.Extensions { // x509 refuses duplicates
		if e.Id.String() == extensionArc {
			p, err := parseExtension(e.Value)
			if err != nil {
				return nil, fmt.Errorf("PCK certificate: extension %s: %w", extensionArc, err)
			}
			return p, nil
		}
	}
	return nil, fmt.Errorf("PCK certificate: expected the extension %s, got none", extensionArc)
}

func parseExtension(der []byte) (*PCK, error) {
	members, err := parseMembers(der, extensionArc, maxExtensions)
	if err != nil {
		return nil, err
	}
	p := new(PCK)
	if err := p.parseTCB(members["2"]); err != nil {
		return nil, fmt.Errorf("TCB: %w", err)
	}
	var sgxType asn1.Enumerated
	for _, err := range []error{
		members.octets("1", p.PPID[:]), members.octets("3", p.PCEID[:]), members.octets("4", p.FMSPC[:]), members.value("5", &sgxType),
	} {
		if err != nil {
			return nil, err
		}
	}
	if sgxType < 0 || sgxType > asn1.Enumerated(SGXScalableIntegrity) {
		return nil, fmt.Errorf("SGX type: expected 0, 1 or 2, got %d", sgxType)
	}
	p.SGXType = SGXType(sgxType)
	if _, ok := members["6"]; ok {
		p.PlatformInstanceID = new([16]byte)
		if err := members.octets("6", p.PlatformInstanceID[:]); err != nil {
			return nil, err
		}
	}
	if raw, ok := members["7"]; ok {
		if p.Configuration, err = parseConfiguration(raw); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// parseTCB reads element 2: sixteen component SVNs, PCESVN and CPUSVN.
func (p *PCK) parseTCB(der []byte) error {
	members, err := parseMembers(der, extensionArc+".2", maxTCBFields)
	if err != nil {
		return err
	}
	for i := range p.Components {
		n, err := members.number(strconv.Itoa(i+1), 0xFF)
		if err != nil {
			return err
		}
		p.Components[i] = uint8(n) //nolint:gosec // at most 0xFF
	}
	n, err := members.number("17", 0xFFFF)
	if err != nil {
		return err
	}
	p.PCESVN = uint16(n) //nolint:gosec // at most 0xFFFF
	return members.octets("18", p.CPUSVN[:])
}

func parseConfiguration(raw []byte) (*Configuration, error) {
	members, err := parseMembers(raw, extensionArc+".7", maxConfigurationFields)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := new(Configuration)
	for id, to := range map[string]*bool{"1": &c.DynamicPlatform, "2": &c.CachedKeys, "3": &c.SMTEnabled} {
		if _, ok := members[id]; !ok {
			continue // all three are optional
		}
		if err := members.value(id, to); err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
	}
	return c, nil
}

// members are the values of a sequence's elements by the tail of their OID.
type members map[string][]byte

func parseMembers(der []byte, arc string, limit int) (members, error) {
	var list []member
	rest, err := asn1.Unmarshal(der, &list)
	if err != nil {
		return nil, fmt.Errorf("expected a sequence of object identifiers and values: %w", err)
	}
	if len(rest) != 0 {
		return nil, errors.New("bytes left over")
	}
	if len(list) > limit {
		return nil, fmt.Errorf("expected at most %d elements, got %d", limit, len(list))
	}
	out := members{}
	for _, m := range list {
		id := m.ID.String()
		if len(id) <= len(arc)+1 || id[:len(arc)] != arc || id[len(arc)] != '.' {
			return nil, fmt.Errorf("element %.64s: expected one below %s", id, arc)
		}
		tail := id[len(arc)+1:]
		if _, ok := out[tail]; ok {
			return nil, fmt.Errorf("element %.64s occurs twice", id)
		}
		out[tail] = m.Value.FullBytes
	}
	return out, nil
}

// value decodes an element into to, whose Go type decides the ASN.1 type.
func (m members) value(id string, to any) error {
	der, ok := m[id]
	if !ok {
		return fmt.Errorf("element %s: expected one, got none", id)
	}
	rest, err := asn1.Unmarshal(der, to)
	if err != nil || len(rest) != 0 {
		return fmt.Errorf("element %s: expected another type, got %.32x", id, der)
	}
	return nil
}

func (m members) octets(id string, to []byte) error {
	var b []byte
	if err := m.value(id, &b); err != nil {
		return err
	}
	if len(b) != len(to) {
		return fmt.Errorf("element %s: expected %d bytes, got %d", id, len(to), len(b))
	}
	copy(to, b)
	return nil
}

func (m members) number(id string, limit int) (int, error) {
	var n int
	if err := m.value(id, &n); err != nil {
		return 0, err
	}
	if n < 0 || n > limit {
		return 0, fmt.Errorf("element %s: expected 0 to %d, got %d", id, limit, n)
	}
	return n, nil
}
