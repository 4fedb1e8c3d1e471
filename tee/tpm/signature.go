package tpm

import (
	"encoding/binary"
	"fmt"
)

// maxRSA is the greatest length of an RSA signature in bytes: 8192 bits.
const maxRSA = 1 << 10

// maxECC is the greatest length of a number of an ECDSA signature: P-521.
const maxECC = 66

// MaxSignature is the greatest length of a TPMT_SIGNATURE in bytes.
const MaxSignature = 2 + 2 + 2 + maxRSA

// Signature is what a TPM answers a request to sign with (TPMT_SIGNATURE,
// §11.3.4).
type Signature struct {
	// Scheme is RSASSA, RSAPSS or ECDSA.
	Scheme Alg
	// Hash is the hash algorithm of the scheme.
	Hash Alg
	// RSA is the signature of an RSA scheme, as long as the key's modulus.
	RSA []byte
	// R and S are the numbers of ECDSA, big-endian.
	R, S []byte
}

// String is scheme and hash, for example "RSASSA-SHA256".
func (s *Signature) String() string { return s.Scheme.String() + "-" + s.Hash.String() }

// ParseSignature reads a TPMT_SIGNATURE. The result refers to raw.
func ParseSignature(raw []byte) (*Signature, error) {
	if len(raw) > MaxSignature {
		return nil, fmt.Errorf("tpm: signature: expected at most %d bytes, got %d", MaxSignature, len(raw))
	}
	r := &reader{rest: raw}
	s := &Signature{Scheme: Alg(r.u16("sigAlg")), Hash: Alg(r.u16("hash"))}
	switch s.Scheme {
	case AlgRSASSA, AlgRSAPSS:
		s.RSA = r.sized("sig", maxRSA)
	case AlgECDSA:
		s.R, s.S = r.sized("signatureR", maxECC), r.sized("signatureS", maxECC)
	default:
		r.fail("sigAlg", fmt.Errorf("expected RSASSA, RSAPSS or ECDSA, got %v", s.Scheme))
	}
	if err := r.end("signature"); err != nil {
		return nil, err
	}
	return s, nil
}

// Bytes is the binary form: what [ParseSignature] reads.
func (s *Signature) Bytes() []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(s.Scheme))
	out = binary.BigEndian.AppendUint16(out, uint16(s.Hash))
	if s.Scheme == AlgECDSA {
		return appendSized(appendSized(out, s.R), s.S)
	}
	return appendSized(out, s.RSA)
}
