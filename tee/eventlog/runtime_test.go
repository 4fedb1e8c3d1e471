package eventlog_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// runtimeLog is a log of two events, and the value of a register behind it.
func runtimeLog(t testing.TB, register int, alg eventlog.Alg) (log, first []byte) {
	t.Helper()
	for _, e := range []eventlog.RuntimeEvent{{"github.com/confidential-containers", "PullImage", `{"image":"a", "digest":"b"}`}, {"app", "ready", "now then"}} {
		entry, _, err := e.Entry(register, alg)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, entry...)
		if first == nil {
			first = entry
		}
	}
	return log, first
}

func TestRuntimeEvidence(t *testing.T) {
	t.Parallel()
	pcr := 17
	log, first := runtimeLog(t, 4, eventlog.SHA384)
	raw, err := eventlog.RuntimeEvidence{Log: log, PCR: &pcr}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	e, err := eventlog.ParseRuntimeEvidence(raw)
	if err != nil || *e.PCR != 17 {
		t.Fatalf("%+v, %v", e, err)
	}
	events, value, err := e.Replayed()
	if err != nil {
		t.Fatal(err)
	}
	want := []any{
		map[string]any{"domain": "github.com/confidential-containers", "operation": "PullImage", "content": map[string]any{"image": "a", "digest": "b"}},
		map[string]any{"domain": "app", "operation": "ready", "content": "now then"},
	}
	if d := cmp.Diff(want, events); d != "" {
		t.Error(d)
	}
	// Computed from the definition: what is measured of an event is its data.
	register := make([]byte, 48)
	for _, r := range []eventlog.RuntimeEvent{{"github.com/confidential-containers", "PullImage", `{"image":"a", "digest":"b"}`}, {"app", "ready", "now then"}} {
		digest := sha512.Sum384(r.Data())
		sum := sha512.Sum384(append(bytes.Clone(register), digest[:]...))
		register = sum[:]
	}
	if !bytes.Equal(value, register) {
		t.Errorf("register %x, want %x", value, register)
	}
	none := &eventlog.RuntimeEvidence{}
	if events, value, err := none.Replayed(); err != nil || len(events) != 0 || value != nil {
		t.Errorf("an empty log: %v, %x, %v", events, value, err)
	}

	other, _ := runtimeLog(t, 3, eventlog.SHA384)
	hashed, _ := runtimeLog(t, 4, eventlog.SHA256)
	forged := bytes.Clone(log)
	forged[len(forged)-1] ^= 1
	for name, bad := range map[string][]byte{
		"another register": append(bytes.Clone(first), other...), "another algorithm": append(bytes.Clone(first), hashed...),
		"other data than the digest's": forged, "cut": log[:len(log)-1], "garbage": []byte("garbage"),
	} {
		if _, _, err := (&eventlog.RuntimeEvidence{Log: bad}).Replayed(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, bad := range []string{``, `{}x`, `{"log":"!"}`, `{"log":"","pcr":24}`, `{"log":"","pcr":-1}`, `{"log":"","log":""}`, `{"log":"","more":1}`,
		`{"log":"` + strings.Repeat("A", 2<<20) + `"}`} {
		if _, err := eventlog.ParseRuntimeEvidence(json.RawMessage(bad)); err == nil {
			t.Errorf("%.30s: accepted", bad)
		}
	}
}

func FuzzRuntimeEvidence(f *testing.F) {
	log, _ := runtimeLog(f, 4, eventlog.SHA384)
	f.Add(log)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, log []byte) {
		e := &eventlog.RuntimeEvidence{Log: log}
		events, value, err := e.Replayed()
		if err != nil && (events != nil || value != nil) || err == nil && events == nil {
			t.Fatalf("%v, %x, %v", events, value, err)
		}
	})
}
