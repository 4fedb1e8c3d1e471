package program

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaattest"
)

// One reaper for the whole test program: it collects every child there is.
var shared *reaper.Reaper

func TestMain(m *testing.M) {
	var err error
	if shared, err = reaper.New(time.Now); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = shared.Run(ctx) }()
	code := m.Run()
	cancel()
	<-ended
	os.Exit(code)
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunThroughReaper(t *testing.T) {
	t.Parallel()
	const limit = 1000
	for name, tt := range map[string]struct {
		text           string
		code           int
		stdout, stderr string
		says           string
	}{
		"says":        {`echo "$0 $1 $2" | sed "s,.*/,,"; echo hm >&2; exit 3`, 3, "program list 7\n", "hm\n", ""},
		"environment": {`env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; pwd; cat`, 0, "PATH=/usr/bin\n/\n", "", ""},
		"killed":      {`kill -9 $$`, 0, "", "", "killed by signal 9"},
		"complains":   {`head -c 1000000 /dev/zero >&2; echo done`, 0, "done\n", strings.Repeat("\x00", maxComplaint), ""},
		"too much":    {`yes x | tr -d "\n"`, 0, strings.Repeat("x", limit+1), "", ""},
		"just enough": {`head -c 1000 /dev/zero | tr "\000" x`, 0, strings.Repeat("x", limit), "", ""},
	} {
		got, err := runThrough(shared)(t.Context(), script(t, tt.text), []string{"list", "7"}, limit)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: expected an error with %q, got %v", name, tt.says, err)
			}
			continue
		}
		if err != nil || got.Code != tt.code || string(got.Stdout) != tt.stdout || string(got.Stderr) != tt.stderr {
			t.Errorf("%s: %v, code %d, %.50q (%d bytes), %.50q (%d bytes)", name, err, got.Code, got.Stdout, len(got.Stdout), got.Stderr, len(got.Stderr))
		}
	}
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	run := runThrough(shared)
	for name, text := range map[string]string{
		"sleeps":              `exec sleep 600`,
		"sleeps, says no":     `exec >&- 2>&-; exec sleep 600`,
		"a grandchild sleeps": `sleep 5 & exit 0`,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := run(ctx, script(t, text), nil, 100)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: expected the end of its time, got %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := run(ended, script(t, "exit 0"), nil, 100); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: got %v", err)
	}
	if _, err := run(t.Context(), "/nonexistent/program", nil, 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: got %v", err)
	}
	path := script(t, "")
	if err := os.WriteFile(path, []byte("#!/nonexistent/loader\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), path, nil, 100); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "loader") {
		t.Errorf("no loader: expected an error that is not about an absent program, got %v", err)
	}
}

// TestDevices: an image without the program, one without a GPU, one whose GPU
// does not attest.
func TestDevices(t *testing.T) {
	t.Parallel()
	if got, err := devices("/nonexistent/program", runThrough(shared)); got != nil || err != nil {
		t.Errorf("without the program: %v, %v", got, err)
	}
	program := script(t, "exit 0")
	var asked []string
	with := func(out nvidiaattest.Output) tee.Attester {
		got, err := devices(program, func(_ context.Context, path string, args []string, _ int) (nvidiaattest.Output, error) {
			asked = append([]string{path}, args...)
			return out, nil
		})
		if err != nil || len(got) != 1 || got[0].TEE() != tee.NVIDIA {
			t.Fatalf("%v, %v", got, err)
		}
		return got[0]
	}
	digest := []byte(strings.Repeat("d", 48))
	raw, err := with(nvidiaattest.Output{Code: nvidiaattest.ExitNoDevices}).Evidence(t.Context(), digest)
	if raw != nil || err != nil {
		t.Errorf("without a GPU: %q, %v", raw, err)
	}
	if want := program + " evidence " + hex.EncodeToString(digest[:32]); strings.Join(asked, " ") != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if raw, err := with(nvidiaattest.Output{Code: 1, Stderr: []byte("GPU is lost")}).Evidence(t.Context(), digest); raw != nil || err == nil || !strings.Contains(err.Error(), "GPU is lost") {
		t.Errorf("a GPU that fails: %q, %v", raw, err)
	}
	if raw, err := with(nvidiaattest.Output{Stdout: []byte("{}")}).Evidence(t.Context(), digest); raw != nil || err == nil {
		t.Errorf("a GPU without evidence: %q, %v", raw, err)
	}
}
