package vmm_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// fakeVariable makes the test binary play an emulator in the manner it names.
const fakeVariable = "COFFER_TEST_VMM_FAKE"

// The monitor is the first inherited descriptor, the console the second.
func fake(manner string) {
	monitor, console := os.NewFile(3, "monitor"), os.NewFile(4, "console")
	if manner == "mute" {
		_, _ = fmt.Fprintln(os.Stderr, "fake: cannot start")
		os.Exit(7)
	}
	_, _ = fmt.Fprintln(monitor, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}, "package": ""}}}`)
	in := bufio.NewScanner(monitor)
	for in.Scan() {
		var c struct {
			Execute string
			ID      uint64
		}
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			os.Exit(2)
		}
		switch c.Execute {
		case "query-status":
			_, _ = fmt.Fprintf(monitor, `{"return": {"status": %q}, "id": %d}`+"\n", manner, c.ID)
			continue
		default:
			_, _ = fmt.Fprintf(monitor, `{"return": {}, "id": %d}`+"\n", c.ID)
		}
		_, _ = fmt.Fprintln(console, "guest: \x1b[2Jlast words")
		switch manner {
		case "internal-error", "guest-panicked":
			_, _ = fmt.Fprintln(monitor, `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}`)
		case "panic-event":
			_, _ = fmt.Fprintln(monitor, `{"event": "GUEST_PANICKED", "data": {"action": "shutdown"}, "timestamp": {"seconds": 1, "microseconds": 1}}`)
			return
		case "signal":
			_, _ = fmt.Fprintln(monitor, `{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}, "timestamp": {"seconds": 1, "microseconds": 1}}`)
			return
		case "flood":
			_, _ = fmt.Fprintln(os.Stderr, strings.Repeat("x", 1<<20))
			_, _ = fmt.Fprintln(monitor, strings.Repeat("x", 2<<20))
			os.Exit(9)
		}
	}
}

// TestEmulatorMisbehaves runs a fake emulator in every manner that a real one
// shows only on certain hosts.
func TestEmulatorMisbehaves(t *testing.T) {
	before := hosttest.Descriptors(t)
	script := filepath.Join(t.TempDir(), "qemu")
	for _, tc := range []struct {
		manner string
		cause  vmm.Cause
		text   string
	}{
		{"internal-error", vmm.Stuck, "(internal-error)"},
		{"guest-panicked", vmm.Panicked, "guest: last words"},
		{"panic-event", vmm.Panicked, "guest: last words"},
		{"signal", vmm.Failed, "it ended without a word"},
		{"flood", vmm.Failed, "xxx…"},
		{"mute", vmm.Failed, "exit status 7"},
	} {
		t.Run(tc.manner, func(t *testing.T) {
			program := fmt.Sprintf("#!/bin/sh\n%s=%s exec '%s' \"$@\"\n", fakeVariable, tc.manner, os.Args[0])
			if err := os.WriteFile(script, []byte(program), 0o700); err != nil {
				t.Fatal(err)
			}
			o := vmm.Options{QEMU: vmm.QEMU{Path: script, Major: 9, Minor: 1}, Logger: discard}
			vm, err := vmm.Start(t.Context(), guest("/kernel", vmm.Input{Path: "/initrd"}, "x"), o)
			var end *vmm.End
			if err == nil {
				<-vm.Done()
				end = vm.End()
				_ = vm.Close()
			} else if e, ok := err.(*vmm.End); ok { //nolint:errorlint // exactly this
				end = e
			} else {
				t.Fatal(err)
			}
			if end.Cause != tc.cause || !strings.Contains(end.Error(), tc.text) || strings.Contains(end.Error(), "\x1b") {
				t.Errorf("end: %v", end)
			}
			if len(end.Error()) > 20_000 {
				t.Errorf("error of %d bytes", len(end.Error()))
			}
		})
	}
	if after := hosttest.Descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
