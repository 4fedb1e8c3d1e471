package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/archive"
	"github.com/coffer-project/coffer/oci/layout"
)

type member struct {
	name, body string
	kind       byte
}

func write(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.body)), Typeflag: tar.TypeReg}
		if m.kind != 0 {
			h.Typeflag, h.Linkname, h.Size = m.kind, m.body, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if m.kind == 0 {
			_, _ = w.Write([]byte(m.body))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func load(t testing.TB, data []byte) ([]archive.Image, *layout.Layout, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	images, err := archive.Load(t.Context(), file, l, t.TempDir())
	return images, l, err
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var emptyTar = string(make([]byte, 1024))

func config(diffIDs ...oci.Digest) string {
	var quoted []string
	for _, d := range diffIDs {
		quoted = append(quoted, fmt.Sprintf("%q", d))
	}
	return fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[%s]}}`, runtime.GOARCH, strings.Join(quoted, ","))
}

func TestLoad(t *testing.T) {
	t.Parallel()
	id := oci.FromBytes([]byte(emptyTar))
	manifest := func(layers string) member {
		return member{name: "manifest.json", body: `[{"Config":"c.json","RepoTags":["debian:12"],"Layers":[` + layers + `]}]`}
	}
	cfg := member{name: "c.json", body: config(id)}
	tests := map[string]struct {
		data []byte
		want string // media type of the layer
	}{
		"plain":            {write(t, cfg, member{name: "a/layer.tar", body: emptyTar}, manifest(`"a/layer.tar"`)), oci.MediaTypeLayer},
		"dot names":        {write(t, cfg, member{name: "./a/layer.tar", body: emptyTar}, manifest(`"a/layer.tar"`)), oci.MediaTypeLayer},
		"link":             {write(t, cfg, member{name: "a/layer.tar", body: emptyTar}, member{"b/layer.tar", "../a/layer.tar", tar.TypeSymlink}, manifest(`"b/layer.tar"`)), oci.MediaTypeLayer},
		"hard link":        {write(t, cfg, member{name: "a/layer.tar", body: emptyTar}, member{"b/layer.tar", "a/layer.tar", tar.TypeLink}, manifest(`"b/layer.tar"`)), oci.MediaTypeLayer},
		"compressed":       {gz(t, write(t, cfg, member{name: "a/layer.tar", body: emptyTar}, manifest(`"a/layer.tar"`))), oci.MediaTypeLayer},
		"compressed layer": {write(t, cfg, member{name: "blobs/sha256/x", body: string(gz(t, []byte(emptyTar)))}, manifest(`"blobs/sha256/x"`)), oci.MediaTypeLayerGzip},
	}
	for name, tt := range tests {
		images, l, err := load(t, tt.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(images) != 1 || images[0].Tags[0].String() != "docker.io/library/debian:12" {
			t.Errorf("%s: %+v", name, images)
			continue
		}
		data, err := oci.ReadAll(t.Context(), l, images[0].Manifest, oci.MaxDocument)
		if err != nil {
			t.Fatal(err)
		}
		m, err := oci.ParseManifest(data, oci.MediaTypeManifest)
		if err != nil || m.CheckImage() != nil || m.Layers[0].MediaType != tt.want {
			t.Errorf("%s: %+v, %v", name, m, err)
			continue
		}
		if _, err := oci.ReadAll(t.Context(), l, m.Layers[0], 1<<20); err != nil {
			t.Errorf("%s: layer: %v", name, err)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	t.Parallel()
	id := oci.FromBytes([]byte(emptyTar))
	layer := member{name: "l", body: emptyTar}
	m := func(body string) member { return member{name: "manifest.json", body: body} }
	good := `[{"Config":"c.json","Layers":["l"]}]`
	cfg := member{name: "c.json", body: config(id)}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"no tar":           {[]byte(strings.Repeat("x", 1024)), "invalid tar header"},
		"empty":            {nil, "manifest.json"},
		"no manifest":      {write(t, layer), `member "manifest.json": missing`},
		"broken manifest":  {write(t, m("x")), "manifest.json: JSON"},
		"no images":        {write(t, m("[]")), "expected 1 to 256 images, got 0"},
		"config missing":   {write(t, m(good), layer), `[0]: field Config: member "c.json": missing`},
		"config broken":    {write(t, m(good), layer, member{name: "c.json", body: "{}"}), "rootfs: missing"},
		"config escapes":   {write(t, m(`[{"Config":"../../../../etc/passwd","Layers":["l"]}]`), layer, cfg), "missing"},
		"layer missing":    {write(t, m(good), cfg), `field Layers[0]: member "l": missing`},
		"layer is another": {write(t, m(good), cfg, member{name: "l", body: strings.Repeat("y", 1024)}), "not the layer that the configuration names: digest differs"},
		"too few layers":   {write(t, m(`[{"Config":"c.json","Layers":[]}]`), cfg), "Layers: expected 1"},
		"link loop":        {write(t, m(good), cfg, member{"l", "k", tar.TypeSymlink}, member{"k", "l", tar.TypeSymlink}), "links in a row"},
		"link out":         {write(t, m(good), cfg, member{"l", "../../../etc/passwd", tar.TypeSymlink}), "missing"},
		"bad tag":          {write(t, m(`[{"Config":"c.json","RepoTags":["A B"],"Layers":["l"]}]`), cfg, layer), "RepoTags"},
		"cut off gzip":     {gz(t, write(t, layer))[:20], "unexpected EOF"},
	} {
		_, _, err := load(t, tt.data)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "image.tar") {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	id := oci.FromBytes([]byte(emptyTar))
	f.Add(write(f, member{name: "c.json", body: config(id)}, member{name: "l", body: emptyTar}, member{name: "manifest.json", body: `[{"Config":"c.json","Layers":["l"]}]`}))
	f.Fuzz(func(t *testing.T, data []byte) {
		images, _, err := load(t, data)
		if (len(images) == 0) == (err == nil) {
			t.Errorf("%v, %v", images, err)
		}
	})
}
