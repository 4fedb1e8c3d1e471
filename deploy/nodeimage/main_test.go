package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
)

func inputs(t *testing.T) (programs, guest string) {
	t.Helper()
	programs, guest = t.TempDir(), t.TempDir()
	file := func(dir, name, text string) manifest.File {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		return manifest.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(text))}
	}
	file(programs, "coffer", "coffer")
	file(programs, "containerd-shim-coffer-v2", "shim")
	m := manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64", Cmdline: "quiet", Inputs: strings.Repeat("0", 64), Kernel: file(guest, "vmlinuz", "kernel"),
		Initrd: manifest.Initrd{File: file(guest, "initrd.img", "initrd"), Compression: "none"}, Agent: manifest.Agent{SHA256: strings.Repeat("0", 64)},
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file(guest, manifest.FileName, string(text))
	return programs, guest
}

// TestImage: the image has what the programs look for by default, and the same
// inputs make the same bytes.
func TestImage(t *testing.T) {
	t.Parallel()
	programs, guest := inputs(t)
	var digests []oci.Digest
	for range 2 {
		out := filepath.Join(t.TempDir(), "layout")
		if err := run(t.Context(), []string{"--programs", programs, "--guest-image", guest, "--out", out, "--tag", "v1"}); err != nil {
			t.Fatal(err)
		}
		l, err := layout.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d, m, err := build.Inspect(t.Context(), l, oci.Reference{Registry: "localhost", Repository: "layout", Tag: "v1"}, oci.GuestPlatform())
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.Digest)
		names := content(t, l, m.Layers[0])
		for name, mode := range map[string]int64{
			"bin/coffer": 0o755, "bin/containerd-shim-coffer-v2": 0o755, "build/guest/manifest.json": 0o644, "build/guest/vmlinuz": 0o644, "build/guest/initrd.img": 0o644,
		} {
			if names[name] != mode {
				t.Errorf("%s: mode %o, want %o", name, names[name], mode)
			}
		}
		if err := run(t.Context(), []string{"--programs", programs, "--guest-image", guest, "--out", out}); err == nil {
			t.Error("written over another image")
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("%s and %s", digests[0], digests[1])
	}
	if err := os.WriteFile(filepath.Join(guest, "vmlinuz"), []byte("other!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"--programs", programs, "--guest-image", guest, "--out", filepath.Join(t.TempDir(), "x")}); err == nil {
		t.Error("a guest image that differs from its manifest was taken")
	}
}

// content are the modes of a layer's files.
func content(t *testing.T, l *layout.Layout, d oci.Descriptor) map[string]int64 {
	t.Helper()
	blob, err := l.Fetch(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	z, err := gzip.NewReader(blob)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]int64)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(h.Name, "/")] = h.Mode
	}
}
