package eventlog

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

var errShort = errors.New("data is too short for its type")

// Details is what the data of an event says. What is nil is not part of its type.
type Details struct {
	// Text is a description, a path, an action or a command.
	Text *string
	// Variable is a UEFI variable.
	Variable *Variable
	// DevicePaths are the nodes of the path of an image, as text.
	DevicePaths []string
	// Runtime is an entry of an attestation agent.
	Runtime *RuntimeEvent
	// Tag is the number of a tagged event.
	Tag *uint32
	// Blob is a part of the firmware, or an image in memory.
	Blob *Blob
	// GPT is a partition table.
	GPT *GPT
}

// Blob is a range of the guest's memory.
type Blob struct {
	Base   uint64 `json:"base"`
	Length uint64 `json:"length"`
}

// Details decodes the data of an event. What cannot be decoded gives empty details
// and an error that says why: somebody else's log may hold anything there.
func (e *Event) Details() (Details, error) {
	switch e.Type {
	case PostCode, Action, CompactHash, OmitBootDeviceEvents, EFIAction:
		return text(e.Data)
	case EventTag:
		return taggedEvent(e.Data)
	case PlatformConfigFlags:
		return platformConfig(e.Data)
	case IPL:
		return ipl(e.Data)
	case EFIVariableDriverConfig, EFIVariableBoot, EFIVariableBoot2, EFIVariableAuthority:
		return variableDetails(e.Data)
	case EFIBootServicesApp, EFIBootServicesDriver, EFIRuntimeServicesDriver:
		return imageLoad(e.Data)
	case EFIPlatformFirmwareBlob2, EFIHandoffTables2:
		return describedBlob(e.Type, e.Data)
	case EFIPlatformFirmwareBlob:
		if len(e.Data) != 16 {
			return Details{}, errShort
		}
		return Details{Blob: blob(e.Data)}, nil
	case EFIGPTEvent, EFIGPTEvent2:
		return partitionTable(e.Data)
	case SCRTMVersion:
		return textOf(strings.TrimRight(utf16Text(e.Data), "\x00")), nil
	}
	return Details{}, nil
}

// claim is the member "details" of a claim, in the form of
// confidential-containers/trustee: members for the types it decodes only.
func (d Details) claim(t EventType) map[string]any {
	out := map[string]any{}
	if t == SCRTMVersion || t == EFIBootServicesDriver || t == EFIRuntimeServicesDriver {
		return out
	}
	if d.Text != nil {
		out["string"] = *d.Text
	}
	if v := d.Variable; v != nil {
		out["unicode_name"] = v.Name
		out["unicode_name_length"] = v.nameUnits
		out["variable_data"] = base64.StdEncoding.EncodeToString(v.Data)
		out["variable_data_length"] = len(v.Data)
		out["variable_name"] = v.rawGUID()
	}
	if d.DevicePaths != nil {
		out["device_paths"] = d.DevicePaths
	}
	if r := d.Runtime; r != nil {
		out["unicode_name"] = "AAEL"
		out["data"] = map[string]any{"domain": r.Domain, "operation": r.Operation, "content": r.ContentValue()}
	}
	return out
}

func textOf(s string) Details { return Details{Text: &s} }

func text(data []byte) (Details, error) {
	if !utf8.Valid(data) {
		return Details{}, errors.New("text is not UTF-8")
	}
	return textOf(string(data)), nil
}

// platformConfig keeps what can be shown: data of this type is the firmware's own
// matter. Data that is not UTF-8 gives an empty text, as in trustee's claims.
func platformConfig(data []byte) (Details, error) {
	if !utf8.Valid(data) {
		return textOf(""), nil
	}
	return textOf(strings.Map(func(r rune) rune {
		switch {
		case r == 0x10: // separates name and value in td-shim's data
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, string(data))), nil
}

// ipl is text of a boot loader. Google's firmware begins UTF-16 text with 2e 00;
// the text is then what is between that and the last four bytes, as in trustee's
// claims. Text that is not UTF-8 is shown in hex, whole.
func ipl(data []byte) (Details, error) {
	if len(data) < 2 {
		return Details{}, errShort
	}
	if data[0] == 0x2e && data[1] == 0 {
		if len(data) < 4 || len(data)%2 != 0 {
			return Details{}, errors.New("text is not UTF-16")
		}
		return textOf(utf16Text(data[2 : len(data)-2])), nil
	}
	s, _, _ := strings.Cut(string(data), "\x00")
	if !utf8.ValidString(s) {
		s = hex.EncodeToString(data)
	}
	return textOf(s), nil
}

// describedBlob reads the length and text that begin UEFI_PLATFORM_FIRMWARE_BLOB2
// and UEFI_HANDOFF_TABLE_POINTERS2 (Platform Firmware Profile 1.06, sections 10.2.5
// and 10.2.6).
func describedBlob(t EventType, data []byte) (Details, error) {
	if len(data) < 1 || len(data) < 1+int(data[0]) {
		return Details{}, errShort
	}
	d, err := text(bytes.TrimSuffix(data[1:1+int(data[0])], []byte{0}))
	if rest := data[1+int(data[0]):]; err == nil && t == EFIPlatformFirmwareBlob2 && len(rest) == 16 {
		d.Blob = blob(rest)
	}
	return d, err
}

func blob(b []byte) *Blob {
	return &Blob{Base: binary.LittleEndian.Uint64(b), Length: binary.LittleEndian.Uint64(b[8:])}
}

// imageLoad reads UEFI_IMAGE_LOAD_EVENT (section 10.2.3): address, length, link
// address and length of the device path, 8 bytes each, then the path.
func imageLoad(data []byte) (Details, error) {
	if len(data) < 32 {
		return Details{}, errShort
	}
	d := Details{Blob: blob(data)}
	length := binary.LittleEndian.Uint64(data[24:])
	if length == 0 {
		return d, nil
	}
	if length > uint64(len(data)-32) {
		return Details{}, fmt.Errorf("length of the device path: expected at most %d, got %d", len(data)-32, length)
	}
	paths, err := DevicePathText(data[32 : 32+length])
	d.DevicePaths = paths
	return d, err
}

// utf16Text decodes little-endian UTF-16, leniently.
func utf16Text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}
