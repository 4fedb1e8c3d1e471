package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

// realLogs are all logs of testdata.
func realLogs(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		if strings.HasSuffix(f, ".json") || strings.HasSuffix(f, "ORIGIN") || strings.HasSuffix(f, "quote.dat") {
			continue
		}
		b, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) || len(b) == 0 {
			continue
		}
		out[filepath.Base(f)] = b
	}
	return out
}

func TestRealLogsAreParsed(t *testing.T) {
	for name, raw := range realLogs(t) {
		l, err := eventlog.Parse(raw, eventlog.Auto, withSM3)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantKind := eventlog.TCG2
		if strings.Contains(strings.ToLower(name), "ccel") {
			wantKind = eventlog.CCEL
		}
		if l.Kind != wantKind || len(l.Events) == 0 {
			t.Errorf("%s: kind %s, %d events", name, l.Kind, len(l.Events))
		}
		for _, a := range l.Algorithms {
			if _, err := l.Replay(a); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if in := l.Inspect(); len(in.Events) != len(l.Events) || len(in.Registers) != len(l.Algorithms) {
			t.Errorf("%s: inspection has %d events, %d banks", name, len(in.Events), len(in.Registers))
		}
	}
}

// A log that is cut off is refused, except where an event ends exactly; the
// registers then tell.
func TestTruncated(t *testing.T) {
	raw := read(t, "CCEL_data_ovmf")
	l := parse(t, raw, eventlog.CCEL)
	whole := raw[:len(raw)-l.Padding]
	boundaries := map[int]bool{}
	at := len(whole)
	for i := len(l.Events) - 1; i >= 0; i-- {
		at -= 4 + 4 + 4 + 2 + 48 + 4 + len(l.Events[i].Data)
		boundaries[at] = true
	}
	teetest.EachPrefix(whole, func(cut []byte) {
		_, err := eventlog.Parse(cut, eventlog.CCEL)
		if (err == nil) != boundaries[len(cut)] {
			t.Errorf("%d bytes: got %v", len(cut), err)
		}
		if _, err := eventlog.TrimCCEL(cut); err == nil {
			t.Errorf("%d bytes: trimmed without an end mark", len(cut))
		}
	})
}

func TestHostileLogs(t *testing.T) {
	area := read(t, "CCEL_data_ovmf")
	l := parse(t, area, eventlog.CCEL)
	whole := area[:len(area)-l.Padding]
	put := func(at int, v uint32) []byte {
		b := bytes.Clone(whole)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	const first = 32 + 33 // the first event
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"empty":                 {nil, "at least 32 bytes"},
		"zeros":                 {make([]byte, 4096), "type"},
		"ones":                  {bytes.Repeat([]byte{0xff}, 4096), "type"},
		"too large":             {make([]byte, eventlog.MaxLog+1), "size"},
		"twice":                 {append(append(bytes.Clone(whole), bytes.Repeat([]byte{0xff}, 8)...), whole...), "behind the end mark"},
		"header is huge":        {put(28, 0xffffffff), "data"},
		"header is small":       {put(28, 28), "size"},
		"no algorithms":         {put(32+24, 0), "number of algorithms"},
		"a million algorithms":  {put(32+24, 1e6), "number of algorithms"},
		"size of SHA-384 is 32": {put(32+28, 0x0020000c), "digest size"},
		"vendor information":    {func() []byte { b := bytes.Clone(whole); b[32+32] = 9; return b }(), "vendor information"},
		"header digest":         {func() []byte { b := bytes.Clone(whole); b[9] = 1; return b }(), "digest"},
		"digests are huge":      {put(first+8, 0xffffffff), "digest count"},
		"digests big endian":    {put(first+8, 0x01000000), "digest count"},
		"unknown algorithm":     {func() []byte { b := bytes.Clone(whole); b[first+12] = 0x0b; return b }(), "not in the header"},
		"data is huge":          {put(first+12+50, 0xfffffff0), "data"},
		"register":              {put(first, 5), "register"},
		"register is negative":  {put(first, 0xfffffffe), "register"},
		"three bytes more":      {append(bytes.Clone(whole), 0, 0, 0), "end mark"},
	} {
		_, err := eventlog.Parse(c.raw, eventlog.CCEL)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error with %q, got %v", name, c.want, err)
		}
		if name == "zeros" || name == "register" {
			continue // a log of a TPM might have this
		}
		if _, err := eventlog.Parse(c.raw, eventlog.Auto); err == nil {
			t.Errorf("%s: accepted as whatever it may be", name)
		}
	}
	for _, kind := range []eventlog.Kind{eventlog.TCG2, eventlog.AAEL} {
		if _, err := eventlog.Parse(make([]byte, 4096), kind); err == nil {
			t.Errorf("zeros: accepted as %s", kind)
		}
	}
}

