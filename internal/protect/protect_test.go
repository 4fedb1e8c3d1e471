package protect

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layout"
)

const marker = "a marker that must not be readable"

func plainImage(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "secret.txt"), []byte(marker), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "plain")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: root}}, Compression: oci.Uncompressed, Config: oci.ImageConfig{Config: oci.ContainerConfig{Cmd: []string{"/x"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":v1"
}

func writePEM(t *testing.T, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return writePEM(t, "PRIVATE KEY", der, err)
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestReadSigner(t *testing.T) {
	t.Parallel()
	ec := ecKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	for name, test := range map[string]struct {
		file string
		want crypto.Signer
	}{
		"PKCS#8 ECDSA":   {pkcs8(t, ec), ec},
		"PKCS#8 Ed25519": {pkcs8(t, ed), ed},
		"PKCS#8 RSA":     {pkcs8(t, rsaKey), rsaKey},
		"SEC 1":          {writePEM(t, "EC PRIVATE KEY", sec1, err), ec},
		"PKCS#1":         {writePEM(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), rsaKey},
	} {
		signer, err := ReadSigner("--sign-key", test.file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if equal, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !equal.Equal(test.want.Public()) {
			t.Errorf("%s: another key", name)
		}
	}
	if signer, err := ReadSigner("--sign-key", ""); signer != nil || err != nil {
		t.Errorf("no file: expected no key, got %v %v", signer, err)
	}
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	for name, test := range map[string]struct{ file, says string }{
		"absent":    {filepath.Join(t.TempDir(), "absent"), "no such file"},
		"public":    {writePEM(t, "PUBLIC KEY", public, err), "expected an ECDSA, Ed25519 or RSA private key"},
		"encrypted": {writePEM(t, "ENCRYPTED PRIVATE KEY", []byte{0}, nil), "the key is encrypted (ENCRYPTED PRIVATE KEY)"},
	} {
		if _, err := ReadSigner("--sign-key", test.file); err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "--sign-key") {
			t.Errorf("%s: expected %q, got %v", name, test.says, err)
		}
	}
}

func TestOpenDestinationErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{
		"oci:" + dir, "oci:" + dir + ":", "oci:" + dir + ":a/b", "registry.example/app", "registry.example/app@sha256:" + strings.Repeat("a", 64), "UPPER/app:v1", "",
	} {
		if d, err := openDestination(name, run.ImageOptions{}); err == nil {
			_ = d.close()
			t.Errorf("%q: expected an error", name)
		} else if !strings.Contains(err.Error(), "destination") {
			t.Errorf("%q: expected an error about the destination, got %v", name, err)
		}
	}
}

// blobs joins everything a layout holds.
func blobs(t *testing.T, dir string) []byte {
	t.Helper()
	var all []byte
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all = append(all, data...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func quiet() *ui.UI { return ui.New(io.Discard) }

func TestImage(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	trustee, err := run.StartTrustee(t.Context(), run.TrusteeOptions{State: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = trustee.Close() }()
	source, out := plainImage(t), filepath.Join(t.TempDir(), "out")
	result, err := Image(t.Context(), Options{
		Source: source, Destination: "oci:" + out + ":v2", KeyURI: "kbs:///shop/image/app", SignKeyFile: pkcs8(t, ecKey(t)), Admin: trustee.Admin, UI: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Reference != "oci:"+out+":v2" || !result.Signed || result.Key != "kbs:///shop/image/app" || !strings.HasPrefix(result.Digest, "sha256:") {
		t.Errorf("result %+v", result)
	}
	if bytes.Contains(blobs(t, out), []byte(marker)) {
		t.Error("the marker is readable in the result")
	}
	l, err := layout.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ref := oci.Reference{Registry: "localhost", Repository: "x", Tag: "v2"}
	_, manifest, err := build.Inspect(t.Context(), l, ref, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range manifest.Layers {
		format, err := oci.ParseLayerMediaType(layer.MediaType)
		if err != nil || !format.Encrypted || layer.Annotations[crypt.AnnotationKeys] == "" {
			t.Errorf("layer %+v: %v", layer, err)
		}
	}
	ref.Tag = strings.Replace(result.Digest, ":", "-", 1) + ".sig"
	if _, err := l.Resolve(t.Context(), ref); err != nil {
		t.Errorf("the signature: %v", err)
	}
	uris, err := trustee.Admin.Resources(t.Context())
	if err != nil || len(uris) != 1 || uris[0].String() != "kbs:///shop/image/app" {
		t.Errorf("the trustee has %v %v", uris, err)
	}
	noTemporary(t)
}

// noTemporary checks that nothing is left of a spool.
func noTemporary(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left %s", e.Name())
	}
}

// TestImageKeyFirst shows that no image is pushed whose key nobody has.
func TestImageKeyFirst(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	trustee, err := run.StartTrustee(t.Context(), run.TrusteeOptions{State: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := trustee.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err = Image(t.Context(), Options{Source: plainImage(t), Destination: "oci:" + out + ":v2", KeyURI: "kbs:///shop/image/app", Admin: trustee.Admin, UI: quiet()})
	if err == nil || !strings.Contains(err.Error(), "put kbs:///shop/image/app into the trustee") {
		t.Errorf("expected an error about the trustee, got %v", err)
	}
	if l, err := layout.Open(out); err == nil {
		if n := len(l.Manifests()); n != 0 {
			t.Errorf("%d manifests were pushed", n)
		}
		_ = l.Close()
	}
	noTemporary(t)
}

// TestImageCancelled leaves neither a tag nor a spool.
func TestImageCancelled(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := filepath.Join(t.TempDir(), "out")
	if _, err := Image(ctx, Options{Source: plainImage(t), Destination: "oci:" + out + ":v2", SignKeyFile: pkcs8(t, ecKey(t)), UI: quiet()}); err == nil {
		t.Error("expected an error")
	}
	if l, err := layout.Open(out); err == nil {
		if n := len(l.Manifests()); n != 0 {
			t.Errorf("%d manifests are tagged", n)
		}
		_ = l.Close()
	}
	noTemporary(t)
}
