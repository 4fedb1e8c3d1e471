package provenance

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// CBOR tags and map keys of draft-ietf-rats-corim.
const (
	tagCoRIM    = 500 // #6.500: a CoRIM of either kind (earlier drafts)
	tagUnsigned = 501
	tagSigned   = 502 // earlier drafts wrapped the COSE_Sign1
	tagCoMID    = 506
	tagCOSE     = 18 // COSE_Sign1, RFC 9052 §4.2

	corimID       = 0
	corimTags     = 1
	corimDeps     = 2
	corimValidity = 4

	comidTagID   = 1
	comidTriples = 4
	tripleRef    = 0

	validityNotBefore = 0
	validityNotAfter  = 1
)

// Limits of a CoRIM.
const (
	maxTags     = 64
	maxTriples  = 1024
	maxCBOR     = 4096 // elements of one array or map
	maxCBORDeep = 16
)

// cborMode decodes strictly: no duplicate keys, no indefinite lengths, bounded
// nesting and counts, UTF-8 in text.
func cborMode() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, UTF8: cbor.UTF8RejectInvalid,
		MaxNestedLevels: maxCBORDeep, MaxArrayElements: maxCBOR, MaxMapPairs: maxCBOR,
		TimeTag: cbor.DecTagOptional, IntDec: cbor.IntDecConvertSignedOrFail,
	}.DecMode()
}

// cborMap is a map with integer keys, members undecoded. Keys that are not
// known belong to extensions and are ignored.
type cborMap map[int64]cbor.RawMessage

// decoder reads the parts of a CoRIM.
type decoder struct{ mode cbor.DecMode }

// parseCoRIM reads a CoRIM: #6.501 without a signature, or a COSE_Sign1
// (#6.18), with or without the wrapping tags of earlier drafts.
func parseCoRIM(o *Options, data []byte) (*document, error) {
	mode, err := cborMode()
	if err != nil {
		return nil, err
	}
	d := decoder{mode}
	// Everything is checked for well-formedness and limits before anything is read.
	if err := d.mode.Wellformed(data); err != nil {
		return nil, fmt.Errorf("CBOR: %w", err)
	}
	number, content, err := d.tag(data)
	if err != nil {
		return nil, err
	}
	if number == tagCoRIM {
		if number, content, err = d.tag(content); err != nil {
			return nil, err
		}
	}
	var doc *document
	switch number {
	case tagUnsigned:
		doc = &document{}
	case tagSigned, tagCOSE:
		if doc, content, err = d.verifySigned(o, number, content); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("CBOR: expected tag %d (unsigned) or %d (COSE_Sign1), got %d", tagUnsigned, tagCOSE, number)
	}
	if err := d.corim(doc, content, o.now()); err != nil {
		return nil, err
	}
	return doc, nil
}

// tag splits a tagged item.
func (d decoder) tag(data []byte) (uint64, []byte, error) {
	var t cbor.RawTag
	if err := d.mode.Unmarshal(data, &t); err != nil {
		return 0, nil, fmt.Errorf("CBOR: expected a tag: %w", err)
	}
	return t.Number, t.Content, nil
}

// get decodes a member of a map, and reports whether it is there.
func get[T any](d decoder, m cborMap, key int64, name string, into *T) (bool, error) {
	raw, ok := m[key]
	if !ok {
		return false, nil
	}
	if err := d.mode.Unmarshal(raw, into); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return true, nil
}

// corim reads a corim-map.
func (d decoder) corim(doc *document, data []byte, now time.Time) error {
	var m cborMap
	if err := d.mode.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("corim-map: %w", err)
	}
	var id cbor.RawMessage
	if ok, err := get(d, m, corimID, "corim-map: id", &id); err != nil || !ok {
		return errors.Join(err, errors.New("corim-map: expected an id"))
	}
	name, err := d.identifier(id)
	if err != nil {
		return fmt.Errorf("corim-map: id: %w", err)
	}
	doc.title = "CoRIM " + name
	if _, ok := m[corimDeps]; ok {
		return errors.New("corim-map: dependent RIMs are not supported: they may restrict what this one says")
	}
	if raw, ok := m[corimValidity]; ok {
		if err := d.validity(doc, raw, now); err != nil {
			return fmt.Errorf("corim-map: rim-validity: %w", err)
		}
	}
	var tags []cbor.RawMessage
	if _, err := get(d, m, corimTags, "corim-map: tags", &tags); err != nil {
		return err
	}
	if len(tags) == 0 || len(tags) > maxTags {
		return fmt.Errorf("corim-map: tags: expected 1 to %d, got %d", maxTags, len(tags))
	}
	set := newCollection()
	for i, t := range tags {
		number, content, err := d.tag(t)
		if err != nil {
			return fmt.Errorf("corim-map: tag %d: %w", i, err)
		}
		if number != tagCoMID {
			// Identity tags (505), lists of tags (508): no reference values.
			continue
		}
		var comid []byte
		if err := d.mode.Unmarshal(content, &comid); err != nil {
			return fmt.Errorf("corim-map: tag %d: expected a byte string: %w", i, err)
		}
		if err := d.comid(set, comid); err != nil {
			return fmt.Errorf("CoMID %d: %w", i, err)
		}
	}
	doc.refs = set.references()
	return nil
}

