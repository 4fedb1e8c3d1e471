package vtpm

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// uiApp is 462caa21-7614-4503-836e-8ab6f4662331, the boot manager's menu (edk2,
// MdeModulePkg, Application/UiApp).
var uiApp = eventlog.GUID{0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31}

// bootOptions is what Tcg2Dxe measures of the boot options: BootOrder and what it
// names, their data alone. With direct kernel boot OVMF starts the kernel before it
// looks for devices to boot from; all it has registered by then is its own menu,
// which a store may have already.
func (p *predictor) bootOptions() error {
	option, err := menuOption(p.volumes[1])
	if err != nil {
		return err
	}
	order, options := []byte{0, 0}, [][]byte{option}
	if stored := p.vars.get(efiGlobal, "BootOrder"); stored != nil {
		if options = p.storedOptions(stored, option); options == nil {
			p.unpredicted(1, "the variable store has boot options, and the firmware's own is not among them")
			return nil
		}
		order = stored
	}
	p.measure(1, eventlog.EFIVariableBoot, "BootOrder", order)
	for i, o := range options {
		p.measure(1, eventlog.EFIVariableBoot, fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(order[2*i:])), o)
	}
	return nil
}

// storedOptions are the options that an order names, nil where one is missing or
// none is the menu.
func (p *predictor) storedOptions(order, menu []byte) [][]byte {
	var out [][]byte
	found := false
	for at := 0; at+1 < len(order); at += 2 {
		o := p.vars.get(efiGlobal, fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(order[at:])))
		if o == nil {
			return nil
		}
		found = found || bytes.Equal(o, menu)
		out = append(out, o)
	}
	if !found || len(order)%2 != 0 {
		return nil
	}
	return out
}

// menuOption is the EFI_LOAD_OPTION (UEFI 2.10, section 3.1.3) of the menu:
// attributes (active, hidden, an application), length of the path, the name that
// the file shows, and a device path of volume and file.
func menuOption(dxe *volume) ([]byte, error) {
	const active, hidden, application = 1, 8, 0x100
	for i := range dxe.files {
		f := &dxe.files[i]
		if f.name != uiApp {
			continue
		}
		name := f.uiName()
		if name == "" {
			name = "Boot Manager Menu"
		}
		path := node(nil, 4, 7, dxe.name[:])       // PIWG firmware volume
		path = node(path, 4, 6, f.name[:])         // PIWG firmware file
		path = node(path, 0x7f, 0xff, []byte(nil)) // end
		b := binary.LittleEndian.AppendUint32(nil, active|hidden|application)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
		b = append(b, eventlog.LoadOptions(name)...)
		b = append(b, 0, 0)
		return append(b, path...), nil
	}
	return nil, fmt.Errorf("vtpm: firmware: the volume of the DXE phase has no file %s (UiApp)", uiApp)
}

// node appends a device path node.
func node(b []byte, typ, subtype byte, data []byte) []byte {
	b = append(b, typ, subtype)
	b = binary.LittleEndian.AppendUint16(b, uint16(4+len(data)))
	return append(b, data...)
}
