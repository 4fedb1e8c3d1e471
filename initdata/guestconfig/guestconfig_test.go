package guestconfig

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
)

// testCert is made once per run: nothing looks into it.
var testCert = sync.OnceValue(func() string {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, priv)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
})

func document(aa, cdh string) *initdata.Document {
	d := &initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA384, Data: map[string]string{}}
	if aa != "" {
		d.Data[initdata.KeyAA] = aa
	}
	if cdh != "" {
		d.Data[initdata.KeyCDH] = cdh
	}
	return d
}

// stockAA and stockCDH have every key that the guest components know, at
// values that change nothing where Coffer does not honour them.
func stockAA() string {
	return "[token_configs.kbs]\nurl = 'https://kbs:8080'\ncert = \"\"\"\n" + testCert() + "\n\"\"\"\ntee_key_algorithm = 'ECDH-ES+A256KW-P256'\nattestation_policy_selector = ''\n" +
		"[eventlog_config]\ninit_pcr = 17\nenable_eventlog = false\n[log]\nlevel = 'info'\n"
}

func stockCDH() string {
	return `
socket = 'unix:///run/confidential-containers/cdh.sock'
skip_sealed_secret_verification = false
credentials = []
[aa]
aa_socket = 'unix:///run/confidential-containers/attestation-agent/attestation-agent.sock'
[kbc]
name = 'cc_kbc'
url = 'https://kbs:8080/'
kbs_cert = '''` + testCert() + `'''
[image]
work_dir = '/run/kata-containers/image/'
image_security_policy_uri = 'kbs://kbs:8080/default/security-policy/main'
authenticated_registry_credentials_uri = 'kbs:///default/credential/main'
max_concurrent_layer_downloads_per_image = 3
extra_root_certificates = ['''
` + testCert() + `''']
sigstore_config_uri = 'kbs:///default/sigstore-config/main'
[image.image_pull_proxy]
https_proxy = 'http://proxy.example:3128'
http_proxy = 'proxy.example:3128'
no_proxy = '10.0.0.0/8,.internal'
[image.registry_config]
unqualified-search-registries = ['docker.io']
[[image.registry_config.registry]]
prefix = 'host.coffer.internal:5000'
location = 'host.coffer.internal:5000'
insecure = true
blocked = false
mirror = []
[[image.registry_config.registry]]
prefix = 'docker.io'
location = 'hub.example/docker'
mirror-by-digest-only = true
[[image.registry_config.registry.mirror]]
location = 'mirror.example'
insecure = true
[[image.registry_config.registry.mirror]]
location = 'mirror2.example/x'
pull-from-mirror = 'all'
[[image.registry_config.registry]]
prefix = '*.bad.example'
blocked = true
[log]
level = 'info'
`
}

func stockConfig() Config {
	return Config{
		URL:     "https://kbs:8080",
		RootPEM: testCert(),
		Image: Image{
			SecurityPolicyURI: "kbs:///default/security-policy/main",
			CredentialsURI:    "kbs:///default/credential/main",
			ExtraRoots:        []string{testCert()},
			SigstoreConfigURI: "kbs:///default/sigstore-config/main",
			Proxy:             registry.Proxy{HTTPS: "http://proxy.example:3128", HTTP: "proxy.example:3128", NoProxy: "10.0.0.0/8,.internal"},
			Registries: &registries.Config{Registries: []registries.Registry{
				{Location: "host.coffer.internal:5000", Insecure: true},
				{Prefix: "docker.io", Location: "hub.example/docker", MirrorByDigestOnly: true, Mirrors: []registries.Mirror{{Location: "mirror.example", Insecure: true}, {Location: "mirror2.example/x"}}},
				{Prefix: "*.bad.example", Blocked: true},
			}},
			MaxConcurrentDownloads: 3,
		},
	}
}

