package measurement_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxattest"
)

// module is a TDX attester whose register's file is a plain one, which holds
// what was written: extending is done here, as the TDX module does it.
type module struct {
	*tdxattest.Attester
	t    *testing.T
	file string
}

func (m *module) ExtendRTMR3(ctx context.Context, digest []byte) error {
	old, err := os.ReadFile(m.file)
	if err != nil {
		return err
	}
	if err := m.Attester.ExtendRTMR3(ctx, digest); err != nil {
		return err
	}
	written, err := os.ReadFile(m.file)
	if err != nil {
		return err
	}
	value := sha512.Sum384(append(old, written...))
	return os.WriteFile(m.file, value[:], 0o600)
}

// published is the quote that tee/tdx has for its tests, with other report data.
func published(t *testing.T, reportData []byte) []byte {
	t.Helper()
	quote, err := os.ReadFile("../../../tee/tdx/tdxattest/testdata/quote_v4.dat")
	if err != nil {
		t.Fatal(err)
	}
	copy(quote[48+520:], reportData) // header, then the body with REPORTDATA at its end
	return quote
}

func tdxGuest(t *testing.T, dir string) *tdxattest.Attester {
	t.Helper()
	kernel := &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random: rand.Reader,
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}, "privlevel": {}}}
		},
		CheckInAttr: func(*faketsm.ReportEntry, string, []byte) error { return nil },
		ReadAttr: func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
			switch attr {
			case "provider":
				return []byte("tdx_guest\n"), nil
			case "outblob":
				return published(t, e.InAttrs["inblob"].Value), nil
			}
			return nil, os.ErrNotExist
		},
	}}}
	a, err := tdxattest.New(tdxattest.Options{ConfigFS: kernel, Measurements: dir})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestOpenTDX(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "rtmr3:sha384")
	if err := os.WriteFile(file, make([]byte, 48), 0o600); err != nil {
		t.Fatal(err)
	}
	r, a, devices := measurement.Open(&module{tdxGuest(t, dir), t, file}, 0)
	if !r.HasRegister() || len(devices) != 0 || a.TEE() != tee.TDX {
		t.Fatalf("register %t, %d devices, %s", r.HasRegister(), len(devices), a.TEE())
	}
	for _, id := range []string{"a", "b"} {
		if err := r.Record(t.Context(), measurement.DomainCoffer, "CreateContainer", id); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := a.Evidence(t.Context(), []byte("fresh"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := tdx.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(e.EventLog, eventlog.CCEL)
	if err != nil {
		t.Fatal(err)
	}
	register, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Compare(eventlog.SHA384, map[int][]byte{4: register}); err != nil || len(log.Events) != 2 {
		t.Errorf("%d events: %v", len(log.Events), err)
	}
	if bytes.Equal(register, make([]byte, 48)) {
		t.Error("nothing was extended")
	}
}

// A kernel before 6.16 has no file of the register: the log goes beside the evidence.
func TestOpenTDXWithoutRegister(t *testing.T) {
	t.Parallel()
	guest := tdxGuest(t, t.TempDir())
	r, a, devices := measurement.Open(guest, 0)
	if r.HasRegister() || len(devices) != 1 || a != tee.Attester(guest) {
		t.Errorf("register %t, %d devices", r.HasRegister(), len(devices))
	}
	if err := r.Record(t.Context(), measurement.DomainCoffer, "CreateContainer", "a"); err != nil || len(r.Log()) == 0 {
		t.Errorf("log of %d bytes, %v", len(r.Log()), err)
	}
}
