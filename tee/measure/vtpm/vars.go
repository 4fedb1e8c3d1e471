package vtpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// Vendors of variables.
var (
	// efiGlobal is 8be4df61-93ca-11d2-aa0d-00e098032b8c (UEFI 2.10, section 3.3).
	efiGlobal = eventlog.GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	// imageSecurity is d719b2cb-3d3a-4596-a3bc-dad00e67656f (section 32.6.1).
	imageSecurity = eventlog.GUID{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	// secureBootEnable is f0a30bc7-af08-4556-99c4-001009c93a44, vendor of the switch
	// of edk2 (SecurityPkg, AuthenticatedVariableFormat.h).
	secureBootEnable = eventlog.GUID{0xc7, 0x0b, 0xa3, 0xf0, 0x08, 0xaf, 0x56, 0x45, 0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44}
	// authenticatedStore is aaf32c78-947b-439a-a180-2e144ec37792 (edk2, MdeModulePkg,
	// VariableFormat.h).
	authenticatedStore = eventlog.GUID{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}
)

type variableKey struct {
	vendor eventlog.GUID
	name   string
}

// variables are the contents of a variable store.
type variables map[variableKey][]byte

// parseVariables reads OVMF_VARS.fd: a firmware volume whose contents are an
// authenticated variable store (edk2, MdeModulePkg, Include/Guid/VariableFormat.h).
// Of a variable that has been written anew the newest is taken.
func parseVariables(fd []byte) (variables, error) {
	if len(fd) > MaxFirmware {
		return nil, fmt.Errorf("vtpm: variables: expected at most %d bytes, got %d", MaxFirmware, len(fd))
	}
	if len(fd) < 56 || string(fd[40:44]) != "_FVH" {
		return nil, errors.New("vtpm: variables: expected the image of a variable store, found no firmware volume")
	}
	const storeHeader, header = 28, 60
	at := int(binary.LittleEndian.Uint16(fd[48:]))
	if at+storeHeader > len(fd) || eventlog.GUID(fd[at:at+16]) != authenticatedStore {
		return nil, errors.New("vtpm: variables: expected an authenticated variable store")
	}
	size := binary.LittleEndian.Uint32(fd[at+16:])
	if uint64(size) > uint64(len(fd)-at) || size < storeHeader || fd[at+20] != 0x5a || fd[at+21] != 0xfe {
		return nil, fmt.Errorf("vtpm: variables: a store of %d bytes with the state %x does not fit", size, fd[at+20:at+22])
	}
	store := fd[at : at+int(size)]
	out := variables{}
	for at = storeHeader; at+header <= len(store) && binary.LittleEndian.Uint16(store[at:]) == 0x55aa; at = (at + 3) &^ 3 {
		state := store[at+2]
		nameSize, dataSize := uint64(binary.LittleEndian.Uint32(store[at+36:])), uint64(binary.LittleEndian.Uint32(store[at+40:]))
		if nameSize+dataSize > uint64(len(store)-at-header) || nameSize%2 != 0 {
			return nil, fmt.Errorf("vtpm: variable at %#x: name of %d and data of %d bytes do not fit", at, nameSize, dataSize)
		}
		name := store[at+header : at+header+int(nameSize)]
		data := store[at+header+int(nameSize) : at+header+int(nameSize+dataSize)]
		key := variableKey{eventlog.GUID(store[at+44 : at+60]), utf16String(name)}
		switch state {
		case 0x3f: // added
			out[key] = data
		case 0x3e: // added, and about to be replaced
			if _, ok := out[key]; !ok {
				out[key] = data
			}
		}
		at += header + int(nameSize+dataSize)
	}
	return out, nil
}

func (v variables) get(vendor eventlog.GUID, name string) []byte {
	return v[variableKey{vendor, name}]
}

// utf16String is the text before the first zero.
func utf16String(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
