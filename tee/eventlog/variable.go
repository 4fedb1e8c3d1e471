package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// GUID is a UEFI GUID as it is in memory: the first three fields little endian.
type GUID [16]byte

// String is the registry form in lower case, for example
// 8be4df61-93ca-11d2-aa0d-00e098032b8c.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// Variable is a UEFI variable as it was measured.
type Variable struct {
	Vendor GUID
	Name   string
	Data   []byte
	// Rest is what follows the data: some firmware says less than there is.
	Rest []byte

	nameUnits uint64
}

// rawGUID writes the bytes of the GUID in the order in which they are in the log,
// as the claims of confidential-containers/trustee do.
func (v *Variable) rawGUID() string {
	g := v.Vendor
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// ParseVariable reads UEFI_VARIABLE_DATA (Platform Firmware Profile 1.06, section
// 10.2.7): GUID 16, number of characters 8, length of the data 8, name in UTF-16,
// data. A digest of the whole covers bytes behind the data, too.
func ParseVariable(data []byte) (*Variable, error) {
	if len(data) < 32 {
		return nil, errShort
	}
	units, length := binary.LittleEndian.Uint64(data[16:]), binary.LittleEndian.Uint64(data[24:])
	rest := data[32:]
	if units > uint64(len(rest)/2) {
		return nil, fmt.Errorf("length of the name: expected at most %d characters, got %d", len(rest)/2, units)
	}
	name, value := rest[:2*units], rest[2*units:]
	if length > uint64(len(value)) {
		return nil, fmt.Errorf("length of the data: expected at most %d, got %d", len(value), length)
	}
	text := utf16Text(name)
	if len(utf16.Encode([]rune(text))) != int(units) || !validUTF16(name) {
		return nil, errors.New("name is not UTF-16")
	}
	return &Variable{Vendor: GUID(data[:16]), Name: text, Data: value[:length], Rest: value[length:], nameUnits: units}, nil
}

func validUTF16(b []byte) bool {
	for i := 0; i+1 < len(b); i += 2 {
		u := rune(binary.LittleEndian.Uint16(b[i:]))
		if !utf16.IsSurrogate(u) {
			continue
		}
		if i+3 >= len(b) || utf16.DecodeRune(u, rune(binary.LittleEndian.Uint16(b[i+2:]))) == '�' {
			return false
		}
		i += 2
	}
	return true
}

// AppendVariable appends UEFI_VARIABLE_DATA, the reverse of [ParseVariable].
func AppendVariable(b []byte, vendor GUID, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	b = append(b, vendor[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, data...)
}

func variableDetails(data []byte) (Details, error) {
	v, err := ParseVariable(data)
	return Details{Variable: v}, err
}
