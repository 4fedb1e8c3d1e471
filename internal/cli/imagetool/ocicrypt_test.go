package imagetool_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	keyproviderconfig "github.com/containers/ocicrypt/config/keyprovider-config"
	ocikeyprovider "github.com/containers/ocicrypt/keywrap/keyprovider"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
)

// TestOCICrypt: the library that skopeo, buildah and nerdctl have encrypts the
// layers of an image, asking our key provider over gRPC; a guest's pull and our
// decrypt open it. And it opens ours.
func TestOCICrypt(t *testing.T) { // not parallel: ocicrypt's registration is the process's
	s := newTools(t)
	raw, err := os.ReadFile(filepath.Join(s.dir, "ocicrypt.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c keyproviderconfig.OcicryptConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	ocicrypt.RegisterKeyWrapper("provider.attestation-agent", ocikeyprovider.NewKeyWrapper("attestation-agent", c.KeyProviderConfig["attestation-agent"]))
	for _, compression := range []oci.Compression{oci.Gzip, oci.Zstd, oci.Uncompressed} {
		plain := plainLayout(t, compression)
		want := pulled(t, plain, 0, options(t))
		for _, algorithm := range []string{"A256GCM", "A256CTR"} {
			theirs := ocicryptEncrypts(t, plain, s.encryptFor(algorithm)[len("provider:attestation-agent:"):])
			sameTree(t, algorithm, pulled(t, theirs, 2, options(t)), want)
			if got := report(t, theirs).Manifests[0].Layers[0].Keys; len(got) != 1 || got[0].KID != keyURI || got[0].Algorithm != algorithm {
				t.Errorf("keys %+v", got)
			}
			out := newDir(t)
			decrypt(t, theirs, out)
			sameTree(t, algorithm+" decrypted", pulled(t, out, 0, options(t)), want)
		}
		ours := newDir(t)
		encryptAll(t, plain, ours)
		ocicryptOpens(t, ours, plain)
	}
}

func ociDescriptor(l oci.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: l.MediaType, Digest: digest.Digest(l.Digest), Size: l.Size, Annotations: l.Annotations}
}

// ocicryptEncrypts encrypts an image's layers the way containers/image does.
func ocicryptEncrypts(t *testing.T, plain, parameters string) string {
	t.Helper()
	src := source(t, plain, options(t))
	_, m, err := build.Inspect(t.Context(), src, src.Ref, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "theirs")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	config0, err := oci.ReadAll(t.Context(), src, m.Config, oci.MaxDocument)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.PushBytes(t.Context(), l, m.Config.MediaType, config0); err != nil {
		t.Fatal(err)
	}
	for i, layer := range m.Layers {
		rc, err := src.Fetch(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		ec := &config.EncryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte(parameters)}}}
		r, finish, err := ocicrypt.EncryptLayer(ec, rc, ociDescriptor(layer))
		if err != nil {
			t.Fatal(err)
		}
		ciphertext, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.Close()
		annotations, err := finish()
		if err != nil {
			t.Fatal(err)
		}
		d, err := oci.PushBytes(t.Context(), l, layer.MediaType+"+encrypted", ciphertext)
		if err != nil {
			t.Fatal(err)
		}
		d.Annotations = annotations
		m.Layers[i] = d
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":v1"
}

// ocicryptOpens has the library decrypt the layers of an image, which have to be
// those of plain then.
func ocicryptOpens(t *testing.T, name, plain string) {
	t.Helper()
	want := report(t, plain).Manifests[0].Layers
	src := source(t, name, options(t))
	_, m, err := build.Inspect(t.Context(), src, src.Ref, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range m.Layers {
		rc, err := src.Fetch(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		dc := &config.DecryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte("any")}}}
		r, _, err := ocicrypt.DecryptLayer(dc, rc, ociDescriptor(layer), false)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		opened, err := io.ReadAll(r)
		if got := oci.FromBytes(opened); err != nil || got != want[i].Digest {
			t.Errorf("layer %d: expected %s, got %s, %v", i, want[i].Digest, got, err)
		}
		_ = rc.Close()
	}
}
