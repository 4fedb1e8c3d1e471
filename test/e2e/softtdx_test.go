package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// TestSoftTDX boots guests that attest with TDX quotes of the software TEE: one
// gets its secret from the embedded trustee; a trustee of its own that expects
// another command line refuses the other, and says which register tells.
func TestSoftTDX(t *testing.T) {
	s := need(t)
	t.Parallel()
	t.Run("granted", func(t *testing.T) {
		t.Parallel()
		state := t.TempDir()
		password := s.newSecret("the password of a TD")
		s.program(t, state, "coffer", "trustee", "secret", "set", "kbs:///td/db/password", write(t, "password", []byte(password))).expect(0)
		stdout, stderr := s.run(t, state, "--tee", "soft-tdx", "--debug", "--show-appraisal", "--secret-env", "PASSWORD=kbs:///td/db/password",
			s.local(t).layout, "--", "printf %s \"$PASSWORD\" | sha256sum").expect(0)
		contains(t, "stdout", stdout, sha256Hex(password))
		contains(t, "stderr", stderr, "nothing is confidential", "granted: attestation (warning, simulated)", "granted: resource td/db/password (warning, simulated)")
		verdicts, _ := s.program(t, state, "coffer", "trustee", "verdicts", "--output", "json").expect(0)
		contains(t, "verdicts", verdicts, `"simulated": true`, `"tdx"`, "mr_config_id", "uefi_event_logs")
		values, _ := s.program(t, state, "coffer", "trustee", "reference-values").expect(0)
		contains(t, "reference values", values, "mr_td", "rtmr_1", "rtmr_2")
		if strings.Contains(values, "snp_launch_measurement") {
			t.Errorf("a TD's launch was registered as one of SEV-SNP:\n%s", values)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		state := t.TempDir()
		trustee := s.startTrustee(t, state)
		password := s.newSecret("a password that no other TD gets")
		trustee.admin(t, "trustee", "secret", "set", "kbs:///td/db/password", write(t, "password", []byte(password))).expect(0)
		trustee.admin(t, "guest", "measure", "--tee", "soft-tdx", "--guest-image", s.guest, "--register").expect(0)
		stdout, stderr := s.run(t, state, "--tee", "soft-tdx", "--guest-image", s.otherCmdline(t), "--debug", "--trustee", trustee.guestURL, "--trustee-ca", trustee.ca,
			"--secret-env", "PASSWORD=kbs:///td/db/password", s.local(t).layout, "--", "echo ran").expect(125)
		if stdout != "" {
			t.Errorf("expected no output, got %q", stdout)
		}
		contains(t, "stderr", stderr, "rtmr_2")
		for _, register := range []string{"mr_td", "rtmr_1"} {
			if strings.Contains(stderr, "tdx."+register) {
				t.Errorf("%s is as registered, but: %s", register, stderr)
			}
		}
	})
}

// otherCmdline is the guest image with one word more on its command line.
func (s *suite) otherCmdline(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.guest)); err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.Cmdline += " coffer.debug"
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.FileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
