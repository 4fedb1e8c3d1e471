package guestconfig

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/kbs"
)

// wholeConfig uses everything that this package reads for the data hub.
func wholeConfig() Config {
	life := 90 * time.Second
	c := stockConfig()
	c.KeyType, c.PolicySelector, c.ServiceURL = kbs.KeyP521, "strict", "http://as.example:8080"
	c.Trustees = []Trustee{
		{Name: "payments", URL: "https://payments.example", RootPEM: testCert()},
		{Name: "eu-1", URL: "https://eu.example/tenants/acme"},
	}
	c.Credentials = []Credential{
		{CredentialDir + "aws/credential.json", "kbs://payments/kms/aws/credential"},
		{CredentialDir + "aliyun/PrivateKmsCA_kst-1.pem", "kbs:///kms/aliyun/ca"},
		{CredentialDir + "aliyun/password_KAAP.1.json", "kbs:///kms/aliyun/password"},
		{CredentialDir + "aliyun/clientKey_KAAP.1.json", "kbs:///kms/aliyun/key"},
	}
	c.Resources = Resources{Lifetime: &life, MaxEntries: 10, MaxBytes: 1 << 20}
	c.EventLog = EventLog{Enabled: true, PCR: 12}
	c.REST = FeaturesAll
	c.Image.CredentialsURI = "kbs://eu-1/default/credential/main"
	c.Image.HostRoots = map[string]string{"registry.example:5000": testCert(), "10.0.0.1": testCert()}
	return c
}

