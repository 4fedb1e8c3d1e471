// Package rim reads NVIDIA's reference integrity manifests: ISO/IEC 19770-2:2015
// software identification tags in XML that list, for one version of a driver or
// firmware, the measurements that a device reports, and that NVIDIA signs with
// an enveloped XML signature (kbs-attestation-rvps.md §3.2; TCG Reference
// Integrity Manifest Information Model 1.01).
//
// [Verify] is for everything that rests on what a manifest says; [Decode] reads
// one without a proof of its origin. What both return was read from one tree:
// the signed element as canonicalised, and nothing beside it.
//
// A manifest counts measurements from 0, the SPDM report that it is compared
// with from 1: index i of a manifest is block i+1 of a report (NVIDIA/nvtrust@0281730,
// MeasurementRecord.get_measurements).
package rim

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/beevik/etree"
)

// Namespaces of a manifest: ISO/IEC 19770-2:2015, and the attributes of TCG's
// reference integrity manifests as NVIDIA writes them.
const (
	Namespace       = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	NamespaceSHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
)

// Limits of a manifest.
const (
	// MaxBytes bounds a document. NVIDIA's have about 20 KiB.
	MaxBytes = 1 << 20
	// MaxMeasurements and MaxAlternatives bound what it lists.
	MaxMeasurements = 256
	MaxAlternatives = 64
	// Size is the length of a measurement: SHA-384.
	Size = 48
)

var (
	// ErrUnsigned is what [Verify] says of a document without a signature.
	ErrUnsigned = errors.New("XML signature: expected one, got none")
	// ErrSignature is wrapped where a signature does not verify.
	ErrSignature = errors.New("XML signature: is not that of the document")
)

// Trust judges the certificates that a document brings, at least one: the first
// is the one that signed, the others may lead to a root. It is called before
// the signature is looked at; its error is returned as it is.
type Trust func(certs []*x509.Certificate) error

// Manifest is what a document says.
type Manifest struct {
	// Manufacturer of the firmware or else of the platform, for example "NVIDIA Corporation".
	Manufacturer string
	// Edition is "GPU" or "SWITCH", Product the chip, for example "GH100".
	Edition, Product string
	// Version of the driver or firmware (colloquialVersion), for example "96.00.74.00.1C".
	Version string
	// Measurements in the document's order; indices are unique.
	Measurements []Measurement
	// Certificates are those of the signature, the signer's first. Nil when it
	// was not verified.
	Certificates []*x509.Certificate
}

// Measurement is one line of a manifest.
type Measurement struct {
	// Index counts from 0.
	Index int
	// Name is a description.
	Name string
	// Active is false where the version does not say anything about the index.
	Active bool
	// Values are what an active measurement may be, at least one, of [Size] bytes
	// each. Nil where it is not active.
	Values [][]byte
}

// Verify reads a signed manifest. The error is trust's, or it is [ErrUnsigned], or
// wraps [ErrSignature], or says what is wrong with the document.
func Verify(data []byte, trust Trust) (*Manifest, error) {
	if trust == nil {
		return nil, errors.New("manifest: expected somebody to trust, got none")
	}
	return read(data, trust)
}

// Decode reads a manifest without a proof of who wrote it. A signature is not
// verified, but has to be one that could be.
func Decode(data []byte) (*Manifest, error) { return read(data, nil) }

func read(data []byte, trust Trust) (*Manifest, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("manifest: expected at most %d bytes, got %d", MaxBytes, len(data))
	}
	root, certs, err := readXML(data, trust)
	if err != nil {
		return nil, err
	}
	if root.Tag != "SoftwareIdentity" || root.NamespaceURI() != Namespace {
		return nil, fmt.Errorf("expected the element SoftwareIdentity of %s, got %.80q", Namespace, root.Tag)
	}
	meta, err := one(root, "Meta")
	if err != nil {
		return nil, err
	}
	payload, err := one(root, "Payload")
	if err != nil {
		return nil, err
	}
	m := &Manifest{
		Manufacturer: attr(meta, "FirmwareManufacturer"), Edition: attr(meta, "edition"),
		Product: attr(meta, "product"), Version: attr(meta, "colloquialVersion"), Certificates: certs,
	}
	if m.Manufacturer == "" {
		m.Manufacturer = attr(meta, "PlatformManufacturerStr")
	}
	if m.Manufacturer == "" || m.Edition == "" {
		return nil, errors.New("Meta: expected FirmwareManufacturer or PlatformManufacturerStr, and edition")
	}
	m.Measurements, err = measurements(payload)
	return m, err
}

func measurements(payload *etree.Element) ([]Measurement, error) {
	var out []Measurement
	seen := make(map[int]bool)
	for _, r := range payload.ChildElements() {
		if r.Tag != "Resource" || attr(r, "type") != "Measurement" {
			continue
		}
		m, err := measurement(r)
		if err != nil {
			return nil, fmt.Errorf("Resource %.80q: %w", attr(r, "name"), err)
		}
		if seen[m.Index] {
			return nil, fmt.Errorf("Resource: index %d occurs twice", m.Index)
		}
		seen[m.Index] = true
		out = append(out, m)
	}
	return out, nil
}

// measurement reads one resource.
func measurement(r *etree.Element) (Measurement, error) {
	index, err := number(attr(r, "index"), MaxMeasurements-1)
	if err != nil {
		return Measurement{}, fmt.Errorf("index: %w", err)
	}
	m := Measurement{Index: index, Name: attr(r, "name")}
	switch attr(r, "active") {
	case "True":
		m.Active = true
	case "False":
		return m, nil
	default:
		return Measurement{}, fmt.Errorf("active: expected True or False, got %.80q", attr(r, "active"))
	}
	n, err := number(attr(r, "alternatives"), MaxAlternatives)
	if err != nil {
		return Measurement{}, fmt.Errorf("alternatives: %w", err)
	}
	if n == 0 {
		return Measurement{}, errors.New("alternatives: expected at least 1, got 0")
	}
	for i := range n {
		h := hash(r, i)
		b, err := hex.DecodeString(h)
		if err != nil || len(b) != Size {
			return Measurement{}, fmt.Errorf("Hash%d: expected %d bytes of SHA-384 in hex, got %.120q", i, Size, h)
		}
		m.Values = append(m.Values, b)
	}
	return m, nil
}

// hash is the value of an attribute Hash<i>; empty where it is missing, or
// written with several prefixes.
func hash(r *etree.Element, i int) string {
	value, n := "", 0
	for _, a := range r.Attr {
		if a.Key == "Hash"+strconv.Itoa(i) && a.NamespaceURI() == NamespaceSHA384 {
			value, n = a.Value, n+1
		}
	}
	if n != 1 {
		return ""
	}
	return value
}

func number(s string, limit int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > limit || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("expected a number from 0 to %d, got %.80q", limit, s)
	}
	return n, nil
}

// one is the only child element of a name, in the manifest's namespace.
func one(e *etree.Element, tag string) (*etree.Element, error) {
	var found *etree.Element
	for _, c := range e.ChildElements() {
		if c.Tag != tag || c.NamespaceURI() != Namespace {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s: expected one, got several", tag)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%s: expected one, got none", tag)
	}
	return found, nil
}

// attr is the value of the attribute with a local name, whatever its prefix;
// empty where it is missing or there are several.
func attr(e *etree.Element, key string) string {
	value, n := "", 0
	for _, a := range e.Attr {
		if a.Key == key && a.Space != "xmlns" {
			value, n = a.Value, n+1
		}
	}
	if n != 1 {
		return ""
	}
	return value
}
