package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A synthetic event of a disk that is there (Documentation/ABI/testing/sysfs-uevent)
// stands for that of a new one.
func TestUeventsWakeTheSearch(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("/sys/block/*/uevent")
	if err != nil || len(files) == 0 {
		t.Skip("this machine has no block device")
	}
	events, err := openUevents()
	if err != nil {
		t.Skipf("no device events here: %v", err)
	}
	defer events.close()
	began := time.Now()
	if err := os.WriteFile(files[0], []byte("change"), 0); err != nil {
		t.Skipf("no synthetic event: %v", err)
	}
	if err := events.wait(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the event was not noticed: %s", took)
	}
	// Nothing comes: the limit, and the end of the context, are kept.
	quiet, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	time.AfterFunc(20*time.Millisecond, func() { cancel(stopped) })
	for err == nil {
		err = events.wait(quiet, time.Minute)
	}
	if !errors.Is(err, stopped) {
		t.Errorf("wait ended with %v", err)
	}
	if err := events.wait(t.Context(), time.Millisecond); err != nil {
		t.Errorf("at its limit: %v", err)
	}
}

// A disk that is plugged in while it is looked for is found.
func TestFindDiskWaits(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	if _, err := findDisk(t.Context(), sys, sys, "late", 10*time.Millisecond); err == nil {
		t.Errorf("a disk that does not come: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		if err := os.Mkdir(filepath.Join(sys, "vdz"), 0o755); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(sys, "vdz", "serial"), []byte("late"), 0o600); err != nil {
			t.Error(err)
		}
	})
	// It is no block device, but it was found.
	if _, err := findDisk(t.Context(), sys, filepath.Join(sys, "none"), "late", time.Minute); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that comes late: %v", err)
	}
}