func TestData(t *testing.T) {
	t.Parallel()
	want := wholeConfig()
	data, err := want.Data()
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromDocument(&initdata.Document{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}
	coffer := "[[trustee]]\nname = \"payments\"\nurl = \"https://payments.example\"\ncert = '''\n" + testCert() + "'''\n\n" +
		"[[trustee]]\nname = \"eu-1\"\nurl = \"https://eu.example/tenants/acme\"\n\n" +
		"[[registry]]\nhost = \"10.0.0.1\"\ncert = '''\n" + testCert() + "'''\n\n[[registry]]\nhost = \"registry.example:5000\"\ncert = '''\n" + testCert() + "'''\n\n" +
		"[resources]\nlifetime = \"1m30s\"\nmax_entries = 10\nmax_bytes = 1048576\n\n[rest_api]\nfeatures = \"all\"\n"
	if diff := cmp.Diff(coffer, data[initdata.KeyCoffer]); diff != "" {
		t.Error(diff)
	}
	if _, _, err := want.TOML(); err == nil || !strings.Contains(err.Error(), "needs coffer.toml") {
		t.Errorf("got %v", err)
	}
	if data, err := (Config{}).Data(); err != nil || len(data) != 0 {
		t.Errorf("empty: %v, %v", data, err)
	}
	// Nothing is kept, and nothing offered, where the owner says so.
	none := time.Duration(0)
	off := Config{Resources: Resources{Lifetime: &none}, REST: FeaturesNone}
	if data, err := off.Data(); err != nil || data[initdata.KeyCoffer] != "[resources]\nlifetime = \"0s\"\n\n[rest_api]\nfeatures = \"none\"\n" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestCofferRefuses(t *testing.T) {
	t.Parallel()
	const trustee = "[[trustee]]\nname = 'a'\nurl = 'https://a'\n"
	for name, tc := range map[string]struct{ coffer, cdh, want string }{
		"unknown":         {"x = 1\n", "", "coffer.toml: x: unknown key"},
		"trustee unknown": {trustee + "x = 1\n", "", "coffer.toml: trustee.x: unknown key"},
		"no name":         {"[[trustee]]\nurl = 'https://a'\n", "", `trustee.name: "" is no trustee's name`},
		"name":            {"[[trustee]]\nname = 'a.b'\nurl = 'https://a'\n", "", `trustee.name: "a.b" is no trustee's name`},
		"no url":          {"[[trustee]]\nname = 'a'\n", "", "trustee.url: is missing"},
		"http":            {"[[trustee]]\nname = 'a'\nurl = 'http://a'\n", "", "trustee.url: kbs: URL \"http://a\": expected https"},
		"cert":            {trustee + "cert = 'x'\n", "", "trustee.cert: kbs: root certificates"},
		"twice":           {trustee + trustee, "", `trustee.name: "a" occurs twice`},
		"many":            {strings.Repeat(trustee, 17), "", "trustee: has 17 entries, the limit is 16"},
		"registry host":   {"[[registry]]\nhost = 'https://r.example'\ncert = '''" + testCert() + "'''\n", "", "registry.host: expected HOST[:PORT]"},
		"registry label":  {"[[registry]]\nhost = 'r'\ncert = '''" + testCert() + "'''\n", "", "registry.host: expected HOST[:PORT]"},
		"registry cert":   {"[[registry]]\nhost = 'r.example'\n", "", "registry.cert: is missing"},
		"registry PEM":    {"[[registry]]\nhost = 'r.example'\ncert = 'x'\n", "", "registry.cert: kbs: root certificates"},
		"registry twice":  {strings.Repeat("[[registry]]\nhost = 'r.example'\ncert = '''"+testCert()+"'''\n", 2), "", `registry.host: "r.example" occurs twice`},
		"registry more":   {strings.Repeat("[[registry]]\n", 65), "", "registry: has 65 entries"},
		"registry key":    {"[[registry]]\nx = 1\n", "", "registry.x: unknown key"},
		"no array":        {"trustee = 'a'\n", "", "trustee: expected an array of tables"},
		"lifetime":        {"[resources]\nlifetime = 'a while'\n", "", "resources.lifetime: expected a duration"},
		"long lifetime":   {"[resources]\nlifetime = '25h'\n", "", "resources.lifetime: expected a duration"},
		"negative":        {"[resources]\nlifetime = '-1s'\n", "", "resources.lifetime: expected a duration"},
		"lifetime number": {"[resources]\nlifetime = 60\n", "", "resources.lifetime: expected a duration"},
		"entries":         {"[resources]\nmax_entries = 0\n", "", "resources.max_entries: expected 1 to 65536, got 0"},
		"bytes":           {"[resources]\nmax_bytes = 1000000000\n", "", "resources.max_bytes: expected 1 to"},
		"resources":       {"[resources]\nx = 1\n", "", "resources.x: unknown key"},
		"features":        {"[rest_api]\nfeatures = 'everything'\n", "", "rest_api.features: expected none, resource, attestation or all"},
		"no trustees":     {"", "[image]\nimage_security_policy_uri = 'kbs://b/p/q/r'\n", "coffer.toml declares none"},
		"other trustees":  {trustee, "[image]\nauthenticated_registry_credentials_uri = 'kbs://b/p/q/r'\n", `image.authenticated_registry_credentials_uri: kbs://b/p/q/r: there is no trustee "b": coffer.toml declares a;`},
		"credential name": {trustee, "[[credentials]]\nresource_uri = 'kbs://b/p/q/r'\npath = '" + CredentialDir + "aws/credential.json'\n", `there is no trustee "b"`},
		"credential file": {"", "[[credentials]]\nresource_uri = 'kbs:///p/q/r'\npath = '" + CredentialDir + "aws/other.json'\n", "credentials.path: expected"},
		"credential path": {"", "[[credentials]]\nresource_uri = 'kbs:///p/q/r'\npath = '" + CredentialDir + "aliyun/../aws/credential.json'\n", "credentials.path: expected"},
		"credential id":   {"", "[[credentials]]\nresource_uri = 'kbs:///p/q/r'\npath = '" + CredentialDir + "aliyun/password_../x.json'\n", "credentials.path: expected"},
		"credential none": {"", "[[credentials]]\npath = '" + CredentialDir + "aws/credential.json'\n", "credentials.resource_uri: is missing"},
		"credential dup":  {"", strings.Repeat("[[credentials]]\nresource_uri = 'kbs:///p/q/r'\npath = '"+CredentialDir+"aws/credential.json'\n", 2), "occurs twice"},
		"credential more": {"", strings.Repeat("[[credentials]]\n", 65), "has 65 entries"},
	} {
		d := document("", tc.cdh)
		if tc.coffer != "" {
			d.Data[initdata.KeyCoffer] = tc.coffer
		}
		got, err := FromDocument(d)
		if err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func FuzzCoffer(f *testing.F) {
	data, err := wholeConfig().Data()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[initdata.KeyCoffer], data[initdata.KeyCDH])
	f.Fuzz(func(t *testing.T, coffer, cdh string) {
		d := document("", cdh)
		d.Data[initdata.KeyCoffer] = coffer
		c, err := FromDocument(d)
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v, %v", c, err)
		}
		if err != nil {
			return
		}
		data, err := c.Data()
		if err != nil {
			t.Fatalf("%v\n%+v", err, c)
		}
		back, err := FromDocument(&initdata.Document{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestCheckCredentialID(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"KAAP.f4c8-1_2": true, "": false, ".hidden": false, "a/b": false, "a b": false, "ä": false, "a\x00b": false,
		strings.Repeat("a", 129): false,
	} {
		if CheckCredentialID(id) != want {
			t.Errorf("%q: not %v", id, want)
		}
	}
}
