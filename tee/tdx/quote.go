// Package tdx is the evidence format of Intel TDX: the quote in its binary form
// and the JSON that the KBS protocol carries. Verification is in package
// tdxverify. Nothing here trusts what it decodes.
//
// Sources: "Intel TDX DCAP Quoting Library API", appendix A.3 (quote versions
// 4 and 5, TD report bodies 1.0 and 1.5); "Intel TDX Module 1.5 ABI
// Specification" (348551), tables ATTRIBUTES and XFAM.
package tdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// Sizes in bytes.
const (
	TDReport10Size = 584
	TDReport15Size = 648
	// MaxQuote bounds a quote. Real ones have about 5 kB.
	MaxQuote = dcapquote.MaxQuote

	descriptorSize = 6 // version 5: type and size of the body
)

// BodyType says which TD report a quote of version 5 has.
type BodyType uint16

// The body types of TDs; type 1 is an SGX enclave report.
const (
	BodyTDReport10 BodyType = 2
	BodyTDReport15 BodyType = 3
)

// Quote is a TDX quote. The fields have the names and the byte order of Intel's
// specification.
type Quote struct {
	Header dcapquote.Header
	// BodyType and BodySize describe the body; on the wire in version 5 only.
	BodyType BodyType
	BodySize uint32

	TEETCBSVN      [16]byte
	MRSEAM         [48]byte
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
	TDAttributes   Attributes // little-endian on the wire
	XFAM           uint64     // little-endian on the wire
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMR           [4][48]byte
	ReportData     [64]byte
	// TEETCBSVN2 and MRServiceTD are in TD reports 1.5 only, else nil.
	TEETCBSVN2  *[16]byte
	MRServiceTD *[48]byte

	// Signed are the bytes under the quote's signature: header and body.
	// Signature points into the quote as well.
	Signed    []byte
	Signature *dcapquote.Signature
}

// Attributes are the TD's attributes, fixed when it is created.
type Attributes uint64

// The attribute bits. The lowest byte is the TUD group: with any of it the TD
// is under debugging or profiling by the host and keeps no secrets.
const (
	AttributeDebug         Attributes = 1 << 0
	AttributeHGSPlusProf   Attributes = 1 << 4
	AttributePerfProf      Attributes = 1 << 5
	AttributePMTProf       Attributes = 1 << 6
	AttributeICSSD         Attributes = 1 << 16
	AttributeLASS          Attributes = 1 << 27
	AttributeSEPTVEDisable Attributes = 1 << 28
	AttributeMigratable    Attributes = 1 << 29
	AttributePKS           Attributes = 1 << 30
	AttributeKeyLocker     Attributes = 1 << 31
	AttributeTPA           Attributes = 1 << 62
	AttributePerfMon       Attributes = 1 << 63

	// AttributesUntrusted is the TUD group.
	AttributesUntrusted Attributes = 0xFF
	attributesKnown                = AttributeDebug | AttributeHGSPlusProf | AttributePerfProf | AttributePMTProf | AttributeICSSD | AttributeLASS |
		AttributeSEPTVEDisable | AttributeMigratable | AttributePKS | AttributeKeyLocker | AttributeTPA | AttributePerfMon
)

// Unknown are the bits that are reserved.
func (a Attributes) Unknown() Attributes { return a &^ attributesKnown }

// XFAM bits: x87 and SSE are always on.
const (
	xfamFixed = 1<<0 | 1<<1
	// AVX; AVX-512 (5 to 7); PT; PKU; CET (11, 12); UINTR; LBR; AMX (17, 18);
	// APX. Intel SDM, volume 1, §13.1.
	xfamKnown = xfamFixed | 1<<2 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<11 | 1<<12 | 1<<14 | 1<<15 | 1<<17 | 1<<18 | 1<<19
)

// CheckXFAM returns the bits that are set and not known, and those that are
// clear and never are.
func CheckXFAM(xfam uint64) (unknown, missing uint64) {
	return xfam &^ xfamKnown, xfamFixed &^ xfam
}

// ParseQuote reads a TDX quote of version 4 or 5 with an ECDSA P-256 signature,
// exactly; see [Trim] for quotes in larger buffers. The quote keeps pointing
// into raw.
func ParseQuote(raw []byte) (*Quote, error) {
	q, section, err := parseBody(raw)
	if err != nil {
		return nil, fmt.Errorf("tdx: %w", err)
	}
	if q.Signature, err = dcapquote.ParseSignature(section, q.Header.Version); err != nil {
		return nil, fmt.Errorf("tdx: %w", err)
	}
	return q, nil
}

