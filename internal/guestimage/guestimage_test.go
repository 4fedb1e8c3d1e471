package guestimage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/guestimage"
	"github.com/coffer-project/coffer/internal/guestimage/elftest"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

const release = "6.12.9-test"

const testRecipe = `
version = 1
cmdline = ["console=ttyS0", "panic=-1"]
compression = "none"
max_initrd = 100000
kernel = { meta = "kernel", prefix = "kernel-", image = "boot/vmlinuz-*" }
firmware = { package = "firmware", path = "usr/share/fw/bios.bin" }
program = [ { package = "runtime", path = "usr/bin/run", dest = "usr/bin/run" } ]
link = [ { path = "lib64", target = "usr/lib64" }, { path = "usr/lib64/ld.so", target = "../lib/ld.so" } ]
device = [ { path = "dev/console", mode = 0o600, major = 5, minor = 1 } ]
file = [ { path = "etc/group", mode = 0o640, content = "root:x:0:\n" } ]
directory = [ { path = "dev", mode = 0o755 }, { path = "etc", mode = 0o755 }, { path = "usr", mode = 0o755 },
	{ path = "usr/bin", mode = 0o755 }, { path = "usr/lib", mode = 0o755 }, { path = "usr/lib64", mode = 0o755 },
	{ path = "m", mode = 0o700 } ]
[modules]
dir = "m"
base_list = "m/base"
base = ["virtio_net"]
tee_list = "m/tee"
tee = ["sev-guest"]
disk_list = "m/disk"
disk = ["virtio_blk"]
memory_list = "m/memory"
memory = ["virtio_balloon"]
[libraries]
packages = ["libc", "libx"]
dirs = ["lib", "usr/lib"]
dest = "usr/lib"
`

// world is an archive of packages in a cache, a recipe, a lock file and an agent.
type world struct {
	cache, agent string
	recipe, lock string
}

// newWorld makes packages with dpkg-deb and puts them where the builder looks
// first, so that no test touches the machine's archive.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{cache: t.TempDir(), agent: filepath.Join(t.TempDir(), "agent"), recipe: testRecipe}
	writeFile(t, w.agent, elftest.Object{}.Bytes())
	modules := "lib/modules/" + release + "/kernel/net/"
	w.pkg(t, "kernel", map[string][]byte{
		"boot/vmlinuz-" + release:                     []byte("kernel image"),
		"lib/modules/" + release + "/modules.builtin": []byte("kernel/drivers/virtio/virtio.ko\n"),
		modules + "virtio_net.ko.xz":                  xz(t, elftest.Module("virtio_net", release, "net_failover", "virtio")),
		modules + "net_failover.ko.xz":                xz(t, elftest.Module("net_failover", release)),
		modules + "sev-guest.ko.xz":                   xz(t, elftest.Module("sev_guest", release, "tsm", "net_failover")),
		modules + "virtio_blk.ko.xz":                  xz(t, elftest.Module("virtio_blk", release, "tsm", "net_failover")),
		modules + "virtio_balloon.ko.xz":              xz(t, elftest.Module("virtio_balloon", release)),
		modules + "tsm.ko.xz":                         xz(t, elftest.Module("tsm", release)),
		modules + "alien.ko.xz":                       xz(t, elftest.Module("alien", "5.10.0")),
	}, nil)
	w.pkg(t, "firmware", map[string][]byte{"usr/share/fw/bios.bin": []byte("firmware")}, nil)
	w.pkg(t, "runtime", map[string][]byte{
		"usr/bin/run": elftest.Object{Interp: "/lib64/ld.so", Needed: []string{"libx.so.1", "libc.so.6"}}.Bytes(),
	}, nil)
	w.pkg(t, "libc", map[string][]byte{
		"lib/libc.so.6": elftest.Object{Needed: []string{"ld.so"}}.Bytes(),
		"lib/ld.so":     elftest.Object{}.Bytes(),
	}, nil)
	w.pkg(t, "libx", map[string][]byte{
		"usr/lib/libx.so.1.5": elftest.Object{Needed: []string{"libc.so.6"}}.Bytes(),
	}, map[string]string{"usr/lib/libx.so.1": "libx.so.1.5"})
	return w
}

func (w *world) pkg(t *testing.T, name string, files map[string][]byte, links map[string]string) {
	t.Helper()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "DEBIAN/control"), fmt.Appendf(nil, "Package: %s\nVersion: 1\nArchitecture: amd64\nMaintainer: none <none@example.org>\nDescription: test\n", name))
	for path, data := range files {
		writeFile(t, filepath.Join(root, path), data)
	}
	for path, target := range links {
		if err := os.Symlink(target, filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(w.cache, name)
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", "--root-owner-group", root, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(deb, filepath.Join(w.cache, digest(data)+".deb")); err != nil {
		t.Fatal(err)
	}
	w.lock += fmt.Sprintf("%s %s-9 1 amd64 %s\n", name, name, digest(data))
}

