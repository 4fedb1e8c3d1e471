package volume_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/volume"
)

func TestOpenPart(t *testing.T) {
	env.Need(t)
	dir := t.TempDir()
	m, err := volume.NewManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := func(part string) *volume.Directory {
		t.Helper()
		d, err := m.OpenPart("config", part)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	read := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	if _, err := m.OpenPart("config", "app.conf"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a volume without content: %v", err)
	}
	put := func(version string) {
		t.Helper()
		if err := m.Put(t.Context(), "config", archive(t, entry{name: "app.conf", content: version}, entry{name: "d/e/f", content: version}), newRule()); err != nil {
			t.Fatal(err)
		}
	}
	put("1")
	file, directory, nested := open("app.conf"), open("d"), open("d/e/f")
	put("2")
	put("3")
	// What is mounted stays as it was; what is opened now is new.
	read(file.Path(), "1")
	read(filepath.Join(directory.Path(), "e/f"), "1")
	read(nested.Path(), "1")
	read(open("app.conf").Path(), "3")
	if err := os.WriteFile(file.Path(), []byte("x"), 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a file was written: %v", err)
	}
	if err := os.Mkdir(filepath.Join(directory.Path(), "x"), 0o700); !errors.Is(err, unix.EROFS) {
		t.Errorf("a directory was written: %v", err)
	}
	for _, part := range []string{"nothing", "d/nothing", "app.conf/x"} {
		if d, err := m.OpenPart("config", part); err == nil {
			t.Errorf("%s was opened: %s", part, d.Path())
		}
	}
	for _, part := range []string{"", ".", "..data", "..3", "..3/app.conf", "../config/app.conf", "d/../app.conf", "/etc/passwd"} {
		if _, err := m.OpenPart("config", part); err == nil || !strings.Contains(err.Error(), "not the name of a file") {
			t.Errorf("%s: %v", part, err)
		}
	}
	// The version with the directory that is mounted is kept, the second is not.
	for version, kept := range map[string]bool{"..1": true, "..2": false, "..3": true} {
		if _, err := os.Stat(filepath.Join(dir, "config", version)); (err == nil) != kept {
			t.Errorf("version %s: %v", version, err)
		}
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(file.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the place of a file is left: %v", err)
	}
}

// TestOpenPartFollowsNoPlantedLink: somebody got a link into the volume, or put
// another in the place of the volume's own.
func TestOpenPartFollowsNoPlantedLink(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(root, outside string) error{
		"file": func(root, outside string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..1/d/f")), os.Symlink(filepath.Join(outside, "f"), filepath.Join(root, "..1/d/f")))
		},
		"relative file": func(root, _ string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..1/d/f")), os.Symlink("../other", filepath.Join(root, "..1/d/f")))
		},
		"directory": func(root, outside string) error {
			return errors.Join(os.RemoveAll(filepath.Join(root, "..1/d")), os.Symlink(outside, filepath.Join(root, "..1/d")))
		},
		"version": func(root, outside string) error {
			return errors.Join(os.RemoveAll(filepath.Join(root, "..1")), os.Mkdir(filepath.Join(outside, "d"), 0o700),
				os.WriteFile(filepath.Join(outside, "d/f"), nil, 0o600), os.Symlink(outside, filepath.Join(root, "..1")))
		},
		"link out": func(root, outside string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..data")), os.Symlink(outside, filepath.Join(root, "..data")))
		},
		"link up": func(root, _ string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..data")), os.Symlink("../..", filepath.Join(root, "..data")))
		},
		"link to a name": func(root, _ string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..data")), os.Symlink("evil", filepath.Join(root, "..data")))
		},
		"pipe": func(root, _ string) error {
			return errors.Join(os.Remove(filepath.Join(root, "..1/d/f")), unix.Mkfifo(filepath.Join(root, "..1/d/f"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, outside := t.TempDir(), t.TempDir()
			m, err := volume.NewManager(dir)
			if err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(dir, "config")
			if err := m.Put(t.Context(), "config", archive(t, entry{name: "d/f", content: "1"}, entry{name: "other", content: "2"}), newRule()); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(filepath.Join(outside, "f"), []byte("evil"), 0o600), plant(root, outside)); err != nil {
				t.Fatal(err)
			}
			if d, err := m.OpenPart("config", "d/f"); err == nil || errors.Is(err, unix.EPERM) {
				t.Errorf("expected a refusal before anything is mounted, got %v, %v", d, err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, ".mounts")); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
