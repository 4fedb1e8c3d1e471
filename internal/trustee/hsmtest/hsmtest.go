// Package hsmtest gives tests tokens of SoftHSM2, a PKCS#11 module that keeps
// its objects in files (Debian: softhsm2).
package hsmtest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
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
// the only place where a process-wide setting can be made. It returns the exit
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
	return os.Setenv(config, file)
}

// Token is an initialized, empty token.
type Token struct {
	// Module is the library's path.
	Module     string
	Label, PIN string
	// PINFile holds the PIN.
	PINFile string
}

// New makes a token. Without SoftHSM2 the test is skipped, or fails where
// [Require] is set. The package's TestMain must be [Main].
func New(tb testing.TB) Token {
	tb.Helper()
	if os.Getenv(config) == "" {
		tb.Fatal("hsmtest: TestMain must call hsmtest.Main")
	}
	var t Token
	for _, m := range modules() {
		if _, err := os.Stat(m); err == nil {
			t.Module = m
			break
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || t.Module == "" {
		const need = "SoftHSM2 is not installed: apt-get install softhsm2"
		if os.Getenv(Require) == "1" {
			tb.Fatal(need)
		}
		tb.Skip(need)
	}
	id := make([]byte, 6)
	if _, err := rand.Read(id); err != nil {
		tb.Fatal(err)
	}
	t.Label, t.PIN = "coffer-"+hex.EncodeToString(id), "pin-"+hex.EncodeToString(id)
	t.PINFile = filepath.Join(tb.TempDir(), "pin")
	if err := os.WriteFile(t.PINFile, []byte(t.PIN+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), util, "--init-token", "--free", "--label", t.Label, "--pin", t.PIN, "--so-pin", "so-"+t.PIN)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		tb.Fatalf("softhsm2-util --init-token: %v\n%s", err, out.String())
	}
	return t
}
