package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// Values of PCRs are those that google/go-eventlog v0.0.3-0.20260520195024-af9e78c4d692
// has in tpmeventlog/replay_test.go: quotes of the same machines.
func TestReplayOfTPMs(t *testing.T) {
	const untouched = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
	for _, c := range []struct {
		file   string
		legacy bool
		alg    eventlog.Alg
		want   map[int]string
	}{
		{"ubuntu-2404-amd-sevsnp.bin", false, eventlog.SHA256, map[int]string{
			0: "50597a27846e91d025eef597abbc89f72bff9af849094db97b0684d8bc4c515e", 2: untouched, 3: untouched, 6: untouched,
			1:  "57344e1cc8c6619413df33013a7cd67915459f967395af41db21c1fa7ca9c307",
			4:  "abe8b3fa6aecb36c2fd93c6f6edde661c21b353d007410a2739d69bfa7e1b9be",
			5:  "0b0e1903aeb1bff649b82dba2cdcf5c4ffb75027e54f151ab00b3b989f16a300",
			7:  "33ad69850fb2c7f30b4f8b4bc10ed93fc954dc07fa726e84f50f3d192dc1c140",
			8:  "6932a3f71dc55ad3c1a6ac2196eeac26a1b7164b6bbfa106625d94088ec3ecc3",
			9:  "ce08798b283c7a0ddc5e9ad1d602304b945b741fc60c20e254eafa0f4782512b",
			14: "306f9d8b94f17d93dc6e7cf8f5c79d652eb4c6c4d13de2dddc24af416e13ecaf",
		}},
		{"debian-10.bin", true, eventlog.SHA1, map[int]string{
			0: "0f2d3a2a1adaa479aeeca8f5df76aadc41b862ea", 1: "b1676439cac1531683990fefe2218a43239d6fe8",
			2: "b2a83b0ebf2f8374299a5b2bdfc31ea955ad7236", 4: "1eb30816474a3f144e99b24e4ad480b2e51fd9e1",
		}},
	} {
		l := parse(t, read(t, c.file), eventlog.TCG2)
		if l.Legacy != c.legacy {
			t.Errorf("%s: legacy: got %v", c.file, l.Legacy)
		}
		got, err := l.Replay(c.alg)
		if err != nil {
			t.Fatal(err)
		}
		for r, want := range c.want {
			if hex.EncodeToString(got[r]) != want {
				t.Errorf("%s: PCR %d: expected %s, got %x", c.file, r, want, got[r])
			}
		}
	}
}

func TestCompareWithQuote(t *testing.T) {
	raw := read(t, "cos113_ccel.bin")
	l := parse(t, raw, eventlog.CCEL)
	want := quoteRTMRs(t)
	if err := l.Compare(eventlog.SHA384, want); err != nil {
		t.Fatal(err)
	}
	mismatch := func(l *eventlog.Log, want map[int][]byte, register, event int, reason string) {
		t.Helper()
		m, ok := errors.AsType[*eventlog.Mismatch](l.Compare(eventlog.SHA384, want))
		if !ok || m.Register != register || m.Event != event || !strings.Contains(m.Reason, reason) {
			t.Errorf("expected register %d, event %d, %q; got %v", register, event, reason, m)
		}
	}
	// The last events of register 2 are 41 and 42; somebody adds one.
	more := *l
	more.Events = append(append([]eventlog.Event{}, l.Events...), l.Events[42])
	mismatch(&more, want, 2, 43, "not measured")
	// Event 17 is gone.
	less := *l
	less.Events = append(append([]eventlog.Event{}, l.Events[:17]...), l.Events[18:]...)
	mismatch(&less, want, 2, -1, "other measurements")
	// A register without a value in the quote.
	mismatch(l, map[int][]byte{1: want[1], 2: want[2], 4: want[4]}, 3, 18, "not vouched for")
	// A register that has been used, and no event of it.
	used := map[int][]byte{1: want[1], 2: want[2], 3: want[3], 4: bytes.Repeat([]byte{1}, 48)}
	mismatch(l, used, 4, -1, "no event of it")
	unused := map[int][]byte{1: want[1], 2: make([]byte, 48), 3: want[3], 4: want[4]}
	mismatch(l, unused, 2, 14, "nothing was measured")
	mismatch(l, map[int][]byte{1: want[1][:20], 2: want[2], 3: want[3], 4: want[4]}, 1, -1, "48 bytes")
	if err := l.Compare(eventlog.SHA256, want); err == nil {
		t.Error("an algorithm that the log does not have")
	}
	if w, g, differs := eventlog.Difference(l, &less, 2, eventlog.SHA384); !differs || w != 17 || g != 22 {
		t.Errorf("difference: got %d, %d, %v", w, g, differs)
	}
	if _, _, differs := eventlog.Difference(l, l, 2, eventlog.SHA384); differs {
		t.Error("a log differs from itself")
	}
}

