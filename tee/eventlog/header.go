package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// knownSizes are the algorithms that a log without a header can have.
func knownSizes() []algSize {
	return []algSize{{SHA256, 32}, {SHA384, 48}, {SHA512, 64}, {SM3, 32}}
}

// header finds out what follows and goes past the header, if there is one.
func (s *scanner) header(l *Log) error {
	if len(s.raw) < legacyHeader {
		return fmt.Errorf("expected at least %d bytes, got %d", legacyHeader, len(s.raw))
	}
	typ := EventType(binary.LittleEndian.Uint32(s.raw[4:]))
	if l.Kind == AAEL || l.Kind == Auto && typ == EventTag && looksLikeAAEL(s.raw) {
		l.Kind, s.sizes, s.implicit = AAEL, knownSizes(), true
		return nil
	}
	if typ != NoAction {
		if l.Kind == CCEL {
			return fmt.Errorf("type: expected %s, got %s", NoAction, typ)
		}
		return s.bare(l, typ)
	}
	if len(bytes.Trim(s.raw[8:28], "\x00")) > 0 {
		return fmt.Errorf("digest: expected zeros, got %x", s.raw[8:28])
	}
	s.at = 28
	size, err := s.u32("data size")
	if err != nil {
		return err
	}
	data, err := s.take(uint64(size), "data")
	if err != nil {
		return err
	}
	// guest-components writes a signature of zeros where there is no CCEL table.
	if bytes.HasPrefix(data, []byte(specIDSignature)) || l.Kind != TCG2 && bytes.HasPrefix(data, make([]byte, 16)) {
		return s.specID(l, data)
	}
	if l.Kind == CCEL {
		return fmt.Errorf("signature: expected %q, got %q", specIDSignature, data[:min(len(data), 16)])
	}
	s.legacyLog(l)
	if !bytes.HasPrefix(data, []byte(specIDPrefix)) {
		s.at = 0 // an event like the others
	}
	return nil
}

// bare takes a log of TPM 1.2 without a header. It begins with an event of a
// known type, since nothing else tells it from arbitrary bytes.
func (s *scanner) bare(l *Log, typ EventType) error {
	if strings.HasPrefix(typ.String(), "0x") || typ == PrebootCert {
		return fmt.Errorf("type: expected that of a header or of an event, got %s", typ)
	}
	s.legacyLog(l)
	s.implicit = true
	return nil
}

func (s *scanner) legacyLog(l *Log) {
	l.Legacy, s.legacy = true, true
	l.Algorithms = []Alg{SHA1}
}

// specID reads TCG_EfiSpecIDEvent: signature 16, platform class 4, version minor,
// major, errata and size of UINTN 1 each, number of algorithms 4, {id 2, size 2},
// size of vendor information 1, vendor information.
func (s *scanner) specID(l *Log, data []byte) error {
	const fixed = 16 + 4 + 4 + 4
	if len(data) < fixed+1 {
		return fmt.Errorf("size: expected at least %d bytes, got %d", fixed+1, len(data))
	}
	count := binary.LittleEndian.Uint32(data[fixed-4:])
	if count == 0 || count > maxAlgorithms {
		return fmt.Errorf("number of algorithms: expected 1 to %d, got %d", maxAlgorithms, count)
	}
	rest := data[fixed:]
	if len(rest) < 4*int(count)+1 {
		return fmt.Errorf("size: too small for %d algorithms", count)
	}
	for range count {
		a, size := Alg(binary.LittleEndian.Uint16(rest)), int(binary.LittleEndian.Uint16(rest[2:]))
		rest = rest[4:]
		if size == 0 || size > maxDigest || a.Size() != 0 && size != a.Size() {
			return fmt.Errorf("digest size of %s: expected %d, got %d", a, a.Size(), size)
		}
		if s.size(a) != 0 {
			return fmt.Errorf("algorithm %s comes twice", a)
		}
		s.sizes = append(s.sizes, algSize{a, size})
		l.Algorithms = append(l.Algorithms, a)
	}
	if len(rest) != 1+int(rest[0]) {
		return errors.New("size of vendor information: does not end with the header")
	}
	return nil
}
