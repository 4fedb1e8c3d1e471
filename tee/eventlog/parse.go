package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// specIDSignature begins the data of the header of a crypto agile log
	// (TCG_EfiSpecIDEvent: Platform Firmware Profile 1.06, section 10.4.5.1).
	specIDSignature = "Spec ID Event03\x00"
	specIDPrefix    = "Spec ID Event"
	// legacyHeader is the size of an event of TPM 1.2 without its data: register,
	// type, SHA-1 digest, size.
	legacyHeader = 4 + 4 + 20 + 4
	maxPCR       = 23
	maxCCMR      = 4
)

// Parse reads a log of the given kind. The events refer to raw, which must not
// change afterwards. What is behind an end mark (eight bytes of FF or of 00) may
// only be bytes of FF and 00.
func Parse(raw []byte, kind Kind, options ...Option) (*Log, error) {
	if len(raw) > MaxLog {
		return nil, fmt.Errorf("eventlog: size: expected at most %d bytes, got %d", MaxLog, len(raw))
	}
	l := newLog(options)
	l.Kind = kind
	s := &scanner{raw: raw}
	if err := s.header(l); err != nil {
		return nil, fmt.Errorf("eventlog: header: %w", err)
	}
	if err := l.read(s); err != nil {
		return nil, err
	}
	if l.Kind == Auto {
		l.Kind = l.guess()
	}
	return l, l.check()
}

// guess tells CCEL from TCG2: firmware always measures something into PCR 0.
func (l *Log) guess() Kind {
	if l.Legacy {
		return TCG2
	}
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type != NoAction && (e.Register == 0 || e.Register > maxCCMR) {
			return TCG2
		}
	}
	return CCEL
}

// read counts first, so that what is allocated follows from the events there are
// and not from what the log promises.
func (l *Log) read(s *scanner) error {
	start := s.at
	events, digests := 0, 0
	for {
		e, ok, err := s.next()
		if err != nil {
			return fmt.Errorf("eventlog: event %d: %w", events, err)
		}
		if !ok {
			break
		}
		if events++; events > MaxEvents {
			return fmt.Errorf("eventlog: expected at most %d events", MaxEvents)
		}
		digests += e.count
	}
	if events == 0 && s.implicit {
		return errors.New("eventlog: expected a header or an event, got neither")
	}
	s.at = start
	l.Events = make([]Event, 0, events)
	all := make([]Digest, 0, digests)
	for range events {
		e, _, err := s.next()
		if err != nil {
			return err
		}
		first := len(all)
		all = s.appendDigests(all, e)
		l.Events = append(l.Events, Event{Register: e.register, Type: e.typ, Digests: all[first:len(all):len(all)], Data: e.data})
	}
	l.Padding = len(s.raw) - s.at
	if l.Algorithms == nil && events > 0 {
		for _, d := range l.Events[0].Digests {
			l.Algorithms = append(l.Algorithms, d.Alg)
		}
	}
	return nil
}

// check judges events by what they are.
func (l *Log) check() error {
	limit := maxPCR
	if l.Kind == CCEL {
		limit = maxCCMR
	}
	for i := range l.Events {
		e := &l.Events[i]
		switch {
		case e.Type == NoAction:
			// Not measured, hence nothing would notice a digest that somebody put there.
			// Only firmware of the time of TPM 1.2 does.
			for _, d := range e.Digests {
				if !l.Legacy && len(bytes.Trim(d.Value, "\x00")) > 0 {
					return fmt.Errorf("eventlog: event %d: digest: expected zeros for %s, which is not measured, got %x", i, e.Type, d.Value)
				}
			}
		case e.Register < 0 || e.Register > limit:
			return fmt.Errorf("eventlog: event %d: register: expected 0 to %d, got %d", i, limit, e.Register)
		case l.Kind == AAEL && !isAAEL(e):
			return fmt.Errorf("eventlog: event %d: expected a runtime event with tag %#x, got %s", i, aaelTag, e.Type)
		}
	}
	return nil
}