func TestFromDocument(t *testing.T) {
	t.Parallel()
	const kbs = "[token_configs.kbs]\nurl = \"https://kbs:8080\"\n"
	const kbc = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs:8080\"\n"
	for name, tc := range map[string]struct {
		aa, cdh string
		want    Config
	}{
		"nothing":     {"", "", Config{}},
		"empty files": {"# nothing", "# nothing", Config{}},
		"stock":       {stockAA(), stockCDH(), stockConfig()},
		"only aa":     {kbs, "", Config{URL: "https://kbs:8080"}},
		"only cdh":    {"", kbc, Config{URL: "https://kbs:8080"}},
		"aa pins":     {kbs + "cert = '''" + testCert() + "'''", kbc, Config{URL: "https://kbs:8080", RootPEM: testCert()}},
		"cdh pins":    {kbs, kbc + "kbs_cert = '''" + testCert() + "'''", Config{URL: "https://kbs:8080", RootPEM: testCert()}},
		"inline policy": {"", "[image]\nimage_security_policy = '''{\"default\":[]}'''\nregistry_config = {registry = [{location = 'r:1'}]}\n", Config{
			Image: Image{SecurityPolicy: `{"default":[]}`, Registries: &registries.Config{Registries: []registries.Registry{{Location: "r:1"}}}},
		}},
	} {
		got, err := FromDocument(document(tc.aa, tc.cdh))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, *got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestFromDocumentRefuses(t *testing.T) {
	t.Parallel()
	const kbs = "[token_configs.kbs]\nurl = \"https://kbs:8080\"\n"
	const kbc = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs:8080\"\n"
	const reg = "[[image.registry_config.registry]]\n"
	for name, tc := range map[string]struct{ aa, cdh, want string }{
		"aa syntax":           {"x", "", "aa.toml: line 1"},
		"aa deep":             {"x = " + strings.Repeat("[", 1000), "", "aa.toml: line 1: nested"},
		"aa unknown":          {"x = 1\n" + kbs, "", "aa.toml: x: unknown key"},
		"aa unknown nested":   {kbs + "x = 1\n", "", "aa.toml: token_configs.kbs.x: unknown key"},
		"aa coco_as":          {"[token_configs.coco_as]\nurl = 'ftp://as'\n", "", "aa.toml: token_configs.coco_as.url: kbs: URL"},
		"aa coco_as empty":    {"[token_configs.coco_as]\n", "", "aa.toml: token_configs.coco_as.url: is missing"},
		"aa no url":           {"[token_configs.kbs]\n", "", "aa.toml: token_configs.kbs.url: is missing"},
		"aa http":             {"[token_configs.kbs]\nurl = 'http://kbs'\n", "", "aa.toml: token_configs.kbs.url: kbs: URL \"http://kbs\": expected https"},
		"aa url type":         {"[token_configs.kbs]\nurl = 1\n", "", "token_configs.kbs.url: expected a string, got a number"},
		"aa cert":             {kbs + "cert = 'x'\n", "", "token_configs.kbs.cert: kbs: root certificates"},
		"aa cert path":        {kbs + "cert = '/etc/kbs.pem'\n", "", "is not PEM"},
		"aa key algorithm":    {kbs + "tee_key_algorithm = 'RSA1_5'\n", "", "token_configs.kbs.tee_key_algorithm: expected ECDH-ES+A256KW-P256"},
		"aa selector":         {kbs + "attestation_policy_selector = '" + strings.Repeat("x", 257) + "'\n", "", "attestation_policy_selector: has 257 bytes"},
		"aa eventlog":         {"[eventlog_config]\nenable_eventlog = 1\n", "", "eventlog_config.enable_eventlog: expected"},
		"aa eventlog pcr":     {"[eventlog_config]\ninit_pcr = 8\n", "", "eventlog_config.init_pcr: expected 17, or 10 to 16, got 8"},
		"aa log":              {"[log]\nlevel = 'debug'\n", "", "log.level: is not honoured"},
		"aa table":            {"token_configs = 1\n", "", "token_configs: expected a table, got a number"},
		"cdh kbc name":        {"", "[kbc]\nname = 'offline_fs_kbc'\nurl = 'https://kbs'\n", `cdh.toml: kbc.name: expected "cc_kbc", got "offline_fs_kbc"`},
		"cdh no kbc name":     {"", "[kbc]\nurl = 'https://kbs'\n", `cdh.toml: kbc.name: expected "cc_kbc", got ""`},
		"cdh no url":          {"", "[kbc]\nname = 'cc_kbc'\nkbs_cert = '''" + testCert() + "'''\n", "kbc.url: is missing, though kbs_cert is set"},
		"cdh skip":            {"", "skip_sealed_secret_verification = true\n", "sealed secrets are always verified"},
		"cdh socket":          {"", "socket = 'unix:///tmp/x'\n", "socket: is not honoured"},
		"cdh aa socket":       {"", "[aa]\naa_socket = 'unix:///tmp/x'\n", "aa.aa_socket: is not honoured"},
		"cdh credentials":     {"", "[[credentials]]\nresource_uri = 'kbs:///a/b/c'\npath = '/x'\n", "credentials.path: expected"},
		"two urls":            {kbs, strings.Replace(kbc, "8080", "8081", 1), `kbc.url: expected "https://kbs:8080" as in aa.toml, got "https://kbs:8081"`},
		"image unknown":       {"", "[image]\nx = 1\n", "cdh.toml: image.x: unknown key"},
		"image work_dir":      {"", "[image]\nwork_dir = '/x'\n", "image.work_dir: is not honoured"},
		"image sigstore file": {"", "[image]\nsigstore_config_uri = '/etc/sigstore.yaml'\n", "image.sigstore_config_uri: kbs: resource URI"},
		"both sigstore":       {"", "[image]\nsigstore_config = 'x'\nsigstore_config_uri = 'kbs:///a/b/c'\n", "image.sigstore_config: is set, and so is"},
		"image proxy":         {"", "[image.image_pull_proxy]\nhttp_proxy = 'socks5://x'\n", "image.image_pull_proxy: http_proxy: expected http://HOST:PORT"},
		"image proxy user":    {"", "[image.image_pull_proxy]\nhttps_proxy = 'http://u:p@x:1'\n", "expected no user and password"},
		"image proxy unknown": {"", "[image.image_pull_proxy]\nall_proxy = 'x'\n", "image.image_pull_proxy.all_proxy: unknown key"},
		"image no_proxy":      {"", "[image.image_pull_proxy]\nno_proxy = '10.0.0.0/99'\n", "expected a range such as"},
		"image registries":    {"", "[image]\nregistry_configuration_uri = 'file:///etc/registries.conf'\n", "registry_configuration_uri: kbs: resource URI"},
		"both registries":     {"", "[image]\nregistry_configuration_uri = 'kbs:///a/b/c'\nregistry_config = {}\n", "image.registry_config: is set, and so is"},
		"both policies":       {"", "[image]\nimage_security_policy = '{}'\nimage_security_policy_uri = 'kbs:///a/b/c'\n", "image.image_security_policy: is set, and so is"},
		"policy file":         {"", "[image]\nimage_security_policy_uri = 'file:///etc/policy.json'\n", "image_security_policy_uri: kbs: resource URI"},
		"credentials file":    {"", "[image]\nauthenticated_registry_credentials_uri = '/root/auth.json'\n", "authenticated_registry_credentials_uri: kbs: resource URI"},
		"roots":               {"", "[image]\nextra_root_certificates = ['x', 1]\n", "extra_root_certificates: entry 2: expected a string, got a number"},
		"roots PEM":           {"", "[image]\nextra_root_certificates = ['x']\n", "extra_root_certificates: entry 1: kbs: root certificates"},
		"roots type":          {"", "[image]\nextra_root_certificates = 'x'\n", "expected an array of strings, got a string"},
		"roots many":          {"", "[image]\nextra_root_certificates = [" + strings.Repeat("'',", 65) + "]\n", "65 entries"},
		"concurrency":         {"", "[image]\nmax_concurrent_layer_downloads_per_image = 0\n", "expected 1 to 32, got 0"},
		"concurrency type":    {"", "[image]\nmax_concurrent_layer_downloads_per_image = 1.5\n", "expected a number"},
		"registry search":     {"", "[image.registry_config]\nunqualified-search-registries = ['quay.io']\n", "the pod policy names images in full"},
		"registry aliases":    {"", "[image.registry_config.aliases]\nx = 'quay.io/x/y'\n", "aliases: expected none"},
		"registry unknown":    {"", reg + "location = 'r:1'\nx = 1\n", "cdh.toml: image.registry_config.registry[0].x: unknown key"},
		"registry prefix":     {"", reg + "location = 'r:1'\nprefix = 'q'\n", "registry[0].prefix: expected"},
		"registry mirror":     {"", reg + "location = 'r:1'\n[[image.registry_config.registry.mirror]]\nlocation = 'm'\n", "registry[0].mirror[0].location: expected"},
		"registry none":       {"", reg + "insecure = true\n", "registry[0].location: expected"},
		"registry twice":      {"", reg + "location = 'r:1'\n" + reg + "location = 'r:1'\n", "occurs twice"},
		"registry insecure":   {"", reg + "location = 'r:1'\ninsecure = 'yes'\n", "registry[0].insecure: expected true or false"},
		"registry type":       {"", "[image.registry_config]\nregistry = 1\n", "expected an array of tables"},
		"registry table":      {"", "[image]\nregistry_config = 1\n", "image.registry_config: expected a table, got a number"},
		"registry helpers":    {"", "[image.registry_config]\ncredential-helpers = ['x']\n", "credential-helpers: is not honoured"},
	} {
		got, err := FromDocument(document(tc.aa, tc.cdh))
		if err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := FromDocument(document("x = 1\ny = 2\n", "z = 3\n"))
	want := "initdata: aa.toml: x: unknown key\ninitdata: aa.toml: y: unknown key\ninitdata: cdh.toml: z: unknown key"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTOML(t *testing.T) {
	t.Parallel()
	c := stockConfig()
	aa, cdh, err := c.TOML()
	if err != nil {
		t.Fatal(err)
	}
	wantAA := "[token_configs.kbs]\nurl = \"https://kbs:8080\"\ncert = '''\n" + testCert() + "'''\n"
	wantCDH := "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs:8080\"\nkbs_cert = '''\n" + testCert() + "'''\n\n[image]\n" +
		"image_security_policy_uri = \"kbs:///default/security-policy/main\"\n" +
		"authenticated_registry_credentials_uri = \"kbs:///default/credential/main\"\n" +
		"extra_root_certificates = [\n'''\n" + testCert() + "''',\n]\nmax_concurrent_layer_downloads_per_image = 3\n" +
		"sigstore_config_uri = \"kbs:///default/sigstore-config/main\"\n\n[image.image_pull_proxy]\nhttps_proxy = \"http://proxy.example:3128\"\nhttp_proxy = \"proxy.example:3128\"\nno_proxy = \"10.0.0.0/8,.internal\"\n\n" +
		"[[image.registry_config.registry]]\nlocation = \"host.coffer.internal:5000\"\ninsecure = true\n\n" +
		"[[image.registry_config.registry]]\nprefix = \"docker.io\"\nlocation = \"hub.example/docker\"\nmirror-by-digest-only = true\n\n" +
		"[[image.registry_config.registry.mirror]]\nlocation = \"mirror.example\"\ninsecure = true\n\n[[image.registry_config.registry.mirror]]\nlocation = \"mirror2.example/x\"\n\n" +
		"[[image.registry_config.registry]]\nprefix = \"*.bad.example\"\nblocked = true\n"
	if diff := cmp.Diff(wantAA, aa); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wantCDH, cdh); diff != "" {
		t.Error(diff)
	}
	if aa, cdh, err := (Config{}).TOML(); err != nil || aa != "" || cdh != "" {
		t.Errorf("empty: %q, %q, %v", aa, cdh, err)
	}
	policy := Config{Image: Image{SecurityPolicy: "{\n \"default\": [{\"type\": \"reject\"}]\n}\n"}}
	if _, cdh, err := policy.TOML(); err != nil || cdh != "[image]\nimage_security_policy = '''\n"+policy.Image.SecurityPolicy+"'''\n" {
		t.Errorf("policy: %q, %v", cdh, err)
	}
}

func TestTOMLRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{
		"http":           {URL: "http://x"},
		"cert alone":     {RootPEM: testCert()},
		"cert":           {URL: "https://x", RootPEM: "x"},
		"URI":            {Image: Image{CredentialsURI: "auth.json"}},
		"not canonical":  {Image: Image{CredentialsURI: "kbs://host/a/b/c"}},
		"both policies":  {Image: Image{SecurityPolicy: "{}", SecurityPolicyURI: "kbs:///a/b/c"}},
		"utf8":           {Image: Image{SecurityPolicy: "\xff"}},
		"concurrency":    {Image: Image{MaxConcurrentDownloads: -1}},
		"registry":       {Image: Image{Registries: &registries.Config{Registries: []registries.Registry{{}}}}},
		"empty registry": {Image: Image{Registries: &registries.Config{Registries: []registries.Registry{{Insecure: true}}}}},
		"aliases":        {Image: Image{Registries: &registries.Config{Aliases: map[string]string{"x": "quay.io/x/y"}}}},
		"both":           {Image: Image{RegistriesURI: "kbs:///a/b/c", Registries: &registries.Config{Registries: []registries.Registry{{Location: "r:1"}}}}},
		"proxy":          {Image: Image{Proxy: registry.Proxy{HTTP: "ftp://x"}}},
	} {
		if aa, cdh, err := c.TOML(); err == nil {
			t.Errorf("%s: written as %q and %q", name, aa, cdh)
		}
	}
}

func FuzzFromDocument(f *testing.F) {
	f.Add(stockAA(), stockCDH())
	f.Add("", "[image]\nregistry_configuration_uri='kbs:///a/b/c'\nsigstore_config='x'\nimage_pull_proxy={no_proxy='a'}\n")
	f.Add("token_configs.kbs.url = 'https://x'", "[[image.registry_config.registry]]\nlocation='a/b'\ninsecure=true")
	f.Fuzz(func(t *testing.T, aa, cdh string) {
		c, err := FromDocument(document(aa, cdh))
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v, %v", c, err)
		}
		if err != nil {
			return
		}
		a, h, err := c.TOML()
		if err != nil {
			t.Fatalf("%v\n%+v", err, c)
		}
		back, err := FromDocument(document(a, h))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestParseRegistries(t *testing.T) {
	t.Parallel()
	c, err := ParseRegistries([]byte("unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation = 'r:1'\n[[registry.mirror]]\nlocation = 'm:1'\n"))
	want := &registries.Config{Registries: []registries.Registry{{Location: "r:1", Mirrors: []registries.Mirror{{Location: "m:1"}}}}}
	if diff := cmp.Diff(want, c); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	for text, says := range map[string]string{
		"x = 1": "registries.conf: x: unknown key", "[aliases]\nx = 'quay.io/x/y'": "registries.conf: aliases", "unqualified-search-registries = ['a.b', 'c.d']": "names images in full",
	} {
		if c, err := ParseRegistries([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
}
