package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Writer writes a crypto agile log, for CCEL areas and for tests. It is not safe
// for concurrent use.
type Writer struct {
	log *Log
	buf []byte
}

// NewWriter begins a log with a header. Kind is CCEL or TCG2.
func NewWriter(kind Kind, algorithms []Alg, options ...Option) (*Writer, error) {
	w := &Writer{log: newLog(options)}
	w.log.Kind, w.log.Algorithms = kind, slices.Clone(algorithms)
	if kind != CCEL && kind != TCG2 {
		return nil, fmt.Errorf("eventlog: kind: expected %s or %s, got %q", CCEL, TCG2, kind)
	}
	if len(algorithms) == 0 || len(algorithms) > maxAlgorithms {
		return nil, fmt.Errorf("eventlog: algorithms: expected 1 to %d, got %d", maxAlgorithms, len(algorithms))
	}
	for i, a := range algorithms {
		if w.log.sum(a) == nil || slices.Contains(algorithms[:i], a) {
			return nil, fmt.Errorf("eventlog: algorithm %s: has no hash function here, or comes twice", a)
		}
	}
	register := 0
	if kind == CCEL {
		register = 1 // as OVMF does
	}
	w.buf = specIDEvent(register, specIDSignature, 2, algorithms)
	return w, nil
}

// specIDEvent is a header; see [scanner.specID]. The third byte of the version and
// the size of UINTN are those of edk2 (SecurityPkg, Tcg2Dxe) for version 2.0.
func specIDEvent(register int, signature string, major byte, algorithms []Alg) []byte {
	data := make([]byte, 16, 64)
	copy(data, signature)
	uintn := byte(0)
	if signature != "" {
		uintn = 2
	}
	data = append(data, 0, 0, 0, 0, 0, major, 0, uintn)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(algorithms)))
	for _, a := range algorithms {
		data = binary.LittleEndian.AppendUint16(data, uint16(a))
		data = binary.LittleEndian.AppendUint16(data, uint16(a.Size()))
	}
	data = append(data, 0)
	b := binary.LittleEndian.AppendUint32(nil, uint32(register))
	b = binary.LittleEndian.AppendUint32(b, uint32(NoAction))
	b = append(b, make([]byte, 20)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Measure appends an event whose digests are those of measured, and returns them in
// the order of the algorithms. An EV_NO_ACTION event gets digests of zeros.
func (w *Writer) Measure(register int, t EventType, data, measured []byte) ([]Digest, error) {
	digests := make([]Digest, len(w.log.Algorithms))
	for i, a := range w.log.Algorithms {
		digests[i] = Digest{a, make([]byte, a.Size())}
		if t != NoAction {
			digests[i].Value = w.log.sum(a, measured)
		}
	}
	return digests, w.Append(register, t, data, digests)
}

// Append appends an event with the digests given, one for each algorithm in their
// order.
func (w *Writer) Append(register int, t EventType, data []byte, digests []Digest) error {
	limit := maxPCR
	if w.log.Kind == CCEL {
		limit = maxCCMR
	}
	if register < 0 || register > limit {
		return fmt.Errorf("eventlog: register: expected 0 to %d, got %d", limit, register)
	}
	if len(digests) != len(w.log.Algorithms) {
		return fmt.Errorf("eventlog: digests: expected %d, got %d", len(w.log.Algorithms), len(digests))
	}
	for i, d := range digests {
		if d.Alg != w.log.Algorithms[i] || len(d.Value) != d.Alg.Size() {
			return fmt.Errorf("eventlog: digest %d: expected %s of %d bytes, got %s of %d", i, w.log.Algorithms[i], w.log.Algorithms[i].Size(), d.Alg, len(d.Value))
		}
	}
	if len(w.buf)+len(data) > MaxLog-1024 {
		return errors.New("eventlog: the log is full")
	}
	w.buf = appendEvent(w.buf, register, t, data, digests)
	return nil
}

func appendEvent(b []byte, register int, t EventType, data []byte, digests []Digest) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(register))
	b = binary.LittleEndian.AppendUint32(b, uint32(t))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(digests)))
	for _, d := range digests {
		b = binary.LittleEndian.AppendUint16(b, uint16(d.Alg))
		b = append(b, d.Value...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Bytes is the log so far, without an end mark. It is valid until the next call.
func (w *Writer) Bytes() []byte { return w.buf }

// Area is the log in an area of size bytes that is filled up with FF, as firmware
// leaves it to the operating system.
func (w *Writer) Area(size int) ([]byte, error) {
	if size < len(w.buf)+len(endMark) {
		return nil, fmt.Errorf("eventlog: area: expected at least %d bytes, got %d", len(w.buf)+len(endMark), size)
	}
	out := slices.Grow(slices.Clone(w.buf), size-len(w.buf))
	for len(out) < size {
		out = append(out, 0xff)
	}
	return out, nil
}

// Entry is the runtime event as an attestation agent appends it to its file: the
// whole entry with one digest, and that digest, with which the register is
// extended.
func (r RuntimeEvent) Entry(register int, a Alg, options ...Option) (entry, digest []byte, err error) {
	if _, err := NewRuntimeEvent(r.Domain, r.Operation, r.Content); err != nil {
		return nil, nil, err
	}
	if register < 0 || register > maxPCR {
		return nil, nil, fmt.Errorf("eventlog: register: expected 0 to %d, got %d", maxPCR, register)
	}
	data := r.Data()
	digest = newLog(options).sum(a, data)
	if digest == nil || a == SHA1 {
		return nil, nil, fmt.Errorf("eventlog: %s: no such hash function here", a)
	}
	return appendEvent(nil, register, EventTag, data, []Digest{{a, digest}}), digest, nil
}
