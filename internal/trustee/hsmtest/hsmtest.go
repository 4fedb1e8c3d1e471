// Package hsmtest gives tests tokens of SoftHSM2, a PKCS#11 module that keeps
// its objects in files (Debian: softhsm2).
package hsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Require is the variable that turns the skipping of tests for want of a
// server into a failure.
const Require = "COFFER_REQUIRE_SERVERS"

// SoftHSM finds its files by an environment variable of the process.
const config = "SOFTHSM2_CONF"

// modules are where Debian puts the library.
func modules() []string {
	return []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"}
}

// Main runs a package's tests with a token directory of its own: TestMain is
// the only place where a process-wide setting can be made, and SoftHSM sees
// only the tokens that there are when it is initialized. It returns the exit
// code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "coffer-hsmtest-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = configure(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hsmtest:", err)
		return 1
	}
	return m.Run()
}

// spare is how many tokens a package's tests can take.
const spare = 16

// configure writes the configuration and, where SoftHSM is installed, makes the
// tokens.
func configure(dir string) error {
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return err
	}
	file := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", tokens)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if err := os.Setenv(config, file); err != nil {
		return err
	}
	util, _, missing := find()
	if missing != nil {
		return nil //nolint:nilerr // New skips or fails by it
	}
	for i := range spare {
		if err := initToken(context.Background(), util, fmt.Sprintf("coffer-%02d", i)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("coffer-%02d.free", i)), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// find returns softhsm2-util and the module.
func find() (util, module string, err error) {
	util, err = exec.LookPath("softhsm2-util")
	for _, m := range modules() {
		if _, e := os.Stat(m); e == nil {
			module = m
			break
		}
	}
	if err != nil || module == "" {
		return "", "", errors.New("SoftHSM2 is not installed: apt-get install softhsm2")
	}
	return util, module, nil
}

func pin(label string) string { return "pin-of-" + label }

func initToken(ctx context.Context, util, label string) error {
	out, err := exec.CommandContext(ctx, util, "--init-token", "--free", "--label", label, "--pin", pin(label), "--so-pin", "so-"+pin(label)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("softhsm2-util --init-token: %w\n%s", err, out)
	}
	return nil
}

// Token is an initialized, empty token.
type Token struct {
	// Module is the library's path.
	Module     string
	Label, PIN string
	// PINFile holds the PIN.
	PINFile string
}

// New returns a token that no other test has. Without SoftHSM2 the test is
// skipped, or fails where [Require] is set. The package's TestMain must be
// [Main].
func New(tb testing.TB) Token {
	tb.Helper()
	conf := os.Getenv(config)
	if conf == "" {
		tb.Fatal("hsmtest: TestMain must call hsmtest.Main")
	}
	_, module, err := find()
	if err != nil {
		if os.Getenv(Require) == "1" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	for i := range spare {
		label := fmt.Sprintf("coffer-%02d", i)
		// Removing a file succeeds once.
		if os.Remove(filepath.Join(filepath.Dir(conf), label+".free")) != nil {
			continue
		}
		return token(tb, module, label)
	}
	tb.Fatalf("hsmtest: all %d tokens are taken", spare)
	return Token{}
}

// NewLate makes a token that a module initialized before does not know.
func NewLate(tb testing.TB) Token {
	tb.Helper()
	_ = New(tb) // skips, or fails
	label := "coffer-late-" + rand.Text()[:8]
	util, module, err := find()
	if err == nil {
		err = initToken(tb.Context(), util, label)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return token(tb, module, label)
}

func token(tb testing.TB, module, label string) Token {
	tb.Helper()
	t := Token{Module: module, Label: label, PIN: pin(label), PINFile: filepath.Join(tb.TempDir(), "pin")}
	if err := os.WriteFile(t.PINFile, []byte(t.PIN+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return t
}