// validity reads a validity-map, whose not-after is when values expire.
func (d decoder) validity(doc *document, raw []byte, now time.Time) error {
	var m cborMap
	if err := d.mode.Unmarshal(raw, &m); err != nil {
		return err
	}
	var from, to time.Time
	hasFrom, err := get(d, m, validityNotBefore, "not-before", &from)
	if err != nil {
		return err
	}
	hasTo, err := get(d, m, validityNotAfter, "not-after", &to)
	if err != nil {
		return err
	}
	switch {
	case !hasTo || to.IsZero():
		return errors.New("not-after: expected a time, got none")
	case hasFrom && now.Before(from):
		return fmt.Errorf("not-before: is not valid before %s", from.UTC().Format(time.RFC3339))
	case !now.Before(to):
		return fmt.Errorf("not-after: expired at %s", to.UTC().Format(time.RFC3339))
	}
	// The earlier end counts: the signature may have one too.
	if doc.expires.IsZero() || to.Before(doc.expires) {
		doc.expires = to.UTC()
	}
	return nil
}

// comid reads a concise-mid-tag's reference triples. Other triples set no
// reference values.
func (d decoder) comid(set *collection, data []byte) error {
	if err := d.mode.Wellformed(data); err != nil {
		return fmt.Errorf("CBOR: %w", err)
	}
	var m, triples cborMap
	if err := d.mode.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("CBOR: %w", err)
	}
	if _, ok := m[comidTagID]; !ok {
		return errors.New("expected a tag-identity")
	}
	if _, err := get(d, m, comidTriples, "triples", &triples); err != nil {
		return err
	}
	var refs [][]cbor.RawMessage
	if _, err := get(d, triples, tripleRef, "reference-triples", &refs); err != nil {
		return err
	}
	if len(refs) > maxTriples {
		return fmt.Errorf("reference-triples: expected at most %d, got %d", maxTriples, len(refs))
	}
	for i, t := range refs {
		if len(t) != 2 {
			return fmt.Errorf("reference triple %d: expected an environment and measurements, got %d elements", i, len(t))
		}
		if err := d.triple(set, t[0], t[1]); err != nil {
			return fmt.Errorf("reference triple %d: %w", i, err)
		}
	}
	return nil
}

// identifier prints an id: text, a UUID (#6.37 or 16 bytes), an OID (#6.111),
// bytes in hex, or a number.
func (d decoder) identifier(raw []byte) (string, error) {
	var v any
	if err := d.mode.Unmarshal(raw, &v); err != nil {
		return "", err
	}
	if t, ok := v.(cbor.Tag); ok {
		b, isBytes := t.Content.([]byte)
		switch {
		case isBytes && t.Number == 37 && len(b) == 16:
			return uuid(b), nil
		case isBytes && t.Number == 111:
			return oid(b)
		case isBytes && t.Number == 560:
			return fmt.Sprintf("%x", b), nil
		}
		return "", fmt.Errorf("expected text, a UUID, an OID, bytes or a number, got tag %d", t.Number)
	}
	switch v := v.(type) {
	case string:
		if v == "" || strings.ContainsAny(v, "/") {
			return "", fmt.Errorf("expected text without a slash, got %.80q", v)
		}
		return v, nil
	case []byte:
		if len(v) == 16 {
			return uuid(v), nil
		}
		return fmt.Sprintf("%x", v), nil
	case int64:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("expected text, a UUID, an OID, bytes or a number, got %T", v)
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// maxOID bounds an object identifier, in bytes.
const maxOID = 64

// oid prints the arcs of a BER-encoded object identifier (RFC 9090).
func oid(b []byte) (string, error) {
	if len(b) == 0 || len(b) > maxOID || b[len(b)-1]&0x80 != 0 {
		return "", fmt.Errorf("expected an object identifier of 1 to %d bytes", maxOID)
	}
	var arcs []uint64
	var v uint64
	start := true
	for _, c := range b {
		if start && c == 0x80 || v > 1<<56 {
			return "", errors.New("expected an object identifier in its shortest form, with arcs below 2^56")
		}
		v = v<<7 | uint64(c&0x7f)
		start = false
		if c&0x80 == 0 {
			arcs, v, start = append(arcs, v), 0, true
		}
	}
	first := min(arcs[0]/40, 2)
	var s strings.Builder
	fmt.Fprintf(&s, "%d.%d", first, arcs[0]-40*first)
	for _, a := range arcs[1:] {
		fmt.Fprintf(&s, ".%d", a)
	}
	return s.String(), nil
}
