package nvidia

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Constants of SPDM 1.1 (DMTF DSP0274 1.1.x, tables of GET_MEASUREMENTS and MEASUREMENTS).
const (
	spdmVersion     = 0x11
	getMeasurements = 0xE0
	measurements    = 0x60
	wantSignature   = 0x01 // Param1 of the request, bit 0
	wantAll         = 0xFF // Param2 of the request: every measurement
	dmtfFormat      = 0x01 // MeasurementSpecification, bit 0

	requestSize  = 37
	headerSize   = 8
	blockHeader  = 4
	valueHeader  = 3
	fieldHeader  = 4
	opaqueLength = 2
)

const (
	// NonceSize is the length of a nonce in bytes.
	NonceSize = 32
	// SignatureSize is that of a signature: ECDSA on P-384, r and s side by side.
	SignatureSize = 96
	// MaxValue bounds one measurement, in bytes; NVIDIA's are all of SHA-384.
	MaxValue = 1024

	maxFields = 64
)

// Report is the transcript of a measurement request and its answer, parsed.
type Report struct {
	// Nonce is the requester's: what the report is bound to.
	Nonce [NonceSize]byte
	// DeviceNonce is the responder's random number.
	DeviceNonce [NonceSize]byte
	// Slot is the certificate chain that the requester asked for.
	Slot byte
	// Measurements in the report's order; there is one for each index from 1.
	Measurements []Measurement
	// Fields are NVIDIA's opaque data, in the report's order. Types are unique.
	Fields []Field
	// Signed are the bytes that the signature covers: request, and answer up to
	// the signature. Its hash is SHA-384.
	Signed []byte
	// Signature is r and s, big-endian, of 48 bytes each.
	Signature []byte
}

// Measurement is a block of the measurement record in DMTF's format.
type Measurement struct {
	// Index counts from 1.
	Index int
	// Type is DMTFSpecMeasurementValueType: bit 7 says that the value is not a
	// digest, the rest what was measured.
	Type byte
	// Value is the measurement, for NVIDIA's devices SHA-384.
	Value []byte
}

// Field is one item of the opaque data.
type Field struct {
	Type FieldType
	Data []byte
}

// reader takes a transcript apart; after an error it gives only that.
type reader struct {
	rest []byte
	at   int
	err  error
}

func (r *reader) take(n int, what string) []byte {
	if r.err != nil {
		return nil
	}
	if n > len(r.rest) {
		r.err = fmt.Errorf("report: byte %d: %s: expected %d bytes, got %d", r.at, what, n, len(r.rest))
		return nil
	}
	b := r.rest[:n:n]
	r.rest, r.at = r.rest[n:], r.at+n
	return b
}

// want takes bytes that can have one value only.
func (r *reader) want(value byte, what string) {
	at := r.at
	if b := r.take(1, what); b != nil && b[0] != value {
		r.err = fmt.Errorf("report: byte %d: %s: expected %#02x, got %#02x", at, what, value, b[0])
	}
}

func (r *reader) uint(n int, what string) int {
	v := 0
	for i, b := range r.take(n, what) { // at most 3 bytes, little-endian
		v |= int(b) << (8 * i)
	}
	return v
}

// ParseReport reads a transcript: a request for all measurements, signed, and the
// answer to it, and nothing after it. The report refers to raw, which must not
// be changed. The error names the byte and the field.
func ParseReport(raw []byte) (*Report, error) {
	if len(raw) > MaxReport {
		return nil, fmt.Errorf("report: expected at most %d bytes, got %d", MaxReport, len(raw))
	}
	p := &Report{}
	r := &reader{rest: raw}
	p.request(r)
	p.response(r)
	if r.err != nil {
		return nil, r.err
	}
	if len(r.rest) != 0 {
		return nil, fmt.Errorf("report: byte %d: expected nothing after the signature, got %d bytes", r.at, len(r.rest))
	}
	p.Signed = raw[: len(raw)-SignatureSize : len(raw)-SignatureSize]
	return p, nil
}

func (p *Report) request(r *reader) {
	r.want(spdmVersion, "request: SPDM version")
	r.want(getMeasurements, "request: code")
	r.want(wantSignature, "request: Param1, a signature is asked for")
	r.want(wantAll, "request: Param2, all measurements are asked for")
	copy(p.Nonce[:], r.take(NonceSize, "request: nonce"))
	p.Slot = byte(r.uint(1, "request: slot"))
	if r.err == nil && p.Slot > 7 {
		r.err = fmt.Errorf("report: byte %d: request: slot: expected 0 to 7, got %d", requestSize-1, p.Slot)
	}
}

