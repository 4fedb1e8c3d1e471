package run

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layout"
)

// makeLayout makes an image with one file and returns its directory and digest.
func makeLayout(t *testing.T, content string) (dir string, digest oci.Digest) {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "file"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "layout")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d, err := build.Build(t.Context(), l, build.Options{
		Layers: []build.Tree{{Dir: root}}, Compression: oci.Uncompressed,
		Config: oci.ImageConfig{Config: oci.ContainerConfig{Cmd: []string{"/file"}, Env: []string{"A=1"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return dir, d.Digest
}

func TestImageKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct{ name, kind, rest string }{
		{"oci:dir:v1", "oci", "dir:v1"},
		{"oci:/a/b", "oci", "/a/b"},
		{"oci-archive:a.tar:v1", "oci-archive", "a.tar:v1"},
		{"docker-archive:a.tar:app:v1", "docker-archive", "a.tar:app:v1"},
		{"docker://registry.example/a:v1", "docker", "registry.example/a:v1"},
		{"registry.example:5000/a", "docker", "registry.example:5000/a"},
		{"debian", "docker", "debian"},
		{dir, "oci", dir},
		{dir + ":v1", "oci", dir + ":v1"},
		{"./absent.tar", "docker-archive", "./absent.tar"},
		{"../absent.tar", "docker-archive", "../absent.tar"},
	} {
		kind, rest := imageKind(test.name)
		if kind != test.kind || rest != test.rest {
			t.Errorf("%s: expected %s %s, got %s %s", test.name, test.kind, test.rest, kind, rest)
		}
	}
}

func TestCutTag(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, dir, tag string }{
		{"dir", "dir", ""}, {"dir:v1", "dir", "v1"}, {"/a:b/dir", "/a:b/dir", ""}, {"/a:b/dir:v1", "/a:b/dir", "v1"}, {"dir:", "dir", ""},
	} {
		if dir, tag := cutTag(test.in); dir != test.dir || tag != test.tag {
			t.Errorf("%s: expected %s %s, got %s %s", test.in, test.dir, test.tag, dir, tag)
		}
	}
}

func TestGuestRegistry(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"localhost:5000": HostName + ":5000", "127.0.0.1:5000": HostName + ":5000", "127.9.9.9": HostName, "[::1]:5000": HostName + ":5000",
		"localhost": HostName, "registry.example:5000": "", "192.0.2.1:5000": "", "localhost.example": "", HostName + ":1": "",
	} {
		if got, ok := guestRegistry(in); got != want || ok != (want != "") {
			t.Errorf("%s: expected %q, got %q", in, want, got)
		}
	}
}

func TestOpenImageLayout(t *testing.T) {
	t.Parallel()
	dir, digest := makeLayout(t, "content")
	image, err := OpenImage(t.Context(), "oci:"+dir+":v1", ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = image.Close() }()
	host, port, _ := strings.Cut(image.Ref.Registry, ":")
	if host != HostName || image.Ref.Digest != digest || image.Ref.Repository != localRepository {
		t.Errorf("expected the image pinned at %s, got %s", HostName, image.Ref)
	}
	if diff := cmp.Diff([]string{image.Ref.Registry}, image.PlainHTTP); diff != "" {
		t.Errorf("plain HTTP (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/file"}, image.Config.Config.Cmd); diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	url := "http://127.0.0.1:" + port + "/v2/" + localRepository + "/manifests/" + digest.String()
	if status := get(t, url); status != http.StatusOK {
		t.Errorf("the guest's pull: expected 200, got %d", status)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	if status := get(t, url); status == http.StatusOK {
		t.Error("the image is served after Close")
	}
}

// get returns the status, or 0 if nobody answers.
func get(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// writeArchive writes images without layers as docker save does.
func writeArchive(t *testing.T, tags ...[]string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, content []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	var layer bytes.Buffer
	if err := tar.NewWriter(&layer).Close(); err != nil {
		t.Fatal(err)
	}
	add("layer.tar", layer.Bytes())
	type entry struct {
		Config           string
		RepoTags, Layers []string
	}
	var index []entry
	for n, list := range tags {
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/image" + string(rune('0'+n))}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{oci.FromBytes(layer.Bytes()).String()}},
		})
		if err != nil {
			t.Fatal(err)
		}
		name := string(rune('a'+n)) + ".json"
		add(name, config)
		index = append(index, entry{name, list, []string{"layer.tar"}})
	}
	data, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	add("manifest.json", data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestOpenImageArchive(t *testing.T) {
	t.Parallel()
	one, two := writeArchive(t, []string{"app:v1"}), writeArchive(t, []string{"app:v1"}, []string{"app:v2", "other:latest"})
	for _, test := range []struct{ name, cmd, err string }{
		{one, "/image0", ""}, {one + ":v1", "/image0", ""}, {two + ":v2", "/image1", ""}, {two + ":other:latest", "/image1", ""},
		{two, "", "docker-archive:FILE:REFERENCE"}, {one + ":v9", "", "docker.io/library/app:v1"}, {one + ".absent", "", "no such file"},
	} {
		image, err := OpenImage(t.Context(), "docker-archive:"+test.name, ImageOptions{Spool: t.TempDir()})
		if err != nil {
			if test.err == "" || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: expected error %q, got %v", test.name, test.err, err)
			}
			continue
		}
		if test.err != "" || image.Config.Config.Cmd[0] != test.cmd {
			t.Errorf("%s: expected %s%s, got %s", test.name, test.cmd, test.err, image.Config.Config.Cmd)
		}
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenImageOCIArchive(t *testing.T) {
	t.Parallel()
	dir, want := makeLayout(t, "content")
	file := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{file: "", file + ":v1": "", file + ":v9": `tag "v9"`, file + ".absent": "no such file"} {
		image, err := OpenImage(t.Context(), "oci-archive:"+name, ImageOptions{Spool: t.TempDir()})
		if err != nil {
			if says == "" || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: expected error %q, got %v", name, says, err)
			}
			continue
		}
		if says != "" || image.Ref.Digest != want {
			t.Errorf("%s: expected %s%s, got %s", name, want, says, image.Ref)
		}
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := OpenImage(t.Context(), "docker-archive:"+file, ImageOptions{Spool: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "it is an archive of an OCI image layout") {
		t.Errorf("as a Docker archive: %v", err)
	}
}

func TestOpenSourceErrors(t *testing.T) {
	dir, _ := makeLayout(t, "content")
	t.Chdir(filepath.Dir(dir))
	if err := os.WriteFile("Upper", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("auth.json", []byte(`{"auths":5}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, says, hint string
		options          ImageOptions
	}{
		{name: "Upper", says: `image "Upper"`, hint: "docker-archive:Upper or oci:Upper"},
		{name: "UPPER.example/A", says: `image "UPPER.example/A"`},
		{name: "oci:absent", says: "image oci:absent"},
		{name: "registry.example/a", says: "--authfile: ", options: ImageOptions{AuthFile: "absent"}},
		{name: "registry.example/a", says: "--authfile auth.json: ", options: ImageOptions{AuthFile: "auth.json"}},
	} {
		src, err := OpenSource(t.Context(), test.name, test.options)
		if err == nil {
			_ = src.Close()
			t.Errorf("%s: expected an error", test.name)
			continue
		}
		if !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: expected %q, got %v", test.name, test.says, err)
		}
		if hints := strings.Join(hint.Of(err), "; "); !strings.Contains(hints, test.hint) {
			t.Errorf("%s: expected the hint %q, got %q", test.name, test.hint, hints)
		}
	}
	if _, err := OpenImage(context.Background(), "oci:layout:v9", ImageOptions{}); err == nil || !strings.Contains(err.Error(), "v9") {
		t.Errorf("expected an error that names v9, got %v", err)
	}
}

func TestLayerKeys(t *testing.T) {
	t.Parallel()
	layer := func(mediaType, keys string) oci.Descriptor {
		return oci.Descriptor{MediaType: mediaType, Annotations: map[string]string{crypt.AnnotationKeys: keys}}
	}
	plain := layer("application/vnd.oci.image.layer.v1.tar", "")
	for _, bad := range []oci.Descriptor{
		layer("application/vnd.oci.image.layer.v1.tar+encrypted", "%%%"),
		layer("application/vnd.oci.image.layer.v1.tar+encrypted", ""),
		layer("application/vnd.oci.image.layer.v1.tar+encrypted", "e30="),
		layer("text/plain", ""),
	} {
		if keys, err := layerKeys(&oci.Manifest{Layers: []oci.Descriptor{plain, bad}}); err == nil || !strings.Contains(err.Error(), "layer 1: ") {
			t.Errorf("%+v: expected an error that names layer 1, got %v %v", bad, keys, err)
		}
	}
	if keys, err := layerKeys(&oci.Manifest{Layers: []oci.Descriptor{plain}}); keys != nil || err != nil {
		t.Errorf("a plain image: expected no key, got %v %v", keys, err)
	}
}
