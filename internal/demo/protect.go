package demo

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/coffer-project/coffer/internal/demo/demoroot"
	"github.com/coffer-project/coffer/internal/protect"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret"
)

// protect builds, encrypts, signs and pushes the images, puts the secrets into
// the trustee, and looks at what the registry holds.
func (w *world) protect(ctx context.Context) (string, error) {
	w.marker = "MARKER-" + rand.Text()
	signKey, publicPEM, err := w.signingKey()
	if err != nil {
		return "", err
	}
	plain, files, err := w.buildPlain(ctx, "app", w.marker)
	if err != nil {
		return "", err
	}
	nextPlain, _, err := w.buildPlain(ctx, "next", "the next version")
	if err != nil {
		return "", err
	}
	otherPlain, _, err := w.buildPlain(ctx, "other", "another application")
	if err != nil {
		return "", err
	}
	o, err := w.hostRegistry()
	if err != nil {
		return "", err
	}
	for _, image := range []struct {
		ref              *oci.Reference
		source, dst, key string
		signKey          string
	}{
		{&w.app, plain, repository + ":v1", imageKey, signKey},
		{&w.next, nextPlain, repository + ":v2", imageKey, signKey},
		{&w.other, otherPlain, repository + ":v2", imageKey, signKey},
		{&w.unsigned, plain, unsignedRepo + ":v1", unsignedKey, ""},
	} {
		if *image.ref, err = w.push(ctx, o, image.source, image.dst, image.key, image.signKey); err != nil {
			return "", err
		}
	}
	if err := w.secrets(ctx); err != nil {
		return "", err
	}
	seen, err := w.inspect(ctx, o, plain)
	if err != nil {
		return seen, err
	}
	if err := w.definePod(ctx, publicPEM); err != nil {
		return seen, err
	}
	return fmt.Sprintf("%d files in 2 layers, encrypted (AES_256_CTR_HMAC_SHA256, key %s), signed (cosign)\n%s\npushed    %s\ninitdata  %x is registered for the image's key, the registry's credential and a password",
		files, imageKey, seen, w.app, w.initdata.Digest), nil
}

// signingKey makes the owner's key: the file of its private half, and the PEM
// of its public one.
func (w *world) signingKey() (file string, publicPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(w.dir, "cosign.key")
	err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	return file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), err
}

// buildPlain makes an unprotected image in a layout. Its layers are not
// compressed, so that a marker in a file is a marker in the layer.
func (w *world) buildPlain(ctx context.Context, name, marker string) (image string, files int, err error) {
	base, app := filepath.Join(w.dir, name, "base"), filepath.Join(w.dir, name, "app")
	for _, dir := range []string{base, app} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", 0, err
		}
	}
	if files, err = demoroot.Base(ctx, base); err != nil {
		return "", 0, err
	}
	if err := demoroot.App(app, marker); err != nil {
		return "", 0, err
	}
	l, err := layout.Create(filepath.Join(w.dir, name, "layout"))
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = l.Close() }()
	d, err := build.Build(ctx, l, build.Options{
		Layers:      []build.Tree{{Dir: base}, {Dir: app}},
		Config:      oci.ImageConfig{Config: oci.ContainerConfig{Cmd: []string{"/app/run"}, Env: []string{"PATH=/bin"}, WorkingDir: "/"}},
		Compression: oci.Uncompressed, Spool: w.dir, Rand: rand.Reader,
	})
	if err != nil {
		return "", 0, err
	}
	if err := l.Tag(ctx, d, "v1"); err != nil {
		return "", 0, err
	}
	return "oci:" + filepath.Join(w.dir, name, "layout") + ":v1", files + 2, nil
}

