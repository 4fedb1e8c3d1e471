package luks

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"strings"
)

// Magic numbers of the two copies (section 2.1).
var (
	magicPrimary   = [6]byte{'L', 'U', 'K', 'S', 0xba, 0xbe}
	magicSecondary = [6]byte{'S', 'K', 'U', 'L', 0xba, 0xbe}
)

// binarySize is the size of the binary header; the JSON area follows.
const binarySize = 4096

// Sizes of a header with its JSON area (section 2.1).
const (
	minHeader = 16 << 10
	maxHeader = 4 << 20
)

// hashes are the algorithms a header may name.
var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

// binaryHeader is the binary header (section 2.1), big endian.
type binaryHeader struct {
	Magic       [6]byte
	Version     uint16
	HeaderSize  uint64
	SequenceID  uint64
	Label       [48]byte
	ChecksumAlg [32]byte
	Salt        [64]byte
	UUID        [40]byte
	Subsystem   [48]byte
	Offset      uint64
	_           [184]byte
	Checksum    [64]byte
	_           [7 * 512]byte
}

// checksumAt is where the checksum is in the binary header.
const checksumAt = 0x1c0

// copyOf is one copy of the header.
type copyOf struct {
	binaryHeader
	json []byte // without padding
}

// readHeaders reads both copies and insists that they say the same.
func readHeaders(r io.ReaderAt, size int64) (*metadata, int64, error) {
	if size < 2*minHeader {
		return nil, 0, fmt.Errorf("%w: the disk has %d bytes only", ErrNotLUKS, size)
	}
	var start [16]byte
	if err := readFull(r, start[:], 0); err != nil {
		return nil, 0, err
	}
	if [6]byte(start[:6]) != magicPrimary {
		return nil, 0, ErrNotLUKS
	}
	if v := binary.BigEndian.Uint16(start[6:]); v != 2 {
		return nil, 0, refuse("version", "expected 2, got %d", v)
	}
	hdrSize := binary.BigEndian.Uint64(start[8:])
	if hdrSize < minHeader || hdrSize > maxHeader || hdrSize&(hdrSize-1) != 0 {
		return nil, 0, refuse("hdr_size", "expected a power of two from %d to %d, got %d", minHeader, maxHeader, hdrSize)
	}
	n := int64(hdrSize)
	if 2*n > size {
		return nil, 0, refuse("hdr_size", "two headers of %d bytes do not fit a disk of %d", n, size)
	}
	raw := make([]byte, 2*n)
	if err := readFull(r, raw, 0); err != nil {
		return nil, 0, err
	}
	primary, err := parseCopy(raw[:n], magicPrimary, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("primary %w", err)
	}
	secondary, err := parseCopy(raw[n:], magicSecondary, n)
	if err != nil {
		return nil, 0, fmt.Errorf("secondary %w", err)
	}
	if primary.SequenceID != secondary.SequenceID || primary.UUID != secondary.UUID || primary.Label != secondary.Label ||
		primary.Subsystem != secondary.Subsystem || !bytes.Equal(primary.json, secondary.json) {
		return nil, 0, refuse("secondary header", "expected the same as the primary header, got another (cryptsetup repair mends a volume of your own)")
	}
	m, err := parseMetadata(primary.json)
	if err != nil {
		return nil, 0, err
	}
	m.uuid, err = printable("uuid", primary.UUID[:])
	return m, n, err
}

// parseCopy checks one copy of the header; raw is all of it.
func parseCopy(raw []byte, magic [6]byte, offset int64) (*copyOf, error) {
	c := new(copyOf)
	if _, err := binary.Decode(raw[:binarySize], binary.BigEndian, &c.binaryHeader); err != nil {
		return nil, refuse("binary header", "%v", err)
	}
	switch {
	case c.Magic != magic:
		return nil, refuse("magic", "expected %q, got %q", magic[:], c.Magic[:])
	case c.Version != 2:
		return nil, refuse("version", "expected 2, got %d", c.Version)
	case c.HeaderSize != uint64(len(raw)):
		return nil, refuse("hdr_size", "expected %d, got %d", len(raw), c.HeaderSize)
	case c.Offset != uint64(offset):
		return nil, refuse("hdr_offset", "expected %d, got %d", offset, c.Offset)
	}
	name, err := printable("csum_alg", c.ChecksumAlg[:])
	if err != nil {
		return nil, err
	}
	want, err := checksum(name, raw)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, c.Checksum[:len(want)]) {
		return nil, refuse("csum", "the header's checksum is wrong: it is damaged")
	}
	area := raw[binarySize:]
	end := bytes.IndexByte(area, 0)
	if end < 0 {
		return nil, refuse("JSON area", "expected a final NUL, got none")
	}
	if len(bytes.TrimRight(area[end:], "\x00")) != 0 {
		return nil, refuse("JSON area", "expected zeros behind the document, got something else")
	}
	c.json = area[:end]
	return c, nil
}

// checksum is that of a whole header, whose checksum field counts as zero
// (section 2.1).
func checksum(name string, raw []byte) ([]byte, error) {
	make, ok := hashes[name]
	if !ok {
		return nil, refuse("csum_alg", "expected sha256 or sha512, got %q", name)
	}
	h := make()
	h.Write(raw[:checksumAt])
	h.Write(new([64]byte)[:])
	h.Write(raw[checksumAt+64:])
	return h.Sum(nil), nil
}

// printable reads a NUL-terminated text field.
func printable(field string, b []byte) (string, error) {
	text, rest, found := bytes.Cut(b, []byte{0})
	if !found || len(bytes.TrimRight(rest, "\x00")) != 0 || strings.ContainsFunc(string(text), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", refuse(field, "expected printable ASCII and zeros")
	}
	return string(text), nil
}
