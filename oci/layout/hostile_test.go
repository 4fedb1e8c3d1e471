package layout_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

const version = `{"imageLayoutVersion":"1.0.0"}`

// hostile makes a layout out of files; names end with * for a symbolic link and
// with | for a pipe.
func hostile(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, strings.TrimRight(name, "*|"))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case strings.HasSuffix(name, "*"):
			err = os.Symlink(content, path)
		case strings.HasSuffix(name, "|"):
			err = syscall.Mkfifo(path, 0o600)
		default:
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func blobName(body string) string { return "blobs/sha256/" + oci.FromBytes([]byte(body)).Hex() }

func entry(body, tag string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":%q}}`,
		oci.MediaTypeManifest, oci.FromBytes([]byte(body)), len(body), tag)
}

func index(entries ...string) string {
	return `{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`
}

func TestHostileIndex(t *testing.T) {
	t.Parallel()
	var thousands []string
	for i := range 5000 {
		thousands = append(thousands, entry("a", fmt.Sprint("v", i)))
	}
	outside := hostile(t, map[string]string{"index.json": index()})
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"thousands":         {map[string]string{"index.json": index(thousands...)}, "manifests: 5000 entries, at most 1024 are allowed"},
		"tag twice":         {map[string]string{"index.json": index(entry("a", "v1"), entry("b", "v1"))}, `manifests[1]: the tag "v1" names`},
		"huge":              {map[string]string{"index.json": index() + strings.Repeat(" ", oci.MaxDocument)}, "index.json: longer than 4194304 bytes"},
		"deep":              {map[string]string{"index.json": strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000)}, "index.json: image index: JSON"},
		"name twice":        {map[string]string{"index.json": `{"schemaVersion":2,"manifests":[],"manifests":[]}`}, "index.json: image index: JSON"},
		"also a manifest":   {map[string]string{"index.json": `{"schemaVersion":2,"manifests":[],"layers":[]}`}, "must not also be a manifest"},
		"negative size":     {map[string]string{"index.json": strings.Replace(index(entry("a", "v1")), `"size":1`, `"size":-1`, 1)}, "size: expected 0 to"},
		"huge size":         {map[string]string{"index.json": strings.Replace(index(entry("a", "v1")), `"size":1`, `"size":9223372036854775807`, 1)}, "size: expected 0 to"},
		"size overflows":    {map[string]string{"index.json": strings.Replace(index(entry("a", "v1")), `"size":1`, `"size":92233720368547758070`, 1)}, "size"},
		"path as digest":    {map[string]string{"index.json": strings.Replace(index(entry("a", "v1")), "sha256:", "sha256:../", 1)}, "digest"},
		"linked out":        {map[string]string{"index.json*": outside + "/index.json"}, "escapes"},
		"a pipe":            {map[string]string{"index.json|": ""}, "index.json: expected a regular file"},
		"a directory":       {map[string]string{"index.json/x": ""}, "index.json: expected a regular file"},
		"a device":          {map[string]string{"index.json*": "/dev/zero"}, "escapes"},
		"version in a pipe": {map[string]string{"oci-layout|": ""}, "oci-layout: expected a regular file"},
		"huge version":      {map[string]string{"oci-layout": version + strings.Repeat(" ", 5000)}, "oci-layout: longer than 4096 bytes"},
		"version by case":   {map[string]string{"oci-layout": `{"ImageLayoutVersion":"1.0.0"}`}, `imageLayoutVersion: expected "1.0.0"`},
		"version twice":     {map[string]string{"oci-layout": `{"imageLayoutVersion":"2.0.0","imageLayoutVersion":"1.0.0"}`}, "oci-layout: JSON"},
		"version is a list": {map[string]string{"oci-layout": `[]`}, "oci-layout: JSON"},
	} {
		files := map[string]string{}
		if _, ok := tt.files["oci-layout|"]; !ok {
			files["oci-layout"] = version
		}
		for name, content := range tt.files {
			files[name] = content
		}
		l, err := layout.Open(hostile(t, files))
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %.300v", name, tt.want, err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestHostileBlobs(t *testing.T) {
	t.Parallel()
	outside := hostile(t, map[string]string{"secret": "a"})
	inside := func(files map[string]string) map[string]string {
		files["oci-layout"], files["index.json"] = version, index(entry("a", "v1"))
		return files
	}
	for name, tt := range map[string]struct {
		files map[string]string
		want  string // empty if the blob is right
	}{
		"right":               {inside(map[string]string{blobName("a"): "a"}), ""},
		"link inside":         {inside(map[string]string{"x": "a", blobName("a") + "*": "../../x"}), ""},
		"missing":             {inside(map[string]string{blobName("b"): "b"}), "not found"},
		"other content":       {inside(map[string]string{blobName("a"): "b"}), "digest differs"},
		"longer":              {inside(map[string]string{blobName("a"): "aa"}), "expected 1 bytes, got 2"},
		"shorter":             {inside(map[string]string{blobName("a"): ""}), "expected 1 bytes, got 0"},
		"link out":            {inside(map[string]string{blobName("a") + "*": outside + "/secret"}), "escapes"},
		"relative link out":   {inside(map[string]string{blobName("a") + "*": "../../../../../../../../.." + outside + "/secret"}), "escapes"},
		"link to itself":      {inside(map[string]string{blobName("a") + "*": oci.FromBytes([]byte("a")).Hex()}), "symbolic links"},
		"endless":             {inside(map[string]string{blobName("a") + "*": "/dev/zero"}), "escapes"},
		"a pipe":              {inside(map[string]string{blobName("a") + "|": ""}), "expected a regular file"},
		"a directory":         {inside(map[string]string{blobName("a") + "/x": "a"}), "expected a regular file"},
		"blobs lie outside":   {inside(map[string]string{"blobs*": outside}), "escapes"},
		"sha256 lies outside": {inside(map[string]string{"blobs/sha256*": outside}), "escapes"},
	} {
		l, err := layout.Open(hostile(t, tt.files))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer l.Close()
		d, err := l.Resolve(t.Context(), oci.Reference{Tag: "v1"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		data, err := oci.ReadAll(t.Context(), l, d, 100)
		if tt.want == "" && (err != nil || string(data) != "a") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %q, %v", name, tt.want, data, err)
		}
		// And when it is asked for by digest, without index.json, it is never
		// anything else.
		if rc, err := l.Fetch(t.Context(), oci.Descriptor{Digest: d.Digest, Size: 1}); err == nil {
			data, err := io.ReadAll(io.LimitReader(rc, 100))
			if err != nil || len(data) != 1 {
				t.Errorf("%s: by digest: %q, %v", name, data, err)
			}
			rc.Close()
		}
	}
}

// A manifest that index.json does not list is described by what it says.
func TestHostileManifest(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"mediaType":"` + oci.MediaTypeIndex + `","manifests":[]}`: oci.MediaTypeIndex,
		`{"manifests":[]}`:                  oci.MediaTypeIndex,
		`{"Manifests":[],"MediaType":""}`:   oci.MediaTypeManifest, // by exact names
		`{"layers":[]}`:                     oci.MediaTypeManifest,
		`{"mediaType":5}`:                   "",
		`{"mediaType":"a","mediaType":"b"}`: "",
		`[]`:                                "", ``: "", `{`: "",
		strings.Repeat(" ", oci.MaxDocument) + "{}": "",
	} {
		l, err := layout.Open(hostile(t, map[string]string{"oci-layout": version, "index.json": index(), blobName(body): body}))
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Resolve(t.Context(), oci.Reference{Digest: oci.FromBytes([]byte(body))})
		if d.MediaType != want || (err == nil) != (want != "") {
			t.Errorf("%.80s: want %q, got %q, %v", body, want, d.MediaType, err)
		}
		l.Close()
	}
	l, err := layout.Open(hostile(t, map[string]string{"oci-layout": version, "index.json": index()}))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Resolve(t.Context(), oci.Reference{Digest: "sha256:../../oci-layout"}); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a path as a digest: %v", err)
	}
	if err := l.Tag(t.Context(), oci.Descriptor{MediaType: oci.MediaTypeManifest, Digest: "sha256:../../oci-layout", Size: 1}, "x"); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a tag for a path: %v", err)
	}
}

// What has a blob's name but is none is replaced, without following a link.
func TestPushReplaces(t *testing.T) {
	t.Parallel()
	outside := hostile(t, map[string]string{"file": "keep"})
	for name, files := range map[string]map[string]string{
		"cut off": {blobName("blob"): "bl"},
		"link":    {blobName("blob") + "*": outside + "/file"},
		"pipe":    {blobName("blob") + "|": ""},
	} {
		files["oci-layout"], files["index.json"] = version, index()
		l, err := layout.Open(hostile(t, files))
		if err != nil {
			t.Fatal(err)
		}
		d := push(t, l, oci.MediaTypeLayer, "blob")
		if data, err := oci.ReadAll(t.Context(), l, d, 100); err != nil || string(data) != "blob" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		l.Close()
	}
	if data, err := os.ReadFile(outside + "/file"); err != nil || string(data) != "keep" {
		t.Errorf("what was linked: %q, %v", data, err)
	}
}

// Tag and List write no index.json that cannot be opened again.
func TestFull(t *testing.T) {
	t.Parallel()
	var entries []string
	for i := range oci.MaxIndexEntries {
		entries = append(entries, entry("a", fmt.Sprint("v", i)))
	}
	dir := hostile(t, map[string]string{"oci-layout": version, "index.json": index(entries...), blobName("a"): "a"})
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	d := oci.Describe(oci.MediaTypeManifest, []byte("a"))
	if err := l.Tag(t.Context(), d, "one-more"); err == nil || !strings.Contains(err.Error(), "at most 1024 are allowed") {
		t.Errorf("Tag: %v", err)
	}
	if err := l.List([]oci.Descriptor{d}); err == nil || !strings.Contains(err.Error(), "at most 1024 are allowed") {
		t.Errorf("List: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "index.json")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("index.json was changed: %v", err)
	}
	if err := l.Tag(t.Context(), d, "v7"); err != nil { // it moves
		t.Error(err)
	}
}
