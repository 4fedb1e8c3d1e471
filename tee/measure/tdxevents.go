package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"
)

// GUIDs of what OVMF measures.
var (
	guidGlobalVariable = mustGUID(0x8be4df61, 0x93ca, 0x11d2, 0xaa0d00e098032b8c) // EFI_GLOBAL_VARIABLE
	guidSecurityDB     = mustGUID(0xd719b2cb, 0x3d3a, 0x4596, 0xa3bcdad00e67656f) // EFI_IMAGE_SECURITY_DATABASE
	guidTdxTable       = mustGUID(0x93bb96af, 0xb9f2, 0x4eb8, 0x9462e0ba74564236) // edk2, gUefiOvmfPkgTdTdxHobGuid
	guidKernelFiles    = mustGUID(0x1428f772, 0xb64a, 0x441e, 0xb8c39ebdd7f893c7) // edk2, QemuKernelLoaderFs
	guidDXEVolume      = mustGUID(0x7cb8bdc9, 0xf8eb, 0x4f34, 0xaaea3ee4af6516a1) // OvmfPkgX64.fdf, DXEFV
	guidUiApp          = mustGUID(0x462caa21, 0x7614, 0x4503, 0x836e8ab6f4662331) // MdeModulePkg, UiApp
	guidBootMenuApp    = mustGUID(0xeec25bdc, 0x67f2, 0x4d95, 0xb1d5f81b2039d11d) // MdeModulePkg, BootManagerMenuApp
)

// Tags of the events of Linux's EFI stub (Linux,
// drivers/firmware/efi/libstub/efistub.h).
const (
	tagInitrd      = 0x8f3b22ec
	tagLoadOptions = 0x8f3b22ed
)

// eventList collects events.
type eventList []Event

// add adds an event whose digest is that of measured.
func (e *eventList) add(register int, t EventType, measured, data []byte, format string, args ...any) {
	e.digest(register, t, sha512.Sum384(measured), data, format, args...)
}

func (e *eventList) digest(register int, t EventType, d [48]byte, data []byte, format string, args ...any) {
	*e = append(*e, Event{register, t, d, data, fmt.Sprintf(format, args...)})
}

func (e *eventList) blob(b Blob, name string) {
	d := b.Digest
	if b.Data != nil {
		d = sha512.Sum384(b.Data)
	}
	e.digest(0, EvPlatformConfigFlags, d, []byte("ACPI DATA"), "ACPI: %s", name)
}

func (e *eventList) separator(register int, where string) {
	zero := make([]byte, 4)
	e.add(register, EvSeparator, zero, zero, "separator %s", where)
}

func (e *eventList) action(text string) {
	e.add(1, EvEFIAction, []byte(text), []byte(text), "%s", text)
}

// variable is UEFI_VARIABLE_DATA (PC Client Platform Firmware Profile, §10.2.6).
func variable(vendor guid, name string, content []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(vendor[:], uint64(len(name)))
	b = le.AppendUint64(b, uint64(len(content)))
	return append(append(b, utf16le(name)...), content...)
}

// events are those of OVMF and of Linux's EFI stub (edk2,
// OvmfPkg/Tcg/TdTcg2Dxe and OvmfPkg/IntelTdx/TdTcg2Dxe; what each generation does
// differently: Dstack-TEE/dstack and virtee/tdx-measure).
func (l TDXLaunch) events(sections []TDVFSection, unknown *[4]string) ([]Event, error) {
	var e eventList
	if l.RTMR0 == nil {
		unknown[0] = "the machine's ACPI tables and boot variables are not given"
	} else if err := l.platformEvents(&e, sections); err != nil {
		return nil, err
	}
	if l.Kernel == nil {
		unknown[1], unknown[2] = "the firmware finds its own kernel", "the firmware finds its own kernel"
	} else {
		d, err := l.kernelDigest()
		if err != nil {
			return nil, err
		}
		e.digest(1, EvEFIApplication, d, imageLoadEvent(len(l.Kernel)), "kernel, Authenticode%s", l.patchNote())
	}
	if l.RTMR0 != nil {
		l.bootEvents(&e)
	}
	if l.Kernel == nil {
		return e, nil
	}
	e.action("Calling EFI Application from Boot Option")
	if l.Profile == ProfileOVMF2022 {
		if l.RTMR0 != nil {
			e.separator(0, "before the boot")
		}
	} else {
		e.separator(1, "before the boot")
	}
	l.stubEvents(&e, append(utf16le(l.loadOptions()), 0, 0), fmt.Sprintf("UTF-16 with NUL: %q", l.loadOptions()))
	e.action("Exit Boot Services Invocation")
	e.action("Exit Boot Services Returned with Success")
	return e, nil
}