func (w *world) options(out string) guestimage.Options {
	return guestimage.Options{
		OutDir: out, CacheDir: w.cache, Agent: w.agent, AgentVersion: "v1", Recipe: []byte(w.recipe), Lock: []byte(w.lock),
		Locked: true, Logger: slog.New(slog.DiscardHandler),
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func xz(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "xz", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// snapshot returns the digest of every file in dir, with its mode.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		all[filepath.Base(path)] = info.Mode().String() + " " + digest(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := filepath.Join(t.TempDir(), "image")
	r, err := guestimage.Build(t.Context(), w.options(out))
	if err != nil {
		t.Fatal(err)
	}
	if r.UpToDate {
		t.Error("the first build says that it is up to date")
	}
	m, err := manifest.Load(out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, r.Manifest); diff != "" {
		t.Error(diff)
	}
	if err := m.Check(out); err != nil {
		t.Error(err)
	}
	if !m.Locked || m.Cmdline != "console=ttyS0 panic=-1" || m.Kernel.Package != "kernel-9" || m.Firmware.PackageVersion != "1" {
		t.Errorf("got %+v", m)
	}
	var listed []string
	for _, e := range m.Initrd.Files {
		listed = append(listed, e.Mode+" "+e.Path+" "+e.Target)
	}
	want := []string{
		"0040755 /dev ", "0020600 /dev/console ", "0040755 /etc ", "0100640 /etc/group ", "0100755 /init ", "0120777 /lib64 usr/lib64",
		"0040700 /m ", "0100644 /m/base ", "0100644 /m/disk ", "0100644 /m/memory ", "0100644 /m/net_failover.ko ", "0100644 /m/sev-guest.ko ", "0100644 /m/tee ", "0100644 /m/tsm.ko ", "0100644 /m/virtio_balloon.ko ", "0100644 /m/virtio_blk.ko ", "0100644 /m/virtio_net.ko ",
		"0040755 /usr ", "0040755 /usr/bin ", "0100755 /usr/bin/run ", "0040755 /usr/lib ",
		"0100644 /usr/lib/ld.so ", "0100644 /usr/lib/libc.so.6 ", "0100644 /usr/lib/libx.so.1 ", "0040755 /usr/lib64 ", "0120777 /usr/lib64/ld.so ../lib/ld.so",
	}
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Error(diff)
	}
	initrd, err := m.Initrd.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"net_failover.ko\nvirtio_net.ko\n\x00", "tsm.ko\nsev-guest.ko\n", "tsm.ko\nvirtio_blk.ko\n", "root:x:0:\n"} {
		if !bytes.Contains(initrd, []byte(want)) {
			t.Errorf("the initrd has no %q", want)
		}
	}

	t.Run("again", func(t *testing.T) {
		before := snapshot(t, out)
		r, err := guestimage.Build(t.Context(), w.options(out))
		if err != nil || !r.UpToDate {
			t.Errorf("nothing has changed, got %+v, %v", r, err)
		}
		writeFile(t, filepath.Join(out, "initrd.img"), []byte("damaged"))
		r, err = guestimage.Build(t.Context(), w.options(out))
		if err != nil || r.UpToDate {
			t.Errorf("a file was damaged, got %+v, %v", r, err)
		}
		o := w.options(out)
		o.AgentVersion = "v2"
		if r, err = guestimage.Build(t.Context(), o); err != nil || r.UpToDate {
			t.Errorf("an input has changed, got %+v, %v", r, err)
		}
		o = w.options(out)
		o.Force = true
		if r, err = guestimage.Build(t.Context(), o); err != nil || r.UpToDate {
			t.Errorf("forced, got %+v, %v", r, err)
		}
		if diff := cmp.Diff(before, snapshot(t, out)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestSameBytes builds with everything else about the machine changed: directory,
// umask, time zone, locale, host's view of HOME. Each build is a process of its
// own, since the umask is one.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	recipes := map[string]string{"none": testRecipe}
	for _, format := range manifest.Compressions()[1:] {
		recipes[format] = strings.Replace(testRecipe, `"none"`, strconv.Quote(format), 1)
	}
	for _, format := range slices.Sorted(maps.Keys(recipes)) {
		base := t.TempDir()
		writeFile(t, filepath.Join(base, "recipe"), []byte(recipes[format]))
		writeFile(t, filepath.Join(base, "lock"), []byte(w.lock))
		var first map[string]string
		for i, env := range [][]string{
			{"TZ=UTC", "LC_ALL=C", "BUILD_UMASK=022"},
			{"TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8", "BUILD_UMASK=077", "XZ_OPT=-9", "HOME=/nonexistent", "GOMAXPROCS=1"},
			{"TZ=America/St_Johns", "LANG=de_DE", "BUILD_UMASK=000", "SOURCE_DATE_EPOCH=1"},
		} {
			out := filepath.Join(base, fmt.Sprintf("a/deeper/directory/%d", i), "image")
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
			cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "BUILD_IN="+base, "BUILD_CACHE="+w.cache, "BUILD_AGENT="+w.agent, "BUILD_OUT="+out)
			if msg, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, msg)
			}
			got := snapshot(t, out)
			if first == nil {
				first = got
			}
			if diff := cmp.Diff(first, got); diff != "" {
				t.Errorf("%s: with %q the files differ:\n%s", format, env, diff)
			}
		}
	}
}

