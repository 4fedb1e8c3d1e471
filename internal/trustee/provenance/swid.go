package provenance

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// Namespaces of a manifest: ISO/IEC 19770-2:2015, and the attributes of TCG's
// reference integrity manifests as NVIDIA writes them.
const (
	nsSWID   = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	nsSHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
)

// Limits of a manifest.
const (
	maxMeasurements = 256
	maxAlternatives = 64
	sha384Size      = 48
)

// parseSWID reads an NVIDIA reference integrity manifest. Each active
// measurement becomes a list of its alternatives in hex, named
// <manufacturer with _ for spaces>.<edition>.measurement_<index> (§3.2).
func parseSWID(o *Options, data []byte) (*document, error) {
	x, err := readXML(o, data)
	if err != nil {
		return nil, err
	}
	root := x.root
	if root.Tag != "SoftwareIdentity" || root.NamespaceURI() != nsSWID {
		return nil, fmt.Errorf("expected the element SoftwareIdentity of %s, got %.80q", nsSWID, root.Tag)
	}
	meta, err := one(root, "Meta")
	if err != nil {
		return nil, err
	}
	payload, err := one(root, "Payload")
	if err != nil {
		return nil, err
	}
	manufacturer, edition := attr(meta, "FirmwareManufacturer"), attr(meta, "edition")
	if manufacturer == "" {
		manufacturer = attr(meta, "PlatformManufacturerStr")
	}
	if manufacturer == "" || edition == "" {
		return nil, errors.New("Meta: expected FirmwareManufacturer or PlatformManufacturerStr, and edition")
	}
	prefix := strings.ReplaceAll(manufacturer, " ", "_") + "." + edition + ".measurement_"
	d := &document{by: x.by, title: strings.TrimSpace(attr(meta, "product") + " " + attr(meta, "colloquialVersion"))}
	if x.cert != nil {
		d.proof = certProof(x.cert)
	}
	seen := make(map[int]bool)
	for _, r := range payload.ChildElements() {
		if r.Tag != "Resource" || attr(r, "type") != "Measurement" {
			continue
		}
		ref, index, err := measurement(r, prefix, d.title)
		if err != nil {
			return nil, fmt.Errorf("Resource %.80q: %w", attr(r, "name"), err)
		}
		if seen[index] {
			return nil, fmt.Errorf("Resource: index %d occurs twice", index)
		}
		seen[index] = true
		if ref != nil {
			d.refs = append(d.refs, *ref)
		}
	}
	return d, nil
}

// measurement reads one resource; nil for one that is not active.
func measurement(r *etree.Element, prefix, title string) (*refvalues.Reference, int, error) {
	index, err := number(attr(r, "index"), maxMeasurements-1)
	if err != nil {
		return nil, 0, fmt.Errorf("index: %w", err)
	}
	switch attr(r, "active") {
	case "True":
	case "False":
		return nil, index, nil
	default:
		return nil, 0, fmt.Errorf("active: expected True or False, got %.80q", attr(r, "active"))
	}
	n, err := number(attr(r, "alternatives"), maxAlternatives)
	if err != nil {
		return nil, 0, fmt.Errorf("alternatives: %w", err)
	}
	if n == 0 {
		return nil, 0, errors.New("alternatives: expected at least 1, got 0")
	}
	ref := &refvalues.Reference{Name: prefix + strconv.Itoa(index)}
	for i := range n {
		h := hash(r, i)
		b, err := hex.DecodeString(h)
		if err != nil || len(b) != sha384Size {
			return nil, 0, fmt.Errorf("Hash%d: expected %d bytes of SHA-384 in hex, got %.120q", i, sha384Size, h)
		}
		v, err := json.Marshal(hex.EncodeToString(b))
		if err != nil {
			return nil, 0, err
		}
		ref.Entries = append(ref.Entries, refvalues.Entry{Value: v, Description: plain(title+" "+attr(r, "name"), refvalues.MaxDescription)})
	}
	return ref, index, nil
}

// hash is the value of an attribute Hash<i>; empty where it is missing, or
// written with several prefixes.
func hash(r *etree.Element, i int) string {
	value, n := "", 0
	for _, a := range r.Attr {
		if a.Key == "Hash"+strconv.Itoa(i) && a.NamespaceURI() == nsSHA384 {
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
		if c.Tag != tag || c.NamespaceURI() != nsSWID {
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
