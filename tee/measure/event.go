package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// EventType is a type of the TCG's event logs (TCG PC Client Platform Firmware
// Profile Specification, §10.4.1, table "Events").
type EventType uint32

// The types that predictions use.
const (
	EvSeparator            EventType = 0x00000004
	EvEventTag             EventType = 0x00000006
	EvPlatformConfigFlags  EventType = 0x0000000a
	EvEFIVariableConfig    EventType = 0x80000001
	EvEFIVariableBoot      EventType = 0x80000002
	EvEFIApplication       EventType = 0x80000003
	EvEFIAction            EventType = 0x80000007
	EvEFIFirmwareBlob2     EventType = 0x8000000a
	EvEFIHandoffTables2    EventType = 0x8000000b
	EvEFIVariableAuthority EventType = 0x800000e0
)

// String is the type's name in the specification.
func (t EventType) String() string {
	switch t {
	case EvSeparator:
		return "EV_SEPARATOR"
	case EvEventTag:
		return "EV_EVENT_TAG"
	case EvPlatformConfigFlags:
		return "EV_PLATFORM_CONFIG_FLAGS"
	case EvEFIVariableConfig:
		return "EV_EFI_VARIABLE_DRIVER_CONFIG"
	case EvEFIVariableBoot:
		return "EV_EFI_VARIABLE_BOOT"
	case EvEFIApplication:
		return "EV_EFI_BOOT_SERVICES_APPLICATION"
	case EvEFIAction:
		return "EV_EFI_ACTION"
	case EvEFIFirmwareBlob2:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB2"
	case EvEFIHandoffTables2:
		return "EV_EFI_HANDOFF_TABLES2"
	case EvEFIVariableAuthority:
		return "EV_EFI_VARIABLE_AUTHORITY"
	}
	return fmt.Sprintf("%#x", uint32(t))
}

// Event is one measurement that a prediction assumes: the register is extended
// with the digest.
type Event struct {
	// Register is the RTMR, 0 to 3.
	Register int
	Type     EventType
	Digest   [48]byte
	// Data is what an event log records beside the digest. Addresses that only
	// the running firmware knows are zero in it.
	Data []byte
	// Description says what was measured.
	Description string
}

// MarshalJSON gives register, type, digest and description.
func (e Event) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Register    string `json:"register"`
		Type        string `json:"type"`
		Digest      string `json:"digest"`
		Description string `json:"description"`
	}{fmt.Sprintf("rtmr_%d", e.Register), e.Type.String(), hex.EncodeToString(e.Digest[:]), e.Description})
}

// Replay extends the four RTMRs with events, from zero.
func Replay(events []Event) (rtmr [4][48]byte) {
	var b [96]byte
	for _, e := range events {
		if e.Register < 0 || e.Register >= len(rtmr) {
			continue
		}
		copy(b[:48], rtmr[e.Register][:])
		copy(b[48:], e.Digest[:])
		rtmr[e.Register] = sha512.Sum384(b[:])
	}
	return rtmr
}

// CCEL encodes events as a confidential-computing event log: what the ACPI table
// of that name points to, with SHA-384 digests (UEFI Specification 2.10, §38.4;
// TCG PC Client Platform Firmware Profile Specification, §10.2, TCG_PCR_EVENT2).
// A log of firmware is padded with bytes of 0xff; this one is not.
func CCEL(events []Event) []byte {
	le := binary.LittleEndian
	header := func(b []byte, register int, t EventType) []byte {
		return le.AppendUint32(le.AppendUint32(b, uint32(register+1)), uint32(t))
	}
	const evNoAction, algSHA384 = 3, 0x000c
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0)
	spec = le.AppendUint16(le.AppendUint16(spec, algSHA384), 48)
	spec = append(spec, 0) // no vendor information
	out := append(header(nil, 0, evNoAction), make([]byte, 20)...)
	out = append(le.AppendUint32(out, uint32(len(spec))), spec...)
	for _, e := range events {
		out = header(out, e.Register, e.Type)
		out = le.AppendUint16(le.AppendUint32(out, 1), algSHA384)
		out = append(out, e.Digest[:]...)
		out = append(le.AppendUint32(out, uint32(len(e.Data))), e.Data...)
	}
	return out
}
