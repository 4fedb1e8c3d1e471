package provenance

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// Types of in-toto attestations.
const (
	// payloadType and statementType are in-toto's (Attestation Framework v1).
	payloadType   = "application/vnd.in-toto+json"
	statementType = "https://in-toto.io/Statement/v1"
	// SLSAProvenance makes the digests of the subjects values of references
	// with the subjects' names.
	SLSAProvenance = "https://slsa.dev/provenance/v1"
	// ReferenceValues is our own predicate: {"values": {"name": value, …},
	// "expires": RFC 3339 time}. The subjects say what the values belong to.
	ReferenceValues = "https://coffer-project.github.io/reference-values/v1"
)

// Limits of an envelope.
const (
	maxSignatures = 16
	maxSubjects   = 256
)

// parseInToto verifies a DSSE envelope and reads the statement in it.
func parseInToto(o *Options, data []byte) (*document, error) {
	m, err := fields(data)
	if err != nil {
		return nil, err
	}
	var e dsse.Envelope
	if err := errors.Join(member(m, "payloadType", &e.PayloadType), member(m, "payload", &e.Payload)); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("envelope: payloadType: expected %q, got %.80q", payloadType, e.PayloadType)
	}
	var signatures []map[string]json.RawMessage
	if err := member(m, "signatures", &signatures); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if n := len(signatures); n == 0 || n > maxSignatures {
		return nil, fmt.Errorf("envelope: signatures: expected 1 to %d, got %d", maxSignatures, n)
	}
	payload, err := decode64(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("envelope: payload: %w", err)
	}
	pae := dsse.PAE(e.PayloadType, payload)
	for i, s := range signatures {
		var text string
		if err := member(s, "sig", &text); err != nil {
			return nil, fmt.Errorf("envelope: signature %d: %w", i, err)
		}
		sig, err := decode64(text)
		if err != nil {
			return nil, fmt.Errorf("envelope: signature %d: %w", i, err)
		}
		// The key id is not signed, and so not looked at.
		if by, key := o.signed(pae, sig); by != nil {
			return statement(by, keyProof(key), payload)
		}
	}
	return nil, fmt.Errorf("envelope: no configured key made any of its %d signatures: %w", len(signatures), ErrUntrusted)
}

// signed finds the signer whose key made a signature.
func (o *Options) signed(message, sig []byte) (*Signer, crypto.PublicKey) {
	for i := range o.Signers {
		for _, k := range o.Signers[i].Keys {
			if verify(k, message, sig) {
				return &o.Signers[i], k
			}
		}
	}
	return nil, nil
}

// verify checks a signature as in-toto's tools make them: ECDSA in ASN.1 over
// the hash of the curve's size, Ed25519, RSA over SHA-256 with PSS or PKCS #1
// v1.5.
func verify(key crypto.PublicKey, message, sig []byte) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			sum := sha512.Sum384(message)
			return ecdsa.VerifyASN1(k, sum[:], sig)
		case elliptic.P521():
			sum := sha512.Sum512(message)
			return ecdsa.VerifyASN1(k, sum[:], sig)
		}
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig)
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return rsa.VerifyPSS(k, crypto.SHA256, sum[:], sig, nil) == nil || rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}

// subjectOf is a thing that a statement is about.
type subjectOf struct {
	name string
	// digests are in hex, by algorithm; only SHA-2 counts.
	digests map[string]string
}

func statement(by *Signer, proof string, payload []byte) (*document, error) {
	m, err := fields(payload)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	var typ, predicateType string
	var list []map[string]json.RawMessage
	if err := errors.Join(member(m, "_type", &typ), member(m, "predicateType", &predicateType), member(m, "subject", &list)); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	if typ != statementType {
		return nil, fmt.Errorf("statement: _type: expected %q, got %.80q", statementType, typ)
	}
	if len(list) == 0 || len(list) > maxSubjects {
		return nil, fmt.Errorf("statement: subject: expected 1 to %d, got %d", maxSubjects, len(list))
	}
	var subjects []subjectOf
	for i, s := range list {
		sub, err := readSubject(s)
		if err != nil {
			return nil, fmt.Errorf("statement: subject %d: %w", i, err)
		}
		subjects = append(subjects, sub)
	}
	predicate, ok := m["predicate"]
	if !ok {
		return nil, errors.New("statement: expected a predicate")
	}
	d := &document{by: by, proof: proof, title: predicateType}
	switch predicateType {
	case SLSAProvenance:
		err = d.slsa(predicate, subjects)
	case ReferenceValues:
		err = d.values(predicate, subjects)
	default:
		return nil, fmt.Errorf("statement: predicateType: expected %q or %q, got %.120q", SLSAProvenance, ReferenceValues, predicateType)
	}
	if err != nil {
		return nil, fmt.Errorf("predicate: %w", err)
	}
	return d, nil
}