// scanner reads one event after the other.
type scanner struct {
	raw    []byte
	at     int
	legacy bool
	// implicit: there is no header that says what follows.
	implicit bool
	sizes    []algSize
}

type algSize struct {
	alg  Alg
	size int
}

type rawEvent struct {
	register int
	typ      EventType
	count    int
	digests  []byte
	data     []byte
}

func (s *scanner) size(a Alg) int {
	for _, as := range s.sizes {
		if as.alg == a {
			return as.size
		}
	}
	return 0
}

func (s *scanner) u32(what string) (uint32, error) {
	b, err := s.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (s *scanner) take(n uint64, what string) ([]byte, error) {
	if left := len(s.raw) - s.at; n > uint64(left) {
		return nil, fmt.Errorf("%s at byte %d: expected %d bytes, got %d", what, s.at, n, left)
	}
	b := s.raw[s.at : s.at+int(n) : s.at+int(n)]
	s.at += int(n)
	return b, nil
}

// ended reports whether no event follows.
func (s *scanner) ended() (bool, error) {
	rest := s.raw[s.at:]
	if len(rest) == 0 {
		return true, nil
	}
	if len(rest) < 8 {
		return false, fmt.Errorf("at byte %d: expected an event or an end mark, got %d bytes", s.at, len(rest))
	}
	if mark := binary.LittleEndian.Uint64(rest); mark != 0 && mark != ^uint64(0) {
		return false, nil
	}
	for i, b := range rest {
		if b != 0 && b != 0xff {
			return false, fmt.Errorf("at byte %d, behind the end mark: expected 00 or ff, got %02x", s.at+i, b)
		}
	}
	return true, nil
}

func (s *scanner) next() (e rawEvent, ok bool, err error) {
	if end, err := s.ended(); end || err != nil {
		return e, false, err
	}
	register, err := s.u32("register")
	if err != nil {
		return e, false, err
	}
	e.register = int(register)
	typ, err := s.u32("type")
	if err != nil {
		return e, false, err
	}
	e.typ = EventType(typ)
	if err := s.digests(&e); err != nil {
		return e, false, err
	}
	size, err := s.u32("data size")
	if err != nil {
		return e, false, err
	}
	e.data, err = s.take(uint64(size), "data")
	return e, err == nil, err
}

// digests finds where the digests of an event end and checks that they are
// exactly those that the header announces.
func (s *scanner) digests(e *rawEvent) (err error) {
	if s.legacy {
		e.count = 1
		e.digests, err = s.take(20, "digest")
		return err
	}
	count, err := s.u32("digest count")
	if err != nil {
		return err
	}
	if count == 0 || count > maxAlgorithms || count > uint32(len(s.sizes)) {
		return fmt.Errorf("digest count at byte %d: expected 1 to %d, got %d", s.at-4, min(maxAlgorithms, len(s.sizes)), count)
	}
	e.count = int(count)
	start := s.at
	var seen [maxAlgorithms]Alg
	for i := range e.count {
		b, err := s.take(2, "digest algorithm")
		if err != nil {
			return err
		}
		a := Alg(binary.LittleEndian.Uint16(b))
		size := s.size(a)
		if size == 0 {
			return fmt.Errorf("digest algorithm at byte %d: %s is not in the header", s.at-2, a)
		}
		for _, other := range seen[:i] {
			if other == a {
				return fmt.Errorf("digest algorithm at byte %d: %s comes twice", s.at-2, a)
			}
		}
		seen[i] = a
		if _, err := s.take(uint64(size), "digest"); err != nil {
			return err
		}
	}
	e.digests = s.raw[start:s.at:s.at]
	return nil
}

// appendDigests decodes what digests has found.
func (s *scanner) appendDigests(all []Digest, e rawEvent) []Digest {
	if s.legacy {
		return append(all, Digest{SHA1, e.digests})
	}
	for b := e.digests; len(b) > 2; {
		a := Alg(binary.LittleEndian.Uint16(b))
		end := 2 + s.size(a)
		all = append(all, Digest{a, b[2:end:end]})
		b = b[end:]
	}
	return all
}
