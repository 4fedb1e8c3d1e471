package nvidia

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// FieldType says what an item of the opaque data is (NVIDIA/nvtrust@0281730,
// OPAQUE_DATA_TYPES of the verifiers of GPUs and of switches).
type FieldType uint16

// The types that are understood here. Others are kept as they are.
const (
	FieldDriverVersion     FieldType = 3
	FieldGPUInfo           FieldType = 4
	FieldVBIOSVersion      FieldType = 6
	FieldNVDEC0Status      FieldType = 11
	FieldMeasurementCount  FieldType = 12
	FieldCPRInfo           FieldType = 13
	FieldBoardID           FieldType = 14
	FieldChipSKU           FieldType = 15
	FieldChipSKUMod        FieldType = 16
	FieldProject           FieldType = 17
	FieldProjectSKU        FieldType = 18
	FieldProjectSKUMod     FieldType = 19
	FieldFWID              FieldType = 20
	FieldProtectedPCIe     FieldType = 21
	FieldPDI               FieldType = 22 // a switch's own identifier, or those of the switches on a GPU's links
	FieldDisabledPorts     FieldType = 23
	FieldSwitchPosition    FieldType = 24
	FieldSwitchLock        FieldType = 25
	FieldSwitchGPUs        FieldType = 26 // identifiers of the GPUs on a switch, then which port leads to which
	FieldSystemEnable      FieldType = 33
	FieldOpaqueDataVersion FieldType = 34
	FieldChipInfo          FieldType = 35
	FieldFeatureFlag       FieldType = 36
)

// kind is how the data of a field is to be read.
type kind int

const (
	asHex kind = iota
	asText
	asStatus
	asVersion
	asCounts
	asNumber
	asFWID
	asPDIs
	asSwitchGPUs
)

// layout is a field's name in claims and how its data is read.
func (t FieldType) layout() (string, kind, bool) {
	switch t {
	case FieldDriverVersion:
		return "driver_version", asText, true
	case FieldGPUInfo:
		return "gpu_info", asHex, true
	case FieldVBIOSVersion:
		return "vbios_version", asVersion, true
	case FieldNVDEC0Status:
		return "nvdec0_status", asStatus, true
	case FieldMeasurementCount:
		return "measurement_count", asCounts, true
	case FieldCPRInfo:
		return "cpr_info", asHex, true
	case FieldBoardID:
		return "board_id", asHex, true
	case FieldChipSKU:
		return "chip_sku", asText, true
	case FieldChipSKUMod:
		return "chip_sku_mod", asText, true
	case FieldProject:
		return "project", asText, true
	case FieldProjectSKU:
		return "project_sku", asText, true
	case FieldProjectSKUMod:
		return "project_sku_mod", asHex, true
	case FieldFWID:
		return "fwid", asFWID, true
	case FieldProtectedPCIe:
		return "protected_pcie_status", asStatus, true
	}
	return t.newerLayout()
}

// newerLayout are the fields that no other implementation has claims for.
func (t FieldType) newerLayout() (string, kind, bool) {
	switch t {
	case FieldPDI:
		return "pdi", asPDIs, true
	case FieldDisabledPorts:
		return "disabled_ports", asHex, true
	case FieldSwitchPosition:
		return "switch_position", asNumber, true
	case FieldSwitchLock:
		return "switch_lock_status", asNumber, true
	case FieldSwitchGPUs:
		return "switch_gpu_pdis", asSwitchGPUs, true
	case FieldSystemEnable:
		return "system_enable_status", asHex, true
	case FieldOpaqueDataVersion:
		return "opaque_data_version", asNumber, true
	case FieldChipInfo:
		return "chip_info", asText, true
	case FieldFeatureFlag:
		return "feature_flag", asNumber, true
	}
	return "field_" + strconv.Itoa(int(t)), asHex, false
}

// String is the field's name in claims; "field_<n>" for one that is not known.
func (t FieldType) String() string {
	name, _, _ := t.layout()
	return name
}

// Sizes and values within fields.
const (
	// FWIDSize is the length of a firmware identifier: SHA-384.
	FWIDSize = 48
	// PDISize is the length of a device's identifier.
	PDISize = 8
	// SwitchGPUs is how many identifiers of GPUs a switch lists.
	SwitchGPUs = 8

	maxData     = 1024
	versionSize = 8

	statusDisabled = 0x55 // NVIDIA/nvtrust@0281730, NVDEC_STATUS
)

