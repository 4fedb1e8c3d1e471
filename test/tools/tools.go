// Package tools gives tests the programs that Coffer has to get along with and
// that Debian does not have. They are built from the module in tools/interop,
// once: a program stays in build/tools until that module's versions change.
package tools

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// requireEnv says that nothing may be skipped because a program is missing.
const requireEnv = "COFFER_REQUIRE_SERVERS"

// ErrAbsent is wrapped by errors about a program that cannot be had here.
var ErrAbsent = errors.New("not supported here")

// Cosign is the path of sigstore's cosign command (module
// github.com/sigstore/cosign/v3). COFFER_COSIGN names one that is built
// already; otherwise building it takes minutes the first time, more than go
// test's default time-out on a slow machine. The test is skipped where the
// module cannot be had, and fails there if COFFER_REQUIRE_SERVERS is 1.
func Cosign(t testing.TB) string {
	t.Helper()
	program, err := cosign()
	switch {
	case err == nil:
		return program
	case errors.Is(err, ErrAbsent) && os.Getenv(requireEnv) != "1":
		t.Skip(err)
	case errors.Is(err, ErrAbsent):
		t.Fatalf("%v, and %s=1", err, requireEnv)
	default:
		t.Fatal(err)
	}
	return ""
}

// cosign builds once for a test process; a lock keeps several from doing it at
// the same time.
var cosign = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("COFFER_COSIGN"); path != "" {
		return path, nil
	}
	return build("cosign", "github.com/sigstore/cosign/v3/cmd/cosign")
})

func build(name, pkg string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "tools", "interop")
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", name, ErrAbsent, err)
	}
	version := sha256.Sum256(sums)
	dir := filepath.Join(root, "build", "tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out := filepath.Join(dir, name+"-"+hex.EncodeToString(version[:6]))
	unlock, err := lock(out + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	temp := out + ".tmp"
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-o", temp, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s cannot be built: %w: %w\n%s", name, ErrAbsent, err, tail(stderr.Bytes()))
	}
	return out, os.Rename(temp, out)
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }

// moduleRoot is the directory of Coffer's own go.mod, above the test's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tools", "interop")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("%w: tools/interop is not above this directory", ErrAbsent)
		}
		dir = parent
	}
}
