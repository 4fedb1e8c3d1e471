package manifest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func sample() *manifest.Manifest {
	return &manifest.Manifest{
		Version: 1, Architecture: "amd64",
		Kernel: manifest.File{Name: "vmlinuz", SHA256: digest("kernel"), Size: 6, Package: "linux-image", PackageVersion: "6.12-1"},
		Initrd: manifest.Initrd{
			File: manifest.File{Name: "initrd.img", SHA256: digest("initrd"), Size: 6}, Compression: "none",
			Files: []manifest.Entry{{Path: "/init", Mode: "0100755", Size: 5, SHA256: digest("agent")}, {Path: "/lib", Mode: "0120777", Target: "usr/lib"}},
		},
		Firmware: &manifest.File{Name: "firmware.bin", SHA256: digest("firmware"), Size: 8, Package: "seabios", PackageVersion: "1"},
		Cmdline:  "console=ttyS0 panic=-1",
		Agent:    manifest.Agent{Version: "v1", SHA256: digest("agent"), Size: 5},
		Packages: []manifest.Package{{Name: "crun", Version: "1", Architecture: "amd64", SHA256: digest("crun")}},
		Locked:   true, Inputs: digest("inputs"),
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	data, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown name", `"locked"`, `"Locked"`, "Locked"},
		{"repeated name", `"locked": true`, `"locked": true, "locked": false`, "locked"},
		{"trailing data", "\n}\n", "\n}{}", "JSON"},
		{"another version", `"version": 1`, `"version": 2`, "version: expected 1, got 2"},
		{"architecture", "amd64", "riscv64", "architecture"},
		{"path as file name", `"vmlinuz"`, `"../vmlinuz"`, "kernel.file"},
		{"absolute file name", `"initrd.img"`, `"/initrd.img"`, "initrd.file"},
		{"dot dot", `"firmware.bin"`, `".."`, "firmware.file"},
		{"same file twice", `"firmware.bin"`, `"vmlinuz"`, "a name used once"},
		{"the manifest as a file", `"firmware.bin"`, `"manifest.json"`, "a name used once"},
		{"short digest", digest("kernel"), "abcd", "kernel.sha256"},
		{"upper-case digest", digest("kernel"), strings.ToUpper(digest("kernel")), "kernel.sha256"},
		{"size 0", `"size": 6`, `"size": 0`, "kernel.size"},
		{"huge size", `"size": 6`, `"size": 1099511627776`, "kernel.size"},
		{"compression", `"none"`, `"xz"`, "initrd.compression"},
		{"newline in cmdline", "console=ttyS0 ", `console=ttyS0\n`, "cmdline"},
		{"no cmdline", "console=ttyS0 panic=-1", "", "cmdline"},
		{"agent digest", `"agent": {`, `"agent": {"sha256": "x",`, "sha256"},
		{"inputs", digest("inputs"), "", "inputs"},
		{"relative path", `"/init"`, `"init"`, "initrd.files[0].path"},
		{"package", `"crun"`, `""`, "packages[0]"},
	} {
		data := bytes.Replace(good, []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(data, good) {
			t.Errorf("%s: the case changes nothing", c.name)
		}
		if _, err := manifest.Parse(data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error with %q, got %v", c.name, c.want, err)
		}
	}
}

func TestFilesAreCompared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := sample()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := manifest.Load(dir); err == nil || !strings.Contains(err.Error(), "coffer guest build") {
		t.Errorf("no image: got %v", err)
	}
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(manifest.FileName, string(data))
	write("vmlinuz", "kernel")
	write("initrd.img", "initrd")
	write("firmware.bin", "firmware")
	if m, err = manifest.Load(dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(dir); err != nil {
		t.Error(err)
	}
	if got, err := m.Kernel.Read(dir); err != nil || string(got) != "kernel" {
		t.Errorf("got %q, %v", got, err)
	}

	write("vmlinuz", "kernel and more")
	write("initrd.img", "inItrd")
	write("firmware.bin", "short")
	err = m.Check(dir)
	for _, want := range []string{"vmlinuz: the manifest says 6 bytes, the file has more", "initrd.img: the manifest says sha256", "firmware.bin: the manifest says 8 bytes, the file has 5"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
	for _, f := range m.Files() {
		if _, err := f.Read(dir); err == nil {
			t.Errorf("%s: differs and was read", f.Name)
		}
	}
	write(manifest.FileName, string(data)+"x")
	if _, err := manifest.Load(dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("broken manifest: got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	good, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"version":1,"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := manifest.Parse(data)
		if (m == nil) == (err == nil) {
			t.Fatalf("got %v and %v", m, err)
		}
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := manifest.Parse(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, back); diff != "" {
			t.Error(diff)
		}
	})
}
