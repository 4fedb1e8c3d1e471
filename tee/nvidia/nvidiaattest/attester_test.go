package nvidiaattest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

const program = "/usr/bin/coffer-nvidia-attester"

func evidence(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("../testdata/hopperAttestationReport.txt")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := os.ReadFile("../testdata/hopper_cert_chain_case1.txt")
	if err != nil {
		t.Fatal(err)
	}
	report, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := (&nvidia.Evidence{Devices: []nvidia.Device{{Arch: nvidia.Hopper, UUID: "u", Report: report, Chain: chain}}}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

const nonceText = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"

func nonce(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString(nonceText)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func attester(t *testing.T, run Run) *Attester {
	t.Helper()
	a, err := New(Options{Program: program, Run: run})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// says is a program that says one thing.
func says(o Output, err error) Run {
	return func(context.Context, string, []string, int) (Output, error) { return o, err }
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	var asked []string
	a := attester(t, func(_ context.Context, path string, args []string, limit int) (Output, error) {
		asked = append([]string{path}, args...)
		if limit != nvidia.MaxEvidence {
			t.Errorf("limit %d", limit)
		}
		return Output{Stdout: evidence(t)}, nil
	})
	// Of longer report data the first 32 bytes count.
	got, err := a.Evidence(t.Context(), append(nonce(t), 1, 2, 3))
	if err != nil || !bytes.Equal(append(got, '\n'), evidence(t)) {
		t.Errorf("got %.100s, %v", got, err)
	}
	if !slices.Equal(asked, []string{program, "evidence", nonceText}) {
		t.Errorf("ran %v", asked)
	}
	if data, err := a.InitData(t.Context()); data != nil || err != nil || a.TEE() != tee.NVIDIA {
		t.Errorf("got %v, %v", data, err)
	}
}

func TestNoDevices(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]Run{
		"none":    says(Output{Code: ExitNoDevices, Stderr: []byte("no NVIDIA GPU\n")}, nil),
		"no file": says(Output{}, &fs.PathError{Op: "exec", Path: program, Err: fs.ErrNotExist}),
	} {
		a := attester(t, run)
		if _, err := a.Evidence(t.Context(), nonce(t)); !errors.Is(err, ErrNoDevices) {
			t.Errorf("%s: got %v", name, err)
		}
		if got, err := a.AdditionalEvidence(t.Context(), nonce(t)); got != nil || err != nil {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
		if got, err := a.Devices(t.Context()); got != nil || err != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		run  Run
		want string
	}{
		"exit code":     {says(Output{Code: 1, Stderr: []byte("GPU 0:\x1b[31m lost\n")}, nil), "exit code 1: GPU 0:\uFFFD[31m lost"},
		"killed":        {says(Output{}, context.DeadlineExceeded), "deadline"},
		"no rights":     {says(Output{}, fs.ErrPermission), "permission denied"},
		"too much":      {says(Output{Stdout: make([]byte, nvidia.MaxEvidence+1)}, nil), "expected at most"},
		"nothing":       {says(Output{}, nil), "nvidia: "},
		"something":     {says(Output{Stdout: []byte("hello")}, nil), "JSON"},
		"twice":         {says(Output{Stdout: append(evidence(t), evidence(t)...)}, nil), "JSON"},
		"another nonce": {says(Output{Stdout: bytes.Replace(evidence(t), []byte("EeAB/5Md"), []byte("EeAB/5Me"), 1)}, nil), "expected a report over the nonce"},
		"no report":     {says(Output{Stdout: bytes.Replace(evidence(t), []byte("EeAB/5Md"), []byte("EuAB/5Md"), 1)}, nil), "evidence of device 0 (u)"},
	} {
		a := attester(t, c.run)
		for _, f := range []func() error{
			func() error { _, err := a.Evidence(t.Context(), nonce(t)); return err },
			func() error { _, err := a.AdditionalEvidence(t.Context(), nonce(t)); return err },
		} {
			if err := f(); err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNoDevices) {
				t.Errorf("%s: got %v, expected %q", name, err, c.want)
			}
		}
		if _, err := a.Devices(t.Context()); err == nil {
			t.Errorf("%s: a list", name)
		}
	}
	for _, p := range []string{"", "coffer-nvidia-attester", "./x"} {
		if _, err := New(Options{Program: p, Run: says(Output{}, nil)}); err == nil {
			t.Errorf("program %q was accepted", p)
		}
	}
	if _, err := New(Options{Program: program}); err == nil {
		t.Error("nothing to run it with")
	}
}

func TestDevices(t *testing.T) {
	t.Parallel()
	a := attester(t, says(Output{Stdout: []byte(`{"devices":[{"arch":"HOPPER","uuid":"GPU-1"},{"arch":"NVML_8","uuid":"GPU-2"}]}`)}, nil))
	got, err := a.Devices(t.Context())
	if err != nil || !slices.Equal(got, []DeviceInfo{{"HOPPER", "GPU-1"}, {"NVML_8", "GPU-2"}}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, doc := range []string{`{"devices":[]}`, `{}`, `{"devices":[{"name":"x"}]}`, `{"devices":[` + strings.Repeat(`{"arch":"a","uuid":"u"},`, 32) + `{"arch":"a","uuid":"u"}]}`} {
		if got, err := attester(t, says(Output{Stdout: []byte(doc)}, nil)).Devices(t.Context()); err == nil {
			t.Errorf("%s: got %v", doc, got)
		}
	}
}

// A program that hangs is not waited for.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := attester(t, func(ctx context.Context, _ string, _ []string, _ int) (Output, error) {
			<-ctx.Done()
			return Output{}, ctx.Err()
		})
		start := time.Now()
		if _, err := a.Evidence(t.Context(), nonce(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != DefaultTimeout {
			t.Errorf("waited %s", d)
		}
	})
}
