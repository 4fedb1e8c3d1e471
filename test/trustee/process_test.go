package tests

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// need is a program's path; a test that needs it fails without it.
func need(t testing.TB, find func() (string, error)) string {
	t.Helper()
	path, err := find()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// launch runs one of the programs until the test ends.
func launch(t *testing.T, find func() (string, error), dir, extra string) *site {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	s := &site{t: t, dir: dir, log: &output{}, clock: &clock{}}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), need(t, find), "serve", "--config", configure(t, dir, extra))
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var failed error
	go func() {
		failed = cmd.Wait()
		close(ended)
	}()
	killed := false
	s.signal = func(sig os.Signal) {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Error(err)
		}
		if sig == os.Kill {
			killed = true
			<-ended
		}
	}
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
		case <-time.After(limit):
			_ = cmd.Process.Kill()
			<-ended
		}
		if failed != nil && !killed {
			t.Errorf("the trustee ended with %v:\n%s", failed, s.log)
		}
	})
	t.Cleanup(s.stop)
	var line struct{ Msg, Address, Service string }
	eventually(t, "the trustee listens", func() bool {
		select {
		case <-ended:
			t.Fatalf("the trustee ended with %v:\n%s", failed, s.log)
		default:
		}
		for l := range strings.Lines(s.log.String()) {
			if json.Unmarshal([]byte(l), &line) == nil && line.Msg == "trustee listens" {
				return true
			}
		}
		return false
	})
	s.url, s.service = "https://"+line.Address, line.Service
	s.root, _ = os.ReadFile(filepath.Join(dir, "state", "ca.pem")) // there is none with files of the operator's
	if text, err := os.ReadFile(filepath.Join(dir, "state", "admin-key.pem")); err == nil {
		s.key = privateKey(t, text)
	}
	return s
}

func privateKey(t testing.TB, text []byte) ed25519.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("admin-key.pem: no PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k.(ed25519.PrivateKey)
}

// run is one call of a program.
func run(t testing.TB, find func() (string, error), args ...string) (text string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, need(t, find), args...).CombinedOutput()
	return string(out), err
}
