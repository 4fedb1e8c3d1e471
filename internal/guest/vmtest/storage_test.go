package vmtest

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
)

// diskGuest is a virtual machine that runs testguest with disks.
type diskGuest struct {
	t       *testing.T
	console *console
	conn    net.Conn
	lines   *bufio.Scanner
	ended   chan struct{}
}

// testDisk is a disk of the machine.
type testDisk struct{ serial, path string }

// sparse makes a disk of zeros.
func sparse(t *testing.T, serial string, size int64) testDisk {
	t.Helper()
	d := testDisk{serial, filepath.Join(t.TempDir(), serial+".img")}
	f, err := os.Create(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return d
}

// put writes to the disk as the host does.
func (d testDisk) put(t *testing.T, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

func (d testDisk) content(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// diskInitrd is the guest image's with testguest as init, and programs of this
// machine that the test looks at disks with.
func diskInitrd(t *testing.T, initrd string) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "testguest")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", bin, "./testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := os.ReadFile(initrd)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	files := map[string]string{"init": bin}
	for _, name := range []string{"cryptsetup", "dmsetup", "e2fsck"} {
		path, err := exec.LookPath(name)
		if err != nil {
			if os.Getenv("COFFER_REQUIRE_VM") != "" {
				t.Fatalf("%v, and COFFER_REQUIRE_VM is set", err)
			}
			t.Skipf("not supported here: %v", err)
		}
		files["usr/bin/"+name] = path
		libraries(t, path, files)
	}
	for _, dir := range []string{"usr", "usr/bin", "usr/lib", "usr/lib/x86_64-linux-gnu"} {
		if err := w.Add(cpio.Entry{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data, err := os.ReadFile(files[name])
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(cpio.Entry{Name: name, Mode: cpio.TypeRegular | 0o755, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd.img")
	if err := os.WriteFile(path, cpio.Join(out, archive.Bytes()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// libraries adds those that a program of this machine needs.
func libraries(t *testing.T, path string, files map[string]string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		dest := "usr/lib/x86_64-linux-gnu/" + name
		if _, ok := files[dest]; ok {
			continue
		}
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"} {
			if lib := filepath.Join(dir, name); fileExists(lib) {
				files[dest] = lib
				libraries(t, lib, files)
				break
			}
		}
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startDisks boots testguest with disks.
func startDisks(t *testing.T, initrd string, disks ...testDisk) *diskGuest {
	t.Helper()
	kernel, _ := guestImage(t)
	socket := filepath.Join(guesttest.ShortDir(t), "test")
	g := &diskGuest{t: t, console: &console{}, ended: make(chan struct{})}
	args := []string{
		"-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-m", "640", "-smp", "1", "-nodefaults", "-nographic", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline, "-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=a0,path=" + socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=a0,name=org.coffer.test.0",
	}
	for i, d := range disks {
		args = append(args, "-blockdev", fmt.Sprintf("driver=raw,node-name=d%d,file.driver=file,file.filename=%s", i, d.path),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=%s,werror=report,rerror=report", i, d.serial))
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = g.console, g.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(g.ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-g.ended
		if t.Failed() {
			t.Logf("console:\n%s", g.console)
		}
	})
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			g.conn = conn
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-g.ended:
			t.Fatalf("QEMU has ended: %s", g.console)
		}
	}
	t.Cleanup(func() { _ = g.conn.Close() })
	g.lines = bufio.NewScanner(g.conn)
	g.lines.Buffer(nil, 4<<20)
	return g
}

// q is a request to testguest.
type q struct {
	Do                                             string `json:"do"`
	Name, Serial, Dir, Path, Key, Filesystem, Text string
	Group                                          *uint32 `json:",omitempty"`
	Size, Offset                                   int64
	Args                                           []string
}

type answer struct {
	Error  string           `json:"error"`
	Text   string           `json:"text"`
	Values map[string]int64 `json:"values"`
}

// ask has testguest do something.
func (g *diskGuest) ask(r q) answer {
	g.t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = g.conn.SetDeadline(time.Now().Add(bootLimit))
	if _, err := g.conn.Write(append(b, '\n')); err != nil {
		g.t.Fatal(err)
	}
	if !g.lines.Scan() {
		g.t.Fatalf("%s: no answer: %v", r.Do, g.lines.Err())
	}
	var a answer
	if err := json.Unmarshal(g.lines.Bytes(), &a); err != nil {
		g.t.Fatal(err)
	}
	return a
}

// must is ask for what works.
func (g *diskGuest) must(r q) answer {
	g.t.Helper()
	a := g.ask(r)
	if a.Error != "" {
		g.t.Fatalf("%s %s%s%s: %s", r.Do, r.Name, r.Path, r.Serial, a.Error)
	}
	return a
}

// refuses is ask for what must not work.
func (g *diskGuest) refuses(r q, want ...string) {
	g.t.Helper()
	a := g.ask(r)
	for _, w := range want {
		if !strings.Contains(a.Error, w) {
			g.t.Errorf("%s %s%s%s: error %q, want %q", r.Do, r.Name, r.Path, r.Serial, a.Error, w)
		}
	}
	if a.Error == "" {
		g.t.Errorf("%s %s%s%s: no error", r.Do, r.Name, r.Path, r.Serial)
	}
}

// run runs a program in the guest, which must succeed.
func (g *diskGuest) run(args ...string) string {
	g.t.Helper()
	a := g.must(q{Do: "run", Args: args})
	if a.Values["code"] != 0 {
		g.t.Fatalf("%s: ended with %d: %s", strings.Join(args, " "), a.Values["code"], a.Text)
	}
	return a.Text
}

// off ends the machine.
func (g *diskGuest) off() {
	g.t.Helper()
	g.must(q{Do: "off"})
	select {
	case <-g.ended:
	case <-time.After(bootLimit):
		g.t.Fatal("the machine did not end")
	}
}

// nothingLeft checks that no disk is mounted or mapped.
func (g *diskGuest) nothingLeft() {
	g.t.Helper()
	if got := g.must(q{Do: "read", Path: "/proc/mounts", Size: 1 << 16}).Text; strings.Contains(got, "/dev/dm") {
		g.t.Errorf("left mounted:\n%s", got)
	}
	if got := g.must(q{Do: "list", Path: "/sys/class/block"}).Text; strings.Contains(got, "dm-") {
		g.t.Errorf("left behind: %s", got)
	}
}
