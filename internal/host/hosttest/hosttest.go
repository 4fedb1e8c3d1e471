// Package hosttest gives the host's tests what they boot: an installed QEMU,
// a kernel, and a small guest of our own. Only tests import it.
package hosttest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
)

// Environment variables.
const (
	// KernelVariable names the bzImage to boot. Without it the built guest
	// image's is used.
	KernelVariable = "COFFER_TEST_KERNEL"
	// RequireVariable, when not empty, turns "cannot boot here" from a skip
	// into a failure.
	RequireVariable = "COFFER_REQUIRE_VM"
)

// Cmdline is the kernel command line of the test guest; its mode follows.
const Cmdline = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests random.trust_cpu=on tsc=reliable no_timer_check net.ifnames=0 coffer.test="

// Kernel returns the kernel's path, or skips the test where QEMU or the
// kernel is missing.
func Kernel(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine; not with -short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		unsupported(t, "qemu-system-x86_64 is not installed")
	}
	if path := os.Getenv(KernelVariable); path != "" {
		return path
	}
	path, err := filepath.Abs(filepath.Join(root(t), "build", "guest", "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		unsupported(t, "no kernel: set "+KernelVariable+" or build the guest image")
	}
	return path
}

func unsupported(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(RequireVariable) != "" {
		t.Fatalf("%s, and %s is set", why, RequireVariable)
	}
	t.Skip(why)
}

// root is the module's directory.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = parent
	}
}

// Initrd builds the test guest and returns an initial root file system whose
// /init it is.
func Initrd(t testing.TB) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program,
		"github.com/coffer-project/coffer/internal/host/hosttest/testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the test guest: %v\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, e := range []cpio.Entry{
		{Name: "dev", Mode: cpio.TypeDir | 0o755},
		{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1},
		{Name: "proc", Mode: cpio.TypeDir | 0o755},
		{Name: "sys", Mode: cpio.TypeDir | 0o755},
		{Name: "init", Mode: cpio.TypeRegular | 0o755, Data: data},
	} {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// Descriptors returns how many file descriptors this process has open.
func Descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// NoFiles makes the test's temporary directory the process's and fails the
// test if anything is left in it at its end.
func NoFiles(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 0 {
			t.Errorf("left in the temporary directory: %v, %v", left, err)
		}
	})
}