// hostRegistry is how the owner reaches the registry.
func (w *world) hostRegistry() (run.ImageOptions, error) {
	file := filepath.Join(w.dir, "auth.json")
	auth, err := w.authJSON(net.JoinHostPort("127.0.0.1", strconv.Itoa(w.registry.Port)))
	if err != nil {
		return run.ImageOptions{}, err
	}
	return run.ImageOptions{AuthFile: file, RootPEMs: []string{string(w.registry.RootPEM)}}, os.WriteFile(file, auth, 0o600)
}

func (w *world) authJSON(host string) ([]byte, error) {
	credential := base64.StdEncoding.EncodeToString([]byte(w.registry.User + ":" + w.registry.Password))
	return json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": credential}}})
}

// guestHost is the registry as the guest names it.
func (w *world) guestHost() string {
	return net.JoinHostPort(run.HostName, strconv.Itoa(w.registry.Port))
}

// push protects one image and returns its name in the guest.
func (w *world) push(ctx context.Context, o run.ImageOptions, source, name, key, signKey string) (oci.Reference, error) {
	result, err := protect.Image(ctx, protect.Options{
		Source: source, Destination: net.JoinHostPort("127.0.0.1", strconv.Itoa(w.registry.Port)) + "/" + name,
		KeyURI: key, KeyFile: w.keyFile(key), SignKeyFile: signKey, Registry: o, Admin: w.trustee.Admin, UI: w.u,
	})
	if err != nil {
		return oci.Reference{}, err
	}
	ref, err := oci.ParseReference(result.Reference)
	ref.Registry = w.guestHost()
	return ref, err
}

// keyFile keeps one key for all images that use its URI.
func (w *world) keyFile(uri string) string {
	file := filepath.Join(w.dir, filepath.Base(uri)+".kek")
	if _, err := os.Stat(file); err != nil {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails (crypto/rand)
		if err := os.WriteFile(file, key, 0o600); err != nil {
			return ""
		}
	}
	return file
}

// secrets puts what the pod may have into the trustee.
func (w *world) secrets(ctx context.Context) error {
	auth, err := w.authJSON(w.guestHost())
	if err != nil {
		return err
	}
	for name, value := range map[string][]byte{credentials: auth, password: []byte(passwordValue)} {
		uri, err := kbs.ParseResourceURI(name)
		if err != nil {
			return err
		}
		if err := w.trustee.Admin.SetResource(ctx, uri, secret.New(value)); err != nil {
			return err
		}
	}
	return nil
}

// inspect looks for the marker in what the registry holds, and as a control in
// the unprotected image, where it must be found.
func (w *world) inspect(ctx context.Context, o run.ImageOptions, plain string) (string, error) {
	src, err := run.OpenSource(ctx, plain, o)
	if err != nil {
		return "", err
	}
	defer func() { _ = src.Close() }()
	_, found, _, err := countMarker(ctx, src, src.Ref, w.marker)
	if err != nil {
		return "", err
	}
	if found == 0 {
		return "", fmt.Errorf("the marker is not in the unprotected image: the search proves nothing")
	}
	client, err := run.RegistryClient(o)
	if err != nil {
		return "", err
	}
	defer client.Close()
	host := w.app
	host.Registry = net.JoinHostPort("127.0.0.1", strconv.Itoa(w.registry.Port))
	var repo *registry.Repository
	if repo, err = client.Repository(host); err != nil {
		return "", err
	}
	manifest, hits, size, err := countMarker(ctx, repo, host, w.marker)
	if err != nil {
		return "", err
	}
	next := w.next
	next.Registry = host.Registry
	_, nextManifest, err := build.Inspect(ctx, repo, next, oci.GuestPlatform())
	if err != nil {
		return "", err
	}
	w.layer = nextManifest.Layers[len(nextManifest.Layers)-1].Digest
	for _, l := range manifest.Layers {
		format, err := oci.ParseLayerMediaType(l.MediaType)
		if err != nil || !format.Encrypted {
			return "", fmt.Errorf("layer %s in the registry has media type %s: expected an encrypted one", l.Digest, l.MediaType)
		}
	}
	seen := fmt.Sprintf("marker    %s: %d times in the plain layers, %d times in the registry's %d bytes", w.marker, found, hits, size)
	if hits != 0 {
		return seen, fmt.Errorf("the registry holds the marker in clear")
	}
	return seen, nil
}

