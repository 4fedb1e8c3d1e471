package eventlog_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/eventlog"
)

var withSM3 = eventlog.WithHash(eventlog.SM3, sm3.New)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, raw []byte, kind eventlog.Kind) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Parse(raw, kind, withSM3)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden are logs of real guests and what another implementation makes of them.
var golden = []struct{ log, claims string }{
	{"CCEL_data_csv", "CCEL_data_csv_out.json"},
	{"CCEL_data_grub", "CCEL_data_grub_out.json"},
	{"CCEL_data_ovmf", "CCEL_data_ovmf_out.json"},
	{"ccel_for_quote_v4.bin", "quote_v4_expected_claims.json"},
}

// More pairs come from EVENTLOG_GOLDEN, a directory of files NAME and
// NAME_out.json, for example deps/eventlog/test_data of trustee.
func TestClaimsAreThoseOfTrustee(t *testing.T) {
	dir := os.Getenv("EVENTLOG_GOLDEN")
	more, err := filepath.Glob(filepath.Join(dir, "*_out.json"))
	if err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		more = nil
	}
	for _, g := range golden {
		more = append(more, filepath.Join("testdata", g.claims))
	}
	for _, file := range more {
		t.Run(filepath.Base(file), func(t *testing.T) {
			log := file[:len(file)-len("_out.json")]
			for _, g := range golden {
				if g.claims == filepath.Base(file) {
					log = filepath.Join("testdata", g.log)
				}
			}
			compareClaims(t, log, file)
		})
	}
}

func compareClaims(t *testing.T, logFile, goldenFile string) {
	raw, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Events []any `json:"uefi_event_logs"`
	}
	if err := json.Unmarshal(doc, &want); err != nil {
		t.Fatal(err)
	}
	if len(want.Events) == 0 {
		t.Fatal("no events in the golden file")
	}
	l := parse(t, raw, eventlog.Auto)
	if l.Kind != eventlog.CCEL {
		t.Errorf("kind: got %s", l.Kind)
	}
	text, err := json.Marshal(l.Claims())
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Events, got); d != "" {
		t.Errorf("claims (-want +got):\n%s", d)
	}
}

// quoteRTMRs are the registers of a quote of version 4: 48 bytes of header, RTMR 0
// at byte 328 of the TD report (Intel TDX DCAP, quote format).
func quoteRTMRs(t testing.TB) map[int][]byte {
	quote := read(t, "cos113_quote.dat")
	want := map[int][]byte{}
	for i := range 4 {
		at := 48 + 328 + 48*i
		want[i+1] = quote[at : at+48]
	}
	return want
}

func TestRuntimeEventVectors(t *testing.T) {
	r, err := eventlog.NewRuntimeEvent("domain", "operation", "content")
	if err != nil {
		t.Fatal(err)
	}
	// guest-components, attestation-agent, tests of the event log.
	if want := unhex(t, "4c45414118000000646f6d61696e206f7065726174696f6e20636f6e74656e74"); !bytes.Equal(r.Data(), want) {
		t.Errorf("data: expected %x, got %x", want, r.Data())
	}
	for a, want := range map[eventlog.Alg]string{
		eventlog.SHA256: "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351",
		eventlog.SHA384: "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02",
		eventlog.SHA512: "b708d222ca8bd44dfe6ba0c4ca2cbb72379276fba8091025217064be45a813e5d6124ccf073219edb617d1faf007d55061465bdf34b7437dbdc9a7405bd4e9c0",
	} {
		entry, digest, err := r.Entry(4, a)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(digest) != want {
			t.Errorf("%s: expected %s, got %x", a, want, digest)
		}
		l := parse(t, append(entry, entry...), eventlog.Auto)
		if l.Kind != eventlog.AAEL || len(l.Events) != 2 {
			t.Errorf("%s: parsed as %s with %d events", a, l.Kind, len(l.Events))
		}
		d, err := l.Events[0].Details()
		if err != nil || d.Runtime == nil || *d.Runtime != r {
			t.Errorf("%s: details %+v, %v", a, d, err)
		}
	}
}
