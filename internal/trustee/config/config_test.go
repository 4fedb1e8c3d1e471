package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestDefaultIsValid(t *testing.T) {
	t.Parallel()
	c, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), c); d != "" {
		t.Error(d)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("the default relaxes something: %v", w)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte(`
listen = "nonsense"
unknown = 1
[log]
level = "loud"
[tls]
certificate = "a.pem"
[session]
timeout = "-5m"
[limits]
body = 1
surprise = true
[tee.snp]
id_key_digests = ["00"]
[tee.cca]
enabled = true
[collateral]
tcb_update = "late"
intel_pcs = "ftp://x"
[tee.snp.minimum_tcb.Naples]
snp = 1
[attestation.selectors]
x = "a/b"
[proxy]
trusted = ["10.0.0.1"]
[[admin.key]]
name = "ci"
file = "ci.pem"
roles = ["root"]
tenant = "ACME"
[[admin.oidc]]
issuer = "http://idp.example"
[storage.kek]
kind = "pkcs11"
[resources]
backend = "vault"
[[webhook]]
url = "https://u:p@example.com"
events = ["everything"]
[plugins.pki]
enabled = true
[plugins.pki.roles.web]
usages = ["code-signing"]
lifetime = "48h"
[plugins.keyless]
root = "x"
[[token.trusted]]
issuer = "coffer-trustee"
[[reference_values.signer]]
name = "builder"
`))
	if err == nil {
		t.Fatal("want an error")
	}
	for _, want := range []string{"listen: expected", "unknown: unknown key", "log.level", "both or neither", "session.timeout", "limits.body: expected 65536 to 67108864, got 1",
		"limits.surprise: unknown key", "tee.snp.id_key_digests", "tee.cca.trust_anchors", "collateral.tcb_update", "collateral.intel_pcs", "minimum_tcb", "attestation.selectors.x",
		"proxy.trusted: expected networks", "admin.key[0].roles: expected one of admin, policy-author", "admin.key[0].tenant", "admin.oidc[0].issuer: expected an https URL",
		"admin.oidc[0].roles", "storage.kek.pkcs11.module", "storage.kek.pkcs11.key_label", "resources.vault.address", "webhook[0].url", "webhook[0].events", "plugins.pki.roles.web.usages", "plugins.keyless.root: unknown key",
		"plugins.pki.roles.web.lifetime", "token.trusted[0].issuer: expected another issuer", "token.trusted[0].jwks and", "reference_values.signer[0].keys and"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"syntax":        "listen = ",
		"type":          "listen = 5",
		"duration":      "[session]\ntimeout = \"five\"",
		"number":        "[session]\ntimeout = 5",
		"no TEE":        "[tee]\n" + strings.Join([]string{"snp", "tdx", "sgx", "az-snp-vtpm", "az-tdx-vtpm", "csv", "nvidia"}, ".enabled = false\n") + ".enabled = false",
		"plain http":    "listen = \"0.0.0.0:80\"\n[tls]\ninsecure_http = true",
		"plain by name": "listen = \"localhost:80\"\n[tls]\ninsecure_http = true",
		"duplicate":     "listen = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"",
		"tcb":           "[tee.snp.minimum_tcb.Milan]\nsnp = 300",
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: want an error", name)
		} else if strings.Contains(err.Error(), "\n\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoadResolvesPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "trustee.toml")
	text := "state_dir = \"state\"\n[tee.snp]\ndevelopment_roots = [\"dev.pem\", \"/abs.pem\"]\n[policy]\nallow_simulated = true\n[session]\ntimeout = \"90s\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.StateDir != filepath.Join(dir, "state") || c.TEE.SNP.DevelopmentRoots[0] != filepath.Join(dir, "dev.pem") || c.TEE.SNP.DevelopmentRoots[1] != "/abs.pem" {
		t.Errorf("%+v", c)
	}
	if c.Session.Timeout.D() != 90*time.Second || len(c.Warnings()) != 2 {
		t.Errorf("%+v, %v", c.Session, c.Warnings())
	}
	if _, err := Load(filepath.Join(dir, "missing.toml")); err == nil {
		t.Error("missing file: want an error")
	}
}

// TestExample: the shipped example is valid, has every key, and changes nothing.
func TestExample(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../../deploy/trustee/trustee.toml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	if d := cmp.Diff(want, c, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	doc, err := os.ReadFile("../../../docs/trustee-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(t) {
		if !strings.Contains(string(data), key[strings.LastIndex(key, ".")+1:]) {
			t.Errorf("deploy/trustee/trustee.toml lacks %s", key)
		}
		if !strings.Contains(string(doc), "`"+key+"`") {
			t.Errorf("docs/trustee-configuration.md lacks `%s`", key)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("listen = \"127.0.0.1:0\"\n[tee.snp]\nenabled = true"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := Parse(data); err == nil && c.Validate() != nil {
			t.Error("parsed but not valid")
		}
	})
}

// TestKeysInOtherCase: the TOML library takes "Allow_Simulated" for
// "allow_simulated", and of both in one table either.
func TestKeysInOtherCase(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"Listen = \"127.0.0.1:1\"", "[policy]\nAllow_Simulated = true", "[Policy]\nallow_simulated = true",
		"[policy]\nallow_simulated = false\nALLOW_SIMULATED = true", "[tee.SNP]\nenabled = true", "[tee.snp.minimum_tcb.Milan]\nSNP = 20",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), "lower case") {
			t.Errorf("%q: got %v", text, err)
		}
	}
	c, err := Parse([]byte("[attestation.selectors]\nStrict = \"strict\"\n[tee.snp.minimum_tcb.Milan]\nsnp = 20\n"))
	if err != nil || c.Attestation.Selectors["Strict"] != "strict" || c.TEE.SNP.MinimumTCB["Milan"].SNP != 20 {
		t.Errorf("got %+v, %v", c, err)
	}
}
