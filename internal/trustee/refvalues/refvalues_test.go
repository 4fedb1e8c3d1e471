package refvalues

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)

func TestExpiry(t *testing.T) {
	t.Parallel()
	r := Reference{Name: "m", Entries: []Entry{
		{Value: json.RawMessage(`"aa"`), Description: "guest 1.2, 2 vCPUs"},
		{Value: json.RawMessage(`"bb"`), Expires: now},
		{Value: json.RawMessage(`"cc"`), Expires: now.Add(time.Second)},
	}}
	if got := string(r.Current(now)); got != `["aa","cc"]` {
		t.Errorf("current = %s", got)
	}
	if got, want := r.Describe(now), "[aa (guest 1.2, 2 vCPUs), cc]"; got != want {
		t.Errorf("describe = %q, want %q", got, want)
	}
	r.Entries = r.Entries[1:2]
	if got := string(r.Current(now)); got != "null" {
		t.Errorf("all expired: current = %s", got)
	}
	if got := r.Describe(now); !strings.Contains(got, "expired 2026-09-01T00:00:00Z") {
		t.Errorf("describe = %q", got)
	}
	if got := (Reference{}).Describe(now); !strings.Contains(got, "no value is registered") {
		t.Errorf("describe = %q", got)
	}
}

func TestDescribeIsBounded(t *testing.T) {
	t.Parallel()
	r := Reference{Name: "m"}
	for i := range 100 {
		r.Entries = append(r.Entries, Entry{Value: fmt.Appendf(nil, "%d", i)})
	}
	if got := r.Describe(now); !strings.Contains(got, "7, and 92 more]") {
		t.Errorf("describe = %q", got)
	}
}

func TestValidateTexts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		e    Entry
		want string
	}{
		"longest":          {Entry{Source: strings.Repeat("s", MaxSource), Description: strings.Repeat("d", MaxDescription)}, ""},
		"long source":      {Entry{Source: strings.Repeat("s", MaxSource+1)}, "source: expected at most 1024 bytes"},
		"broken source":    {Entry{Source: "\xff"}, "source: expected at most 1024 bytes of UTF-8"},
		"long description": {Entry{Description: strings.Repeat("d", MaxDescription+1)}, "description: expected at most"},
	} {
		tc.e.Value = json.RawMessage("1")
		r := Reference{Name: "m", Entries: []Entry{tc.e}}
		err := r.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
