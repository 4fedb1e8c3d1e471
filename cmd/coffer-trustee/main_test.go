package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func run(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	var out, errOut bytes.Buffer
	c := command(&out, &errOut)
	c.SetArgs(args)
	err = c.ExecuteContext(ctx)
	return out.String(), errOut.String(), err
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trustee.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCheckConfig(t *testing.T) {
	t.Parallel()
	out, warnings, err := run(t.Context(), "check-config", "--config", "../../deploy/trustee/trustee.toml")
	if err != nil || !strings.HasSuffix(out, ": ok\n") || warnings != "" {
		t.Errorf("%q %q %v", out, warnings, err)
	}
	_, warnings, err = run(t.Context(), "check-config", "--config", write(t, "[policy]\nallow_simulated = true\n"))
	if err != nil || !strings.Contains(warnings, "warning: policy.allow_simulated") {
		t.Errorf("%q %v", warnings, err)
	}
	for name, text := range map[string]string{
		"unknown":          "surprise = 1\nlisten = \"x\"",
		"development root": "[tee.snp]\ndevelopment_roots = [\"missing.pem\"]",
	} {
		if _, _, err := run(t.Context(), "check-config", "--config", write(t, text)); err == nil || !strings.Contains(err.Error(), "trustee.toml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := run(t.Context(), "check-config"); err == nil {
		t.Error("no file: want an error")
	}
}

// lineWriter calls f when the text holds what it waits for.
type lineWriter struct {
	mu   sync.Mutex
	text bytes.Buffer
	want string
	f    func()
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	if strings.Contains(w.text.String(), w.want) {
		w.f()
	}
	return len(p), nil
}

func TestServe(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &lineWriter{want: "trustee listens", f: cancel}
	c := command(os.Stdout, w)
	file := write(t, "listen = \"127.0.0.1:0\"\nstate_dir = \"state\"\n[log]\nformat = \"json\"\n")
	c.SetArgs([]string{"serve", "--config", file})
	if err := c.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(file), "state", "trustee.db")); err != nil {
		t.Error(err)
	}
}
