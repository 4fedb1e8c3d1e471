package provenance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

var sampleTime = time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)

// parseSampleMessage believes an administrator's own word, as the default
// configuration does.
func parseSampleMessage(t *testing.T, data []byte) ([]refvalues.Reference, error) {
	t.Helper()
	return Parse(t.Context(), Options{AllowUnsigned: []string{Sample}, Now: func() time.Time { return sampleTime }}, data)
}

func sampleMessage(payload string) []byte {
	return fmt.Appendf(nil, `{"version":"0.1.0","type":"sample","payload":%q}`, base64.StdEncoding.EncodeToString([]byte(payload)))
}

func TestSampleMessage(t *testing.T) {
	t.Parallel()
	refs, err := parseSampleMessage(t, sampleMessage(`{"b":["x", "y"],"a":7}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(refs) != 2 || refs[0].Name != "a" || !refs[0].Scalar || refs[1].Scalar {
		t.Fatalf("got %+v", refs)
	}
	if got := string(refs[0].Current(sampleTime)); got != "7" {
		t.Errorf("a = %s", got)
	}
	if got := string(refs[1].Current(sampleTime)); got != `["x","y"]` {
		t.Errorf("b = %s", got)
	}
	for name, bad := range map[string]string{
		"not JSON":  `{`,
		"unknown":   `{"type":"sample","payload":"e30=","provenance":""}`,
		"trailing":  `{"type":"sample","payload":"e30="} 1`,
		"type":      `{"type":"corim","payload":"e30="}`,
		"version":   `{"version":"9","type":"sample","payload":"e30="}`,
		"base64":    `{"type":"sample","payload":"***"}`,
		"empty":     string(sampleMessage(`{}`)),
		"null":      string(sampleMessage(`{"a":null}`)),
		"no values": string(sampleMessage(`{"a":[]}`)),
		"name":      string(sampleMessage(`{"a b":[1]}`)),
		"too long":  string(sampleMessage(`{"a":"` + strings.Repeat("x", refvalues.MaxValue) + `"}`)),
		"array":     string(sampleMessage(`[1]`)),
	} {
		if _, err := parseSampleMessage(t, []byte(bad)); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzSampleMessage(f *testing.F) {
	f.Add(sampleMessage(`{"b":["x"],"a":7}`))
	f.Add([]byte(`{"type":"sample","payload":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := parseSampleMessage(t, data)
		if err != nil {
			return
		}
		for _, r := range refs {
			if !json.Valid(r.Current(sampleTime)) {
				t.Errorf("%q: current is no JSON: %s", r.Name, r.Current(sampleTime))
			}
		}
	})
}
