package k8s

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// result is what came of a row on a handler.
type result string

const (
	passed        result = "passed"
	failed        result = "failed"
	notApplicable result = "not applicable"
)

// line is one of the report.
type line struct {
	Row     string  `json:"row"`
	Asserts string  `json:"asserts"`
	Core    bool    `json:"core"`
	Handler string  `json:"handler,omitempty"`
	Result  result  `json:"result"`
	Reason  string  `json:"reason,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// report collects lines from tests that run at once.
type report struct {
	dir        string
	containerd string

	mu    sync.Mutex
	lines []line
}

func newReport(dir, containerd string) *report { return &report{dir: dir, containerd: containerd} }

func (r *report) add(row row, handler string, what result, reason string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line{
		Row: row.id, Asserts: row.asserts, Core: row.core, Handler: handler, Result: what, Reason: reason,
		Seconds: float64(took.Round(10*time.Millisecond)) / float64(time.Second),
	})
}

// write prints the report, and writes it where there is a directory for it.
func (r *report) write() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.lines, func(l line) bool { return l.Result != notApplicable }) {
		return nil
	}
	slices.SortStableFunc(r.lines, func(a, b line) int { return strings.Compare(a.Row, b.Row) })
	count := map[result]int{}
	var b strings.Builder
	fmt.Fprintf(&b, "# Pods on Kubernetes\n\ncontainerd %s\n\n| row | handler | core | result | s | asserts |\n| --- | --- | --- | --- | --- | --- |\n", r.containerd)
	for _, l := range r.lines {
		count[l.Result]++
		core, what := "", string(l.Result)
		if l.Core {
			core = "core"
		}
		if l.Reason != "" {
			what += ": " + l.Reason
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f | %s |\n", l.Row, l.Handler, core, what, l.Seconds, l.Asserts)
	}
	fmt.Fprintf(&b, "\n%d passed, %d failed, %d not applicable\n", count[passed], count[failed], count[notApplicable])
	fmt.Print(b.String())
	if r.dir == "" {
		return nil
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(map[string]any{"containerd": r.containerd, "rows": r.lines}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "report.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "report.md"), []byte(b.String()), 0o644)
}
