package platform_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/internal/swtpm"
	"github.com/coffer-project/coffer/tee/platform"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// handles is a TPM that counts who has it open.
type handles struct {
	transport.TPM
	opened, closed int
	broken         error
}

func (h *handles) open() (transport.TPMCloser, error) {
	h.opened++
	return h, nil
}

func (h *handles) Close() error {
	h.closed++
	return h.broken
}

// opens is a TPM that opens so.
func opens(t transport.TPMCloser, err error) func() (transport.TPMCloser, error) {
	return func() (transport.TPMCloser, error) { return t, err }
}

// untouched is a TPM that nobody may open.
func untouched(t *testing.T, name string) func() (transport.TPMCloser, error) {
	t.Helper()
	return func() (transport.TPMCloser, error) {
		t.Errorf("%s: the TPM was opened", name)
		return nil, fs.ErrPermission
	}
}

func start(t *testing.T) *handles {
	t.Helper()
	s, err := swtpm.Start(context.Background(), t.TempDir())
	switch {
	case errors.Is(err, swtpm.ErrAbsent) && os.Getenv("COFFER_REQUIRE_SERVERS") != "1":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &handles{TPM: s}
}

func TestAzure(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]tee.Name{"snp-hcl-report.bin": tee.AzureSNPVTPM, "tdx-hcl-report.bin": tee.AzureTDXVTPM} {
		t.Run(string(want), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile("../azure/testdata/" + file)
			if err != nil {
				t.Fatal(err)
			}
			r, err := azure.ParseReport(raw)
			if err != nil {
				t.Fatal(err)
			}
			r.VarData = []byte("{}") // swtpm has no larger indexes
			if raw, err = r.Bytes(2048); err != nil {
				t.Fatal(err)
			}
			h := start(t)
			m := platform.Machine{FS: files("dev/tpmrm0"), TPM: h.open}
			if _, err := platform.Detect(t.Context(), m.Hardware()); !errors.Is(err, platform.ErrNone) {
				t.Errorf("a TPM without a paravisor's report: got %v", err)
			}
			if err := tpmattest.WriteNV(h, azureattest.IndexReport, raw); err != nil {
				t.Fatal(err)
			}
			found, err := platform.Detect(t.Context(), anything(m))
			if err != nil || found.TEE != want || found.Sign == "" {
				t.Fatalf("got %s by %q, %v", found.TEE, found.Sign, err)
			}
			if h.opened != 2 || h.closed != 2 {
				t.Errorf("two detections opened the TPM %d times and closed it %d times", h.opened, h.closed)
			}
			if _, err := found.Attester(t.Context()); err == nil || !strings.Contains(err.Error(), "attestation key") {
				t.Errorf("without an attestation key: got %v", err)
			}
			if h.opened != 3 || h.closed != 3 {
				t.Errorf("without an attester, the TPM is open %d times", h.opened-h.closed)
			}
			if _, err := tpmattest.CreateKey(h, tpmattest.Endorsement, tpmattest.RSA2048, azureattest.HandleAK); err != nil {
				t.Fatal(err)
			}
			a, err := found.Attester(t.Context())
			if err != nil || a.TEE() != want || h.opened-h.closed != 1 {
				t.Errorf("got %v, %v, and the TPM is open %d times", a, err, h.opened-h.closed)
			}
		})
	}
}

// TestMalformedReport: an index of the paravisor's with something else in it is
// an error, and the TPM is closed.
func TestMalformedReport(t *testing.T) {
	t.Parallel()
	h := start(t)
	if err := tpmattest.WriteNV(h, azureattest.IndexReport, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	_, err := platform.Detect(t.Context(), platform.Machine{TPM: h.open}.Hardware())
	if err == nil || errors.Is(err, platform.ErrNone) || !strings.Contains(err.Error(), "HCL") || h.opened != h.closed {
		t.Errorf("got %v, opened %d times, closed %d times", err, h.opened, h.closed)
	}
	h.broken = fs.ErrClosed
	if _, err := platform.Detect(t.Context(), platform.Machine{TPM: h.open}.Hardware()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a TPM that does not close: got %v", err)
	}
}

func TestBareTPM(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		m    platform.Machine
		says string
	}{
		"no device":         {platform.Machine{FS: files("etc/passwd")}, "looked for tpm"},
		"a node, no TPM":    {platform.Machine{FS: files("dev/tpm0")}, "no TPM device"},
		"does not open":     {platform.Machine{FS: files("dev/tpm0"), TPM: opens(nil, fs.ErrPermission)}, "this machine is tpm (/dev/tpm0), but: permission denied"},
		"another's devices": {platform.Machine{FS: files("dev/tpm1", "dev/vtpmx")}, "looked for tpm"},
	} {
		found, err := platform.Detect(t.Context(), []platform.Candidate{tt.m.BareTPM()})
		if err == nil {
			_, err = found.Attester(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: expected an error with %q, got %v", name, tt.says, err)
		}
	}
}

func TestBareTPMAttests(t *testing.T) {
	t.Parallel()
	h := start(t)
	const log = "sys/kernel/security/tpm0/binary_bios_measurements"
	text := `the firmware's log`
	for name, tt := range map[string]struct {
		fsys fs.FS
		want string
		says string
	}{
		"with a log":     {files("dev/tpmrm0", "dev/tpm0", log+"="+text), text, ""},
		"without":        {files("dev/tpmrm0"), "", ""},
		"an empty one":   {files("dev/tpmrm0", log+"="), "", ""},
		"unreadable":     {unreadable{files("dev/tpmrm0", log+"="+text), log}, "", "permission denied"},
		"without an end": {endless{files("dev/tpmrm0", log+"="+text)}, "", "at most"},
	} {
		found, err := platform.Detect(t.Context(), []platform.Candidate{platform.Machine{FS: tt.fsys, TPM: h.open}.BareTPM()})
		if err != nil || found.Sign != "/dev/tpmrm0" {
			t.Fatalf("%s: got %q, %v", name, found.Sign, err)
		}
		a, err := found.Attester(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := a.Evidence(t.Context(), []byte("report data"))
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: expected an error with %q, got %v", name, tt.says, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		e, err := tpm.ParseEvidence(raw)
		if err != nil || string(e.EventLog) != tt.want {
			t.Errorf("%s: %v, log %q", name, err, e.EventLog)
		}
	}
}