func (p *Report) response(r *reader) {
	r.want(spdmVersion, "response: SPDM version")
	r.want(measurements, "response: code")
	r.want(0, "response: Param1")
	r.want(p.Slot, "response: Param2, the slot")
	blocks := r.uint(1, "response: number of blocks")
	record := r.take(r.uint(3, "response: length of the measurement record"), "response: measurement record")
	copy(p.DeviceNonce[:], r.take(NonceSize, "response: nonce"))
	opaque := r.take(r.uint(opaqueLength, "response: length of the opaque data"), "response: opaque data")
	p.Signature = r.take(SignatureSize, "response: signature")
	if r.err != nil {
		return
	}
	if p.Measurements, r.err = parseRecord(record, blocks); r.err == nil {
		p.Fields, r.err = parseFields(opaque)
	}
}

// parseRecord reads count measurement blocks, one for each index from 1 to count.
func parseRecord(record []byte, count int) ([]Measurement, error) {
	if count == 0 {
		return nil, errors.New("report: measurement record: expected measurements, got none")
	}
	if len(record) < count*(blockHeader+valueHeader) {
		return nil, fmt.Errorf("report: measurement record: expected %d blocks, got %d bytes", count, len(record))
	}
	out := make([]Measurement, 0, count)
	var seen [256]bool
	for len(out) < count {
		m, n, err := parseBlock(record)
		if err != nil {
			return nil, fmt.Errorf("report: measurement block %d of %d: %w", len(out)+1, count, err)
		}
		if m.Index < 1 || m.Index > count || seen[m.Index] {
			return nil, fmt.Errorf("report: measurement block %d of %d: index: expected one from 1 to %d that is not there yet, got %d", len(out)+1, count, count, m.Index)
		}
		seen[m.Index] = true
		record = record[n:]
		out = append(out, m)
	}
	if len(record) != 0 {
		return nil, fmt.Errorf("report: measurement record: expected nothing after %d blocks, got %d bytes", count, len(record))
	}
	return out, nil
}

func parseBlock(b []byte) (Measurement, int, error) {
	if len(b) < blockHeader+valueHeader {
		return Measurement{}, 0, fmt.Errorf("expected at least %d bytes, got %d", blockHeader+valueHeader, len(b))
	}
	if b[1] != dmtfFormat {
		return Measurement{}, 0, fmt.Errorf("specification: expected DMTF's (%#02x), got %#02x", dmtfFormat, b[1])
	}
	size, value := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[5:]))
	if size != value+valueHeader || value == 0 || value > MaxValue || blockHeader+size > len(b) {
		return Measurement{}, 0, fmt.Errorf("size: expected a value of 1 to %d bytes that is there, and %d more; got %d and %d of %d", MaxValue, valueHeader, value, size, len(b))
	}
	end := blockHeader + size
	return Measurement{Index: int(b[0]), Type: b[4], Value: b[blockHeader+valueHeader : end : end]}, end, nil
}

func parseFields(b []byte) ([]Field, error) {
	var out []Field
	for at := 0; len(b) > 0; {
		if len(b) < fieldHeader {
			return nil, fmt.Errorf("report: opaque data: byte %d: expected a field of at least %d bytes, got %d", at, fieldHeader, len(b))
		}
		f := Field{Type: FieldType(binary.LittleEndian.Uint16(b))}
		end := fieldHeader + int(binary.LittleEndian.Uint16(b[2:]))
		if end > len(b) {
			return nil, fmt.Errorf("report: opaque data: byte %d: %s: expected %d bytes, got %d", at, f.Type, end, len(b))
		}
		f.Data = b[fieldHeader:end:end]
		for _, other := range out {
			if other.Type == f.Type {
				return nil, fmt.Errorf("report: opaque data: byte %d: %s: occurs twice", at, f.Type)
			}
		}
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("report: opaque data: byte %d: %s: %w", at, f.Type, err)
		}
		if len(out) == maxFields {
			return nil, fmt.Errorf("report: opaque data: expected at most %d fields", maxFields)
		}
		out = append(out, f)
		b, at = b[end:], at+end
	}
	return out, nil
}
