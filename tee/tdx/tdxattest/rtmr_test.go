package tdxattest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func withMeasurements(t *testing.T, dir string) *Attester {
	t.Helper()
	a, err := New(Options{Measurements: dir, ConfigFS: kernel("tdx_guest\n", new(int), func(in []byte) ([]byte, error) { return quoteOver(t, in), nil })})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestRTMR3(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "rtmr3:sha384")
	value, digest := bytes.Repeat([]byte{3}, 48), bytes.Repeat([]byte{4}, 48)
	if err := os.WriteFile(file, value, 0o600); err != nil {
		t.Fatal(err)
	}
	a := withMeasurements(t, dir)
	if !a.HasRTMR() {
		t.Error("the register was not found")
	}
	if got, err := a.ReadRTMR3(t.Context()); err != nil || !bytes.Equal(got, value) {
		t.Errorf("%x, %v", got, err)
	}
	for _, n := range []int{0, 32, 47, 49} {
		if err := a.ExtendRTMR3(t.Context(), make([]byte, n)); err == nil || !strings.Contains(err.Error(), "expected 48 bytes") {
			t.Errorf("a digest of %d bytes: %v", n, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.ExtendRTMR3(ended, digest); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, value) {
		t.Errorf("what was refused was written: %x, %v", got, err)
	}
	// A plain file keeps what the kernel would have extended the register with.
	if err := a.ExtendRTMR3(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, digest) {
		t.Errorf("written: %x, %v", got, err)
	}
}

func TestNoRTMR3(t *testing.T) {
	t.Parallel()
	place := func(mode os.FileMode, size int) string {
		dir := t.TempDir()
		file := filepath.Join(dir, "rtmr3:sha384")
		if err := errors.Join(os.WriteFile(file, make([]byte, size), 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	link := t.TempDir()
	if err := os.Symlink(filepath.Join(place(0o600, 48), "rtmr3:sha384"), filepath.Join(link, "rtmr3:sha384")); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dir      string
		has      bool
		notExist bool
	}{
		"no directory": {"", false, true},
		"older kernel": {t.TempDir(), false, true},
		"a link":       {link, false, false},
		"too short":    {place(0o600, 47), true, false},
		"too long":     {place(0o600, 49), true, false},
	} {
		a := withMeasurements(t, tc.dir)
		if a.HasRTMR() != tc.has {
			t.Errorf("%s: HasRTMR is %t", name, a.HasRTMR())
		}
		got, err := a.ReadRTMR3(t.Context())
		if err == nil || errors.Is(err, fs.ErrNotExist) != tc.notExist {
			t.Errorf("%s: read %x, %v", name, got, err)
		}
		if err := a.ExtendRTMR3(t.Context(), make([]byte, 48)); (err == nil) != tc.has || tc.notExist && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: extended: %v", name, err)
		}
	}
	if withMeasurements(t, place(0o400, 48)).HasRTMR() {
		t.Error("a register that cannot be written can be extended")
	}
}

func TestSetRuntimeLog(t *testing.T) {
	t.Parallel()
	aael, err := os.ReadFile("testdata/aael.bin")
	if err != nil {
		t.Fatal(err)
	}
	a := withMeasurements(t, "")
	a.SetRuntimeLog(func() []byte { return nil })
	e, _, err := evidence(t, a, nil)
	if err != nil || e.EventLog != nil {
		t.Fatalf("%v, a log of %d bytes of nothing", err, len(e.EventLog))
	}
	a.SetRuntimeLog(func() []byte { return aael })
	if e, _, err = evidence(t, a, nil); err != nil || !bytes.Contains(e.EventLog, aael) {
		t.Errorf("%v, a log of %d bytes", err, len(e.EventLog))
	}
}