// parseBody reads all but the signature section, which it returns.
func parseBody(raw []byte) (*Quote, []byte, error) {
	h, err := dcapquote.ParseHeader(raw)
	if err != nil {
		return nil, nil, err
	}
	if h.TEEType != dcapquote.TEETypeTDX {
		return nil, nil, fmt.Errorf("quote: header: tee_type: expected %#x (TDX), got %#x", dcapquote.TEETypeTDX, h.TEEType)
	}
	q := &Quote{Header: h, BodyType: BodyTDReport10, BodySize: TDReport10Size}
	at := dcapquote.HeaderSize
	switch h.Version {
	case 4:
	case 5:
		if len(raw) < at+descriptorSize {
			return nil, nil, fmt.Errorf("quote: body type and size: expected %d bytes, got %d", descriptorSize, len(raw)-at)
		}
		q.BodyType, q.BodySize = BodyType(binary.LittleEndian.Uint16(raw[at:])), binary.LittleEndian.Uint32(raw[at+2:])
		at += descriptorSize
	default:
		return nil, nil, fmt.Errorf("quote: header: version: expected 4 or 5, got %d", h.Version)
	}
	want := map[BodyType]uint32{BodyTDReport10: TDReport10Size, BodyTDReport15: TDReport15Size}[q.BodyType]
	if want == 0 {
		return nil, nil, fmt.Errorf("quote: body type: expected 2 (TD 1.0) or 3 (TD 1.5), got %d", q.BodyType)
	}
	if q.BodySize != want {
		return nil, nil, fmt.Errorf("quote: body size: expected %d for type %d, got %d", want, q.BodyType, q.BodySize)
	}
	end := at + int(want)
	if len(raw) < end {
		return nil, nil, fmt.Errorf("quote: body: expected %d bytes, got %d", want, len(raw)-at)
	}
	q.body(raw[at:end])
	q.Signed = raw[:end:end]
	return q, raw[end:], nil
}

func (q *Quote) body(b []byte) {
	take := func(to []byte) {
		copy(to, b)
		b = b[len(to):]
	}
	var number [8]byte
	take(q.TEETCBSVN[:])
	take(q.MRSEAM[:])
	take(q.MRSignerSEAM[:])
	take(q.SEAMAttributes[:])
	take(number[:])
	q.TDAttributes = Attributes(binary.LittleEndian.Uint64(number[:]))
	take(number[:])
	q.XFAM = binary.LittleEndian.Uint64(number[:])
	take(q.MRTD[:])
	take(q.MRConfigID[:])
	take(q.MROwner[:])
	take(q.MROwnerConfig[:])
	for i := range q.RTMR {
		take(q.RTMR[i][:])
	}
	take(q.ReportData[:])
	if q.BodyType == BodyTDReport15 {
		q.TEETCBSVN2, q.MRServiceTD = new([16]byte), new([48]byte)
		take(q.TEETCBSVN2[:])
		take(q.MRServiceTD[:])
	}
}

// SignedBytes encodes header and body, the bytes that a quoting enclave signs:
// the inverse of parsing them.
func (q *Quote) SignedBytes() ([]byte, error) {
	out := make([]byte, dcapquote.HeaderSize, dcapquote.HeaderSize+descriptorSize+TDReport15Size)
	q.Header.Put(out)
	switch q.Header.Version {
	case 4:
		if q.BodyType != BodyTDReport10 {
			return nil, fmt.Errorf("tdx: quote: body type: expected %d in version 4, got %d", BodyTDReport10, q.BodyType)
		}
	case 5:
		out = binary.LittleEndian.AppendUint16(out, uint16(q.BodyType))
		out = binary.LittleEndian.AppendUint32(out, q.BodySize)
	}
	for _, field := range [][]byte{q.TEETCBSVN[:], q.MRSEAM[:], q.MRSignerSEAM[:], q.SEAMAttributes[:]} {
		out = append(out, field...)
	}
	out = binary.LittleEndian.AppendUint64(out, uint64(q.TDAttributes))
	out = binary.LittleEndian.AppendUint64(out, q.XFAM)
	for _, field := range [][]byte{
		q.MRTD[:], q.MRConfigID[:], q.MROwner[:], q.MROwnerConfig[:],
		q.RTMR[0][:], q.RTMR[1][:], q.RTMR[2][:], q.RTMR[3][:], q.ReportData[:],
	} {
		out = append(out, field...)
	}
	if q.BodyType == BodyTDReport15 {
		if q.TEETCBSVN2 == nil || q.MRServiceTD == nil {
			return nil, errors.New("tdx: quote: a TD report 1.5 needs TEE_TCB_SVN2 and MRSERVICETD")
		}
		out = append(append(out, q.TEETCBSVN2[:]...), q.MRServiceTD[:]...)
	}
	return out, nil
}

// Trim cuts off zero bytes behind a quote, as sources leave them that fill a
// buffer of fixed size. Everything else, what is no quote included, comes back
// as it is, for [ParseQuote] to refuse.
func Trim(raw []byte) []byte {
	if len(raw) > MaxQuote {
		return raw
	}
	_, section, err := parseBody(raw)
	if err != nil || len(section) < 4 {
		return raw
	}
	end := uint64(len(raw)-len(section)) + 4 + uint64(binary.LittleEndian.Uint32(section))
	if end >= uint64(len(raw)) || len(bytes.Trim(raw[end:], "\x00")) > 0 {
		return raw
	}
	return raw[:end:end]
}
