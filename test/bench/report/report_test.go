package report_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/test/bench/report"
)

func TestReport(t *testing.T) {
	t.Parallel()
	r := report.Report{Command: "make bench-x"}
	r.Add("a/count", 1234567890, "instructions", "")
	r.AtMost("a/ratio", 1.0288, "×", 1.15, "C init")
	r.AtMost("a/size", 30, "MiB", 25, "")
	if diff := cmp.Diff([]string{"a/size"}, r.Missed()); diff != "" {
		t.Error(diff)
	}
	var table strings.Builder
	if err := r.Table(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1234567890", "1.0288", "≤ 1.1500", "ok", "MISSED", "C init"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, table.String())
		}
	}
	path := filepath.Join(t.TempDir(), "bench", "x.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := `[
  {
    "name": "a/count",
    "value": 1234567890,
    "unit": "instructions",
    "target": null,
    "pass": true,
    "peer": "",
    "command": "make bench-x"
  },
  {
    "name": "a/ratio",
    "value": 1.0288,
    "unit": "×",
    "target": 1.15,
    "pass": true,
    "peer": "C init",
    "command": "make bench-x"
  },
  {
    "name": "a/size",
    "value": 30,
    "unit": "MiB",
    "target": 25,
    "pass": false,
    "peer": "",
    "command": "make bench-x"
  }
]
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}
