package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DevicePathText writes the nodes of a device path (UEFI 2.10, section 10.3) as
// text, without the node that ends it. The forms are those of the claims of
// confidential-containers/trustee, which differ from UEFI's own in places: Pci has
// function and device in the order of the bytes, and a node of a type that has no
// text form is Path(type,subtype,data in hex).
func DevicePathText(path []byte) ([]string, error) {
	out := []string{}
	for len(path) >= 4 {
		typ, sub, length := path[0], path[1], int(binary.LittleEndian.Uint16(path[2:]))
		if length < 4 || length > len(path) {
			return nil, fmt.Errorf("length of a device path node: expected 4 to %d, got %d", len(path), length)
		}
		data := path[4:length]
		path = path[length:]
		if typ == 0x7f && sub == 0xff {
			if len(path) > 0 || len(data) > 0 {
				return nil, fmt.Errorf("device path: %d bytes behind its end", len(path)+len(data))
			}
			return out, nil
		}
		out = append(out, nodeText(typ, sub, data))
	}
	return nil, errors.New("device path has no end")
}

// nodeText is one node; the cases are type<<8 | subtype.
func nodeText(typ, sub byte, data []byte) string {
	s := ""
	switch uint16(typ)<<8 | uint16(sub) {
	case 0x0101:
		if len(data) >= 2 {
			s = fmt.Sprintf("Pci(%d,%d)", data[0], data[1])
		}
	case 0x0201:
		s = acpiNode(data)
	case 0x0305:
		if len(data) >= 2 {
			s = fmt.Sprintf("USB(%d,%d)", data[0], data[1])
		}
	case 0x030b:
		s = macNode(data)
	case 0x030c:
		s = ipv4Node(data)
	case 0x0315:
		if len(data) >= 16 {
			s = fmt.Sprintf("FibreEx(0x%x,0x%x)", data[:8], data[8:16])
		}
	case 0x0401:
		s = hardDriveNode(data)
	case 0x0403:
		if len(data) >= 16 {
			s = fmt.Sprintf("VenMedia(%s,%x)", upperGUID(data), data[16:])
		}
	case 0x0404:
		if len(data) >= 2 && len(data)%2 == 0 {
			s = "File(" + utf16Text(data[:len(data)-2]) + ")"
		}
	case 0x0501:
		s = bbsNode(data)
	}
	if s == "" {
		s = fmt.Sprintf("Path(%d,%d,%x)", typ, sub, data)
	}
	return s
}

func upperGUID(b []byte) string { return strings.ToUpper(GUID(b[:16]).String()) }

// acpiNode has a compressed EISA identifier, three letters of five bits each.
func acpiNode(data []byte) string {
	if len(data) < 8 {
		return ""
	}
	hid, uid := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	letter := func(shift uint) byte { return '@' + byte(hid>>shift)&0x1f }
	return fmt.Sprintf("ACPI(%c%c%c%04X,%d)", letter(10), letter(5), letter(0), hid>>16, uid)
}

func hardDriveNode(data []byte) string {
	if len(data) < 38 {
		return ""
	}
	number := binary.LittleEndian.Uint32(data)
	var signature string
	switch data[36] {
	case 1:
		signature = fmt.Sprintf("MBR,0x%08x", binary.LittleEndian.Uint32(data[20:]))
	case 2:
		signature = "GPT," + upperGUID(data[20:36])
	default:
		return ""
	}
	where := ""
	if number != 0 {
		where = fmt.Sprintf(",0x%x,0x%x", binary.LittleEndian.Uint64(data[4:]), binary.LittleEndian.Uint64(data[12:]))
	}
	return fmt.Sprintf("HD(%d,%s%s)", number, signature, where)
}

// macNode has an address in a field of 32 bytes of which the zeros at the end, and
// one digit more where the address ends in one, are not shown.
func macNode(data []byte) string {
	if len(data) != 33 {
		return ""
	}
	address := strings.TrimRight(fmt.Sprintf("%X", data[:31]), "0")
	return fmt.Sprintf("Mac(%s,0x%02x)", address, data[32])
}

// ipv4Node writes the bytes of an address in reverse, as trustee does.
func ipv4Node(data []byte) string {
	if len(data) < 23 {
		return ""
	}
	address := func(b []byte) string { return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}).String() }
	protocol := map[uint16]string{6: "TCP", 17: "UDP"}[binary.LittleEndian.Uint16(data[12:])]
	origin := map[byte]string{0: "DHCP", 1: "Static"}[data[14]]
	gateway, mask := binary.LittleEndian.Uint32(data[15:]), binary.LittleEndian.Uint32(data[19:])
	rest := ""
	if gateway != 0 || mask != 0 {
		rest = fmt.Sprintf(",%d,%d", gateway, mask)
	}
	return fmt.Sprintf("IPv4(%s,%s,%s,%s%s)", address(data[4:]), protocol, origin, address(data), rest)
}

func bbsNode(data []byte) string {
	if len(data) < 4 {
		return ""
	}
	device := binary.LittleEndian.Uint16(data)
	name, ok := map[uint16]string{
		1: "FLOPPY", 2: "HARD_DRIVE", 3: "CDROM", 4: "PCMCIA", 5: "USB", 6: "EMBEDDED_NETWORK", 0x80: "DEV", 0xff: "UNKNOWN",
	}[device]
	if !ok {
		name = strconv.Itoa(int(device))
	}
	description, _, _ := bytes.Cut(data[4:], []byte{0})
	if !utf8.Valid(description) {
		return ""
	}
	return fmt.Sprintf("BBS(%s,%s,%d)", name, description, binary.LittleEndian.Uint16(data[2:]))
}
