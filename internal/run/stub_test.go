package run

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

const appPasswd = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/:\nother:x:7:8::/:\n"
const appGroup = "root:x:0:root\nbin:x:1:root,app\napp:x:101:\nwheel:x:10:other,app\n"

// registryWith has an image at shop/app:v1; it returns the registry's host.
func registryWith(t *testing.T, config oci.ContainerConfig, recipients ...encrypt.Recipient) string {
	t.Helper()
	server := httptest.NewServer(ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	for name, text := range map[string]string{"etc/passwd": appPasswd, "etc/group": appGroup, "bin/app": strings.Repeat("secret", 1000)} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	client, err := RegistryClient(ImageOptions{PlainHTTP: []string{host}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ref, err := oci.ParseReference(host + "/shop/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	repository, err := client.Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	d, err := build.Build(t.Context(), repository, build.Options{Layers: []build.Tree{{Dir: dir}}, Config: oci.ImageConfig{Config: config}, Compression: oci.Gzip, Recipients: recipients, Rand: rand.Reader})
	if err == nil {
		err = repository.Tag(t.Context(), d, "v1")
	}
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func openImages(t *testing.T, host string) *WorkloadImages {
	t.Helper()
	w, err := OpenWorkloadImages(ImageOptions{PlainHTTP: []string{host}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func TestStub(t *testing.T) {
	t.Parallel()
	config := oci.ContainerConfig{User: "app", Entrypoint: []string{"/bin/app"}, Cmd: []string{"--serve"}, Env: []string{"A=b"}, WorkingDir: "/srv"}
	host := registryWith(t, config)
	w := openImages(t, host)
	reference := host + "/shop/app:v1"
	img, err := w.Image(t.Context(), reference)
	if err != nil {
		t.Fatal(err)
	}
	stub, err := w.PushStub(t.Context(), reference, img, []uint32{7, 12345})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.PushStub(t.Context(), reference, img, []uint32{12345, 7, 7}); err != nil || *again != *stub {
		t.Errorf("%+v, then %+v, %v", stub, again, err)
	}
	if want := host + "/shop/app:coffer-host-" + strings.TrimPrefix(img.Digest, "sha256:")[:12] + "@" + stub.Digest; stub.Reference != want {
		t.Errorf("%s, want %s", stub.Reference, want)
	}
	o := ImageOptions{PlainHTTP: []string{host}, Spool: t.TempDir()}
	src, err := OpenSource(t.Context(), stub.Reference, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var got Image
	if err := got.resolve(t.Context(), src, src.Ref); err != nil {
		t.Fatal(err)
	}
	c := got.Config.Config
	if c.User != "100:101" || !slices.Equal(c.Entrypoint, config.Entrypoint) || !slices.Equal(c.Cmd, config.Cmd) || !slices.Equal(c.Env, config.Env) || c.WorkingDir != "/srv" {
		t.Errorf("%+v", c)
	}
	_, m, err := build.Inspect(t.Context(), src, src.Ref, oci.GuestPlatform())
	if err != nil || len(m.Layers) != 1 || m.Layers[0].Size > 1000 {
		t.Fatalf("%+v, %v", m, err)
	}
	passwd, group, err := readAccounts(t.Context(), src, m)
	if err != nil {
		t.Fatal(err)
	}
	// What a runtime finds out of it is what the guest finds out of the image.
	for _, user := range []string{"100", "7", "12345", "100:101"} {
		want, err1 := podpolicy.ResolveUser(user, []byte(appPasswd), []byte(appGroup))
		found, err2 := podpolicy.ResolveUser(user, passwd, group)
		if (err1 == nil) != (err2 == nil) || want.GID != found.GID || !slices.Equal(want.Groups, found.Groups) {
			t.Errorf("%s: %+v, %v; of the stub %+v, %v", user, want, err1, found, err2)
		}
	}
	if strings.Contains(string(passwd)+string(group), "app") {
		t.Errorf("names of the image: %s%s", passwd, group)
	}

	// A prepared manifest is read again as what it stands for, by tag and digest.
	for _, name := range []string{stub.Reference, host + "/shop/app@" + stub.Digest} {
		if real, err := w.Image(t.Context(), name); err != nil || real.Digest != img.Digest {
			t.Errorf("%s: %+v, %v", name, real, err)
		}
	}
	if got := Pinned(stub.Reference, img.Digest); got != host+"/shop/app@"+img.Digest {
		t.Errorf("%s", got)
	}
}

// TestStubUnderAnotherName: a tag that somebody has moved to a stub is refused,
// and so is a stub of a stub.
func TestStubUnderAnotherName(t *testing.T) {
	t.Parallel()
	host := registryWith(t, oci.ContainerConfig{Cmd: []string{"/bin/app"}})
	w := openImages(t, host)
	img, err := w.Image(t.Context(), host+"/shop/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := w.PushStub(t.Context(), host+"/shop/app:v1", img, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.configs[stub.Digest] = w.configs[img.Digest]
	second, err := w.PushStub(t.Context(), host+"/shop/app:v1", &kube.Image{Digest: stub.Digest, From: img.From, Config: img.Config, Accounts: img.Accounts}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{host + "/shop/app:moved@" + stub.Digest, second.Reference} {
		if got, err := w.Image(t.Context(), name); err == nil || !strings.Contains(err.Error(), "it is a stub of") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestStubOfEncrypted: nothing of the layers is needed when users are numbers.
func TestStubOfEncrypted(t *testing.T) {
	t.Parallel()
	img := func(user string) *kube.Image {
		return &kube.Image{Config: podpolicy.ImageConfig{User: user}, Accounts: func(context.Context) ([]byte, []byte, error) {
			return nil, nil, os.ErrPermission
		}}
	}
	for _, tc := range []struct {
		user string
		uids []uint32
		own  string
		fail bool
	}{
		{"", nil, "", false},
		{"5", nil, "5:0", false},
		{"5:6", nil, "5:6", false},
		{"app", []uint32{65532}, "", false},
		{"app", nil, "", true},
	} {
		own, err := writeAccounts(t.Context(), t.TempDir(), img(tc.user), tc.uids)
		if (err != nil) != tc.fail || own != tc.own && !tc.fail {
			t.Errorf("%q with %v: %q, %v", tc.user, tc.uids, own, err)
		}
	}
}

func TestWithStubs(t *testing.T) {
	t.Parallel()
	a, b := &kube.Image{Digest: "sha256:a", From: []string{"r/a"}}, &kube.Image{Digest: "sha256:b", From: []string{"r/b"}}
	g := kube.Generated{Images: map[string]*kube.Image{"r/a:1": a, "r/b:1": b}, Policy: &podpolicy.Policy{Containers: []podpolicy.Container{
		{Name: "x", Image: podpolicy.Image{Digest: a.Digest, From: a.From}, User: &podpolicy.User{UID: 5}},
		{Name: "y", Image: podpolicy.Image{Digest: b.Digest, From: b.From}},
	}}}
	WithStubs(&g, map[string]*Stub{"r/a:1": {Digest: "sha256:s"}})
	if c := g.Policy.Containers; c[0].Image.Stub != "sha256:s" || c[1].Image.Stub != "" {
		t.Errorf("%+v", c)
	}
	if got := StubUsers([]kube.Generated{g}, a); !slices.Equal(got, []uint32{5}) {
		t.Errorf("%v", got)
	}
}
