package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// smallImage writes an image that nothing can boot.
func smallImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) manifest.File {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(name))
		return manifest.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(name))}
	}
	zero, firmware := strings.Repeat("0", 64), file("firmware.bin")
	text, err := (&manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64", Kernel: file("vmlinuz"), Firmware: &firmware,
		Initrd: manifest.Initrd{File: file("initrd.img"), Compression: "none"}, Cmdline: "quiet", Agent: manifest.Agent{SHA256: zero}, Inputs: zero,
	}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.FileName), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestImageFiles: a machine is given the files that were read, and what becomes
// of them is noticed.
func TestImageFiles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(path string) error
		want   string // in the error
		read   string // through the descriptor
	}{
		{"nothing", func(string) error { return nil }, "", "initrd.img"},
		{"another takes its name", func(path string) error {
			if err := os.WriteFile(path+".new", []byte("other"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, "", "initrd.img"},
		{"removed", os.Remove, "", "initrd.img"},
		{"written to", func(path string) error { return os.WriteFile(path, []byte("other file"), 0o600) }, "initrd.img was written to", "other file"},
		{"cut short", func(path string) error { return os.Truncate(path, 3) }, "initrd.img was written to", "ini"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := smallImage(t)
			image, err := LoadImage(dir, Soft, "")
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if err := tc.change(filepath.Join(dir, "initrd.img")); err != nil {
				t.Fatal(err)
			}
			if err := image.unchanged(); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, expected %q", err, tc.want)
			}
			// As the emulator does, see vmm's plan.path.
			got, err := io.ReadAll(io.NewSectionReader(image.initrd.file, 0, 100))
			if err != nil || string(got) != tc.read || !bytes.Equal(image.Initrd, []byte("initrd.img")) {
				t.Errorf("read %q, %v; measured %q", got, err, image.Initrd)
			}
			if err := image.Close(); err != nil {
				t.Error(err)
			}
			if err := image.Close(); err != nil || len(image.files()) != 0 {
				t.Errorf("closed again: %v", err)
			}
		})
	}
}

func TestImageFilesAreRegular(t *testing.T) {
	t.Parallel()
	dir := smallImage(t)
	if _, err := LoadImage(dir, Soft, t.TempDir()); err == nil || !strings.Contains(err.Error(), "expected a regular file") {
		t.Errorf("a directory as firmware: %v", err)
	}
}
