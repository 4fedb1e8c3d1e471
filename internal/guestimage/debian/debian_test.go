package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sum(s string) string {
	d := sha256.Sum256([]byte(s))
	return hex.EncodeToString(d[:])
}

// fakeApt plays apt-cache and apt-get over packages it knows.
type fakeApt struct {
	// lists is what apt-cache shows, newest first; after is what it shows once the
	// lists have been updated.
	lists, after map[string][]Package
	// pool is the content of the files that can be downloaded, by name=version.
	pool    map[string]string
	updates int
	calls   []string
}

func (f *fakeApt) run(_ context.Context, dir, name string, args ...string) ([]byte, error) {
	last := args[len(args)-1]
	f.calls = append(f.calls, name+" "+last)
	switch {
	case name == "apt-get" && last == "update":
		f.updates++
		if f.after != nil {
			f.lists = f.after
		}
		return nil, nil
	case name == "apt-get":
		content, ok := f.pool[last]
		if !ok {
			return nil, fmt.Errorf("404 %s", last)
		}
		return nil, os.WriteFile(filepath.Join(dir, "x.deb"), []byte(content), 0o600)
	case name == "apt-cache":
		found := f.lists[last]
		if len(found) == 0 {
			return nil, errors.New("no packages found")
		}
		if slices.Contains(args, "--no-all-versions") {
			found = found[:1]
		}
		var out strings.Builder
		for _, p := range found {
			fmt.Fprintf(&out, "Package: %s\nVersion: %s\nArchitecture: amd64\nDepends: kmod, linux-image-6.12.9-cloud (= 1) | x\nDescription: text\n of two lines: yes\nFilename: pool/x.deb\nSHA256: %s\n\n", p.Name, p.Version, p.SHA256)
		}
		return []byte(out.String()), nil
	}
	return nil, fmt.Errorf("unexpected %s %v", name, args)
}