func (l TDXLaunch) patchNote() string {
	if l.RawKernel {
		return " of the file"
	}
	return fmt.Sprintf(" with QEMU's loader fields for %d bytes of memory and an initrd of %d", l.Memory, len(l.Initrd))
}

// platformEvents are those up to the ACPI tables.
func (l TDXLaunch) platformEvents(e *eventList, sections []TDVFSection) error {
	hob, err := tdHOB(sections, l.Memory)
	if err != nil {
		return err
	}
	for _, s := range sections {
		if s.Kind == TDVFHOB {
			table := binary.LittleEndian.AppendUint64([]byte("\tTdxTable\x00"), 1)
			table = binary.LittleEndian.AppendUint64(append(table, guidTdxTable[:]...), s.Address)
			e.add(0, EvEFIHandoffTables2, hob, table, "TD HOB for %d bytes of memory", l.Memory)
		}
	}
	for _, s := range sections {
		if s.Kind == TDVFCFV {
			name := "Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\x00"
			blob := binary.LittleEndian.AppendUint64(append([]byte{byte(len(name))}, name...), s.Address)
			e.add(0, EvEFIFirmwareBlob2, s.data(l.Firmware), binary.LittleEndian.AppendUint64(blob, uint64(s.Size)), "configuration firmware volume, %d bytes", s.Size)
		}
	}
	p := l.RTMR0
	if l.Profile == ProfileOVMF2025 {
		order := p.FWBootOrder
		if order == nil {
			order = []byte("/rom@genroms/linuxboot_dma.bin\x00")
		}
		e.add(0, EvPlatformConfigFlags, []byte{0, 0}, []byte("BootMenu"), "QEMU's boot menu, off")
		e.add(0, EvPlatformConfigFlags, order, []byte("bootorder"), "QEMU's boot order %q", order)
	}
	for _, v := range []struct {
		vendor  guid
		name    string
		content []byte
	}{
		{guidGlobalVariable, "SecureBoot", p.SecureBoot},
		{guidGlobalVariable, "PK", p.PK},
		{guidGlobalVariable, "KEK", p.KEK},
		{guidSecurityDB, "db", p.DB},
		{guidSecurityDB, "dbx", p.DBX},
	} {
		data := variable(v.vendor, v.name, v.content)
		e.add(0, EvEFIVariableConfig, data, data, "UEFI variable %s, %d bytes", v.name, len(v.content))
	}
	e.separator(0, "after the secure boot policy")
	e.blob(p.Loader, "etc/table-loader")
	e.blob(p.RSDP, "etc/acpi/rsdp")
	e.blob(p.Tables, "etc/acpi/tables")
	if l.Profile == ProfileOVMF2025 {
		e.digest(0, EvEFIVariableAuthority, p.VariableAuthority, nil, "variable authority, as given")
	}
	return nil
}