// countMarker searches the layers of an image.
func countMarker(ctx context.Context, f oci.Fetcher, ref oci.Reference, marker string) (*oci.Manifest, int, int64, error) {
	_, manifest, err := build.Inspect(ctx, f, ref, oci.GuestPlatform())
	if err != nil {
		return nil, 0, 0, err
	}
	hits, size := 0, int64(0)
	for _, l := range manifest.Layers {
		r, err := f.Fetch(ctx, l)
		if err != nil {
			return nil, 0, 0, err
		}
		data, err := io.ReadAll(io.LimitReader(r, 256<<20))
		_ = r.Close()
		if err != nil {
			return nil, 0, 0, err
		}
		hits += bytes.Count(data, []byte(marker))
		size += int64(len(data))
	}
	return manifest, hits, size, nil
}

// definePod writes the owner's policy and initdata and registers what it may have.
func (w *world) definePod(ctx context.Context, publicPEM []byte) error {
	container := func(name string, ref oci.Reference, change func(*podpolicy.Container)) podpolicy.Container {
		c := podpolicy.Container{
			Name: name, Image: podpolicy.Image{Digest: ref.Digest.String(), From: []string{ref.Name()}},
			Args: []string{"/app/run"},
		}
		if change != nil {
			change(&c)
		}
		return c
	}
	policy := &podpolicy.Policy{
		APIVersion: podpolicy.APIVersion, Kind: podpolicy.Kind, Pod: podpolicy.Pod{Name: podpolicy.Name{Value: "demo"}},
		Network: podpolicy.Network{DNS: podpolicy.DNS{Host: podpolicy.SlotDNS}, Hosts: podpolicy.Hosts{Host: podpolicy.SlotHosts}},
		Containers: []podpolicy.Container{
			container(appName, w.app, func(c *podpolicy.Container) {
				c.Allow.Logs = true
				c.Env = map[string]podpolicy.EnvValue{"DB_PASSWORD": {Resource: password}}
			}),
			container(quietName, w.app, func(c *podpolicy.Container) {
				c.Args = []string{"/bin/sh", "-c", "echo what the host must not read; exec sleep 600"}
			}),
			container(swappedName, w.next, nil),
			container(corruptName, w.next, nil),
			container(unsignedName, w.unsigned, nil),
		},
	}
	document, err := policy.Canonical()
	if err != nil {
		return err
	}
	imagePolicy, err := json.Marshal(map[string]any{
		"default": []any{map[string]string{"type": "reject"}},
		"transports": map[string]any{"docker": map[string]any{
			w.guestHost(): []any{map[string]string{"type": "sigstoreSigned", "keyData": base64.StdEncoding.EncodeToString(publicPEM)}},
		}},
	})
	if err != nil {
		return err
	}
	w.options = run.InitdataOptions{
		Policy: document, TrusteeURL: w.trustee.GuestURL, TrusteeCA: w.trustee.RootPEM, ImagePolicy: string(imagePolicy),
		Credentials: credentials, RegistryRoots: []string{string(w.registry.RootPEM)},
	}
	if w.initdata, err = run.NewInitdata(w.options); err != nil {
		return err
	}
	resources, err := run.Resources(policy, w.options, []string{imageKey, unsignedKey})
	if err != nil {
		return err
	}
	if err := run.Bind(ctx, w.trustee.Admin, w.initdata, resources, "the demo's pod"); err != nil {
		return err
	}
	launch, _, err := run.GuestLaunch(w.guest())
	if err != nil {
		return err
	}
	return run.RegisterLaunch(ctx, w.trustee.Admin, *launch)
}

func (w *world) guest() run.GuestOptions {
	g := w.o.Guest
	g.TEE = string(w.kind)
	return g
}
