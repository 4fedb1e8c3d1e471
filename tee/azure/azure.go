// Package azure holds evidence of Azure's confidential virtual machines with a
// virtual TPM, on AMD SEV-SNP (az-snp-vtpm) and on Intel TDX (az-tdx-vtpm).
//
// There the hardware's report is not of the guest itself but of a paravisor
// below it, which also runs the TPM. A chain of three links leads from the
// hardware to the guest: the hardware report holds the SHA-256 of the
// paravisor's runtime claims, these hold the TPM's attestation key, and that
// key signs a quote over what the guest booted. The first two come in one
// structure, the HCL report, that the paravisor keeps in an NV index.
//
// Evidence has three versions on the wire. Version 2 also has the digest of the
// handshake in the runtime claims ("user-data"), so that the hardware report is
// known to be fresh. In versions 0 and 1 only the quote is.
//
// The package verifies nothing; see tee/azure/azureverify. tee/azure/azureattest
// gets evidence from the TPM. Nothing outside this module is imported: the guest
// links the package.
package azure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
)

// Sizes in bytes and constants of the HCL report (microsoft/openvmm,
// openhcl_attestation_protocol, IgvmAttestRequest; all integers are
// little-endian). Only the hardware report and what it is a digest of are
// protected; the rest has to be consistent.
const (
	// MaxReport is the greatest size of an HCL report; Azure's index has 2600.
	MaxReport = 16 << 10
	// HardwareSize is the size of the hardware report's place.
	HardwareSize = 1184
	// TDReportSize is how much of it a TDX report fills.
	TDReportSize = 1024

	headerSize       = 32
	dataHeaderSize   = 20
	dataOffset       = headerSize + HardwareSize
	varDataOffset    = dataOffset + dataHeaderSize
	requestTypeAK    = 2 // AK_CERT_REQUEST
	dataVersion      = 1
	hashSHA256       = 1
	maxHeaderVersion = 2
)

// ReportType says which hardware made the report.
type ReportType uint32

// The types that are understood.
const (
	SNPReport ReportType = 2
	TDXReport ReportType = 4
)

// TEE is the name that evidence with such a report has on the wire.
func (t ReportType) TEE() tee.Name {
	switch t {
	case SNPReport:
		return tee.AzureSNPVTPM
	case TDXReport:
		return tee.AzureTDXVTPM
	}
	return ""
}

// Report is an HCL report.
type Report struct {
	// Version is the header's.
	Version uint32
	Type    ReportType
	// Hardware is the report of the processor, 1184 bytes. A TDX report has
	// 1024, followed by zeros.
	Hardware []byte
	// VarData are the runtime claims, JSON; see [ParseRuntimeClaims].
	VarData []byte
}

// ParseReport reads an HCL report. It refuses fields that do not fit together
// and bytes behind the claims that are not zero. The result refers to raw.
func ParseReport(raw []byte) (*Report, error) {
	if len(raw) < varDataOffset || len(raw) > MaxReport {
		return nil, fmt.Errorf("azure: HCL report: expected %d to %d bytes, got %d", varDataOffset, MaxReport, len(raw))
	}
	if string(raw[:4]) != "HCLA" {
		return nil, fmt.Errorf("azure: HCL report: signature: expected %q, got %q", "HCLA", raw[:4])
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
	r := &Report{
		Version: u32(4), Type: ReportType(u32(dataOffset + 8)),
		Hardware: raw[headerSize:dataOffset:dataOffset],
	}
	size := u32(dataOffset + 16)
	if uint64(size) > uint64(len(raw)-varDataOffset) {
		return nil, fmt.Errorf("azure: HCL report: var_data_size: expected at most %d, got %d", len(raw)-varDataOffset, size)
	}
	var errs []error
	expect := func(field string, at int, want uint32) {
		if got := u32(at); got != want {
			errs = append(errs, fmt.Errorf("azure: HCL report: %s: expected %d, got %d", field, want, got))
		}
	}
	if r.Version < 1 || r.Version > maxHeaderVersion {
		errs = append(errs, fmt.Errorf("azure: HCL report: version: expected 1 to %d, got %d", maxHeaderVersion, r.Version))
	}
	expect("report_size", 8, uint32(varDataOffset)+size)
	expect("request_type", 12, requestTypeAK)
	expect("status", 16, 0)
	for i := range 3 {
		expect(fmt.Sprintf("reserved[%d]", i), 20+4*i, 0)
	}
	expect("data_size", dataOffset, dataHeaderSize+size)
	expect("data version", dataOffset+4, dataVersion)
	if r.Type.TEE() == "" {
		errs = append(errs, fmt.Errorf("azure: HCL report: report_type: expected %d (SNP) or %d (TDX), got %d", SNPReport, TDXReport, r.Type))
	}
	expect("hash_type", dataOffset+12, hashSHA256)
	end := varDataOffset + int(size)
	r.VarData = raw[varDataOffset:end:end]
	if !allZero(raw[end:]) {
		errs = append(errs, fmt.Errorf("azure: HCL report: expected zeros behind byte %d", end))
	}
	if r.Type == TDXReport && !allZero(r.Hardware[TDReportSize:]) {
		errs = append(errs, fmt.Errorf("azure: HCL report: expected zeros behind the TDX report of %d bytes", TDReportSize))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

// Bytes writes the report into size bytes, or fails where they are too few. It
// is what [ParseReport] reads.
func (r *Report) Bytes(size int) ([]byte, error) {
	end := varDataOffset + len(r.VarData)
	if len(r.Hardware) > HardwareSize || size < end || size > MaxReport {
		return nil, fmt.Errorf("azure: HCL report: a hardware report of %d and claims of %d bytes do not fit into %d", len(r.Hardware), len(r.VarData), size)
	}
	out := make([]byte, size)
	put := func(at, v int) { binary.LittleEndian.PutUint32(out[at:], uint32(v)) }
	copy(out, "HCLA")
	put(4, int(r.Version))
	put(8, end)
	put(12, requestTypeAK)
	copy(out[headerSize:], r.Hardware)
	put(dataOffset, dataHeaderSize+len(r.VarData))
	put(dataOffset+4, dataVersion)
	put(dataOffset+8, int(r.Type))
	put(dataOffset+12, hashSHA256)
	put(dataOffset+16, len(r.VarData))
	copy(out[varDataOffset:], r.VarData)
	return out, nil
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// TD report layout (Intel TDX Module 1.5 ABI, TDREPORT_STRUCT and TDINFO_BASE).
const (
	tdReportData = 128 // REPORTMACSTRUCT.REPORTDATA, 64 bytes
	tdInfo       = 512 // TDINFO_STRUCT
	tdInfoSize   = 400 // from ATTRIBUTES to RTMR3
)

// TDReportData is the report data of the TDX report, 64 bytes.
func (r *Report) TDReportData() []byte { return r.Hardware[tdReportData : tdReportData+64] }

// TDInfo is the TDX report's fields from ATTRIBUTES to RTMR3, 400 bytes: a quote
// has the same ones in the same order.
func (r *Report) TDInfo() []byte { return r.Hardware[tdInfo : tdInfo+tdInfoSize] }
