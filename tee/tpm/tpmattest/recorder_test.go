package tpmattest_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest/swtpmtest"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// TestRecorder has a guest's recorder extend a TPM, and a verifier hold the log
// beside the quote against the quoted register.
func TestRecorder(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	recorder, a, devices := measurement.Open(attester(t, tpmattest.Options{TPM: s, CreateAK: true}), 0)
	if !recorder.HasRegister() || len(devices) != 1 || devices[0].TEE() != tee.RuntimeLog {
		t.Fatalf("register %t, %d devices", recorder.HasRegister(), len(devices))
	}
	v := verifier(t, tpmverify.Options{})
	// judge returns the events of the log, what they amount to and what was quoted.
	judge := func() (events []any, log, quoted string) {
		t.Helper()
		data := reportData()
		additional := evidence(t, devices[0], data)
		got, err := v.Verify(t.Context(), evidence(t, a, data), tee.Expected{ReportData: data})
		if err != nil {
			t.Fatal(err)
		}
		e, err := eventlog.ParseRuntimeEvidence(additional)
		if err != nil || e.PCR == nil || *e.PCR != measurement.DefaultPCR {
			t.Fatalf("%+v, %v", e, err)
		}
		events, value, err := e.Replayed()
		if err != nil {
			t.Fatal(err)
		}
		quoted, _ = got.Claims["pcr15"].(string)
		return events, hex.EncodeToString(value), quoted
	}
	if events, _, quoted := judge(); len(events) != 0 || quoted != strings.Repeat("0", 64) {
		t.Errorf("before anything happened: %d events, register %s", len(events), quoted)
	}
	before := ""
	for i, operation := range []string{"PullImage", "CreateContainer", "Exec"} {
		if err := recorder.Record(t.Context(), measurement.DomainCoffer, operation, `{"id":"web"}`); err != nil {
			t.Fatal(err)
		}
		events, log, quoted := judge()
		if len(events) != i+1 || log != quoted || quoted == before {
			t.Errorf("after %s: %d events, which amount to %s, register %s (before: %s)", operation, len(events), log, quoted, before)
		}
		before = quoted
	}
	// Somebody else extends the register: the log does not explain it.
	if err := tpmattest.ExtendPCR(s, measurement.DefaultPCR, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, log, quoted := judge(); log == quoted {
		t.Error("the log amounts to a register that was extended without it")
	}
	// A register that only firmware may extend (17) takes no event.
	recorder, _, _ = measurement.Open(attester(t, tpmattest.Options{TPM: s}), measurement.PCR)
	if err := recorder.Record(t.Context(), measurement.DomainCoffer, "Exec", "x"); err == nil || recorder.Log() != nil {
		t.Errorf("register 17: %v, log of %d bytes", err, len(recorder.Log()))
	}
}
