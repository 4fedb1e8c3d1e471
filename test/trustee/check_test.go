package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"errors"
)

// tree lists what is below a directory.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			i, e := d.Info()
			err = e
			out = append(out, path+" "+i.Mode().String()+" "+i.ModTime().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCheckConfig: every kind of problem is named before the trustee is
// started, all of them at once, and nothing is made.
func TestCheckConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "text"), "no PEM at all\n")
	write(t, filepath.Join(dir, "key"), strings.Repeat("k", 20))
	write(t, filepath.Join(dir, "short"), "short")
	write(t, filepath.Join(dir, "open"), strings.Repeat("07", 32))
	if err := os.Chmod(filepath.Join(dir, "open"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "url"), "postgres://nobody:a-password@127.0.0.1:1/none?connect_timeout=1\n")
	write(t, filepath.Join(dir, "mysql"), "mysql://root:a-password@127.0.0.1/x\n")
	ca := newAuthority(t)
	c, _ := ca.issue(1, 1)
	_, k := ca.issue(2, 1)
	write(t, filepath.Join(dir, "cert"), c)
	write(t, filepath.Join(dir, "other-key"), k)
	for name, tc := range map[string]struct {
		text string
		// want are all in what is printed.
		want []string
	}{
		"syntax":         {"listen = \n", []string{"line"}},
		"unknown key":    {"surprise = 1\n[tls]\nsurprise = 2\n", []string{"surprise: unknown", "tls.surprise"}},
		"letter case":    {"Listen = \"127.0.0.1:0\"\n", []string{"lower case"}},
		"type":           {"listen = 7\n", []string{"listen"}},
		"values":         {"listen = \"x\"\nlog.level = \"loud\"\nlimits.rate = -1.0\n", []string{"listen", "log.level", "limits.rate"}},
		"plain HTTP":     {"listen = \"0.0.0.0:80\"\ntls.insecure_http = true\n", []string{"insecure_http"}},
		"half a pair":    {"tls.certificate = \"cert\"\n", []string{"tls.certificate and tls.private_key"}},
		"another key":    {"tls.certificate = \"cert\"\ntls.private_key = \"other-key\"\n", []string{"tls"}},
		"no certificate": {"tls.certificate = \"text\"\ntls.private_key = \"other-key\"\n", []string{"tls"}},
		"files":          {"admin.public_keys = [\"none\"]\ntracing.headers_file = \"none\"\n[[webhook]]\nname = \"a\"\nurl = \"https://x.example\"\nsecret_file = \"none\"\ntenant = \"*\"\n", []string{"admin", "tracing.headers_file", "webhook \"a\": secret_file"}},
		"admin key":      {"[[admin.key]]\nname = \"ci\"\nfile = \"text\"\nroles = [\"king\"]\ntenant = \"UPPER\"\n", []string{"admin.key[0].roles", "admin.key[0].tenant"}},
		"webhook":        {"[[webhook]]\nname = \"a\"\nurl = \"http://x.example\"\nsecret_file = \"key\"\ntenant = \"*\"\nevents = [\"tea\"]\n", []string{"http"}},
		"webhook secret": {"[[webhook]]\nname = \"a\"\nurl = \"https://x.example\"\nsecret_file = \"short\"\ntenant = \"*\"\n", []string{"webhook \"a\"", "16"}},
		"KEK's mode":     {"storage.kek.file = \"open\"\n", []string{"open", "mode"}},
		"KEK's form":     {"storage.kek.file = \"key\"\n", []string{"key"}},
		"KEK's kind":     {"storage.kek.kind = \"cloud\"\n", []string{"storage.kek.kind"}},
		"no module":      {"storage.kek.kind = \"pkcs11\"\nstorage.kek.pkcs11.module = \"none.so\"\nstorage.kek.pkcs11.token = \"x\"\nstorage.kek.pkcs11.pin_file = \"key\"\nstorage.kek.pkcs11.key_label = \"x\"\n", []string{"pkcs11"}},
		"transit":        {"storage.kek.kind = \"transit\"\nstorage.kek.transit.address = \"http://127.0.0.1:1\"\nstorage.kek.transit.token_file = \"key\"\nstorage.kek.transit.key = \"x\"\n", []string{"transit"}},
		"database":       {"storage.kek.file = \"kek\"\nstorage.database.url_file = \"url\"\nstorage.database.retry_for = \"1s\"\n", []string{"storage"}},
		"database kind":  {"storage.kek.file = \"kek\"\nstorage.database.url_file = \"mysql\"\n", []string{"storage", "postgres://"}},
		"backend":        {"resources.backend = \"directory\"\n", []string{"resources.directory"}},
		"development":    {"tee.snp.development_roots = [\"text\"]\n", []string{"text"}},
		"environments": {
			"tee.tdx.development_roots = [\"text\"]\ntee.nvidia.development_roots = [\"none\"]\ntee.tpm.enabled = true\ntee.tpm.trusted_aks = [\"text\"]\n" +
				"tee.cca.enabled = true\ntee.cca.trust_anchors = [\"text\", \"none\"]\ntee.se.enabled = true\ntee.se.host_keys = [\"cert\"]\ntee.se.roots = [\"none\"]\ntee.se.crls = [\"text\"]\ntee.se.image = \"none\"\n" +
				"collateral.stores = [\"none\"]\n",
			[]string{"tee.tdx: development_roots: dcap: development root \"text\"", "tee.nvidia: development_roots", "tee.tpm: trusted_aks", "tee.cca: trust_anchors: text", "tee.cca: trust_anchors: open", "tee.se: roots", "tee.se: image: open", "collateral.stores"},
		},
		"environments' values": {
			"tee.cca.enabled = true\ntee.se.enabled = true\ncollateral.tcb_update = \"never\"\ncollateral.max_age = \"-1s\"\ncollateral.amd_kds = \"ftp://x\"\ntee.snp.id_key_digests = [\"07\"]\ntee.snp.minimum_tcb.Naples.snp = 1\n",
			[]string{"tee.cca.trust_anchors", "tee.se.host_keys", "tee.se.image", "collateral.tcb_update", "collateral.max_age", "collateral.amd_kds", "tee.snp.id_key_digests", "tee.snp.minimum_tcb"},
		},
		"signer":         {"[[reference_values.signer]]\nname = \"b\"\nkeys = [\"text\"]\nprefixes = [\"*\"]\ntenant = \"*\"\n", []string{"reference_values"}},
		"PKI":            {"plugins.pki.enabled = true\nplugins.pki.roles.web.dns = [\"*\"]\nplugins.pki.roles.web.usages = [\"server\"]\n", []string{"web"}},
		"proxy":          {"proxy.trusted = [\"everybody\"]\n", []string{"proxy.trusted"}},
		"trusted issuer": {"[[token.trusted]]\nissuer = \"x\"\njwks = \"none.json\"\n", []string{"token.trusted"}},
		"OIDC":           {"[[admin.oidc]]\nissuer = \"http://idp.example\"\naudience = \"\"\n", []string{"admin.oidc[0].issuer", "admin.oidc[0].audience"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := tc.text
			if !strings.HasPrefix(text, "listen") && !strings.HasPrefix(text, "Listen") {
				text = "listen = \"127.0.0.1:0\"\n" + text
			}
			if strings.Contains(tc.text, "kek\"") {
				write(t, filepath.Join(dir, "kek"), strings.Repeat("07", 32)+"\n")
			}
			if err := os.MkdirAll(filepath.Join(dir, "there"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := write(t, filepath.Join(dir, "x.toml"), "state_dir = \"there\"\n"+text)
			before := tree(t, dir)
			out, err := run(t, the.plain, "check-config", "--config", file)
			x, ok := errors.AsType[*exec.ExitError](err)
			if !ok || x.ExitCode() != 1 {
				t.Errorf("%v; want exit code 1\n%s", err, out)
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q is not in:\n%s", w, out)
				}
			}
			if strings.Contains(out, "a-password") {
				t.Errorf("a password is printed:\n%s", out)
			}
			if after := tree(t, dir); !slices.Equal(before, after) {
				t.Errorf("it changed files:\n%q\n%q", before, after)
			}
		})
	}
	// What is right, before the first start and beside a running trustee.
	fresh := t.TempDir()
	toml := configure(t, fresh, "")
	out, err := run(t, the.plain, "check-config", "--config", toml)
	if err != nil || !strings.Contains(out, "ok") || !strings.Contains(out, "warning: policy.allow_simulated") {
		t.Errorf("%v\n%s", err, out)
	}
	if len(tree(t, fresh)) != 2 {
		t.Errorf("it made %q", tree(t, fresh))
	}
	s := launch(t, the.plain, fresh, "")
	s.populate("")
	if out, err := run(t, the.plain, "check-config", "--config", toml); err != nil {
		t.Errorf("beside a running trustee: %v\n%s", err, out)
	}
	s.check("")
	if _, err := run(t, the.plain, "check-config", "--config", filepath.Join(fresh, "none.toml")); err == nil {
		t.Error("no file: want an error")
	}
}
