package volumes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// marker is set in the process that has a mount namespace of its own.
const marker = "COFFER_TEST_MOUNTS"

// noMounts says why nothing can be mounted here; nil if it can.
var noMounts error

// TestMain runs the tests in a mount namespace of their own where that is
// possible: what they mount is gone with them.
func TestMain(m *testing.M) {
	fuzzing := slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz") })
	switch {
	case os.Getenv(marker) != "":
		noMounts = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	case os.Getuid() != 0:
		noMounts = errors.New("not root")
	case fuzzing:
		noMounts = errors.New("fuzzing starts processes of its own")
	default:
		os.Exit(enter())
	}
	os.Exit(m.Run())
}

func enter() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mount namespace:", err)
		return 1
	}
	return 0
}

// needMounts skips a test where nothing can be mounted.
func needMounts(t *testing.T) {
	t.Helper()
	if noMounts != nil {
		unsupported(t, noMounts)
	}
}

// unsupported skips, or fails where the machine should do.
func unsupported(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE_VM") != "" || os.Getenv("COFFER_REQUIRE_K8S") != "" {
		t.Fatalf("not supported here, and it is required: %v", why)
	}
	t.Skipf("not supported here: %v", why)
}
