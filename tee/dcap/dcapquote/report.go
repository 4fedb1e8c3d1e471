package dcapquote

import (
	"encoding/binary"
	"fmt"
)

// Attribute flags of an enclave (Intel SDM, volume 3D, §36.7.1).
const (
	AttributeInit         = 1 << 0
	AttributeDebug        = 1 << 1
	AttributeMode64       = 1 << 2
	AttributeProvisionKey = 1 << 4
	AttributeEInitToken   = 1 << 5
	AttributeCET          = 1 << 6
	AttributeKSS          = 1 << 7
	AttributeAEXNotify    = 1 << 10
)

// EnclaveReport is the body of an SGX report: that of an application enclave in
// an SGX quote, and that of the quoting enclave in every quote.
type EnclaveReport struct {
	CPUSVN       [16]byte
	MiscSelect   uint32
	Reserved1    [12]byte
	ISVExtProdID [16]byte
	Flags        uint64 // ATTRIBUTES, first half
	XFRM         uint64 // ATTRIBUTES, second half
	MREnclave    [32]byte
	Reserved2    [32]byte
	MRSigner     [32]byte
	Reserved3    [32]byte
	ConfigID     [64]byte
	ISVProdID    uint16
	ISVSVN       uint16
	ConfigSVN    uint16
	Reserved4    [42]byte
	ISVFamilyID  [16]byte
	ReportData   [64]byte
}

// ParseEnclaveReport reads exactly 384 bytes.
func ParseEnclaveReport(b []byte) (*EnclaveReport, error) {
	if len(b) != EnclaveReportSize {
		return nil, fmt.Errorf("enclave report: expected %d bytes, got %d", EnclaveReportSize, len(b))
	}
	return &EnclaveReport{
		CPUSVN:       [16]byte(b),
		MiscSelect:   binary.LittleEndian.Uint32(b[16:]),
		Reserved1:    [12]byte(b[20:]),
		ISVExtProdID: [16]byte(b[32:]),
		Flags:        binary.LittleEndian.Uint64(b[48:]),
		XFRM:         binary.LittleEndian.Uint64(b[56:]),
		MREnclave:    [32]byte(b[64:]),
		Reserved2:    [32]byte(b[96:]),
		MRSigner:     [32]byte(b[128:]),
		Reserved3:    [32]byte(b[160:]),
		ConfigID:     [64]byte(b[192:]),
		ISVProdID:    binary.LittleEndian.Uint16(b[256:]),
		ISVSVN:       binary.LittleEndian.Uint16(b[258:]),
		ConfigSVN:    binary.LittleEndian.Uint16(b[260:]),
		Reserved4:    [42]byte(b[262:]),
		ISVFamilyID:  [16]byte(b[304:]),
		ReportData:   [64]byte(b[320:]),
	}, nil
}

// Bytes is the inverse of [ParseEnclaveReport].
func (r *EnclaveReport) Bytes() []byte {
	out := make([]byte, EnclaveReportSize)
	copy(out, r.CPUSVN[:])
	binary.LittleEndian.PutUint32(out[16:], r.MiscSelect)
	copy(out[20:], r.Reserved1[:])
	copy(out[32:], r.ISVExtProdID[:])
	binary.LittleEndian.PutUint64(out[48:], r.Flags)
	binary.LittleEndian.PutUint64(out[56:], r.XFRM)
	copy(out[64:], r.MREnclave[:])
	copy(out[96:], r.Reserved2[:])
	copy(out[128:], r.MRSigner[:])
	copy(out[160:], r.Reserved3[:])
	copy(out[192:], r.ConfigID[:])
	binary.LittleEndian.PutUint16(out[256:], r.ISVProdID)
	binary.LittleEndian.PutUint16(out[258:], r.ISVSVN)
	binary.LittleEndian.PutUint16(out[260:], r.ConfigSVN)
	copy(out[262:], r.Reserved4[:])
	copy(out[304:], r.ISVFamilyID[:])
	copy(out[320:], r.ReportData[:])
	return out
}

// ReservedZero reports whether all reserved bytes are zero.
func (r *EnclaveReport) ReservedZero() bool {
	return r.Reserved1 == [12]byte{} && r.Reserved2 == [32]byte{} && r.Reserved3 == [32]byte{} && r.Reserved4 == [42]byte{}
}