// Any bit of a digest changes a register.
func TestEveryDigestCounts(t *testing.T) {
	raw := read(t, "cos113_ccel.bin")
	want := quoteRTMRs(t)
	l := parse(t, raw, eventlog.CCEL)
	for i := range l.Events {
		d := l.Events[i].Digests[0].Value
		for bit := range 8 * len(d) {
			d[bit/8] ^= 1 << (bit % 8)
			if l.Compare(eventlog.SHA384, want) == nil {
				t.Errorf("event %d: bit %d does not count", i, bit)
			}
			d[bit/8] ^= 1 << (bit % 8)
		}
	}
	if err := l.Compare(eventlog.SHA384, want); err != nil {
		t.Fatal(err)
	}
}

func TestStartupLocality(t *testing.T) {
	locality := append([]byte("StartupLocality\x00"), 3)
	build := func(order ...string) *eventlog.Log {
		w, err := eventlog.NewWriter(eventlog.TCG2, []eventlog.Alg{eventlog.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range order {
			typ, data := eventlog.Action, []byte(what)
			if what == "locality" {
				typ, data = eventlog.NoAction, locality
			}
			if _, err := w.Measure(0, typ, data, data); err != nil {
				t.Fatal(err)
			}
		}
		return parse(t, w.Bytes(), eventlog.Auto)
	}
	with, err := build("locality", "a").Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	without, err := build("a").Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(with[0], without[0]) {
		t.Error("the locality does not count")
	}
	for _, order := range [][]string{{"a", "locality"}, {"locality", "locality", "a"}} {
		if _, err := build(order...).Replay(eventlog.SHA256); err == nil {
			t.Errorf("%v: expected an error", order)
		}
	}
	locality[16] = 5
	if _, err := build("locality", "a").Replay(eventlog.SHA256); err == nil {
		t.Error("locality 5: expected an error")
	}
	// Of a real machine, whose PCR 0 begins with 3.
	if _, err := parse(t, read(t, "arch-linux-workstation.bin"), eventlog.Auto).Replay(eventlog.SHA256); err != nil {
		t.Error(err)
	}
}

// An event cannot be in the log and in no register.
func TestHiddenEvents(t *testing.T) {
	w, err := eventlog.NewWriter(eventlog.CCEL, []eventlog.Alg{eventlog.SHA256, eventlog.SHA384})
	if err != nil {
		t.Fatal(err)
	}
	digests, err := w.Measure(2, eventlog.Action, []byte("a"), []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(w.Bytes())
	event := func(register, typ uint32, digests ...eventlog.Digest) []byte {
		b := binary.LittleEndian.AppendUint32(bytes.Clone(good), register)
		b = binary.LittleEndian.AppendUint32(b, typ)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(digests)))
		for _, d := range digests {
			b = append(binary.LittleEndian.AppendUint16(b, uint16(d.Alg)), d.Value...)
		}
		return binary.LittleEndian.AppendUint32(b, 0)
	}
	// Only a digest of another bank.
	l := parse(t, event(2, 5, digests[0]), eventlog.CCEL)
	if _, err := l.Replay(eventlog.SHA384); err == nil || !strings.Contains(err.Error(), "event 1") {
		t.Errorf("missing digest: got %v", err)
	}
	for name, raw := range map[string][]byte{
		"comes twice":    event(2, 5, digests[1], digests[1]),
		"expected zeros": event(2, 3, digests[0], digests[1]),
		"register":       event(5, 5, digests...),
		"digest count":   event(2, 5),
	} {
		if _, err := eventlog.Parse(raw, eventlog.CCEL); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSM3IsPassedIn(t *testing.T) {
	l, err := eventlog.Parse(read(t, "CCEL_data_csv"), eventlog.CCEL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Replay(eventlog.SM3); err == nil {
		t.Error("expected an error without a hash function")
	}
	if l.DigestMatchesEvent(&l.Events[0]) {
		t.Error("a digest that cannot be computed matches")
	}
}