// What is allocated follows from the size of the log: less than four times that.
func TestParseAllocates(t *testing.T) {
	logs := realLogs(t)
	// The smallest events there can be, as many as there can be.
	tiny := make([]byte, 0, 1<<20)
	for len(tiny) < 1<<20-64 {
		tiny = binary.LittleEndian.AppendUint32(tiny, 1)
		tiny = binary.LittleEndian.AppendUint32(tiny, uint32(eventlog.Action))
		tiny = append(tiny, make([]byte, 24)...)
	}
	logs["tiny events"] = tiny[:32*eventlog.MaxEvents]
	for name, raw := range logs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := eventlog.Parse(raw, eventlog.Auto, withSM3); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got >= 4*uint64(len(raw)) {
			t.Errorf("%s: %d bytes for a log of %d", name, got, len(raw))
		}
	}
	if _, err := eventlog.Parse(tiny, eventlog.Auto); len(tiny) > 32*eventlog.MaxEvents && err == nil {
		t.Error("more events than are allowed")
	}
}

func TestEvidence(t *testing.T) {
	area := read(t, "CCEL_data_ovmf")
	r, err := eventlog.NewRuntimeEvent("coco.com", "operation", `{"a":[1,"b"]}`)
	if err != nil {
		t.Fatal(err)
	}
	entry, _, err := r.Entry(4, eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	both, err := eventlog.Evidence(area, entry)
	if err != nil {
		t.Fatal(err)
	}
	l := parse(t, both, eventlog.Auto)
	if l.Kind != eventlog.CCEL || len(l.Events) != 21 || l.Padding != 8 {
		t.Errorf("kind %s, %d events, padding %d", l.Kind, len(l.Events), l.Padding)
	}
	claim, _ := l.Claims()[20].(map[string]any)
	text, err := json.Marshal(claim["details"])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"data":{"content":{"a":[1,"b"]},"domain":"coco.com","operation":"operation"},"string":"coco.com operation {\"a\":[1,\"b\"]}","unicode_name":"AAEL"}`
	if string(text) != want || claim["digest_matches_event"] != true {
		t.Errorf("claim: expected %s, got %s", want, text)
	}
	// Without a CCEL table guest-components writes these 69 bytes.
	alone, err := eventlog.Evidence(nil, entry)
	if err != nil {
		t.Fatal(err)
	}
	header := unhex(t, "0000000003000000"+strings.Repeat("00", 20)+"25000000"+
		strings.Repeat("00", 16)+"00000000"+"00000000"+"02000000"+"0c003000"+"12002000"+"00")
	if !bytes.HasPrefix(alone, header) {
		t.Errorf("header: expected %x, got %x", header, alone[:69])
	}
	if l := parse(t, alone, eventlog.Auto); l.Kind != eventlog.CCEL || len(l.Events) != 1 {
		t.Errorf("kind %s, %d events", l.Kind, len(l.Events))
	}
	if nothing, err := eventlog.Evidence(nil, nil); nothing != nil || err != nil {
		t.Errorf("nothing: got %x, %v", nothing, err)
	}
	other, _, err := r.Entry(4, eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][]byte{
		"no end mark":        {area[:2120], entry},
		"other bank":         {area, other},
		"half a runtime log": {area, entry[:40]},
		"not a runtime log":  {area, area},
	} {
		if _, err := eventlog.Evidence(c[0], c[1]); err == nil {
			t.Errorf("%s: expected an error", name)
		}
	}
}

func TestRuntimeEventsThatCannotBeWritten(t *testing.T) {
	for _, c := range [][3]string{{"a b", "c", "d"}, {"a", "b c", "d"}, {"a", "b", "c\nd"}, {"", "b", "c"}, {"a", "", "c"}, {"a", "b", "\xff"}, {"a", "b", "\x00"}} {
		if _, err := eventlog.NewRuntimeEvent(c[0], c[1], c[2]); err == nil {
			t.Errorf("%q: expected an error", c)
		}
	}
	r, err := eventlog.NewRuntimeEvent("a", "b", `{"x":1,"x":2}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.ContentValue(); got != `{"x":1,"x":2}` {
		t.Errorf("a name twice: got %v", got)
	}
}

