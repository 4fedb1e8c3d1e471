package layout_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

func push(t testing.TB, l *layout.Layout, mediaType, content string) oci.Descriptor {
	t.Helper()
	d, err := oci.PushBytes(t.Context(), l, mediaType, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLayout(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := l.Resolve(ctx, oci.Reference{}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("empty: %v", err)
	}
	one, two := push(t, l, oci.MediaTypeManifest, `{"schemaVersion":2}`), push(t, l, oci.MediaTypeIndex, `{"schemaVersion":2,"manifests":[]}`)
	if err := l.Tag(ctx, one, "one"); err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(ctx, two, "sha256-00.sig"); err != nil {
		t.Fatal(err)
	}
	// The only image, signatures aside.
	if d, err := l.Resolve(ctx, oci.Reference{}); err != nil || d.Digest != one.Digest {
		t.Errorf("only: %v, %v", d, err)
	}
	if err := l.Tag(ctx, two, "two"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resolve(ctx, oci.Reference{}); err == nil || !strings.Contains(err.Error(), "it has 2 images") {
		t.Errorf("two: %v", err)
	}
	// A tag moves.
	if err := l.Tag(ctx, two, "one"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = layout.Create(dir); err != nil { // opens what is there
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if d, err := l.Resolve(ctx, oci.Reference{Tag: "one"}); err != nil || d.Digest != two.Digest || d.MediaType != oci.MediaTypeIndex || d.Annotations != nil {
		t.Errorf("one: %+v, %v", d, err)
	}
	// By digest, also what no tag names.
	if d, err := l.Resolve(ctx, oci.Reference{Digest: one.Digest}); err != nil || d.MediaType != oci.MediaTypeManifest || d.Size != one.Size {
		t.Errorf("by digest: %+v, %v", d, err)
	}
	if data, err := oci.ReadAll(ctx, l, one, 100); err != nil || string(data) != `{"schemaVersion":2}` {
		t.Errorf("%q, %v", data, err)
	}
	missing := oci.Describe(oci.MediaTypeManifest, []byte("missing"))
	if _, err := l.Resolve(ctx, oci.Reference{Digest: missing.Digest}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := l.Fetch(ctx, missing); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := l.Tag(ctx, missing, "x"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("tag of what is missing: %v", err)
	}
	if _, err := l.Fetch(ctx, oci.Descriptor{Digest: "sha256:../../../etc/passwd"}); err == nil {
		t.Error("a path as a digest was accepted")
	}
}

// A blob that is not what it should be does not appear.
func TestPushMismatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d := oci.Describe("x/y", []byte("right"))
	for _, content := range []string{"wrong", "r", "right and more"} {
		if err := l.Push(t.Context(), d, bytes.NewReader([]byte(content))); err == nil {
			t.Errorf("%q was accepted", content)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no layout":    {nil, "no OCI image layout"},
		"version":      {map[string]string{"oci-layout": `{"imageLayoutVersion":"2.0.0"}`}, `imageLayoutVersion: expected "1.0.0", got "2.0.0"`},
		"no index":     {map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}, "index.json"},
		"broken index": {map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": "x"}, "index.json: image index: JSON"},
	} {
		dir := t.TempDir()
		for file, content := range tt.files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := layout.Open(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
	if _, err := layout.Open("/does/not/exist"); err == nil {
		t.Error("a directory that does not exist")
	}
}

// Links in a layout do not lead out of it.
func TestLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := layout.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := oci.Describe("x/y", []byte("secret"))
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "blobs", "sha256", d.Digest.Hex())); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Fetch(t.Context(), d); err == nil {
		t.Error("a link out of the layout was followed")
	}
}
