package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaattest"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
)

const testdata = "../../tee/nvidia/testdata/"

// guest is a directory with the program, a library that plays a driver's, and
// what that serves.
type guest struct {
	dir, program string
	nonce        []byte
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil && os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
		t.Fatalf("the library that plays the driver's is written in C, and gcc, which has been installed for the tests, is not there: %v", err)
	}
	if err != nil {
		t.Skipf("the library that plays the driver's is written in C: %v; install gcc (make deps)", err)
	}
	g := &guest{dir: t.TempDir()}
	g.program = filepath.Join(g.dir, "coffer-nvidia-attester")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", g.program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, c := range []*exec.Cmd{build, exec.CommandContext(t.Context(), gcc, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", filepath.Join(g.dir, "libnvidia-ml.so.1"), "testdata/fakenvml.c")} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c.Args, err, out)
		}
	}
	text, err := os.ReadFile(testdata + "hopperAttestationReport.txt")
	if err != nil {
		t.Fatal(err)
	}
	report, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	g.nonce = report[4:36]
	if err := os.WriteFile(filepath.Join(g.dir, "report"), report, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// attester runs the program with the library found as a guest finds it, by the
// dynamic linker, and with env.
func (g *guest) attester(t *testing.T, env ...string) *nvidiaattest.Attester {
	t.Helper()
	a, err := nvidiaattest.New(nvidiaattest.Options{Program: g.program, Timeout: 30 * time.Second, Run: func(ctx context.Context, path string, args []string, limit int) (nvidiaattest.Output, error) {
		c := exec.CommandContext(ctx, path, args...)
		c.Env = append([]string{"LD_LIBRARY_PATH=" + g.dir, "FAKE_NVML_REPORT=" + g.dir + "/report", "FAKE_NVML_CHAIN=" + testdata + "hopper_cert_chain_case1.txt"}, env...)
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		err := c.Run()
		if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() >= 0 {
			err = nil
		}
		return nvidiaattest.Output{Code: c.ProcessState.ExitCode(), Stdout: out.Bytes()[:min(out.Len(), limit+1)], Stderr: errs.Bytes()}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// From the driver's library to evidence that verifies under NVIDIA's root.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	asked := filepath.Join(g.dir, "nonce")
	a := g.attester(t, "FAKE_NVML_NONCE="+asked)
	data := append(bytes.Clone(g.nonce), make([]byte, 32)...)
	raw, err := a.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(asked); err != nil || !bytes.Equal(got, g.nonce) {
		t.Errorf("the device was asked for a report over %x, %v", got, err)
	}
	v, err := nvidiaverify.New(nvidiaverify.Options{Now: func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	r, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: data})
	if err != nil {
		t.Fatal(err)
	}
	if r.Class != tee.GPU || r.Claims["uuid"] != "GPU-1000" || r.Claims["arch"] != "Hopper" || r.Simulated {
		t.Errorf("got %+v", r)
	}
	if got, err := a.Devices(t.Context()); err != nil || len(got) != 1 || got[0] != (nvidiaattest.DeviceInfo{Arch: "HOPPER", UUID: "GPU-1000"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDrivers(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	// A file that is no library.
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "libnvidia-ml.so.1"), []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  []string
		want string // empty: there are no devices
	}{
		"no library":        {[]string{"LD_LIBRARY_PATH=/nowhere"}, ""},
		"no GPU":            {[]string{"FAKE_NVML_COUNT=0"}, ""},
		"driver not loaded": {[]string{"FAKE_NVML_FAIL=init", "FAKE_NVML_CODE=9"}, ""},
		"GPU not found":     {[]string{"FAKE_NVML_FAIL=init", "FAKE_NVML_CODE=28"}, ""},
		"broken library":    {[]string{"LD_LIBRARY_PATH=" + broken}, "load NVIDIA's library"},
		"driver fails":      {[]string{"FAKE_NVML_FAIL=init", "FAKE_NVML_CODE=999"}, "nvmlInit: Unknown Error (NVML error 999)"},
		"not confidential":  {[]string{"FAKE_NVML_FAIL=report", "FAKE_NVML_CODE=3"}, "GPU 0 (GPU-1000): nvmlDeviceGetConfComputeGpuAttestationReport: Not Supported"},
		"no certificate":    {[]string{"FAKE_NVML_FAIL=certificate"}, "nvmlDeviceGetConfComputeGpuCertificate"},
		"count":             {[]string{"FAKE_NVML_FAIL=count"}, "nvmlDeviceGetCount"},
		"handle":            {[]string{"FAKE_NVML_FAIL=handle"}, "nvmlDeviceGetHandleByIndex"},
		"uuid":              {[]string{"FAKE_NVML_FAIL=uuid"}, "nvmlDeviceGetUUID"},
		"arch":              {[]string{"FAKE_NVML_FAIL=arch"}, "nvmlDeviceGetArchitecture"},
		"shutdown":          {[]string{"FAKE_NVML_FAIL=shutdown"}, "nvmlShutdown"},
		"an older GPU":      {[]string{"FAKE_NVML_ARCH=8"}, "expected a Hopper or Blackwell, got NVML's architecture 8"},
		"many GPUs":         {[]string{"FAKE_NVML_COUNT=33"}, "expected at most 32 GPUs"},
		"sizes":             {[]string{"FAKE_NVML_LONGER=10000"}, "expected at most"},
	} {
		a := g.attester(t, c.env...)
		raw, err := a.AdditionalEvidence(t.Context(), g.nonce)
		if c.want == "" {
			if raw != nil || err != nil {
				t.Errorf("%s: got %.100s, %v", name, raw, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %.100s, %v; expected %q", name, raw, err, c.want)
		}
	}
	// The library of this test answers with the one report that it has.
	if _, err := g.attester(t).Evidence(t.Context(), make([]byte, 32)); err == nil || !strings.Contains(err.Error(), "over the nonce") {
		t.Errorf("got %v", err)
	}
	raw, err := g.attester(t, "FAKE_NVML_COUNT=2").Evidence(t.Context(), g.nonce)
	if e, bad := nvidia.ParseEvidence(raw); err != nil || bad != nil || len(e.Devices) != 2 || e.Devices[1].UUID != "GPU-1001" {
		t.Errorf("two GPUs: %v, %v", err, bad)
	}
	missing, err := nvidiaattest.New(nvidiaattest.Options{Program: filepath.Join(g.dir, "missing"), Run: func(_ context.Context, path string, _ []string, _ int) (nvidiaattest.Output, error) {
		_, err := os.Stat(path)
		return nvidiaattest.Output{}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := missing.AdditionalEvidence(t.Context(), g.nonce); raw != nil || err != nil {
		t.Errorf("no program: got %s, %v", raw, err)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"help"}, {"evidence"}, {"evidence", "00"}, {"evidence", strings.Repeat("zz", 32)}, {"list", "x"}, {"--nothing", "list"}} {
		var out, errs bytes.Buffer
		if code := run(args, &out, &errs); code != 2 || out.Len() != 0 || !strings.Contains(errs.String(), "usage:") {
			t.Errorf("%v: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := run([]string{"--library", "/nowhere/libnvidia-ml.so.1", "list"}, &out, &errs); code != nvidiaattest.ExitNoDevices || out.Len() != 0 {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}
