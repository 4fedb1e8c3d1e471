package reference

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// ClassID names the environment of CoRIMs whose measurement keys are names of
// reference values as they stand: the version 5 UUID of the URL
// https://coffer-project.github.io/reference-values/v1.
const ClassID = "ad28427f-292c-5fe2-ba6d-1d33031bf3b8"

// CBOR tags of draft-ietf-rats-corim, and algorithms of IANA's registry "Named
// Information Hash Algorithm".
const (
	tagUUID     = 37
	tagUnsigned = 501
	tagCoMID    = 506
	tagBytes    = 560

	algSHA256 = 1
	algSHA384 = 7
	algSHA512 = 8
)

type (
	validity struct {
		NotAfter time.Time `cbor:"1,keyasint"`
	}
	corim struct {
		ID       string     `cbor:"0,keyasint"`
		Tags     []cbor.Tag `cbor:"1,keyasint"`
		Validity *validity  `cbor:"4,keyasint,omitempty"`
	}
	comid struct {
		Identity identity `cbor:"1,keyasint"`
		Triples  triples  `cbor:"4,keyasint"`
	}
	identity struct {
		ID string `cbor:"0,keyasint"`
	}
	triples struct {
		Reference []any `cbor:"0,keyasint"`
	}
	environment struct {
		Class struct {
			ID cbor.Tag `cbor:"0,keyasint"`
		} `cbor:"0,keyasint"`
	}
	measurement struct {
		Key string            `cbor:"0,keyasint"`
		Val measurementValues `cbor:"1,keyasint"`
	}
	measurementValues struct {
		Digests []any     `cbor:"2,keyasint,omitempty"`
		Raw     *cbor.Tag `cbor:"4,keyasint,omitempty"`
	}
)

func encoder() (cbor.EncMode, error) {
	o := cbor.CoreDetEncOptions()
	o.Time, o.TimeTag = cbor.TimeUnix, cbor.EncTagRequired
	return o.EncMode()
}

// CoRIM is an unsigned CoRIM (#6.501) with one CoMID, whose measurement keys are
// the references' names in the class [ClassID]. Values of 32, 48 and 64 bytes are
// digests; of shorter ones there can be only one for a name. A zero notAfter
// leaves the validity out. The same prediction gives the same bytes.
func (p Prediction) CoRIM(notAfter time.Time) ([]byte, error) {
	if len(p.References) == 0 {
		return nil, errors.New("reference: nothing was predicted")
	}
	enc, err := encoder()
	if err != nil {
		return nil, err
	}
	class, err := hex.DecodeString(ClassID[0:8] + ClassID[9:13] + ClassID[14:18] + ClassID[19:23] + ClassID[24:])
	if err != nil {
		return nil, err
	}
	var env environment
	env.Class.ID = cbor.Tag{Number: tagUUID, Content: class}
	var list []measurement
	for _, r := range p.References {
		m, err := r.measurement()
		if err != nil {
			return nil, fmt.Errorf("reference: %s: %w", r.Name, err)
		}
		list = append(list, m)
	}
	body, err := enc.Marshal(triples{[]any{[]any{env, list}}})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	id := fmt.Sprintf("coffer-%s-%x", p.TEE, sum[:8])
	tag, err := enc.Marshal(comid{identity{id}, triples{[]any{[]any{env, list}}}})
	if err != nil {
		return nil, err
	}
	doc := corim{ID: id, Tags: []cbor.Tag{{Number: tagCoMID, Content: tag}}}
	if !notAfter.IsZero() {
		doc.Validity = &validity{notAfter.UTC().Truncate(time.Second)}
	}
	return enc.Marshal(cbor.Tag{Number: tagUnsigned, Content: doc})
}

func (r Reference) measurement() (measurement, error) {
	m := measurement{Key: r.Name}
	for _, v := range r.Values {
		b, err := hex.DecodeString(v.Value)
		if err != nil {
			return m, err
		}
		switch len(b) {
		case 32:
			m.Val.Digests = append(m.Val.Digests, []any{algSHA256, b})
		case 48:
			m.Val.Digests = append(m.Val.Digests, []any{algSHA384, b})
		case 64:
			m.Val.Digests = append(m.Val.Digests, []any{algSHA512, b})
		default:
			if len(r.Values) != 1 {
				return m, fmt.Errorf("a CoRIM takes one value of %d bytes, got %d", len(b), len(r.Values))
			}
			m.Val.Raw = &cbor.Tag{Number: tagBytes, Content: b}
		}
	}
	return m, nil
}

// Header parameters of a signed CoRIM (draft-ietf-rats-corim, §4.2).
const (
	headerMeta  = 8
	contentType = "application/rim+cbor"
)

// SignCoRIM wraps an unsigned CoRIM in a COSE_Sign1 (#6.18): ES256, ES384, ES512,
// EdDSA or PS384 by the kind of key. signer is the name in the corim-meta.
func SignCoRIM(random io.Reader, unsigned []byte, key crypto.Signer, signer string) ([]byte, error) {
	alg, err := algorithm(key.Public())
	if err != nil {
		return nil, err
	}
	s, err := cose.NewSigner(alg, key)
	if err != nil {
		return nil, fmt.Errorf("reference: signing key: %w", err)
	}
	enc, err := encoder()
	if err != nil {
		return nil, err
	}
	meta, err := enc.Marshal(map[int]any{0: map[int]string{0: signer}})
	if err != nil {
		return nil, err
	}
	m := cose.NewSign1Message()
	m.Headers.Protected.SetAlgorithm(alg)
	m.Headers.Protected[cose.HeaderLabelContentType] = contentType
	m.Headers.Protected[int64(headerMeta)] = meta
	m.Payload = unsigned
	if err := m.Sign(random, nil, s); err != nil {
		return nil, fmt.Errorf("reference: signing the CoRIM: %w", err)
	}
	return m.MarshalCBOR()
}

func algorithm(pub crypto.PublicKey) (cose.Algorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return cose.AlgorithmES256, nil
		case elliptic.P384():
			return cose.AlgorithmES384, nil
		case elliptic.P521():
			return cose.AlgorithmES512, nil
		}
	case ed25519.PublicKey:
		return cose.AlgorithmEdDSA, nil
	case *rsa.PublicKey:
		return cose.AlgorithmPS384, nil
	}
	return 0, fmt.Errorf("reference: signing key: expected ECDSA on P-256, P-384 or P-521, Ed25519 or RSA, got %T", pub)
}
