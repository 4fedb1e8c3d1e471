package run

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
)

// layerStore has layers by digest.
type layerStore map[oci.Digest][]byte

func (s layerStore) Resolve(context.Context, oci.Reference) (oci.Descriptor, error) {
	return oci.Descriptor{}, oci.ErrNotFound
}

func (s layerStore) Fetch(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	data, ok := s[d.Digest]
	if !ok {
		return nil, oci.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// entry of a layer: a name and contents, "dir" for a directory, "->" for a link.
type entry struct{ name, content string }

func (s layerStore) layer(t *testing.T, mediaType string, entries ...entry) oci.Descriptor {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		switch {
		case e.content == "dir":
			h.Typeflag, h.Size = tar.TypeDir, 0
		case strings.HasPrefix(e.content, "->"):
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.content[2:], 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	switch {
	case strings.Contains(mediaType, "gzip"):
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		if _, err := g.Write(data); err != nil || g.Close() != nil {
			t.Fatal(err)
		}
		data = z.Bytes()
	case strings.Contains(mediaType, "zstd"):
		e, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		data = e.EncodeAll(data, nil)
	}
	d := oci.Describe(mediaType, data)
	s[d.Digest] = data
	return d
}

// TestReadAccounts: the topmost layer that says something about a file decides.
func TestReadAccounts(t *testing.T) {
	t.Parallel()
	const plain, gz, zst = oci.MediaTypeLayer, oci.MediaTypeLayerGzip, oci.MediaTypeLayerZstd
	for name, x := range map[string]struct {
		layers        func(s layerStore) []oci.Descriptor
		passwd, group string
		want          string
	}{
		"one layer": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, gz, entry{"etc/", "dir"}, entry{"etc/passwd", "a"}, entry{"./etc/group", "b"})}
		}, "a", "b", ""},
		"above": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, gz, entry{"etc/passwd", "old"}, entry{"etc/group", "b"}), s.layer(t, zst, entry{"/etc/passwd", "a"})}
		}, "a", "b", ""},
		"removed": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, plain, entry{"etc/passwd", "old"}, entry{"etc/group", "b"}), s.layer(t, plain, entry{"etc/.wh.passwd", ""})}
		}, "", "b", ""},
		"opaque": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, plain, entry{"etc/passwd", "old"}, entry{"etc/group", "old"}), s.layer(t, plain, entry{"etc/.wh..wh..opq", ""}, entry{"etc/group", "b"})}
		}, "", "b", ""},
		"none": {func(s layerStore) []oci.Descriptor { return []oci.Descriptor{s.layer(t, plain, entry{"x", "y"})} }, "", "", ""},
		"a link": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, plain, entry{"etc/passwd", "->/x"})}
		}, "", "", "layer 0: /etc/passwd is no regular file"},
		"etc is a link": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, plain, entry{"etc/passwd", "a"}, entry{"etc/group", "b"}), s.layer(t, plain, entry{"etc", "->/x"})}
		}, "", "", "layer 1: /etc is no directory"},
		"too large": {func(s layerStore) []oci.Descriptor {
			return []oci.Descriptor{s.layer(t, gz, entry{"etc/passwd", strings.Repeat("a", maxAccountFile+1)})}
		}, "", "", "/etc/passwd is larger than"},
		"encrypted": {func(s layerStore) []oci.Descriptor {
			d := s.layer(t, gz, entry{"etc/passwd", "a"})
			d.MediaType += "+encrypted"
			return []oci.Descriptor{d}
		}, "", "", "layer 0: encrypted"},
		"altered": {func(s layerStore) []oci.Descriptor {
			d := s.layer(t, plain, entry{"etc/passwd", "a"}, entry{"etc/group", "b"})
			s[d.Digest] = bytes.Replace(s[d.Digest], []byte("a\x00"), []byte("c\x00"), 1)
			return []oci.Descriptor{d}
		}, "", "", "digest"},
		"cut": {func(s layerStore) []oci.Descriptor {
			d := s.layer(t, gz, entry{"etc/passwd", "a"}, entry{"etc/group", "b"})
			s[d.Digest] = s[d.Digest][:len(s[d.Digest])-5]
			return []oci.Descriptor{d}
		}, "", "", "layer 0: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := layerStore{}
			passwd, group, err := readAccounts(t.Context(), s, &oci.Manifest{Layers: x.layers(s)})
			if x.want != "" {
				if err == nil || !strings.Contains(err.Error(), x.want) {
					t.Errorf("expected %q, got %v", x.want, err)
				}
				return
			}
			if err != nil || string(passwd) != x.passwd || string(group) != x.group {
				t.Errorf("got %q, %q, %v", passwd, group, err)
			}
		})
	}
}
