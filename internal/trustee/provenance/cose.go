package provenance

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// Header parameters of a signed CoRIM: RFC 9052 §3.1, RFC 9360, and
// draft-ietf-rats-corim §4.2.
const (
	headerCritical    = 2
	headerContentType = 3
	headerMeta        = 8
	headerX5Chain     = 33

	metaValidity = 1
)

// contentType is what a signed CoRIM's payload is.
const contentType = "application/rim+cbor"

// verifySigned verifies a COSE_Sign1 with a configured key, or with the
// certificates in its protected header, and returns the corim-map in it.
func (d decoder) verifySigned(o *Options, number uint64, content []byte) (*document, []byte, error) {
	if number == tagSigned {
		// #6.502(#6.18([…])) or #6.502([…]).
		if n, inner, err := d.tag(content); err == nil {
			if n != tagCOSE {
				return nil, nil, fmt.Errorf("CBOR: expected COSE_Sign1 (tag %d), got tag %d", tagCOSE, n)
			}
			content = inner
		}
	}
	var m cose.UntaggedSign1Message
	if err := m.UnmarshalCBOR(content); err != nil {
		return nil, nil, fmt.Errorf("COSE_Sign1: %w", err)
	}
	msg := cose.Sign1Message(m)
	if len(msg.Payload) == 0 {
		return nil, nil, errors.New("COSE_Sign1: expected the CoRIM within, got a detached payload")
	}
	var header cborMap
	if err := d.header(msg.Headers.RawProtected, &header); err != nil {
		return nil, nil, fmt.Errorf("COSE_Sign1: protected header: %w", err)
	}
	if _, ok := header[headerCritical]; ok {
		return nil, nil, errors.New("COSE_Sign1: critical header parameters are not supported")
	}
	var ct string
	if ok, err := get(d, header, headerContentType, "content type", &ct); err != nil || ok && ct != contentType {
		return nil, nil, errors.Join(err, fmt.Errorf("COSE_Sign1: content type: expected %q, got %.80q", contentType, ct))
	}
	doc, err := d.signature(o, &msg, header)
	if err != nil {
		return nil, nil, fmt.Errorf("COSE_Sign1: %w", err)
	}
	if err := d.meta(doc, header, o.now()); err != nil {
		return nil, nil, fmt.Errorf("COSE_Sign1: corim-meta: %w", err)
	}
	// The payload is a #6.501, or its map alone in earlier drafts.
	payload := msg.Payload
	if err := d.mode.Wellformed(payload); err != nil {
		return nil, nil, fmt.Errorf("COSE_Sign1: payload: %w", err)
	}
	if n, inner, err := d.tag(payload); err == nil {
		if n != tagUnsigned {
			return nil, nil, fmt.Errorf("COSE_Sign1: payload: expected tag %d, got %d", tagUnsigned, n)
		}
		payload = inner
	}
	return doc, payload, nil
}

// header decodes the protected header, which is a map in a byte string. Only
// integer labels are known; others are for somebody else.
func (d decoder) header(raw []byte, into *cborMap) error {
	var b []byte
	if err := d.mode.Unmarshal(raw, &b); err != nil {
		return err
	}
	if len(b) == 0 {
		return errors.New("expected an algorithm, got nothing")
	}
	var all map[any]cbor.RawMessage
	if err := d.mode.Unmarshal(b, &all); err != nil {
		return err
	}
	*into = make(cborMap)
	for k, v := range all {
		if n, ok := k.(int64); ok {
			(*into)[n] = v
		}
	}
	return nil
}

// signature finds who signed.
func (d decoder) signature(o *Options, msg *cose.Sign1Message, header cborMap) (*document, error) {
	alg, err := msg.Headers.Protected.Algorithm()
	if err != nil {
		return nil, fmt.Errorf("algorithm: %w", err)
	}
	switch alg {
	case cose.AlgorithmES256, cose.AlgorithmES384, cose.AlgorithmES512, cose.AlgorithmEdDSA, cose.AlgorithmPS256, cose.AlgorithmPS384, cose.AlgorithmPS512:
	default:
		return nil, fmt.Errorf("algorithm: expected ECDSA, EdDSA or RSA-PSS, got %d", int64(alg))
	}
	if raw, ok := header[headerX5Chain]; ok {
		certs, err := d.x5chain(raw)
		if err != nil {
			return nil, fmt.Errorf("x5chain: %w", err)
		}
		by, err := o.chain(certs)
		if err != nil {
			return nil, err
		}
		if err := check(msg, alg, certs[0].PublicKey); err != nil {
			return nil, fmt.Errorf("the signature is not that of %s: %w: %w", certProof(certs[0]), err, ErrUntrusted)
		}
		return &document{by: by, proof: certProof(certs[0])}, nil
	}
	for i := range o.Signers {
		s := &o.Signers[i]
		for _, k := range s.Keys {
			if check(msg, alg, k) == nil {
				return &document{by: s, proof: keyProof(k)}, nil
			}
		}
	}
	return nil, fmt.Errorf("no configured key made the signature: %w", ErrUntrusted)
}

func check(msg *cose.Sign1Message, alg cose.Algorithm, key crypto.PublicKey) error {
	v, err := cose.NewVerifier(alg, key)
	if err != nil {
		return err
	}
	return msg.Verify(nil, v)
}

// x5chain is one certificate or an array of them, the signer's first.
func (d decoder) x5chain(raw []byte) ([]*x509.Certificate, error) {
	var list [][]byte
	if err := d.mode.Unmarshal(raw, &list); err != nil {
		var one []byte
		if err := d.mode.Unmarshal(raw, &one); err != nil {
			return nil, err
		}
		list = [][]byte{one}
	}
	if len(list) == 0 || len(list) > maxChain {
		return nil, fmt.Errorf("expected 1 to %d certificates, got %d", maxChain, len(list))
	}
	var out []*x509.Certificate
	for i, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%d: %w", i, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// meta holds the signature to its validity, where it has one.
func (d decoder) meta(doc *document, header cborMap, now time.Time) error {
	var b []byte
	if ok, err := get(d, header, headerMeta, "byte string", &b); err != nil || !ok {
		return err
	}
	var m cborMap
	if err := d.mode.Unmarshal(b, &m); err != nil {
		return err
	}
	if raw, ok := m[metaValidity]; ok {
		if err := d.validity(doc, raw, now); err != nil {
			return fmt.Errorf("signature-validity: %w", err)
		}
	}
	return nil
}
