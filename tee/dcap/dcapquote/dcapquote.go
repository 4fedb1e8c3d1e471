// Package dcapquote reads what the quotes of Intel SGX and Intel TDX have in
// common: the header, the signature section with the quoting enclave's report,
// and the extensions of PCK certificates. It decodes and trusts nothing;
// package dcap verifies. Guests link it, so it imports the standard library
// only.
//
// Sources: "Intel SGX ECDSA QuoteLibReference DCAP API", appendix A.4 (quote
// version 3); "Intel TDX DCAP Quoting Library API", appendix A.3 (versions 4
// and 5); "Intel SGX PCK Certificate and Certificate Revocation List Profile
// Specification", §1.3.5.
package dcapquote

import (
	"encoding/binary"
	"fmt"
)

// Sizes in bytes.
const (
	HeaderSize        = 48
	EnclaveReportSize = 384
	SignatureSize     = 64 // r and s, 32 bytes each, big-endian
	KeySize           = 64 // x and y, 32 bytes each, big-endian

	// MaxQuote bounds a quote. Real ones have about 5 kB.
	MaxQuote = 128 << 10
)

// Values of header fields.
const (
	// KeyECDSAP256 is ECDSA over SHA-256 with a key on P-256.
	KeyECDSAP256 = 2

	TEETypeSGX = 0x00000000
	TEETypeTDX = 0x00000081
)

// Types of certification data.
const (
	CertificationPCKChain = 5 // PEM: PCK certificate, intermediate, root
	CertificationQEReport = 6 // QE report, its signature, auth data, and nested certification data
)

// IntelQE is the vendor id of Intel's quoting enclaves.
func IntelQE() [16]byte {
	return [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}
}

// Header is the first 48 bytes of a quote. Its numbers are little-endian on
// the wire.
type Header struct {
	Version            uint16
	AttestationKeyType uint16
	TEEType            uint32 // version 3: reserved, zero
	// Reserved holds QE SVN and PCE SVN in version 3, nothing later.
	Reserved [4]byte
	VendorID [16]byte
	UserData [20]byte
}

// ParseHeader reads the header of a quote and refuses attestation keys other
// than ECDSA on P-256, the only ones that are specified to be verifiable.
func ParseHeader(quote []byte) (Header, error) {
	if len(quote) > MaxQuote {
		return Header{}, fmt.Errorf("quote: expected at most %d bytes, got %d", MaxQuote, len(quote))
	}
	if len(quote) < HeaderSize {
		return Header{}, fmt.Errorf("quote: header: expected %d bytes, got %d", HeaderSize, len(quote))
	}
	h := Header{
		Version:            binary.LittleEndian.Uint16(quote),
		AttestationKeyType: binary.LittleEndian.Uint16(quote[2:]),
		TEEType:            binary.LittleEndian.Uint32(quote[4:]),
		Reserved:           [4]byte(quote[8:]),
		VendorID:           [16]byte(quote[12:]),
		UserData:           [20]byte(quote[28:]),
	}
	if h.AttestationKeyType != KeyECDSAP256 {
		return Header{}, fmt.Errorf("quote: header: att_key_type: expected %d (ECDSA P-256), got %d", KeyECDSAP256, h.AttestationKeyType)
	}
	return h, nil
}

// Put writes the header's 48 bytes to the beginning of out.
func (h Header) Put(out []byte) {
	binary.LittleEndian.PutUint16(out, h.Version)
	binary.LittleEndian.PutUint16(out[2:], h.AttestationKeyType)
	binary.LittleEndian.PutUint32(out[4:], h.TEEType)
	copy(out[8:12], h.Reserved[:])
	copy(out[12:28], h.VendorID[:])
	copy(out[28:48], h.UserData[:])
}
