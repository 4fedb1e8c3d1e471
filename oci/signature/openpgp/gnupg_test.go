package openpgp_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

// gpg runs Debian's GnuPG in a home of its own.
func gpg(t testing.TB, home, stdin string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "gpg", append([]string{"--homedir", home, "--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gpg %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

func gpgHome(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("gpg"); errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
		}
		t.Skipf("not supported here: %v", err)
	}
	home, err := os.MkdirTemp("", "gpg") // short: a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	return home
}

// What Debian's GnuPG makes verifies here; what it revoked does not.
func TestAgainstGnuPG(t *testing.T) {
	for _, algo := range []string{"rsa2048", "ed25519", "nistp256", "nistp384", "nistp521"} {
		t.Run(algo, func(t *testing.T) {
			t.Parallel()
			home := gpgHome(t)
			user := algo + "@example.com"
			gpg(t, home, "", "--quick-generate-key", user, algo, "sign,cert", "1y")
			now := time.Now()
			k := keyring(t, gpg(t, home, "", "--export"))
			armoredKeys := keyring(t, gpg(t, home, "", "--armor", "--export"))
			for name, args := range map[string][]string{
				"default": {"--sign"}, "armored": {"--armor", "--sign"}, "plain": {"--compress-algo", "none", "--sign"},
				"ZIP": {"--compress-algo", "zip", "--sign"}, "ZLIB": {"--compress-algo", "zlib", "--sign"},
				"old packets": {"--rfc4880", "--digest-algo", "SHA512", "--sign"}, "SHA-384": {"--digest-algo", "SHA384", "--sign"}, "SHA-512": {"--digest-algo", "SHA512", "--sign"},
			} {
				if algo == "nistp521" && name == "SHA-384" {
					continue
				}
				message := gpg(t, home, string(payload), args...)
				for _, keys := range []*openpgp.Keyring{k, armoredKeys} {
					got, err := keys.Verify(message, now)
					if err != nil || !bytes.Equal(got.Payload, payload) {
						t.Errorf("%s: %+v, %v", name, got, err)
					}
				}
			}
			for name, tt := range map[string]struct {
				args []string
				want string
			}{
				"clear":    {[]string{"--clearsign"}, "armor: expected"},
				"detached": {[]string{"--detach-sign"}, "expected a literal with one signature"},
				"text":     {[]string{"--textmode", "--sign"}, "0x01"},
				"weak":     {[]string{"--digest-algo", "SHA1", "--sign"}, "digest"},
				"bzip2":    {[]string{"--compress-algo", "bzip2", "--sign"}, "compression 3"},
			} {
				if name == "weak" && strings.HasPrefix(algo, "nist") {
					continue // gpg takes a longer digest by itself
				}
				_, err := k.Verify(gpg(t, home, string(payload), tt.args...), now)
				want(t, name, err, tt.want)
			}
		})
	}
}

// Subkeys, as GnuPG makes and revokes them.
func TestGnuPGSubkeys(t *testing.T) {
	home := gpgHome(t)
	gpg(t, home, "", "--quick-generate-key", "sub@example.com", "ed25519", "cert", "1y")
	fingerprint := ""
	for line := range strings.Lines(string(gpg(t, home, "", "--with-colons", "--list-keys"))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" && fingerprint == "" {
			fingerprint = f[9]
		}
	}
	gpg(t, home, "", "--quick-add-key", fingerprint, "rsa2048", "sign", "1y")
	gpg(t, home, "", "--quick-add-key", fingerprint, "cv25519", "encrypt", "1y")
	message := gpg(t, home, string(payload), "--sign")
	before := gpg(t, home, "", "--export")
	now := time.Now()
	got, err := keyring(t, before).Verify(message, now)
	if err != nil {
		t.Fatal(err)
	}
	if got.Primary != strings.ToLower(fingerprint) || got.Fingerprint == got.Primary {
		t.Errorf("%+v", got)
	}
	_, err = keyring(t, before).Verify(message, now.AddDate(2, 0, 0))
	want(t, "two years later", err, "it expired at")
	// --edit-key takes its commands from a file descriptor.
	gpg(t, home, "key 1\nrevkey\ny\n1\nstolen\n\ny\nsave\n", "--command-fd", "0", "--edit-key", fingerprint)
	_, err = keyring(t, gpg(t, home, "", "--export")).Verify(message, now)
	want(t, "revoked subkey", err, "it was revoked")
	revocation, err := os.ReadFile(filepath.Join(home, "openpgp-revocs.d", fingerprint+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(revocation), ":-----BEGIN")
	gpg(t, home, "-----BEGIN"+block, "--import")
	_, err = keyring(t, gpg(t, home, "", "--export")).Verify(message, now)
	want(t, "revoked key", err, "it was revoked")
}
