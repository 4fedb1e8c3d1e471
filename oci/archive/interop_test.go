package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/archive"
	"github.com/coffer-project/coffer/oci/layout"
)

// program finds skopeo or buildah. A full test machine has both.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
		t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

func run(t *testing.T, dir, path string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// tarOf is a layer with one file.
func tarOf(t *testing.T, name, body string) []byte {
	return write(t, member{name: name, body: body})
}

// image makes a layout with an image app:v1 of three layers, two of which are
// the same.
func image(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var ids []oci.Digest
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for _, content := range []string{"one", "two", "one"} {
		plain := tarOf(t, content, strings.Repeat(content, 1000))
		ids = append(ids, oci.FromBytes(plain))
		d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeLayerGzip, gz(t, plain))
		if err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, d)
	}
	if m.Config, err = oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte(config(ids...))); err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, marshal(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkImage reads the whole image and compares the diff IDs of its
// configuration with those of the original.
func checkImage(t *testing.T, ctx context.Context, l *layout.Layout, d oci.Descriptor) {
	t.Helper()
	data, err := oci.ReadAll(ctx, l, d, oci.MaxDocument)
	if err != nil {
		t.Fatal(err)
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = oci.ReadAll(ctx, l, m.Config, oci.MaxDocument); err != nil {
		t.Fatal(err)
	}
	c, err := oci.ParseImageConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckImage(oci.Platform{OS: "linux", Architecture: runtime.GOARCH}, len(m.Layers)); err != nil {
		t.Error(err)
	}
	for i, layer := range m.Layers {
		data, err := oci.ReadAll(ctx, l, layer, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if layer.MediaType == oci.MediaTypeLayerGzip {
			data = gunzip(t, data)
		}
		if got := oci.FromBytes(data); got != c.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: expected diff ID %s, got %s", i, c.RootFS.DiffIDs[i], got)
		}
		if _, err := tar.NewReader(bytes.NewReader(data)).Next(); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

// Archives that skopeo and buildah write.
func TestPrograms(t *testing.T) {
	t.Parallel()
	from := image(t)
	work := t.TempDir()
	write := map[string]func(t *testing.T, to string){
		"skopeo": func(t *testing.T, to string) {
			run(t, work, program(t, "skopeo"), "--insecure-policy", "copy", "oci:"+from+":v1", to)
		},
		"buildah": func(t *testing.T, to string) {
			if os.Geteuid() != 0 {
				t.Skip("buildah's storage needs root here")
			}
			storage := []string{"--root", filepath.Join(work, "root"), "--runroot", filepath.Join(work, "run"), "--storage-driver", "vfs"}
			policy := filepath.Join(work, "policy.json")
			if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
				t.Fatal(err)
			}
			buildah := func(args ...string) string {
				return run(t, filepath.Dir(from), program(t, "buildah"), append(storage, args...)...)
			}
			id := buildah("pull", "--signature-policy", policy, "oci:layout:v1") // a name of its own of the path
			buildah("push", "--signature-policy", policy, id, to)
		},
	}
	for name, save := range write {
		t.Run(name, func(t *testing.T) {
			for kind, suffix := range map[string]string{"docker-archive": ":example.org/app:v1", "oci-archive": ":v1"} {
				file := filepath.Join(work, name+"-"+kind+".tar")
				save(t, kind+":"+file+suffix)
				packed := file + ".gz"
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(packed, gz(t, data), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, file := range []string{file, packed} {
					l, err := layout.Create(t.TempDir())
					if err != nil {
						t.Fatal(err)
					}
					if kind == "docker-archive" {
						images, err := archive.Load(t.Context(), file, l, t.TempDir())
						if err != nil || len(images) != 1 || len(images[0].Tags) != 1 || images[0].Tags[0].String() != "example.org/app:v1" {
							t.Fatalf("%s: %+v, %v", file, images, err)
						}
						checkImage(t, t.Context(), l, images[0].Manifest)
						continue
					}
					if err := archive.LoadOCI(t.Context(), file, l, t.TempDir()); err != nil {
						t.Fatal(err)
					}
					d, err := l.Resolve(t.Context(), oci.Reference{Tag: "v1"})
					if err != nil {
						t.Fatal(err)
					}
					checkImage(t, t.Context(), l, d)
					l.Close()
				}
			}
		})
	}
}
