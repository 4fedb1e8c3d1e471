package eventlog

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// Mismatch says where a log and registers differ.
type Mismatch struct {
	Alg      Alg
	Register int
	// Event is the index of the event in [Log.Events] at which the log departs
	// from the register, -1 where that cannot be said.
	Event int
	// Reason is a sentence.
	Reason string
	// Expected is the value of the register, Got what the log amounts to.
	Expected, Got []byte
}

func (m *Mismatch) Error() string {
	s := fmt.Sprintf("eventlog: register %d (%s)", m.Register, m.Alg)
	if m.Expected != nil || m.Got != nil {
		s += ": expected " + valueText(m.Expected) + ", got " + valueText(m.Got)
	}
	if m.Event >= 0 {
		s += fmt.Sprintf(", event %d", m.Event)
	}
	return s + ": " + m.Reason
}

func valueText(v []byte) string {
	if v == nil {
		return "none"
	}
	return hex.EncodeToString(v)
}

// Replay computes the registers of an algorithm from the log: register → value.
// For CCEL it has the registers 1 to 4 at least, for other kinds those that an
// event names. It fails for an algorithm that has no hash function, and for a log
// with a measured event that lacks a digest of that algorithm, since such an event
// would be in the log and in no register.
func (l *Log) Replay(a Alg) (map[int][]byte, error) {
	out := map[int][]byte{}
	if l.Kind == CCEL {
		for r := 1; r <= maxCCMR; r++ {
			out[r] = make([]byte, a.Size())
		}
	}
	err := l.replay(a, func(register, _ int, value []byte) { out[register] = value })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// replay calls f with the value that each event leaves behind.
func (l *Log) replay(a Alg, f func(register, event int, value []byte)) error {
	size := a.Size()
	if size == 0 || l.sum(a) == nil {
		return fmt.Errorf("eventlog: %s: no such hash function here", a)
	}
	locality, err := l.startupLocality()
	if err != nil {
		return err
	}
	now := map[int][]byte{}
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			continue
		}
		d := e.Digest(a)
		if len(d) != size {
			return fmt.Errorf("eventlog: event %d: expected a digest of %s, got none", i, a)
		}
		value, ok := now[e.Register]
		if !ok {
			value = l.initial(e.Register, size, locality)
		}
		value = l.sum(a, value, d)
		now[e.Register] = value
		f(e.Register, i, value)
	}
	return nil
}

// initial is the value of a register after the start: zeros, except for PCR 0
// where the startup locality was not 0, and PCR 17 to 22, which are ones (PC Client
// Platform TPM Profile 1.05, section 4.6.2).
func (l *Log) initial(register, size int, locality byte) []byte {
	v := make([]byte, size)
	if l.Kind != TCG2 {
		return v
	}
	switch {
	case register == 0:
		v[size-1] = locality
	case register >= 17 && register <= 22:
		for i := range v {
			v[i] = 0xff
		}
	}
	return v
}

// startupLocality finds the event that says from which locality the TPM was
// started (Platform Firmware Profile 1.06, section 10.4.5.3). It comes before
// anything is measured into PCR 0.
func (l *Log) startupLocality() (byte, error) {
	if l.Kind != TCG2 {
		return 0, nil
	}
	measured, found := false, false
	var locality byte
	for i := range l.Events {
		e := &l.Events[i]
		if e.Register != 0 {
			continue
		}
		if e.Type != NoAction {
			measured = true
			continue
		}
		at, ok := localityOf(e.Data)
		switch {
		case !ok:
			continue
		case found:
			return 0, fmt.Errorf("eventlog: event %d: a second startup locality", i)
		case measured:
			return 0, fmt.Errorf("eventlog: event %d: startup locality behind a measurement into PCR 0", i)
		case at != 0 && at != 3 && at != 4:
			return 0, fmt.Errorf("eventlog: event %d: startup locality: expected 0, 3 or 4, got %d", i, at)
		}
		locality, found = at, true
	}
	return locality, nil
}

func localityOf(data []byte) (byte, bool) {
	const signature = "StartupLocality\x00"
	if len(data) != len(signature)+1 || !bytes.HasPrefix(data, []byte(signature)) {
		return 0, false
	}
	return data[len(signature)], true
}

// Compare replays the log and compares with registers that a quote vouches for:
// register → value. A register that no event names must have its initial value,
// and each register that an event names must be given. The error is *[Mismatch]
// where log and registers differ.
func (l *Log) Compare(a Alg, want map[int][]byte) error {
	got := map[int][]byte{}
	after := map[int]int{} // register → last event whose value was the wanted one
	var outside *Mismatch
	err := l.replay(a, func(register, event int, value []byte) {
		got[register] = value
		w, ok := want[register]
		if !ok && outside == nil {
			outside = &Mismatch{Alg: a, Register: register, Event: event, Got: value, Reason: "the log has events of a register that is not vouched for"}
		}
		if ok && bytes.Equal(w, value) {
			after[register] = event
		}
	})
	if err != nil {
		return err
	}
	locality, err := l.startupLocality()
	if err != nil {
		return err
	}
	for _, r := range slices.Sorted(maps.Keys(want)) {
		value, ok := got[r]
		if !ok {
			value = l.initial(r, a.Size(), locality)
		}
		if !bytes.Equal(value, want[r]) {
			return l.explain(&Mismatch{Alg: a, Register: r, Event: -1, Expected: want[r], Got: value}, after, locality)
		}
	}
	if outside != nil {
		return outside
	}
	return nil
}

// explain says what can be known about the difference.
func (l *Log) explain(m *Mismatch, after map[int]int, locality byte) error {
	last, prefix := after[m.Register]
	initial := bytes.Equal(m.Expected, l.initial(m.Register, m.Alg.Size(), locality))
	switch {
	case len(m.Expected) != m.Alg.Size():
		m.Reason = fmt.Sprintf("expected a value of %d bytes", m.Alg.Size())
	case prefix:
		m.Event = l.nextOf(m.Register, last)
		m.Reason = "this event and those behind it were not measured"
	case initial:
		m.Event = l.nextOf(m.Register, -1)
		m.Reason = "nothing was measured into the register"
	case l.nextOf(m.Register, -1) < 0:
		m.Reason = "something was measured into the register, and the log has no event of it"
	default:
		m.Reason = "the log is of other measurements, or lacks some"
	}
	return m
}

// nextOf is the index of the next measured event of a register, -1 for none.
func (l *Log) nextOf(register, after int) int {
	for i := after + 1; i < len(l.Events); i++ {
		if l.Events[i].Register == register && l.Events[i].Type != NoAction {
			return i
		}
	}
	return -1
}

// Difference names the first event of a register whose digest is not the one of
// the other log: the indexes into both logs, -1 where a log has no further event.
// It returns false if the two agree.
func Difference(want, got *Log, register int, a Alg) (wantEvent, gotEvent int, differs bool) {
	w, g := -1, -1
	for {
		w, g = want.nextOf(register, w), got.nextOf(register, g)
		switch {
		case w < 0 && g < 0:
			return -1, -1, false
		case w < 0 || g < 0 || !bytes.Equal(want.Events[w].Digest(a), got.Events[g].Digest(a)):
			return w, g, true
		}
	}
}
