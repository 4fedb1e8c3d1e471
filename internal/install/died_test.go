package install

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// dieAt has another process install or uninstall, and kills it at its n-th
// change of the node's file system. It tells whether the process got to its end
// before that.
func dieAt(t *testing.T, o Options, during string, n int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDying$")
	cmd.Env = append(os.Environ(), "COFFER_TEST_DIE="+strconv.Itoa(n), "COFFER_TEST_DURING="+during, "COFFER_TEST_ROOT="+o.Root,
		"COFFER_TEST_SOURCES="+strings.Join([]string{o.Shim, o.Program, o.GuestImage}, ":"))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return true
	}
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 77 { //nolint:errorlint // not wrapped
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// TestDying is the process that dies.
func TestDying(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("COFFER_TEST_DIE"))
	if err != nil {
		t.Skip("run by TestDied")
	}
	src := strings.Split(os.Getenv("COFFER_TEST_SOURCES"), ":")
	o := Options{Root: os.Getenv("COFFER_TEST_ROOT"), Version: "1.7.20", Shim: src[0], Program: src[1], GuestImage: src[2]}
	o.testOnlyStep = func() {
		if n--; n == 0 {
			os.Exit(77)
		}
	}
	if os.Getenv("COFFER_TEST_DURING") == "uninstall" {
		uninstall(t, o)
	} else {
		install(t, o)
	}
}
