package openpgp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const armorStart = "-----BEGIN PGP "

// dearmor decodes data if it is armored (RFC 9580 section 6), and otherwise
// returns it as it is. Exactly one block of the wanted kind may be there,
// white space around it; its checksum, which newer software leaves out, has to
// be right if it is there.
func dearmor(data []byte, kind string) ([]byte, error) {
	text := bytes.TrimSpace(data)
	if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return data, nil
	}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	want := armorStart + kind + "-----"
	if strings.TrimRight(lines[0], " \t") != want {
		return nil, fmt.Errorf("armor: expected %s, got %q", want, clip(lines[0]))
	}
	lines = lines[1:]
	for len(lines) > 0 && strings.TrimSpace(lines[0]) != "" {
		if !strings.Contains(lines[0], ": ") {
			return nil, errors.New("armor: expected headers and an empty line before the data")
		}
		lines = lines[1:]
	}
	end := strings.Replace(want, "BEGIN", "END", 1)
	if len(lines) < 2 || strings.TrimRight(lines[len(lines)-1], " \t") != end {
		return nil, fmt.Errorf("armor: expected one block that ends with %s", end)
	}
	lines = lines[1 : len(lines)-1]
	checksum := ""
	if n := len(lines); n > 0 && strings.HasPrefix(lines[n-1], "=") {
		checksum, lines = strings.TrimRight(lines[n-1][1:], " \t"), lines[:n-1]
	}
	out, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(strings.Join(lines, "\n")), ""))
	if err != nil {
		return nil, fmt.Errorf("armor: %w", err)
	}
	if checksum != "" {
		sum, err := base64.StdEncoding.DecodeString(checksum)
		if err != nil || len(sum) != 3 || crc24(out) != uint32(sum[0])<<16|uint32(sum[1])<<8|uint32(sum[2]) {
			return nil, errors.New("armor: the checksum does not fit the data")
		}
	}
	return out, nil
}

// crc24 is the armor's checksum (RFC 9580 section 6.1.1).
func crc24(data []byte) uint32 {
	crc := uint32(0xb704ce)
	for _, b := range data {
		crc ^= uint32(b) << 16
		for range 8 {
			if crc <<= 1; crc&0x1000000 != 0 {
				crc ^= 0x1864cfb
			}
		}
	}
	return crc & 0xffffff
}

func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