// check refuses data that does not have its field's form.
func (f Field) check() error {
	n := len(f.Data)
	if n > maxData {
		return fmt.Errorf("expected at most %d bytes, got %d", maxData, n)
	}
	_, kind, _ := f.Type.layout()
	switch kind {
	case asText:
		return checkText(f.Data)
	case asVersion:
		if n != versionSize {
			return checkText(f.Data)
		}
	case asStatus:
		if n != 1 {
			return fmt.Errorf("expected 1 byte, got %d", n)
		}
	case asNumber:
		if n == 0 || n > 4 {
			return fmt.Errorf("expected 1 to 4 bytes, got %d", n)
		}
	case asCounts:
		if n%4 != 0 {
			return fmt.Errorf("expected counts of 4 bytes, got %d bytes", n)
		}
	case asFWID:
		if n != FWIDSize {
			return fmt.Errorf("expected %d bytes, got %d", FWIDSize, n)
		}
	case asPDIs:
		if n == 0 || n%PDISize != 0 {
			return fmt.Errorf("expected identifiers of %d bytes, got %d bytes", PDISize, n)
		}
	case asSwitchGPUs:
		if n < SwitchGPUs*PDISize {
			return fmt.Errorf("expected at least %d bytes, got %d", SwitchGPUs*PDISize, n)
		}
	}
	return nil
}

func checkText(b []byte) error {
	if s := text(b); s == "" || len(s) > maxText || !printable(s) {
		return fmt.Errorf("expected 1 to %d printable characters and zeros after them, got %.64q", maxText, b)
	}
	return nil
}

// text is what a C program reads, which has to be all of it.
func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// Field returns the data of a field, nil where the report has none.
func (p *Report) Field(t FieldType) []byte {
	for _, f := range p.Fields {
		if f.Type == t {
			return f.Data
		}
	}
	return nil
}

// Text returns a field that is text, empty where the report has none.
func (p *Report) Text(t FieldType) string { return text(p.Field(t)) }

// VBIOSVersion is the version of the device's firmware in lower case, for
// example 96.00.9f.00.01; empty where the report has none. GPUs write it as 8
// bytes, of which the first four are a little-endian number and the fifth
// follows it; switches write text.
func (p *Report) VBIOSVersion() string {
	b := p.Field(FieldVBIOSVersion)
	if len(b) != versionSize {
		return strings.ToLower(text(b))
	}
	return fmt.Sprintf("%02x.%02x.%02x.%02x.%02x", b[3], b[2], b[1], b[0], b[4])
}

// NVDEC0Disabled says that the video decoder is off, which leaves the
// measurement of its firmware without meaning.
func (p *Report) NVDEC0Disabled() bool {
	b := p.Field(FieldNVDEC0Status)
	return len(b) == 1 && b[0] == statusDisabled
}

// PDI is a switch's identifier, in hex; empty for a GPU.
func (p *Report) PDI() string {
	if b := p.Field(FieldPDI); len(b) == PDISize {
		return hex.EncodeToString(b)
	}
	return ""
}

// Switches are the identifiers of the switches on a GPU's links, in hex, each
// once and sorted. The bytes are turned around, as the switches themselves write
// them. Links that are off are left out.
func (p *Report) Switches() []string {
	b := p.Field(FieldPDI)
	if len(b) == PDISize {
		return nil
	}
	var out []string
	for i := 0; i < len(b); i += PDISize {
		v := binary.LittleEndian.Uint64(b[i:])
		if v != 0 {
			out = append(out, fmt.Sprintf("%016x", v))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// GPUs are the identifiers of the GPUs on a switch, in hex and sorted.
func (p *Report) GPUs() []string {
	b := p.Field(FieldSwitchGPUs)
	if b == nil {
		return nil
	}
	out := make([]string, SwitchGPUs)
	for i := range out {
		out[i] = hex.EncodeToString(b[i*PDISize : (i+1)*PDISize])
	}
	slices.Sort(out)
	return out
}

// Values are the measurements by index, in hex: the claim "measurements".
func (p *Report) Values() map[string]any {
	out := make(map[string]any, len(p.Measurements))
	for _, m := range p.Measurements {
		out[strconv.Itoa(m.Index)] = hex.EncodeToString(m.Value)
	}
	return out
}

// Config are the opaque fields by name: the claim "config". Text is text,
// measurement_count an object from index to number, versions as in
// [Report.VBIOSVersion], a status "U" where it says off (0x55) and otherwise hex,
// identifiers lists of hex, numbers numbers; everything else is hex.
func (p *Report) Config() map[string]any {
	out := make(map[string]any, len(p.Fields))
	for _, f := range p.Fields {
		name, kind, _ := f.Type.layout()
		out[name] = p.value(f, kind)
	}
	return out
}

func (p *Report) value(f Field, k kind) any {
	switch k {
	case asText:
		return text(f.Data)
	case asVersion:
		return p.VBIOSVersion()
	case asStatus:
		if f.Data[0] == statusDisabled {
			return "U"
		}
	case asNumber:
		var b [4]byte
		copy(b[:], f.Data)
		return int(binary.LittleEndian.Uint32(b[:]))
	case asCounts:
		counts := make(map[string]any, len(f.Data)/4)
		for i := 0; i < len(f.Data); i += 4 {
			counts[strconv.Itoa(i/4+1)] = int(binary.LittleEndian.Uint32(f.Data[i:]))
		}
		return counts
	case asPDIs:
		if p.PDI() == "" {
			return p.Switches()
		}
	case asSwitchGPUs:
		return p.GPUs()
	}
	return hex.EncodeToString(f.Data)
}