func TestCCMR(t *testing.T) {
	got := make([]int, 24)
	for pcr := range got {
		got[pcr] = eventlog.CCMR(pcr, false)
	}
	want := []int{4, 1, 2, 2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if eventlog.CCMR(0, true) != 0 {
		t.Error("PCR 0 on CSV")
	}
}

func TestWriter(t *testing.T) {
	w, err := eventlog.NewWriter(eventlog.CCEL, []eventlog.Alg{eventlog.SHA384})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Measure(2, eventlog.EFIAction, []byte("Exit Boot Services Invocation"), []byte("Exit Boot Services Invocation")); err != nil {
		t.Fatal(err)
	}
	area, err := w.Area(4096)
	if err != nil {
		t.Fatal(err)
	}
	if len(area) != 4096 {
		t.Errorf("area of %d bytes", len(area))
	}
	trimmed, err := eventlog.TrimCCEL(area)
	if err != nil || !bytes.Equal(trimmed, w.Bytes()) {
		t.Errorf("trimmed: %v", err)
	}
	// The header is the one that OVMF writes.
	if ovmf := read(t, "CCEL_data_ovmf"); !bytes.Equal(area[:65], ovmf[:65]) {
		t.Errorf("header: expected %x, got %x", ovmf[:65], area[:65])
	}
	if _, err := w.Area(100); err == nil {
		t.Error("an area that is too small")
	}
	if _, err := w.Measure(5, eventlog.Action, nil, nil); err == nil {
		t.Error("register 5")
	}
	if err := w.Append(1, eventlog.Action, nil, nil); err == nil {
		t.Error("no digests")
	}
	if _, err := eventlog.NewWriter(eventlog.TCG2, []eventlog.Alg{eventlog.SM3}); err == nil {
		t.Error("an algorithm without a hash function")
	}
}

func TestBoot(t *testing.T) {
	shim := parse(t, read(t, "ccel_for_quote_v4.bin"), eventlog.Auto).Boot(eventlog.SHA384)
	if shim.Cmdline != "root=/dev/vda1 console=hvc0 rw" || len(shim.Images) != 1 {
		t.Errorf("td-shim: got %+v", shim)
	}
	raw := read(t, "ccel_for_quote_v4.bin")
	i := bytes.Index(raw, []byte("root=/dev/vda1"))
	raw[i] = 'R'
	if forged := parse(t, raw, eventlog.Auto).Boot(eventlog.SHA384); forged.Cmdline != "" || len(forged.Images) != 2 {
		t.Errorf("text that was not measured: got %+v", forged)
	}
	direct := parse(t, read(t, "CCEL_data_ovmf"), eventlog.Auto).Boot(eventlog.SHA384)
	if direct.SecureBoot == nil || *direct.SecureBoot || direct.Kernel == nil || direct.Initrd == nil || direct.CmdlineDigest == nil || direct.Cmdline != "" {
		t.Errorf("direct boot: got %+v", direct)
	}
	grub := parse(t, read(t, "cos113_ccel.bin"), eventlog.Auto).Boot(eventlog.SHA384)
	if !strings.HasPrefix(grub.Cmdline, "/syslinux/vmlinuz.A init=") || len(grub.Images) != 2 || bytes.Equal(grub.Kernel, grub.Images[1].Digest) {
		t.Errorf("GRUB: got %+v", grub)
	}
	secure := parse(t, read(t, "CCEL_data_grub"), eventlog.Auto).Boot(eventlog.SHA384)
	if secure.SecureBoot == nil || !*secure.SecureBoot || len(secure.Images) != 5 {
		t.Errorf("secure boot: got %+v", secure)
	}
	if claims := direct.Claims(); claims["secure_boot"] != false || claims["kernel"] == nil || claims["cmdline"] != nil {
		t.Errorf("claims: got %v", claims)
	}
}

func TestPartitionTable(t *testing.T) {
	l := parse(t, read(t, "CCEL_data_csv"), eventlog.Auto)
	d, err := l.Events[20].Details()
	if err != nil {
		t.Fatal(err)
	}
	if d.GPT == nil || len(d.GPT.Partitions) != 3 || d.GPT.Partitions[0].ID.String() != "6efd460d-b4df-416d-9676-0aa029f0e942" ||
		d.GPT.Partitions[0].First != 0x800 || d.GPT.Partitions[0].Name != "EFI System Partition" {
		t.Errorf("got %+v", d.GPT)
	}
	e := l.Events[20]
	for _, cut := range []int{0, 90, 99, len(e.Data) - 1} {
		e.Data = l.Events[20].Data[:cut]
		if _, err := e.Details(); err == nil {
			t.Errorf("%d bytes: expected an error", cut)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, raw := range realLogs(f) {
		f.Add(bytes.TrimRight(bytes.TrimRight(raw, "\x00"), "\xff"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, kind := range []eventlog.Kind{eventlog.Auto, eventlog.CCEL, eventlog.TCG2, eventlog.AAEL} {
			l, err := eventlog.Parse(raw, kind, withSM3)
			if err != nil {
				continue
			}
			if l.Kind == eventlog.Auto || len(l.Events) > eventlog.MaxEvents {
				t.Errorf("kind %q, %d events", l.Kind, len(l.Events))
			}
			if _, err := json.Marshal(l.Inspect()); err != nil {
				t.Error(err)
			}
			for _, a := range l.Algorithms {
				if values, err := l.Replay(a); err == nil && l.Compare(a, values) != nil {
					t.Error("a log does not compare with its own registers")
				}
			}
		}
	})
}

func FuzzDetails(f *testing.F) {
	for _, raw := range realLogs(f) {
		l := parse(f, raw, eventlog.Auto)
		for i := range l.Events {
			f.Add(uint32(l.Events[i].Type), l.Events[i].Data)
		}
	}
	f.Fuzz(func(t *testing.T, typ uint32, data []byte) {
		e := eventlog.Event{Type: eventlog.EventType(typ), Data: data}
		d, err := e.Details()
		if err == nil && d.Variable != nil {
			again := eventlog.AppendVariable(nil, d.Variable.Vendor, d.Variable.Name, d.Variable.Data)
			if !bytes.Equal(append(again, d.Variable.Rest...), data) {
				t.Errorf("variable: got %x again", again)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	raw := read(b, "cos113_ccel.bin")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := eventlog.Parse(raw, eventlog.CCEL); err != nil {
			b.Fatal(err)
		}
	}
}
