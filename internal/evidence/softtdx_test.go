package evidence

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/tdx"
)

// TestSoftTDX verifies evidence of the software TEE by the one file that its
// state has for that, and holds it against predicted references.
func TestSoftTDX(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	processor, err := softtee.LoadOrCreate(state, rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	launch := measure.TDXLaunch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Cmdline: "quiet", VCPUs: 1, Memory: 512 << 20}
	verify := func(l measure.TDXLaunch) []*tee.Result {
		t.Helper()
		guest, err := processor.LaunchTDX(l, softtee.TDXPolicy{QuoteVersion: 5})
		if err != nil {
			t.Fatal(err)
		}
		quote, err := guest.Quote([64]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		doc, err := (&tdx.Evidence{Quote: quote, EventLog: guest.EventLog()}).JSON()
		if err != nil {
			t.Fatal(err)
		}
		results, err := Verify(t.Context(), tee.TDX, doc, tee.Expected{ReportData: []byte{1}}, Options{Roots: []string{filepath.Join(state, softtee.TDXRootFile)}})
		if err != nil {
			t.Fatal(err)
		}
		if len(results) != 1 || !results[0].Simulated || len(results[0].Warnings) != 0 {
			t.Fatalf("results %+v", results)
		}
		return results
	}
	predicted, err := reference.TDX(launch)
	if err != nil {
		t.Fatal(err)
	}
	message, err := predicted.Message()
	if err != nil {
		t.Fatal(err)
	}
	refs, err := ParseReferences(t.Context(), message, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	failures, err := Appraise(t.Context(), verify(launch), refs, time.Now)
	if err != nil || len(failures) != 0 {
		t.Errorf("as predicted: %+v, %v", failures, err)
	}
	launch.Cmdline += " init=/bin/sh"
	failures, err = Appraise(t.Context(), verify(launch), refs, time.Now)
	if err != nil || len(failures) != 1 || failures[0].Field != "quote/body/rtmr_2" {
		t.Errorf("another command line: %+v, %v", failures, err)
	}

	bad := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(bad, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), tee.TDX, []byte(`{"quote":"AA==","cc_eventlog":null}`), tee.Expected{}, Options{Roots: []string{bad}}); err == nil {
		t.Error("a bad root was taken")
	} else if _, ok := errors.AsType[*InputError](err); !ok {
		t.Errorf("a bad root: %v", err)
	}
}
