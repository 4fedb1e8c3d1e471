package directory

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/secret"
)

// What a crash or a stranger leaves in the directory is never read.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, key, "one")
	at := func(name string) string { return filepath.Join(dir, keyDir, name) }
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(temp+"0123", "half wri")
	for _, foreign := range []string{"README", "2.bak", "02", "+2", "-2", "2.deleted.bak", "99999999999999999999", "0", "2~"} {
		write(foreign, "foreign")
	}
	if err := os.Mkdir(at("5"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"repo/key/two/7/readme", "ü/key/one/1", "repo/.git/x/1", "repo/file"} {
		write("../../../"+name, "foreign")
	}
	if got, v, err := b.Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "one" {
		t.Fatalf("got version %d, %v", v, err)
	}
	if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 1 {
		t.Errorf("list: %+v, %v", list, err)
	}
	// The next writer tidies up, and takes no number that is taken.
	if v := put(t, b, key, "two"); v != 6 {
		t.Errorf("version beside a directory of name 5: %d", v)
	}
	if _, err := os.Stat(at(temp + "0123")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half-written file is still there: %v", err)
	}
	if _, err := os.Stat(at("README")); err != nil {
		t.Errorf("a stranger's file: %v", err)
	}
}

// A crash between a deletion's mark and the removal of the contents.
func TestInterruptedDeletion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, key, "one")
	put(t, b, key, "two")
	if err := os.WriteFile(filepath.Join(dir, keyDir, "3.deleted"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for v := range int64(4) {
		if _, _, err := b.Get(t.Context(), "default", key, v); !errors.Is(err, resource.ErrNotFound) {
			t.Errorf("version %d: %v", v, err)
		}
	}
	if was, err := b.Delete(t.Context(), "default", key); err != nil || was {
		t.Errorf("second deletion: %v, %v", was, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, keyDir)); err != nil || len(entries) != 1 {
		t.Errorf("left on the disk: %v, %v", entries, err)
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	other := resource.Path{Repository: "repo", Type: "key", Tag: "other"}
	put(t, b, other, "of another path")
	put(t, b, key, "one")
	file := filepath.Join(dir, keyDir, "2")
	whole, err := os.ReadFile(filepath.Join(dir, keyDir, "1"))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		c := bytes.Clone(whole)
		c[i] ^= 1
		return c
	}
	foreign, err := os.ReadFile(filepath.Join(dir, "default/repo/key/other/1"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": {}, "half": whole[:len(whole)/2], "header only": whole[:headerSize], "other version": whole, "other path": foreign,
		"flipped time": flip(6), "flipped size": flip(15), "flipped magic": flip(0), "flipped content": flip(len(whole) - 1),
		"too long": bytes.Repeat([]byte{1}, DefaultMaxContent+10_000),
	} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := b.Get(t.Context(), "default", key, 0)
		if err == nil || errors.Is(err, resource.ErrNotFound) || got.Len() != 0 {
			t.Errorf("%s: got %d bytes, %v; want an error: an older version must not take its place", name, got.Len(), err)
		}
		if _, _, err := b.Get(t.Context(), "default", key, 1); err != nil {
			t.Errorf("%s: version 1: %v", name, err)
		}
		if list, err := b.List(t.Context(), "default", "", "", 10); err != nil || len(list) != 2 {
			t.Errorf("%s: list: %v, %v", name, list, err)
		}
	}
	// In a file's place a link out of the directory, or a pipe that would hang.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, keyDir, "3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, v, err := b.Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "one" {
		t.Errorf("beside a link and a pipe: version %d, %v", v, err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "acme")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), "acme", key, secret.New([]byte("x"))); err == nil {
		t.Error("put through a link out of the directory: want an error")
	}
}