func readSubject(m map[string]json.RawMessage) (subjectOf, error) {
	var s subjectOf
	var digests map[string]string
	if err := errors.Join(member(m, "name", &s.name), member(m, "digest", &digests)); err != nil {
		return s, err
	}
	s.digests = make(map[string]string)
	for alg, size := range map[string]int{"sha256": 32, "sha384": 48, "sha512": 64} {
		h, ok := digests[alg]
		if !ok {
			continue
		}
		b, err := hex.DecodeString(h)
		if err != nil || len(b) != size {
			return s, fmt.Errorf("digest %s: expected %d bytes in hex, got %.140q", alg, size, h)
		}
		s.digests[alg] = hex.EncodeToString(b)
	}
	if s.name == "" || len(s.digests) == 0 {
		return s, errors.New("expected a name, and a digest by sha256, sha384 or sha512")
	}
	return s, nil
}

// slsa makes values of what was built, where the builder is one of the
// signer's.
func (d *document) slsa(predicate []byte, subjects []subjectOf) error {
	m, err := fields(predicate)
	if err != nil {
		return err
	}
	var run, builder map[string]json.RawMessage
	var id string
	if err := member(m, "runDetails", &run); err != nil {
		return err
	}
	if err := member(run, "builder", &builder); err != nil {
		return fmt.Errorf("runDetails: %w", err)
	}
	if err := member(builder, "id", &id); err != nil {
		return fmt.Errorf("runDetails: builder: %w", err)
	}
	if len(d.by.Builders) > 0 && !slices.Contains(d.by.Builders, id) {
		return fmt.Errorf("runDetails: builder: id: expected %s, got %.200q: %w", strings.Join(d.by.Builders, " or "), id, ErrUntrusted)
	}
	set := newCollection()
	for _, s := range subjects {
		for _, alg := range []string{"sha256", "sha384", "sha512"} {
			if h, ok := s.digests[alg]; ok {
				if err := set.add(s.name, h); err != nil {
					return err
				}
			}
		}
	}
	d.refs = set.references()
	d.title += " by " + id
	return nil
}

// values reads our own predicate.
func (d *document) values(predicate []byte, subjects []subjectOf) error {
	var p struct {
		Values  map[string]json.RawMessage `json:"values"`
		Expires time.Time                  `json:"expires"`
	}
	if err := strictjson.Decode(predicate, &p, strictjson.Limits{Bytes: MaxDocument, Depth: 16}); err != nil {
		return err
	}
	for name, v := range p.Values {
		r, err := refvalues.FromJSON(name, v)
		if err != nil {
			return err
		}
		for i := range r.Entries {
			r.Entries[i].Description = plain(subjects[0].String(), refvalues.MaxDescription)
		}
		d.refs = append(d.refs, r)
	}
	d.expires = p.Expires
	return nil
}

// String is the subject as people know it.
func (s subjectOf) String() string {
	for _, alg := range []string{"sha256", "sha384", "sha512"} {
		if h, ok := s.digests[alg]; ok {
			return s.name + "@" + alg + ":" + h
		}
	}
	return s.name
}

// member decodes a member that must be there.
func member[T any](m map[string]json.RawMessage, name string, into *T) error {
	raw, ok := m[name]
	if !ok {
		return fmt.Errorf("%s: is missing", name)
	}
	if err := strictjson.Decode(raw, into, strictjson.Limits{Bytes: MaxDocument, Depth: 24}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// decode64 reads base64 of either alphabet, as DSSE allows.
func decode64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		b, err = base64.URLEncoding.Strict().DecodeString(s)
	}
	if err != nil {
		return nil, errors.New("expected base64")
	}
	return b, nil
}
