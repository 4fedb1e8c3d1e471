package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coffer-project/coffer/internal/agentapi"
)

func TestSubPaths(t *testing.T) {
	t.Parallel()
	needMounts(t)
	k, g := newKubelet(t), newGuest()
	config := k.volume(pluginConfigMap, "config", map[string]string{"a.conf": "a", "sub/b.conf": "b"})
	secret := &atomic{k: k, dir: k.mkdir("volumes/" + pluginSecret + "/tls")}
	k.tmpfs(secret.dir, "mode=0777")
	secret.swap(map[string]string{"key": "k"})
	scratch := k.mkdir("volumes/" + pluginEmptyDir + "/scratch/with a blank/deep")
	memory := k.mkdir("volumes/" + pluginEmptyDir + "/memory")
	k.tmpfs(memory, "size=8m")
	k.check(os.Mkdir(filepath.Join(memory, "part"), 0o755))
	host := t.TempDir()
	k.check(os.WriteFile(filepath.Join(host, "inside"), []byte("h"), 0o644))
	at := func(volume string, n int, part string) specs.Mount {
		return bind(k.subPath(volume, "app", n, part), "/m"+volume+filepath.Base(part), "rw")
	}
	mounts := []specs.Mount{
		at("config", 0, filepath.Join(config.dir, "a.conf")), at("config", 1, filepath.Join(config.dir, "sub")), at("config", 2, filepath.Join(config.dir, "sub/b.conf")),
		at("tls", 3, filepath.Join(secret.dir, "key")), at("scratch", 4, scratch), at("memory", 5, filepath.Join(memory, "part")),
		at("host", 6, host), at("scratch", 7, filepath.Dir(filepath.Dir(scratch))),
	}
	m, w := k.manager()
	p := prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: mounts})
	want := []*agentapi.Mount{
		{Path: "/mconfiga.conf", Volume: "config", SubPath: "a.conf", ReadOnly: true}, {Path: "/mconfigsub", Volume: "config", SubPath: "sub", ReadOnly: true},
		{Path: "/mconfigb.conf", Volume: "config", SubPath: "sub/b.conf", ReadOnly: true}, {Path: "/mtlskey", Volume: "tls", SubPath: "key", ReadOnly: true},
		{Path: "/mscratchdeep", Volume: "scratch", SubPath: "with a blank/deep"}, {Path: "/mmemorypart", Volume: "memory", SubPath: "part"},
		{Path: mounts[6].Destination, Volume: p.Mounts[6].GetVolume(), ReadOnly: true}, {Path: "/mscratchscratch", Volume: "scratch"},
	}
	if diff := cmp.Diff(want, p.Mounts, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(contents{"inside": "0644 h"}, g.latest(p.Mounts[6].GetVolume())); diff != "" {
		t.Error(diff)
	}
	w.has(t, "copied into the guest once")

	// The version that the kubelet mounted is gone; the name is still right.
	config.swap(map[string]string{"a.conf": "2"})
	secret.swap(map[string]string{"key": "k2"})
	p = prepare(t, m, g, Container{ID: "c2", Name: "app", Mounts: []specs.Mount{mounts[0], mounts[3]}})
	if p.Mounts[0].GetSubPath() != "a.conf" || p.Mounts[1].GetSubPath() != "key" {
		t.Errorf("after an update: %v", p.Mounts)
	}

	for name, tt := range map[string]struct{ source, want string }{
		"another container's": {k.subPath("config", "other", 0, filepath.Join(config.dir, "a.conf")), "belongs to container other"},
		"another volume's":    {k.subPath("config", "app", 8, scratch), "not in the volume"},
		"not mounted":         {k.mkdir("volume-subpaths/config/app/9"), "has not mounted it"},
	} {
		if _, err := m.Prepare(t.Context(), g, Container{ID: "x", Name: "app", Mounts: []specs.Mount{bind(tt.source, "/x")}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where the roots of mounts do not tell, the inode does.
func TestSearch(t *testing.T) {
	t.Parallel()
	needMounts(t)
	k := newKubelet(t)
	scratch := k.mkdir("volumes/" + pluginEmptyDir + "/scratch/a/b")
	source := k.subPath("scratch", "app", 0, scratch)
	dir := filepath.Dir(filepath.Dir(scratch))
	mounts, err := readMounts()
	k.check(err)
	for i := range mounts {
		if mounts[i].point == source {
			mounts[i].root = "/elsewhere"
		}
	}
	if part, ok, err := findPart(mounts, dir, source); part != "a/b" || !ok || err != nil {
		t.Errorf("%q, %t, %v", part, ok, err)
	}
	for i := range mounts { // a root that is in the volume, but another directory
		if mounts[i].point == source {
			of, _ := mountOf(mounts, dir)
			down, _ := filepath.Rel(of.point, dir)
			mounts[i].root = filepath.Join(of.root, down, "a")
		}
	}
	if part, ok, err := findPart(mounts, dir, source); part != "a/b" || !ok || err != nil {
		t.Errorf("%q, %t, %v", part, ok, err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	needMounts(t)
	k, g := newKubelet(t), newGuest()
	memory, huge := k.mkdir("volumes/"+pluginEmptyDir+"/memory"), k.mkdir("volumes/"+pluginEmptyDir+"/huge")
	k.tmpfs(memory, "size=8m,mode=0777")
	m, w := k.manager()
	p := prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(memory, "/dev/shm", "rw", "noexec"), bind(memory, "/slave", "rslave")}})
	if diff := cmp.Diff([]*agentapi.Volume{{Name: "memory", Kind: agentapi.Volume_MEMORY, SizeBytes: 8 << 20}}, p.Volumes, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if len(p.Mounts) != 2 || p.Mounts[0].GetPath() != "/dev/shm" {
		t.Errorf("%v", p.Mounts)
	}
	w.has(t, "noexec has no effect")
	w.has(t, "mountPropagation: HostToContainer")
	if err := unix.Mount("none", huge, "hugetlbfs", 0, ""); err != nil {
		t.Logf("no huge pages here: %v", err)
		return
	}
	t.Cleanup(func() { _ = unix.Unmount(huge, unix.MNT_DETACH) })
	if _, err := m.Prepare(t.Context(), g, Container{ID: "h", Name: "app", Mounts: []specs.Mount{bind(huge, "/huge")}}); err == nil || !strings.Contains(err.Error(), "huge pages") {
		t.Errorf("%v", err)
	}
}

func TestHostPath(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		k.check(os.MkdirAll(filepath.Dir(path), 0o755))
		k.check(os.WriteFile(path, []byte(content), 0o644))
		return path
	}
	write("a", "1")
	write("sub/b", "2")
	odd := write("with blank", "3")
	k.check(os.Symlink("a", filepath.Join(dir, "link")))
	k.check(os.Symlink("/etc/passwd", filepath.Join(dir, "out")))
	m, w := k.manager()
	g := newGuest()
	p := prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(dir, "/d", "rw"), bind(filepath.Join(dir, "a"), "/f"), bind(odd, "/odd")}})
	if diff := cmp.Diff(contents{"a": "0644 1", "link": "0644 1", "sub/b": "0644 2"}, g.latest(p.Mounts[0].GetVolume())); diff != "" {
		t.Error(diff)
	}
	if !p.Mounts[0].GetReadOnly() || p.Mounts[1].GetSubPath() != "a" || p.Mounts[2].GetSubPath() != singleFile {
		t.Errorf("%v", p.Mounts)
	}
	if diff := cmp.Diff(contents{singleFile: "0644 3"}, g.latest(p.Mounts[2].GetVolume())); diff != "" {
		t.Error(diff)
	}
	w.has(t, "hostPath "+dir+": copied into the guest once and read-only; changes are not seen, nothing is written back; left out")
	w.has(t, "out, with blank")
	// Once is once.
	write("a", "changed")
	prepare(t, m, g, Container{ID: "c2", Name: "app", Mounts: []specs.Mount{bind(dir, "/d")}})
	if n := len(g.seen(p.Mounts[0].GetVolume())); n != 1 {
		t.Errorf("copied %d times", n)
	}

	fifo := filepath.Join(t.TempDir(), "fifo")
	k.check(unix.Mkfifo(fifo, 0o600))
	for name, tt := range map[string]struct {
		source string
		change func(*Options)
		want   string
	}{
		"pipe":         {fifo, nil, "a named pipe"},
		"pipe inside":  {filepath.Dir(fifo), nil, `file "fifo": a named pipe cannot be sent`},
		"by the node":  {dir, func(o *Options) { o.HostPath = RefuseHostPath }, "host_path in the runtime's configuration"},
		"unconfigured": {dir, func(o *Options) { o.HostPath = "" }, "host_path in the runtime's configuration"},
		"sealed":       {dir, func(o *Options) { o.Sealed = true }, "the pod is sealed"},
	} {
		m, _ := k.manager(func(o *Options) {
			if tt.change != nil {
				tt.change(o)
			}
		})
		if _, err := m.Prepare(t.Context(), newGuest(), Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(tt.source, "/d")}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A claim's file system is copied only if nobody expects to write to it.
	claim := k.mkdir("volumes/kubernetes.io~csi/pvc-1/mount")
	k.check(os.WriteFile(filepath.Join(claim, "x"), []byte("x"), 0o644))
	p = prepare(t, m, g, Container{ID: "c3", Name: "app", Mounts: []specs.Mount{bind(claim, "/d", "ro")}})
	if p.Mounts[0].GetVolume() != "pvc-1" || len(g.latest("pvc-1")) != 1 {
		t.Errorf("%v", p)
	}
	w.has(t, "volume pvc-1 (kubernetes.io/csi): copied")
}

func TestSockets(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	dir, err := os.MkdirTemp("", "s") // the path of a socket is short
	k.check(err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	k.check(err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	k.check(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "s")}))
	m, _ := k.manager()
	if _, err := m.Prepare(t.Context(), newGuest(), Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(filepath.Join(dir, "s"), "/d")}}); err == nil || !strings.Contains(err.Error(), "it is a socket") {
		t.Errorf("%v", err)
	}
}

