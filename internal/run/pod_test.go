package run

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/podpolicy"
)

const testDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func testPolicy(t *testing.T, flags podpolicy.Flags) *podpolicy.Policy {
	t.Helper()
	p, err := podpolicy.FromImage(podpolicy.Source{
		Name: "shop/web", Digest: testDigest, From: []string{"registry.example/shop/web"}, Config: podpolicy.ImageConfig{Cmd: []string{"/web"}},
	}, flags)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func canonical(t *testing.T, p *podpolicy.Policy) []byte {
	t.Helper()
	out, err := p.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitdataDeterministic(t *testing.T) {
	t.Parallel()
	flags := podpolicy.Flags{Env: map[string]string{"A": "1", "B": "2", "C": "3"}, Secrets: map[string]string{"D": "kbs:///a/b/c"}}
	var first *Initdata
	for range 20 {
		id, err := NewInitdata(InitdataOptions{
			Policy: canonical(t, testPolicy(t, flags)), TrusteeURL: "https://trustee.example", Credentials: "kbs:///a/registry/auth",
			ImagePolicy: `{"default":[{"type":"reject"}]}`, PlainHTTP: []string{"registry.example"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = id
		}
		if !bytes.Equal(id.Raw, first.Raw) || !bytes.Equal(id.Digest, first.Digest) {
			t.Fatalf("equal options give different bytes:\n%s\n%s", first.Raw, id.Raw)
		}
	}
	doc, err := initdata.Parse(first.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := doc.Data[initdata.KeyPodPolicy]; got != string(canonical(t, testPolicy(t, flags))) {
		t.Errorf("the policy is another one:\n%s", got)
	}
	for _, want := range []string{"https://trustee.example", "kbs:///a/registry/auth", "reject", "registry.example"} {
		if !strings.Contains(doc.Data[initdata.KeyCDH], want) {
			t.Errorf("cdh.toml does not name %s:\n%s", want, doc.Data[initdata.KeyCDH])
		}
	}
}

func TestInitdataServices(t *testing.T) {
	t.Parallel()
	id, err := NewInitdata(InitdataOptions{Policy: canonical(t, testPolicy(t, podpolicy.Flags{})), TrusteeURL: "https://trustee.example", GuestServices: GuestServices{
		Trustees: []guestconfig.Trustee{{Name: "payments", URL: "https://payments.example"}}, REST: guestconfig.FeaturesAll, EventLog: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse(id.Raw)
	if err != nil {
		t.Fatal(err)
	}
	config, err := guestconfig.FromDocument(doc)
	if err != nil {
		t.Fatal(err)
	}
	if !config.EventLog.Enabled || config.REST != guestconfig.FeaturesAll || len(config.Trustees) != 1 || config.Trustees[0].Name != "payments" {
		t.Errorf("the guest reads %+v", config)
	}
}

func TestInitdataErrors(t *testing.T) {
	t.Parallel()
	good := canonical(t, testPolicy(t, podpolicy.Flags{}))
	for name, o := range map[string]InitdataOptions{
		"pod policy":   {Policy: []byte(`{}`)},
		"image policy": {Policy: good, TrusteeURL: "https://trustee.example", ImagePolicy: "{"},
		"initdata":     {Policy: good, TrusteeURL: "ftp://trustee.example"},
	} {
		if _, err := NewInitdata(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("expected an error about the %s, got %v", name, err)
		}
	}
	if _, err := OpenInitdata([]byte("x")); err == nil {
		t.Error("expected an error for a document that is none")
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	policy := testPolicy(t, podpolicy.Flags{Secrets: map[string]string{"A": "kbs:///shop/db/a", "B": "kbs:///shop/db/b"}, Env: map[string]string{"C": "kbs:///not/a/secret"}})
	for _, test := range []struct {
		name    string
		options InitdataOptions
		keys    []string
		want    []string
	}{
		{"policy", InitdataOptions{}, nil, []string{"kbs:///shop/db/a", "kbs:///shop/db/b"}},
		{
			"everything once",
			InitdataOptions{Credentials: "kbs:///shop/registry/auth", ImagePolicy: `{"keyPath":"kbs:///shop/sign/key","also":"kbs:///shop/db/a"}`},
			[]string{"kbs:///shop/image/key", "kbs:///shop/image/key"},
			[]string{"kbs:///shop/db/a", "kbs:///shop/db/b", "kbs:///shop/image/key", "kbs:///shop/registry/auth", "kbs:///shop/sign/key"},
		},
		{"image policy by URI", InitdataOptions{ImagePolicy: "kbs:///shop/sign/policy"}, nil, []string{"kbs:///shop/db/a", "kbs:///shop/db/b", "kbs:///shop/sign/policy"}},
	} {
		uris, err := Resources(policy, test.options, test.keys)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var got []string
		for _, u := range uris {
			got = append(got, u.String())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if _, err := Resources(policy, InitdataOptions{Credentials: "kbs:///short"}, nil); err == nil {
		t.Error("expected an error for a resource without a tag")
	}
}

func TestMergeEnv(t *testing.T) {
	t.Parallel()
	got := mergeEnv([]string{"PATH=/bin", "A=image", "EMPTY=", "B=image"}, map[string]string{"B": "flag=x", "Z": "", "A": "flag"})
	want := []string{"PATH=/bin", "EMPTY=", "A=flag", "B=flag=x", "Z="}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestUnsealedRequest(t *testing.T) {
	t.Parallel()
	args := []string{"x"}
	ref := oci.Reference{Registry: "registry.example", Repository: "shop/web"}.WithDigest(testDigest)
	p := &Prepared{Image: &Image{Ref: ref, Config: &oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/e"}, Cmd: []string{"/c"}, Env: []string{"A=1"}}}}}
	req := Options{Flags: podpolicy.Flags{Args: &args, Cwd: "/w", User: &podpolicy.User{UID: 7, GID: 8}}}.createRequest(p)
	if diff := cmp.Diff([]string{"/e", "x"}, req.GetArgs().GetValues()); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	if req.GetCwd() != "/w" || req.GetUser().GetUid() != 7 || req.GetUser().GetGid() != 8 || req.GetName() != "main" {
		t.Errorf("request %v", req)
	}
	req = Options{}.createRequest(p)
	if diff := cmp.Diff([]string{"/e", "/c"}, req.GetArgs().GetValues()); diff != "" || req.Cwd != nil || req.User != nil {
		t.Errorf("without flags: %v", req)
	}
	p.Initdata, p.Container = &Initdata{}, "web"
	req = Options{Flags: podpolicy.Flags{Args: &args}}.createRequest(p)
	if req.Args != nil || req.Env != nil || req.GetName() != "web" || req.GetImage() != ref.String() {
		t.Errorf("a sealed pod's request leaves everything to the policy, got %v", req)
	}
}

func TestPolicyContainer(t *testing.T) {
	t.Parallel()
	ref := oci.Reference{Registry: "registry.example", Repository: "shop/web"}.WithDigest(testDigest)
	p := &Prepared{Image: &Image{Ref: ref}}
	if name, err := p.container(testPolicy(t, podpolicy.Flags{})); err != nil || name != "web" {
		t.Errorf("expected web, got %q %v", name, err)
	}
	p.Image.Ref.Repository = "shop/other"
	_, err := p.container(testPolicy(t, podpolicy.Flags{}))
	if err == nil || !strings.Contains(err.Error(), "shop/other@"+testDigest) || !strings.Contains(err.Error(), "registry.example/shop/web") || len(hint.Of(err)) != 1 {
		t.Errorf("expected an error that names both images, got %v", err)
	}
}

func TestFormatVerdicts(t *testing.T) {
	t.Parallel()
	got := FormatVerdicts([]admin.Verdict{
		{Kind: "resource", Resource: "a/b/c", Simulated: true, Reason: &kbs.Reason{Rule: "initdata.registered", Expected: "x", Got: "y"}},
		{Kind: "attestation", Granted: true},
	})
	lines := strings.Split(got, "\n")
	if len(lines) != 3 || lines[0] != "granted: attestation" || !strings.HasPrefix(lines[1], "refused: resource a/b/c (simulated): ") || !strings.Contains(lines[1], "initdata.registered") {
		t.Errorf("got %q", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := Options{Guest: GuestOptions{TEE: "soft", CPUs: 1}, MemoryMiB: 512}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	bad := Options{Guest: GuestOptions{TEE: "x", CPUs: 256}, Policy: []byte{}, Initdata: []byte{}, Unsealed: true, TrusteeURL: "http://x", Flags: podpolicy.Flags{Secrets: map[string]string{"A": "kbs:///a/b/c"}}}
	err := bad.Check()
	for _, want := range []string{"--tee", "--cpus", "--memory", "--policy and --initdata", "--unsealed", "--secret-env", "--trustee"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %s in: %v", want, err)
		}
	}
}

func TestSealedNames(t *testing.T) {
	t.Parallel()
	seal := func(header, payload string) string {
		encode := base64.RawURLEncoding.EncodeToString
		return "sealed." + encode([]byte(header)) + "." + encode([]byte(payload)) + ".c2lnbmF0dXJl"
	}
	for name, test := range map[string]struct {
		sealed string
		want   []string
	}{
		"vault":            {seal(`{"alg":"ES256","kid":"kbs:///shop/sign/key"}`, `{"type":"vault","provider":"kbs","name":"kbs:///shop/db/a"}`), []string{"kbs:///shop/sign/key", "kbs:///shop/db/a"}},
		"key in the guest": {seal(`{"alg":"ES256","kid":"local"}`, `{"type":"vault","provider":"kbs","name":"kbs:///shop/db/a"}`), []string{"kbs:///shop/db/a"}},
		"envelope":         {seal(`{"kid":"kbs:///shop/sign/key"}`, `{"type":"envelope","provider":"kbs","key_id":"kbs:///shop/sign/kek"}`), []string{"kbs:///shop/sign/key", "kbs:///shop/sign/kek"}},
		"another trustee":  {seal(`{"kid":"kbs://other/shop/sign/key"}`, `{"type":"vault","provider":"kbs","name":"kbs://other/shop/db/a"}`), []string{"kbs://other/shop/sign/key", "kbs://other/shop/db/a"}},
		"a service":        {seal(`{"kid":"kbs:///shop/sign/key"}`, `{"type":"envelope","provider":"aws","key_id":"kbs:///shop/sign/kek"}`), []string{"kbs:///shop/sign/key"}},
		"not JSON":         {seal(`x`, `{}`), nil},
		"too few parts":    {"sealed.a.b", nil},
		"none":             {"", nil},
	} {
		if diff := cmp.Diff(test.want, sealedNames(test.sealed)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// The guest gets mirrors as it reaches them, registries without TLS once, and no
// short names.
func TestGuestRegistries(t *testing.T) {
	t.Parallel()
	host, err := registries.Parse([]byte(`
unqualified-search-registries = ["registry.example"]
[aliases]
"app" = "registry.example/shop/app"
[[registry]]
location = "registry.example"
[[registry.mirror]]
location = "localhost:5000/mirror"
insecure = true
[[registry]]
prefix = "127.0.0.1:5001/a"
location = "127.0.0.1:5001/b"
`))
	if err != nil {
		t.Fatal(err)
	}
	got := InitdataOptions{Registries: host, PlainHTTP: []string{"plain.example", "registry.example"}}.guestRegistries()
	want := &registries.Config{Registries: []registries.Registry{
		{Location: "registry.example", Insecure: true, Mirrors: []registries.Mirror{{Location: HostName + ":5000/mirror", Insecure: true}}},
		{Prefix: HostName + ":5001/a", Location: HostName + ":5001/b"},
		{Location: "plain.example", Insecure: true},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if host.Registries[0].Mirrors[0].Location != "localhost:5000/mirror" {
		t.Error("the host's own configuration was changed")
	}
	if got := (InitdataOptions{}).guestRegistries(); got != nil {
		t.Errorf("nothing: %+v", got)
	}
}