// TestMain is also the process that TestSameBytes starts.
func TestMain(m *testing.M) {
	if out := os.Getenv("BUILD_OUT"); out != "" {
		if err := buildFromEnvironment(out); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func buildFromEnvironment(out string) error {
	var mask int
	if _, err := fmt.Sscanf(os.Getenv("BUILD_UMASK"), "%o", &mask); err != nil {
		return err
	}
	syscall.Umask(mask)
	o := guestimage.Options{
		OutDir: out, CacheDir: os.Getenv("BUILD_CACHE"), Agent: os.Getenv("BUILD_AGENT"), AgentVersion: "v1",
		Locked: os.Getenv("BUILD_UNLOCKED") == "", UpdateLock: os.Getenv("BUILD_UNLOCKED") == "update",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if in := os.Getenv("BUILD_IN"); in != "" {
		var errs [2]error
		o.Recipe, errs[0] = os.ReadFile(filepath.Join(in, "recipe"))
		o.Lock, errs[1] = os.ReadFile(filepath.Join(in, "lock"))
		if err := errors.Join(errs[:]...); err != nil {
			return err
		}
	}
	r, err := guestimage.Build(context.Background(), o)
	if err == nil {
		fmt.Printf("up to date: %v\n%s", r.UpToDate, r.Lock)
	}
	return err
}

// TestGonePackage has an archive that knows a newer package only: programs called
// apt-cache and apt-get that answer so.
func TestGonePackage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	base := t.TempDir()
	lines := strings.Split(strings.TrimSpace(w.lock), "\n")
	newest := strings.Fields(lines[len(lines)-1])
	sum := newest[4]
	gone := fmt.Sprintf("libx libx 0.9 amd64 %064d", 1)
	newLine := "libx libx 1.1 amd64 " + sum
	writeFile(t, filepath.Join(base, "recipe"), []byte(testRecipe))
	writeFile(t, filepath.Join(base, "lock"), []byte(strings.Join(append(lines[:len(lines)-1], gone), "\n")))
	script := func(name, text string) {
		writeFile(t, filepath.Join(base, name), []byte("#!/bin/sh\n"+text))
		if err := os.Chmod(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("apt-get", "echo no network >&2; exit 100\n")
	script("apt-cache", "printf 'Package: libx\\nVersion: 1.1\\nArchitecture: amd64\\nFilename: pool/libx.deb\\nSHA256: "+sum+"\\n'\n")
	out := filepath.Join(base, "image")
	build := func(unlocked string) (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = []string{"PATH=" + base + ":" + os.Getenv("PATH"), "BUILD_UMASK=022", "BUILD_IN=" + base, "BUILD_CACHE=" + w.cache, "BUILD_AGENT=" + w.agent, "BUILD_OUT=" + out, "BUILD_UNLOCKED=" + unlocked}
		text, err := cmd.CombinedOutput()
		return string(text), err
	}

	if text, err := build(""); err == nil || !strings.Contains(text, "package libx=0.9: not in the package archive; there is: 1.1") {
		t.Errorf("locked: got %v\n%s", err, text)
	}
	text, err := build("yes")
	if err != nil || !strings.Contains(text, "level=WARN") || !strings.Contains(text, "NOT THE LOCKED IMAGE") || !strings.Contains(text, newLine) {
		t.Fatalf("got %v\n%s", err, text)
	}
	m, err := manifest.Load(out)
	if err != nil {
		t.Fatal(err)
	}
	if m.Locked {
		t.Error("the manifest says that the image is the locked one")
	}
	if text, err = build("yes"); err != nil || !strings.Contains(text, "up to date: true") {
		t.Errorf("again: got %v\n%s", err, text)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dynamic := filepath.Join(t.TempDir(), "dynamic")
	writeFile(t, dynamic, elftest.Object{Interp: "/lib64/ld.so", Needed: []string{"libc.so.6"}}.Bytes())
	replace := func(old, new string) func(*guestimage.Options) {
		return func(o *guestimage.Options) {
			text := strings.Replace(testRecipe, old, new, 1)
			if text == testRecipe {
				t.Errorf("replacing %q changes nothing", old)
			}
			o.Recipe = []byte(text)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*guestimage.Options)
		want   string
	}{
		{"no output", func(o *guestimage.Options) { o.OutDir = "" }, "no output directory"},
		{"no cache", func(o *guestimage.Options) { o.CacheDir = "" }, "no package cache"},
		{"no agent", func(o *guestimage.Options) { o.Agent = "" }, "no agent binary"},
		{"missing agent", func(o *guestimage.Options) { o.Agent = "/nonexistent" }, "/nonexistent"},
		{"agent is no program", func(o *guestimage.Options) { o.Agent = "guestimage_test.go" }, "not an ELF file"},
		{"agent needs libraries", func(o *guestimage.Options) { o.Agent = dynamic }, "CGO_ENABLED=0"},
		{"locked and update", func(o *guestimage.Options) { o.UpdateLock = true }, "exclude each other"},
		{"package not in the lock", func(o *guestimage.Options) { o.Lock = []byte(strings.ReplaceAll(w.lock, "libx ", "other ")) }, `asks for no package ["other"]`},
		{"lock without a line", func(o *guestimage.Options) { o.Lock = []byte(strings.Join(strings.SplitAfter(w.lock, "\n")[:4], "")) }, "no line for package libx"},
		{"no kernel image", replace("boot/vmlinuz-*", "boot/bzImage"), "kernel.image"},
		{"no module", replace(`["sev-guest"]`, `["nothing"]`), "kernel 6.12.9-test has no module nothing"},
		{"module of another kernel", replace(`["sev-guest"]`, `["alien"]`), `is made for kernel "5.10.0"`},
		{"no firmware", replace("fw/bios.bin", "fw/efi.bin"), "usr/share/fw/efi.bin is in none"},
		{"no program", replace(`path = "usr/bin/run"`, `path = "usr/bin/go"`), "usr/bin/go is in none"},
		{"library not found", replace(`dirs = ["lib", "usr/lib"]`, `dirs = ["usr/lib"]`), "has libc.so.6"},
		{"useless package", replace(`packages = ["libc", "libx"]`, `packages = ["libc", "libx", "firmware"]`), "nothing needs package firmware"},
		{"stub of what nothing imports", replace(`dest = "usr/lib"`, "dest = \"usr/lib\"\nstubs = [\"libx.so.1\"]"), "stub of libx.so.1: "},
		{"stub with a path", replace(`dest = "usr/lib"`, "dest = \"usr/lib\"\nstubs = [\"/lib/libx.so.1\"]"), "libraries.stubs[0]"},
		{"loader not where it is looked for", replace(`path = "lib64", target = "usr/lib64"`, `path = "lib64", target = "usr/lib"`), ""},
		{"loader missing", replace(`path = "lib64", target = "usr/lib64"`, `path = "lib64", target = "dev"`), "the loader /lib64/ld.so"},
		{"no directory", replace(`{ path = "m", mode = 0o700 }`, ``), "its directory has not been added"},
		{"two files of one name", replace("usr/bin/run\" } ]", "init\" } ]"), "two things want to be /init"},
		{"too big", replace("max_initrd = 100000", "max_initrd = 1000"), "max_initrd allows 1000"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		o := w.options(out)
		c.change(&o)
		_, err := guestimage.Build(t.Context(), o)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected %q, got %v", c.name, c.want, err)
		}
		if _, err := os.Stat(filepath.Join(out, manifest.FileName)); err == nil {
			t.Errorf("%s: left an image behind", c.name)
		}
	}
}

// TestRealImage builds the shipped recipe from Debian's packages, twice. It needs
// the packages in a cache, as make guest-image leaves them.
func TestRealImage(t *testing.T) {
	cache, agent := os.Getenv("COFFER_GUEST_CACHE"), os.Getenv("COFFER_GUEST_AGENT")
	if cache == "" || agent == "" {
		t.Skip("COFFER_GUEST_CACHE and COFFER_GUEST_AGENT are not set; make test sets them")
	}
	t.Parallel()
	var first map[string]string
	for _, env := range [][]string{{"TZ=UTC", "BUILD_UMASK=022"}, {"TZ=Asia/Kathmandu", "BUILD_UMASK=077", "GOMAXPROCS=1"}} {
		out := filepath.Join(t.TempDir(), "image")
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "BUILD_CACHE="+cache, "BUILD_AGENT="+agent, "BUILD_OUT="+out)
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, msg)
		}
		got := snapshot(t, out)
		if first == nil {
			first = got
		}
		if diff := cmp.Diff(first, got); diff != "" {
			t.Errorf("with %q the files differ:\n%s", env, diff)
		}
	}
}