func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	file := k.write("containers/app/0a1b", "old content that is longer than the new")
	m, _ := k.manager()
	prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(file, "/dev/termination-log")}})
	prepare(t, m, g, Container{ID: "without", Name: "app"})
	for _, id := range []string{"without", "unknown"} {
		if err := m.Exited(t.Context(), g, id); err != nil {
			t.Error(err)
		}
	}
	content := func() string {
		b, err := os.ReadFile(file)
		k.check(err)
		return string(b)
	}
	g.message = []byte("it broke\n")
	k.check(m.Exited(t.Context(), g, "c"))
	if got := content(); got != "it broke\n" {
		t.Errorf("%q", got)
	}
	// A guest that may not tell says so, and nothing else comes of it.
	g.kept = status.Error(codes.PermissionDenied, "refused: stream.forbidden at allow.logs")
	k.check(m.Exited(t.Context(), g, "c"))
	if got := content(); !strings.Contains(got, "allow.logs") || strings.Contains(got, "broke") || strings.Contains(got, "forbidden") {
		t.Errorf("%q", got)
	}
	g.message, g.kept = nil, nil
	k.check(os.WriteFile(file, nil, 0o644))
	k.check(m.Exited(t.Context(), g, "c"))
	if got := content(); got != "" {
		t.Errorf("of a container that said nothing: %q", got)
	}
	g.message = []byte(strings.Repeat("a", 9000) + "end")
	k.check(m.Exited(t.Context(), g, "c"))
	if got := content(); len(got) != 4096 || !strings.HasSuffix(got, "end") {
		t.Errorf("%d bytes", len(got))
	}
	k.check(m.Lost("c", "the machine has ended: "+strings.Repeat("ä", 9000)))
	if got := content(); len(got) > 4096 || !strings.HasPrefix(got, "the machine has ended: ä") || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %.100q", len(got), got)
	}
	k.check(m.Lost("without", "nobody asked"))
	// What is not the kubelet's file is not written to.
	victim := filepath.Join(t.TempDir(), "victim")
	k.check(os.WriteFile(victim, []byte("v"), 0o644))
	replace := map[string]func() error{
		"a link": func() error { return os.Symlink(victim, file) },
		"a pipe": func() error { return unix.Mkfifo(file, 0o600) },
		"a read pipe": func() error {
			k.check(unix.Mkfifo(file, 0o600))
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			t.Cleanup(func() { _ = f.Close() })
			return err
		},
		"a directory": func() error { return os.Mkdir(file, 0o755) },
		"nothing":     func() error { return nil },
		"a link before": func() error {
			k.check(os.Rename(filepath.Dir(file), filepath.Dir(file)+"2"))
			k.write("volumes/0a1b", "v")
			return os.Symlink("../volumes", filepath.Dir(file))
		},
	}
	for _, name := range []string{"a link", "a pipe", "a read pipe", "a directory", "nothing", "a link before"} {
		k.check(os.RemoveAll(file))
		k.check(replace[name]())
		if err := m.Exited(t.Context(), g, "c"); err == nil {
			t.Errorf("%s: written", name)
		}
		if err := m.Lost("c", "x"); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	for _, name := range []string{victim, filepath.Join(k.pod, "volumes/0a1b")} {
		if b, err := os.ReadFile(name); string(b) != "v" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}
