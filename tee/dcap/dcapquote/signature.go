package dcapquote

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Signature is the signature section of a quote, for ECDSA P-256. Its slices
// point into the quote.
type Signature struct {
	// Quote is the signature over header and body by the attestation key.
	Quote [SignatureSize]byte
	// AttestationKey made it.
	AttestationKey [KeySize]byte
	// QEReport is the report of the quoting enclave that made the key, 384 bytes.
	QEReport []byte
	// QESignature is the signature over QEReport by the PCK.
	QESignature [SignatureSize]byte
	// QEAuthData is hashed together with the key into the QE's report data.
	QEAuthData []byte
	// Chain is PEM: the PCK certificate, the intermediate and the root.
	Chain []byte

	// Endorsement is everything behind the quote's own signature, which is
	// the same for each quote of one attestation key.
	Endorsement []byte
}

// reader takes pieces off a section and remembers the first shortage.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(field string, n uint32) []byte {
	if r.err == nil && uint64(n) > uint64(len(r.rest)) {
		r.err = fmt.Errorf("quote: %s: expected %d bytes, got %d", field, n, len(r.rest))
	}
	if r.err != nil {
		return nil
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) uint16(field string) uint16 {
	if b := r.take(field, 2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32(field string) uint32 {
	if b := r.take(field, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// end refuses bytes left over.
func (r *reader) end(field string) error {
	if r.err == nil && len(r.rest) != 0 {
		r.err = fmt.Errorf("quote: %s: %d bytes left over", field, len(r.rest))
	}
	return r.err
}

// ParseSignature reads the section that follows a quote's body: its length in
// 4 bytes, then exactly as many. version is the header's: version 3 has the QE
// report in line, 4 and 5 have it in certification data of type 6. The nested
// certification data must be of type 5, a chain in PEM; without one there is
// nothing to verify.
func ParseSignature(section []byte, version uint16) (*Signature, error) {
	outer := reader{rest: section}
	r := reader{rest: outer.take("signature data", outer.uint32("signature data length"))}
	if err := outer.end("signature data"); err != nil {
		return nil, err
	}
	s := new(Signature)
	signature := r.take("signature", SignatureSize)
	s.Endorsement = r.rest
	key := r.take("attestation key", KeySize)
	if version >= 4 {
		kind := r.uint16("certification data type")
		inner := r.take("certification data", r.uint32("certification data length"))
		if err := r.end("certification data"); err != nil {
			return nil, err
		}
		if kind != CertificationQEReport {
			return nil, fmt.Errorf("quote: certification data type: expected %d (QE report), got %d", CertificationQEReport, kind)
		}
		r = reader{rest: inner}
	}
	s.QEReport = r.take("QE report", EnclaveReportSize)
	qeSignature := r.take("QE report signature", SignatureSize)
	s.QEAuthData = r.take("QE authentication data", uint32(r.uint16("QE authentication data length")))
	kind := r.uint16("QE certification data type")
	s.Chain = r.take("QE certification data", r.uint32("QE certification data length"))
	if err := r.end("QE certification data"); err != nil {
		return nil, err
	}
	if kind != CertificationPCKChain {
		return nil, fmt.Errorf("quote: QE certification data type: expected %d (PCK certificate chain), got %d", CertificationPCKChain, kind)
	}
	copy(s.Quote[:], signature)
	copy(s.AttestationKey[:], key)
	copy(s.QESignature[:], qeSignature)
	return s, nil
}

// Bytes is the inverse of [ParseSignature].
func (s *Signature) Bytes(version uint16) ([]byte, error) {
	if len(s.QEReport) != EnclaveReportSize || len(s.QEAuthData) > 0xFFFF || len(s.Chain) > MaxQuote {
		return nil, errors.New("quote: signature data: a field has a length that cannot be encoded")
	}
	inner := append([]byte(nil), s.QEReport...)
	inner = append(inner, s.QESignature[:]...)
	inner = binary.LittleEndian.AppendUint16(inner, uint16(len(s.QEAuthData)))
	inner = append(inner, s.QEAuthData...)
	inner = binary.LittleEndian.AppendUint16(inner, CertificationPCKChain)
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(s.Chain)))
	inner = append(inner, s.Chain...)

	body := append([]byte(nil), s.Quote[:]...)
	body = append(body, s.AttestationKey[:]...)
	if version >= 4 {
		body = binary.LittleEndian.AppendUint16(body, CertificationQEReport)
		body = binary.LittleEndian.AppendUint32(body, uint32(len(inner)))
	}
	body = append(body, inner...)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...), nil
}
