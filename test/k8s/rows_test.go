package k8s

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coffer-project/coffer/test/k8s/node"
)

const runc = "runc"

// kind is a set of kinds of handlers.
type kind uint

const (
	onRunc kind = 1 << iota
	onProcess
	onMachine
	// onCoffer is where the product's shim runs; onAll is everywhere.
	onCoffer = onProcess | onMachine
	onAll    = onRunc | onCoffer
)

func kindOf(handler string) kind {
	switch handler {
	case runc:
		return onRunc
	case node.HandlerProcess:
		return onProcess
	}
	return onMachine
}

// row is one thing that must hold.
type row struct {
	// id is the name of the file of Kata's tests that asserts the same, with a case
	// of it, or our own.
	id string
	// asserts says what must hold.
	asserts string
	// on is where it makes sense.
	on kind
	// core rows are those of COFFER_K8S=core.
	core bool
	// not says why the row does not apply here; then there is no run.
	not string
	// alone rows run when no other does: they restart what others use.
	alone bool
	// wide rows have many pods at once: no other runs beside them.
	wide bool
	run  func(t *testing.T, c *cluster)
}

// table is every row.
func table() []row {
	return slices.Concat(volumeRows(), podRows(), limitRows(), ioRows(), securityRows(), networkRows(), controllerRows(), sealedRows(), policyRows(), nodeRows(), absentRows())
}

// TestTable has a name for each row, once.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table() {
		if seen[r.id] {
			t.Errorf("two rows are called %s", r.id)
		}
		seen[r.id] = true
		if r.asserts == "" || (r.run == nil) == (r.not == "") || (r.not == "" && r.on == 0) {
			t.Errorf("row %s: what it asserts, where, and either a run or a reason why not", r.id)
		}
	}
}

// TestRows runs the rows on each handler.
func TestRows(t *testing.T) {
	rows := table()
	for _, r := range rows {
		if r.not != "" {
			the.report.add(r, "", notApplicable, r.not, 0)
		}
	}
	for _, handler := range the.handlers {
		t.Run(handler, func(t *testing.T) {
			n := need(t)
			needHandler(t, handler)
			h := newHandler(n, handler)
			before, err := n.Inventory()
			if err != nil {
				t.Fatal(err)
			}
			h.all(t, rows)
			h.closeSite(t)
			if err := n.Settle(t.Context(), before, 2*time.Minute); err != nil {
				t.Errorf("the pods of %s: %v", handler, err)
			}
		})
	}
}

// needHandler skips where the programs of a handler are absent.
func needHandler(t *testing.T, handler string) {
	t.Helper()
	var files []string
	switch kindOf(handler) {
	case onProcess:
		files = []string{filepath.Join(the.bin, "containerd-shim-coffer-v2"), filepath.Join(the.bin, "coffer-agent")}
	case onMachine:
		files = []string{filepath.Join(the.bin, "containerd-shim-coffer-v2"), filepath.Join(the.bin, "coffer"), filepath.Join(the.guest, "manifest.json")}
	}
	needFiles(t, files)
}

// needFiles skips where one is absent.
func needFiles(t *testing.T, files []string) {
	t.Helper()
	for _, f := range files {
		if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
			if os.Getenv("COFFER_REQUIRE_K8S") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// all runs the rows of every manner, those that disturb others last.
func (h *handler) all(t *testing.T, rows []row) {
	t.Run("together", func(t *testing.T) { h.runRows(t, rows, func(r row) bool { return !r.alone && !r.wide }) })
	h.removeFixtures(t)
	h.parallel = make(chan struct{}, 1)
	t.Run("wide", func(t *testing.T) { h.runRows(t, rows, func(r row) bool { return r.wide && !r.alone }) })
	t.Run("alone", func(t *testing.T) { h.runRows(t, rows, func(r row) bool { return r.alone }) })
	h.removeFixtures(t)
}

func (h *handler) runRows(t *testing.T, rows []row, chosen func(row) bool) {
	for _, r := range rows {
		if !chosen(r) || r.not != "" || r.on&kindOf(h.name) == 0 || (the.core && !r.core) {
			continue
		}
		t.Run(r.id, func(t *testing.T) {
			if !r.alone {
				t.Parallel()
			}
			h.parallel <- struct{}{}
			defer func() { <-h.parallel }()
			began := time.Now()
			defer func() {
				result := passed
				switch {
				case t.Failed():
					result = failed
				case t.Skipped():
					result = notApplicable
				}
				the.report.add(r, h.label, result, "", time.Since(began))
			}()
			r.run(t, h.cluster(t, r.id))
		})
	}
}
