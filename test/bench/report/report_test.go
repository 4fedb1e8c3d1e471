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
	r.AtLeast("a/rate", 0.75, "×", 0.7, "")
	r.AtLeast("a/slow", 0.65, "×", 0.7, "")
	if diff := cmp.Diff([]string{"a/size", "a/slow"}, r.Missed()); diff != "" {
		t.Error(diff)
	}
	var table strings.Builder
	if err := r.Table(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1234567890", "1.0288", "≤ 1.1500", "≥ 0.7000", "ok", "MISSED", "C init"} {
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
  },
  {
    "name": "a/rate",
    "value": 0.75,
    "unit": "×",
    "target": 0.7,
    "at_least": true,
    "pass": true,
    "peer": "",
    "command": "make bench-x"
  },
  {
    "name": "a/slow",
    "value": 0.65,
    "unit": "×",
    "target": 0.7,
    "at_least": true,
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