// bootEvents are the boot options.
func (l TDXLaunch) bootEvents(e *eventList) {
	order, boot := l.RTMR0.BootOrder, l.RTMR0.Boot
	if order == nil {
		// What OVMF registers where there is nothing to boot from but QEMU's
		// kernel. 1: active, 8: hidden, 0x100: an application.
		order, boot = []byte{0, 0}, [][]byte{loadOption(0x109, "UiApp", guidUiApp)}
		if l.Profile == ProfileOVMF2025 {
			order = []byte{0, 0, 1, 0}
			boot = [][]byte{loadOption(0x109, "BootManagerMenuApp", guidBootMenuApp), loadOption(0x101, "EFI Firmware Setup", guidUiApp)}
		}
	}
	// Of boot variables the content alone is measured.
	e.add(0, EvEFIVariableBoot, order, variable(guidGlobalVariable, "BootOrder", order), "UEFI variable BootOrder %x", order)
	for i, b := range boot {
		name := fmt.Sprintf("Boot%04X", i)
		if 2*i+2 <= len(order) {
			name = fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(order[2*i:]))
		}
		e.add(0, EvEFIVariableBoot, b, variable(guidGlobalVariable, name, b), "UEFI variable %s, %d bytes", name, len(b))
	}
}

// stubEvents are those of the kernel's EFI stub.
func (l TDXLaunch) stubEvents(e *eventList, cmdline []byte, note string) {
	e.add(2, EvEventTag, cmdline, taggedEvent(tagLoadOptions, "LOADED_IMAGE::LoadOptions"), "command line, %s", note)
	if len(l.Initrd) > 0 {
		e.add(2, EvEventTag, l.Initrd, taggedEvent(tagInitrd, "Linux initrd"), "initrd, %d bytes", len(l.Initrd))
	}
}

// software is LayoutSoftware.
func (l TDXLaunch) software() TDXResult {
	r := TDXResult{Layout: LayoutSoftware}
	m := newMRTD()
	m.section(l.Firmware, TDVFSection{
		Kind: TDVFBFV, Size: uint32(len(l.Firmware)), Address: fourGiB - uint64(len(l.Firmware)), MemorySize: uint64(len(l.Firmware)), Attributes: TDVFExtend,
	}, l.Order)
	r.MRTD = m.sum()
	var e eventList
	config := fmt.Appendf(nil, "vcpus=%d memory=%d", l.VCPUs, l.Memory)
	e.add(0, EvPlatformConfigFlags, config, config, "%s", config)
	if l.Kernel != nil {
		e.add(1, EvEFIApplication, l.Kernel, imageLoadEvent(len(l.Kernel)), "kernel, %d bytes", len(l.Kernel))
		l.stubEvents(&e, []byte(l.Cmdline), fmt.Sprintf("%q", l.Cmdline))
	}
	r.Events = e
	r.finish(l)
	return r
}

// taggedEvent is a TCG_PCClientTaggedEvent (PC Client Platform Firmware Profile,
// §10.4.2.1) whose data is text with a NUL.
func taggedEvent(id uint32, text string) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, id), uint32(len(text)+1))
	return append(append(b, text...), 0)
}

// imageLoadEvent is a UEFI_IMAGE_LOAD_EVENT (PC Client Platform Firmware
// Profile, §10.2.3) for QEMU's kernel, at an unknown address.
func imageLoadEvent(size int) []byte {
	path := append(devicePath(4, 3, guidKernelFiles[:]), devicePath(4, 4, append(utf16le("kernel"), 0, 0))...)
	path = append(path, devicePath(0x7f, 0xff, nil)...)
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 8), uint64(size))
	b = le.AppendUint64(le.AppendUint64(b, 0), uint64(len(path)))
	return append(b, path...)
}

// loadOption is an EFI_LOAD_OPTION (UEFI Specification, §3.1.3) for an
// application in OVMF's own volume.
func loadOption(attributes uint32, description string, file guid) []byte {
	path := append(devicePath(4, 7, guidDXEVolume[:]), devicePath(4, 6, file[:])...)
	path = append(path, devicePath(0x7f, 0xff, nil)...)
	le := binary.LittleEndian
	b := le.AppendUint16(le.AppendUint32(nil, attributes), uint16(len(path)))
	b = append(append(b, utf16le(description)...), 0, 0)
	return append(b, path...)
}

// devicePath is one node (UEFI Specification, §10.3.1).
func devicePath(kind, sub byte, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{kind, sub}, uint16(4+len(data))), data...)
}
