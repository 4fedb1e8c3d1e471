package tests

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/hsmtest"
	"github.com/coffer-project/coffer/internal/trustee/kek/bao/baotest"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// module is the configuration of a token of a security module.
func module(t hsmtest.Token, table string) string {
	return table + ".module = " + quote(t.Module) + "\n" + table + ".token = " + quote(t.Label) + "\n" + table + ".pin_file = " + quote(t.PINFile) + "\n"
}

// addKey makes an AES key in a token, as an operator does with OpenSC's tool.
func addKey(t *testing.T, tok hsmtest.Token, label string) {
	t.Helper()
	tool, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		if os.Getenv(hsmtest.Require) == "1" {
			t.Fatal(err)
		}
		t.Skip("OpenSC is not installed: apt-get install opensc")
	}
	cmd := exec.CommandContext(t.Context(), tool, "--module", tok.Module, "--token-label", tok.Label, "--login", "--pin", tok.PIN,
		"--keygen", "--key-type", "AES:32", "--label", label, "--id", "01", "--sensitive")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool: %v\n%s", err, out)
	}
}

func atRest(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), content) {
			t.Errorf("%s holds the secret in the clear", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSecurityModule: the key-encryption key in a token and resources in the
// database, then resources in another token, with the program that operators
// of security modules run.
func TestSecurityModule(t *testing.T) {
	t.Parallel()
	kek, objects := hsmtest.New(t), hsmtest.New(t)
	addKey(t, kek, "coffer-kek")
	dir := t.TempDir()
	extra := "storage.kek.kind = \"pkcs11\"\nstorage.kek.pkcs11.key_label = \"coffer-kek\"\n" + module(kek, "storage.kek.pkcs11")

	s := launch(t, the.pkcs11, dir, extra)
	s.populate("")
	s.check("")
	atRest(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "state", "kek.hex")); err == nil {
		t.Error("there is a key-encryption key in a file too")
	}
	s.signal(os.Kill)
	s = launch(t, the.pkcs11, dir, extra)
	s.check("")
	s.stop()

	// The same database, resources elsewhere: none of the old ones is there.
	s = launch(t, the.pkcs11, dir, extra+"resources.backend = \"pkcs11\"\n"+module(objects, "resources.pkcs11"))
	_, err := s.good("").Resource(t.Context(), uri(t, "kbs:///demo/key/1"))
	refused(t, err, http.StatusNotFound, "demo/key/1")
	a := s.populate("")
	s.check("")
	s.must(a.SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte("second"))))
	if v, err := s.good("").Resource(t.Context(), uri(t, "kbs:///demo/key/1")); err != nil || string(v.Expose()) != "second" {
		t.Errorf("%q, %v", v.Expose(), err)
	}
	list, err := a.ResourceInfos(t.Context(), "")
	if err != nil || len(list) != 1 || list[0].Path != "demo/key/1" || list[0].Version != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	s.must(a.DeleteResource(t.Context(), uri(t, "kbs:///demo/key/1")))
	_, err = s.good("").Resource(t.Context(), uri(t, "kbs:///demo/key/1"))
	refused(t, err, http.StatusNotFound, "demo/key/1")
	s.stop()

	// Without its token, or with a wrong PIN, a trustee does not start.
	wrong := write(t, filepath.Join(dir, "wrong-pin"), "0000-"+content)
	out, err := run(t, the.pkcs11, "serve", "--config", configure(t, dir, strings.ReplaceAll(extra, kek.PINFile, wrong)))
	if err == nil || !strings.Contains(out, "PIN") || strings.Contains(out, content) {
		t.Errorf("wrong PIN: %v\n%s", err, out)
	}
	out, err = run(t, the.pkcs11, "serve", "--config", configure(t, dir, strings.ReplaceAll(extra, `"coffer-kek"`, `"other-kek"`)))
	if err == nil || !strings.Contains(out, "other-kek") {
		t.Errorf("no such key: %v\n%s", err, out)
	}
	// The static program says what it lacks.
	out, err = run(t, the.plain, "serve", "--config", configure(t, dir, extra))
	if err == nil || !strings.Contains(out, "cgo") {
		t.Errorf("without cgo: %v\n%s", err, out)
	}
}

