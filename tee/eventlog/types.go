package eventlog

import "fmt"

// EventType is the type of an event.
type EventType uint32

// Event types (TCG PC Client Platform Firmware Profile 1.06, section 10.4.1).
const (
	PrebootCert              EventType = 0x00
	PostCode                 EventType = 0x01
	Unused                   EventType = 0x02
	NoAction                 EventType = 0x03
	Separator                EventType = 0x04
	Action                   EventType = 0x05
	EventTag                 EventType = 0x06
	SCRTMContents            EventType = 0x07
	SCRTMVersion             EventType = 0x08
	CPUMicrocode             EventType = 0x09
	PlatformConfigFlags      EventType = 0x0a
	TableOfDevices           EventType = 0x0b
	CompactHash              EventType = 0x0c
	IPL                      EventType = 0x0d
	IPLPartitionData         EventType = 0x0e
	NonhostCode              EventType = 0x0f
	NonhostConfig            EventType = 0x10
	NonhostInfo              EventType = 0x11
	OmitBootDeviceEvents     EventType = 0x12
	PostCode2                EventType = 0x13
	EFIEventBase             EventType = 0x80000000
	EFIVariableDriverConfig  EventType = 0x80000001
	EFIVariableBoot          EventType = 0x80000002
	EFIBootServicesApp       EventType = 0x80000003
	EFIBootServicesDriver    EventType = 0x80000004
	EFIRuntimeServicesDriver EventType = 0x80000005
	EFIGPTEvent              EventType = 0x80000006
	EFIAction                EventType = 0x80000007
	EFIPlatformFirmwareBlob  EventType = 0x80000008
	EFIHandoffTables         EventType = 0x80000009
	EFIPlatformFirmwareBlob2 EventType = 0x8000000a
	EFIHandoffTables2        EventType = 0x8000000b
	EFIVariableBoot2         EventType = 0x8000000c
	EFIGPTEvent2             EventType = 0x8000000d
	EFIHCRTMEvent            EventType = 0x80000010
	EFIVariableAuthority     EventType = 0x800000e0
	EFISPDMFirmwareBlob      EventType = 0x800000e1
	EFISPDMFirmwareConfig    EventType = 0x800000e2
)

var typeNames = map[EventType]string{
	PrebootCert: "EV_PREBOOT_CERT", PostCode: "EV_POST_CODE", Unused: "EV_UNUSED", NoAction: "EV_NO_ACTION",
	Separator: "EV_SEPARATOR", Action: "EV_ACTION", EventTag: "EV_EVENT_TAG", SCRTMContents: "EV_S_CRTM_CONTENTS",
	SCRTMVersion: "EV_S_CRTM_VERSION", CPUMicrocode: "EV_CPU_MICROCODE", PlatformConfigFlags: "EV_PLATFORM_CONFIG_FLAGS",
	TableOfDevices: "EV_TABLE_OF_DEVICES", CompactHash: "EV_COMPACT_HASH", IPL: "EV_IPL", IPLPartitionData: "EV_IPL_PARTITION_DATA",
	NonhostCode: "EV_NONHOST_CODE", NonhostConfig: "EV_NONHOST_CONFIG", NonhostInfo: "EV_NONHOST_INFO",
	OmitBootDeviceEvents: "EV_OMIT_BOOT_DEVICE_EVENTS", PostCode2: "EV_POST_CODE2", EFIEventBase: "EV_EFI_EVENT_BASE",
	EFIVariableDriverConfig: "EV_EFI_VARIABLE_DRIVER_CONFIG", EFIVariableBoot: "EV_EFI_VARIABLE_BOOT",
	EFIBootServicesApp: "EV_EFI_BOOT_SERVICES_APPLICATION", EFIBootServicesDriver: "EV_EFI_BOOT_SERVICES_DRIVER",
	EFIRuntimeServicesDriver: "EV_EFI_RUNTIME_SERVICES_DRIVER", EFIGPTEvent: "EV_EFI_GPT_EVENT", EFIAction: "EV_EFI_ACTION",
	EFIPlatformFirmwareBlob: "EV_EFI_PLATFORM_FIRMWARE_BLOB", EFIHandoffTables: "EV_EFI_HANDOFF_TABLES",
	EFIPlatformFirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", EFIHandoffTables2: "EV_EFI_HANDOFF_TABLES2",
	EFIVariableBoot2: "EV_EFI_VARIABLE_BOOT2", EFIGPTEvent2: "EV_EFI_GPT_EVENT2", EFIHCRTMEvent: "EV_EFI_HCRTM_EVENT",
	EFIVariableAuthority: "EV_EFI_VARIABLE_AUTHORITY", EFISPDMFirmwareBlob: "EV_EFI_SPDM_FIRMWARE_BLOB",
	EFISPDMFirmwareConfig: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

// String is the name of the specification, or the number in hex.
func (t EventType) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}
