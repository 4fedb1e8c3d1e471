// Package provenance reads reference values from the documents that vouch for
// them: in-toto attestations, CoRIM, and NVIDIA's SWID reference integrity
// manifests, wrapped in the message of the reference value provider protocol
// (kbs-attestation-rvps.md §3.2).
//
// A value counts for as much as whoever signed it. Every document is verified
// against configured signers; each signer may set only the references that its
// prefixes cover; and every value carries, as its source, who vouched for it.
// Unsigned documents are refused unless the configuration admits their format,
// and then say so in the source.
package provenance

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// Formats are the types of message.
const (
	// Sample is {"name": value, …}: the administrator's own word.
	Sample = "sample"
	// SWID is an NVIDIA reference integrity manifest in XML.
	SWID = "swid"
	// CoRIM is a concise reference integrity manifest, signed or not.
	CoRIM = "corim"
	// InToto is a DSSE envelope with an in-toto statement.
	InToto = "in-toto"
)

// Formats lists them.
func Formats() []string { return []string{Sample, SWID, CoRIM, InToto} }

// Limits.
const (
	// MaxMessage bounds a message, in bytes; [MaxDocument] what it wraps.
	MaxMessage  = 2 << 20
	MaxDocument = 1 << 20
	// MaxReferences bounds how many references one message sets.
	MaxReferences = 1024
)

// ErrUntrusted is wrapped by the errors of documents that nobody who is
// configured vouches for, or that set what their signer may not.
var ErrUntrusted = errors.New("not vouched for")

// Options say whom to believe.
type Options struct {
	Signers []Signer
	// AllowUnsigned are the formats that are accepted without a signature.
	// In-toto never is.
	AllowUnsigned []string
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Check refuses options that do not say what they mean.
func (o *Options) Check() error {
	var errs []error
	for _, f := range o.AllowUnsigned {
		if !slices.Contains([]string{Sample, SWID, CoRIM}, f) {
			errs = append(errs, fmt.Errorf("provenance: allow_unsigned: expected %s, %s or %s, got %.80q", Sample, SWID, CoRIM, f))
		}
	}
	seen := make(map[string]bool)
	for i := range o.Signers {
		s := &o.Signers[i]
		if err := s.Check(); err != nil {
			errs = append(errs, err)
		}
		if seen[s.Name] {
			errs = append(errs, fmt.Errorf("provenance: signer %.64q: is configured twice", s.Name))
		}
		seen[s.Name] = true
	}
	return errors.Join(errs...)
}

func (o *Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

// document is what a format's reader found.
type document struct {
	// by is who vouches for it, nil where nobody does.
	by *Signer
	// proof says how that is known, for the source of its values.
	proof string
	// title names the document, for the source of its values.
	title string
	refs  []refvalues.Reference
	// expires is when the document says that its values end; zero: not.
	expires time.Time
}

// Parse reads one message and returns the references that it sets, by name.
// Every value of a reference has its Source set, and Expires where the document
// says so. Nothing is returned unless all of the message may be believed.
func Parse(ctx context.Context, o Options, message []byte) ([]refvalues.Reference, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var m struct {
		Version string `json:"version"`
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}
	if err := strictjson.Decode(message, &m, strictjson.Limits{Bytes: MaxMessage, Depth: 1}); err != nil {
		return nil, fmt.Errorf("reference value message: %w", err)
	}
	if m.Version != "" && m.Version != refvalues.Version {
		return nil, fmt.Errorf("reference value message: version: expected %q, got %.80q", refvalues.Version, m.Version)
	}
	if !slices.Contains(Formats(), m.Type) {
		return nil, fmt.Errorf("reference value message: type: expected one of %s, got %.80q", strings.Join(Formats(), ", "), m.Type)
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("reference value message: payload: expected standard base64: %w", err)
	}
	if len(payload) > MaxDocument {
		return nil, fmt.Errorf("reference value message: payload: expected at most %d bytes, got %d", MaxDocument, len(payload))
	}
	var d *document
	switch m.Type {
	case Sample:
		d, err = parseSample(payload)
	case SWID:
		d, err = parseSWID(&o, payload)
	case CoRIM:
		d, err = parseCoRIM(&o, payload)
	case InToto:
		d, err = parseInToto(&o, payload)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Type, err)
	}
	return o.finish(m.Type, d)
}

// finish holds a document to what its signer may say.
func (o *Options) finish(format string, d *document) ([]refvalues.Reference, error) {
	if d.by == nil && (format == InToto || !slices.Contains(o.AllowUnsigned, format)) {
		return nil, fmt.Errorf("%s: expected a document that is signed by one of the configured signers, got one without a signature: %w", format, ErrUntrusted)
	}
	if !d.expires.IsZero() && !o.now().Before(d.expires) {
		return nil, fmt.Errorf("%s: %s expired at %s", format, d.title, d.expires.UTC().Format(time.RFC3339))
	}
	if n := len(d.refs); n == 0 || n > MaxReferences {
		return nil, fmt.Errorf("%s: expected 1 to %d reference values, got %d", format, MaxReferences, n)
	}
	source := d.source(format)
	for i := range d.refs {
		r := &d.refs[i]
		if d.by != nil {
			r.Name = d.by.rename(r.Name)
			if !d.by.covers(r.Name) {
				return nil, fmt.Errorf("%s: signer %q may set references that begin with %s, got %.256q: %w",
					format, d.by.Name, strings.Join(d.by.Prefixes, ", "), r.Name, ErrUntrusted)
			}
		}
		for j := range r.Entries {
			r.Entries[j].Source, r.Entries[j].Expires = source, d.expires
		}
		if err := r.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", format, err)
		}
	}
	slices.SortFunc(d.refs, func(a, b refvalues.Reference) int { return strings.Compare(a.Name, b.Name) })
	for i := range d.refs[1:] {
		if d.refs[i].Name == d.refs[i+1].Name {
			return nil, fmt.Errorf("%s: reference value %q: is set twice", format, d.refs[i].Name)
		}
	}
	return d.refs, nil
}

func (d *document) source(format string) string {
	s := "unsigned " + format
	if d.by != nil {
		s = "signer " + d.by.Name + ": " + format
	}
	for _, more := range []string{d.title, d.proof} {
		if more != "" {
			s += ", " + more
		}
	}
	return plain(s, refvalues.MaxSource)
}

// plain is text that a terminal and a log can take, of at most limit bytes.
func plain(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}

func parseSample(payload []byte) (*document, error) {
	values, err := fields(payload)
	if err != nil {
		return nil, err
	}
	d := &document{}
	for name, v := range values {
		r, err := refvalues.FromJSON(name, v)
		if err != nil {
			return nil, err
		}
		d.refs = append(d.refs, r)
	}
	return d, nil
}

// fields are the members of a JSON object whose names we do not all know: the
// document is somebody else's. Names that occur twice are refused at any depth.
func fields(data []byte) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := strictjson.Decode(data, &m, strictjson.Limits{Bytes: MaxDocument, Depth: 24}); err != nil {
		return nil, err
	}
	return m, nil
}