func newTestArchive(t *testing.T, f *fakeApt) *Archive {
	t.Helper()
	a, err := NewArchive(filepath.Join(t.TempDir(), "cache"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a.run = f.run
	return a
}

func one(version, content string) Package {
	return Package{Name: "crun", Version: version, Architecture: "amd64", SHA256: sum(content)}
}

func TestFetchCaches(t *testing.T) {
	t.Parallel()
	f := &fakeApt{pool: map[string]string{"crun=1": "content"}}
	a := newTestArchive(t, f)
	for range 2 {
		path, err := a.Fetch(t.Context(), one("1", "content"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "content" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if diff := cmp.Diff([]string{"apt-get crun=1"}, f.calls); diff != "" {
		t.Error(diff)
	}
	// What is broken in the cache is fetched again.
	if err := os.WriteFile(filepath.Join(a.cache, sum("content")+".deb"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fetch(t.Context(), one("1", "content")); err != nil || len(f.calls) != 2 {
		t.Errorf("got %v after %q", err, f.calls)
	}
}

func TestFetchRefusesOtherContent(t *testing.T) {
	t.Parallel()
	f := &fakeApt{pool: map[string]string{"crun=1": "something else"}}
	a := newTestArchive(t, f)
	_, err := a.Fetch(t.Context(), one("1", "content"))
	if err == nil || !strings.Contains(err.Error(), sum("content")) || !strings.Contains(err.Error(), sum("something else")) || errors.Is(err, ErrNotAvailable) {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(a.cache)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
}

func TestFetchOfGonePackage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root updates package lists")
	}
	t.Parallel()
	newer := map[string][]Package{"crun": {one("2", "new")}}
	f := &fakeApt{lists: map[string][]Package{"crun": {one("1", "old")}}, after: newer, pool: map[string]string{"crun=2": "new"}}
	a := newTestArchive(t, f)
	if _, err := a.Fetch(t.Context(), one("1", "old")); !errors.Is(err, ErrNotAvailable) || !strings.Contains(err.Error(), "there is: 2") {
		t.Errorf("got %v", err)
	}
	p, err := a.Newest(t.Context(), "crun")
	if err != nil || p != one("2", "new") {
		t.Errorf("got %v, %v", p, err)
	}
	if _, err := a.Fetch(t.Context(), p); err != nil {
		t.Error(err)
	}
	if _, err := a.Newest(t.Context(), "unknown"); !errors.Is(err, ErrNotAvailable) {
		t.Errorf("got %v", err)
	}
	if f.updates != 1 {
		t.Errorf("the lists were updated %d times, expected once", f.updates)
	}
}

func TestFetchFailsWithoutTheArchive(t *testing.T) {
	t.Parallel()
	// The list has it, the download fails: no reason to take another version.
	f := &fakeApt{lists: map[string][]Package{"crun": {one("1", "old")}}}
	if _, err := newTestArchive(t, f).Fetch(t.Context(), one("1", "old")); err == nil || errors.Is(err, ErrNotAvailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	kernel := Package{Name: "linux-image-6.12.9-cloud", Version: "6.12.9-1", Architecture: "amd64", SHA256: sum("k")}
	f := &fakeApt{lists: map[string][]Package{"meta": {{Name: "meta", Version: "1"}}, kernel.Name: {kernel}}}
	a := newTestArchive(t, f)
	got, err := a.Follow(t.Context(), "meta", "linux-image-6.12.")
	if err != nil || got != kernel {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := a.Follow(t.Context(), "meta", "linux-image-7."); err == nil || !strings.Contains(err.Error(), "linux-image-7.*") {
		t.Errorf("got %v", err)
	}
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("DEBIAN/control", "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: none <none@example.org>\nDescription: test\n", 0o644)
	write("usr/lib/libx.so.1.2", "library", 0o644)
	write("usr/bin/x", "program", 0o755)
	write("usr/share/doc/x", "left out", 0o644)
	for link, target := range map[string]string{"libx.so.1": "libx.so.1.2", "libx.so": "/usr/lib/libx.so.1", "loop": "loop", "dangling": "nothing"} {
		if err := os.Symlink(target, filepath.Join(root, "usr/lib", link)); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(t.TempDir(), "x.deb")
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", "--root-owner-group", root, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tree, err := Unpack(t.Context(), deb, func(name string) bool { return !strings.HasPrefix(name, "usr/share/") })
	if err != nil {
		t.Fatal(err)
	}
	want := Tree{
		"usr/lib/libx.so.1.2": {Mode: 0o644, Data: []byte("library")},
		"usr/bin/x":           {Mode: 0o755, Data: []byte("program")},
		"usr/lib/libx.so.1":   {Mode: 0o777, Target: "libx.so.1.2"},
		"usr/lib/libx.so":     {Mode: 0o777, Target: "/usr/lib/libx.so.1"},
		"usr/lib/loop":        {Mode: 0o777, Target: "loop"},
		"usr/lib/dangling":    {Mode: 0o777, Target: "nothing"},
	}
	if diff := cmp.Diff(want, tree); diff != "" {
		t.Error(diff)
	}
	if name, f, err := tree.Resolve("usr/lib/libx.so"); err != nil || name != "usr/lib/libx.so.1.2" || string(f.Data) != "library" {
		t.Errorf("got %s, %q, %v", name, f.Data, err)
	}
	for _, name := range []string{"usr/lib/loop", "usr/lib/dangling", "usr/lib/missing"} {
		if _, _, err := tree.Resolve(name); err == nil {
			t.Errorf("%s was resolved", name)
		}
	}
	if name, err := tree.Glob("usr/bin/*"); err != nil || name != "usr/bin/x" {
		t.Errorf("got %s, %v", name, err)
	}
	for _, pattern := range []string{"usr/lib/libx*", "nothing*", "[", ""} {
		if name, err := tree.Glob(pattern); err == nil {
			t.Errorf("pattern %q: got %s", pattern, name)
		}
	}

	whole, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(deb, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), deb, func(string) bool { return true }); err == nil || !strings.Contains(err.Error(), deb) {
		t.Errorf("half a package: got %v", err)
	}
}