// TestRewrap moves a trustee's keys from a file into a security module.
func TestRewrap(t *testing.T) {
	t.Parallel()
	tok := hsmtest.New(t)
	addKey(t, tok, "kek")
	dir := t.TempDir()
	s := launch(t, the.pkcs11, dir, "")
	s.populate("")
	s.stop()

	hsm := "storage.kek.kind = \"pkcs11\"\nstorage.kek.pkcs11.key_label = \"kek\"\n" + module(tok, "storage.kek.pkcs11")
	next := configure(t, dir, hsm)
	next2 := filepath.Join(dir, "next.toml")
	if err := os.Rename(next, next2); err != nil {
		t.Fatal(err)
	}
	old := configure(t, dir, "")
	// The new configuration alone cannot open what the old key wrapped.
	if out, err := run(t, the.pkcs11, "serve", "--config", next2); err == nil || !strings.Contains(out, "file:") {
		t.Errorf("before: %v\n%s", err, out)
	}
	out, err := run(t, the.pkcs11, "rewrap", "--config", old, "--new-config", next2)
	if err != nil || !strings.Contains(out, "wrapped by") {
		t.Fatalf("%v\n%s", err, out)
	}
	// Again: nothing to do, or a clear error; nothing is lost.
	if out, err := run(t, the.pkcs11, "rewrap", "--config", next2, "--new-config", next2); err != nil {
		t.Errorf("again: %v\n%s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "state", "kek.hex")); err != nil {
		t.Fatal(err)
	}
	s = launch(t, the.pkcs11, dir, hsm)
	s.check("")
	s.populate("") // writing as well
	s.check("")
	s.stop()
	// The file's key is of no use any more, and a new one is not made in its place.
	if out, err := run(t, the.pkcs11, "serve", "--config", configure(t, dir, "")); err == nil {
		t.Errorf("after: it serves without the key\n%s", out)
	}
}

// TestDirectory keeps resources in files.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	extra := "resources.backend = \"directory\"\nresources.directory = \"resources\"\n"
	s := launch(t, the.plain, dir, extra)
	s.populate("")
	s.check("")
	s.signal(os.Kill)
	s = launch(t, the.plain, dir, extra)
	s.check("")
	atRest(t, dir)
	found := 0
	_ = filepath.WalkDir(filepath.Join(dir, "resources"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found++
			if i, err := d.Info(); err == nil && i.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", d.Name(), i.Mode())
			}
		}
		return nil
	})
	if found == 0 {
		t.Error("no file in resources")
	}
}

// vaults is a configuration with both the key and the resources in a Vault.
func vaults(t *testing.T, b *baotest.Server, dir string) string {
	t.Helper()
	tok := write(t, filepath.Join(dir, "token"), baotest.Root+"\n")
	return `storage.kek.kind = "transit"
storage.kek.transit.address = ` + quote(b.URL) + `
storage.kek.transit.token_file = ` + quote(tok) + `
storage.kek.transit.key = "coffer"
resources.backend = "vault"
resources.vault.address = ` + quote(b.URL) + `
resources.vault.token_file = ` + quote(tok) + `
resources.vault.timeout = "500ms"
`
}

// TestVault: the key-encryption key in transit, resources in KV version 2; the
// server sealed, slow, lying and back.
func TestVault(t *testing.T) {
	t.Parallel()
	b := baotest.New(t)
	b.AddKey("coffer", "aes256-gcm96")
	dir := t.TempDir()
	s := embed(t, dir, vaults(t, b, dir))
	a := s.populate("")
	s.check("")
	atRest(t, dir)
	client := s.good("")
	s.must(client.Attest(t.Context()))
	// Without the production client's patience.
	plain := s.http()
	get := func() *kbs.StatusError {
		x := s.do(plain, "GET", "/kbs/v0/resource/demo/key/1", client.HeldToken(), "")
		if x.status == http.StatusOK {
			return nil
		}
		return kbs.NewStatusError("GET", x.status, []byte(x.body))
	}
	if e := get(); e != nil {
		t.Fatal(e)
	}
	released := granted(s, a)
	for name, tc := range map[string]struct {
		fault  func(http.ResponseWriter, *http.Request) bool
		status int
	}{
		"sealed": {func(w http.ResponseWriter, _ *http.Request) bool {
			baotest.Fail(w, 503, "Vault is sealed")
			return true
		}, 503},
		"broken": {func(w http.ResponseWriter, _ *http.Request) bool { baotest.Fail(w, 500, "internal error"); return true }, 503},
		"refused": {func(w http.ResponseWriter, _ *http.Request) bool {
			baotest.Fail(w, 403, "permission denied")
			return true
		}, 500},
		"lying": {func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write([]byte(`{"data":{"data":7}}`))
			return true
		}, 500},
		"slow": {func(_ http.ResponseWriter, r *http.Request) bool {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
			return true
		}, 503},
	} {
		b.SetFault(tc.fault)
		e := get()
		if e == nil || e.Status != tc.status && e.Status != 503 || e.Info.Type == "" {
			t.Errorf("%s: %v; want %d", name, e, tc.status)
		} else if strings.Contains(e.Error(), b.URL) || strings.Contains(e.Error(), baotest.Root) {
			t.Errorf("%s: the answer names what is inside: %v", name, e)
		}
		if e := asStatus(a.SetResource(t.Context(), uri(t, "kbs:///demo/key/2"), secret.New([]byte("x")))); e == nil || e.Status < 500 {
			t.Errorf("%s: set: %v", name, e)
		}
	}
	b.SetFault(nil)
	if n := granted(s, a); n != released {
		t.Errorf("%d releases are recorded; want %d", n, released)
	}
	if e := get(); e != nil {
		t.Error(e)
	}
	s.stop()

	// The key is needed at the start only, and then it is needed.
	s = embed(t, dir, vaults(t, b, dir))
	s.check("")
}
