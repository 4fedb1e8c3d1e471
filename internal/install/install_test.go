package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// sources are programs and a guest image that an installation copies.
func sources(t *testing.T, content string) (shim, program, guest string) {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, map[string]string{"shim": "shim " + content, "coffer": "coffer " + content, "guest/vmlinuz": "kernel " + content, "guest/initrd": "initrd"})
	digest := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return digestOf(data)
	}
	m := manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64", Cmdline: "quiet", Inputs: digest("shim"),
		Kernel: manifest.File{Name: "vmlinuz", SHA256: digest("guest/vmlinuz"), Size: int64(len("kernel " + content))},
		Initrd: manifest.Initrd{File: manifest.File{Name: "initrd", SHA256: digest("guest/initrd"), Size: 6}, Compression: "none"},
		Agent:  manifest.Agent{SHA256: digest("coffer")},
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, map[string]string{"guest/manifest.json": string(text)})
	return filepath.Join(dir, "shim"), filepath.Join(dir, "coffer"), filepath.Join(dir, "guest")
}

func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// options install to a node with the given files.
func options(t *testing.T, version string, files map[string]string) Options {
	t.Helper()
	o := Options{Root: t.TempDir(), Version: version}
	o.Shim, o.Program, o.GuestImage = sources(t, "1")
	put(t, o.Root, files)
	return o
}

func install(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := tryInstall(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryInstall(t *testing.T, o Options) (*Result, error) {
	t.Helper()
	p, err := Prepare(t.Context(), o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.Apply(t.Context(), "test")
}

func uninstall(t *testing.T, o Options) *Result {
	t.Helper()
	r, err := Uninstall(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tree is everything below a root: type, mode, owner, content, and the time of
// files.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		uid, gid := owner(info)
		text := fmt.Sprintf("%s %d %d", info.Mode(), uid, gid)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " " + target
		case d.Type().IsRegular() && info.Size() < 1<<20:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %q", info.ModTime().UnixNano(), data)
		}
		out[strings.TrimPrefix(p, root)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for p := range maps.Keys(merged(before, after)) {
		if before[p] != after[p] {
			t.Errorf("%s: was %q, is %q", p, before[p], after[p])
		}
	}
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

const main2 = "# mine\nversion = 2\nimports = [\"/etc/containerd/certs/*.toml\"] # keep\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"my/pause:1\"\n"

// nodes are nodes with what their containerd is told.
func nodes() []struct {
	name, version string
	files         map[string]string
} {
	return []struct {
		name, version string
		files         map[string]string
	}{
		{"no configuration 1.6", "1.6.20", map[string]string{"usr/bin/keep": ""}},
		{"no configuration 2.2", "v2.2.9", map[string]string{"usr/bin/keep": ""}},
		{"no configuration 2.4", "2.4.2", map[string]string{"usr/bin/keep": ""}},
		{"version 2, 1.7", "1.7.29", map[string]string{"etc/containerd/config.toml": main2}},
		{"version 2, 2.2", "2.2.9", map[string]string{"etc/containerd/config.toml": main2}},
		{"version 3", "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 3\nroot = \"/x\"\n"}},
		{"version 4", "2.4.2", map[string]string{"etc/containerd/config.toml": "version = 4"}},
		{"imported already", "2.4.2", map[string]string{"etc/containerd/config.toml": "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"}},
		{"imported relatively", "2.4.2", map[string]string{"etc/containerd/config.toml": "imports = [\"conf.d/*.toml\"]\nversion = 3\n", "etc/containerd/conf.d/other.toml": "version = 3\n"}},
		{"k3s of old", "", map[string]string{"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "version = 2\n"}},
		{"k3s", "", map[string]string{"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "version = 3\nimports = [\"/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/*.toml\"]\n"}},
		{"RKE2", "", map[string]string{"var/lib/rancher/rke2/agent/etc/containerd/config.toml": "version = 3\n"}},
	}
}

func TestTwentyLoops(t *testing.T) {
	t.Parallel()
	for _, tc := range nodes() {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := options(t, tc.version, tc.files)
			if _, ok := tc.files["usr/bin/keep"]; ok {
				o.Flavour = Plain
			}
			before := tree(t, o.Root)
			for i := range 20 {
				r := install(t, o)
				if !r.Restart || len(r.Written) == 0 {
					t.Fatalf("loop %d: %+v", i, r)
				}
				first := tree(t, o.Root)
				if link := first["/usr/local/bin/"+ShimName]; !strings.HasSuffix(link, " /opt/coffer/bin/"+ShimName) {
					t.Fatalf("the link on containerd's PATH is %q", link)
				}
				if again := install(t, o); again.Restart || len(again.Written) != 0 {
					t.Fatalf("loop %d, again: %+v", i, again)
				}
				same(t, first, tree(t, o.Root)) // the record, too
				if r := uninstall(t, o); !r.Restart || len(r.Notes) != 0 {
					t.Fatalf("loop %d: %+v", i, r)
				}
				same(t, before, tree(t, o.Root))
				if t.Failed() {
					t.FailNow()
				}
			}
			if _, err := Uninstall(t.Context(), o); !errors.Is(err, ErrNotInstalled) {
				t.Errorf("uninstalled twice: %v", err)
			}
		})
	}
}

// TestAdministratorEdits: what was edited meanwhile stays, our import goes.
func TestAdministratorEdits(t *testing.T) {
	t.Parallel()
	o := options(t, "2.2.9", map[string]string{"etc/containerd/config.toml": main2})
	install(t, o)
	p := filepath.Join(o.Root, "etc/containerd/config.toml")
	text, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	put(t, o.Root, map[string]string{"etc/containerd/config.toml": string(text) + "[debug]\nlevel = \"debug\"\n", "etc/containerd/conf.d/admin.toml": "version = 2\n"})
	if err := os.Chmod(p, 0o640); err != nil {
		t.Fatal(err)
	}
	r := uninstall(t, o)
	after := tree(t, o.Root)
	got, err := os.ReadFile(p)
	if err != nil || string(got) != main2+"[debug]\nlevel = \"debug\"\n" || !strings.HasPrefix(after["/etc/containerd/config.toml"], "-rw-r-----") {
		t.Errorf("%v, %s %q", err, after["/etc/containerd/config.toml"], got)
	}
	if len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "was edited since") || !strings.Contains(r.Notes[1], "conf.d: it holds files") {
		t.Errorf("notes: %q", r.Notes)
	}
	for p := range after {
		if strings.Contains(p, "coffer") {
			t.Errorf("left %s", p)
		}
	}
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	o := options(t, "2.2.9", map[string]string{"etc/containerd/config.toml": main2})
	before := tree(t, o.Root)
	install(t, o)
	o.Shim, o.Program, o.GuestImage = sources(t, "2")
	o.Extra = []byte("default_memory = 256")
	r := install(t, o)
	if r.Restart {
		t.Error("containerd need not restart: nothing of its own has changed")
	}
	now := tree(t, o.Root)
	var kernels []string
	for p, text := range now {
		if strings.HasSuffix(p, "vmlinuz") {
			kernels = append(kernels, text)
		}
	}
	if len(kernels) != 1 || !strings.Contains(kernels[0], "kernel 2") || !strings.Contains(now["/opt/coffer/bin/"+ShimName], "shim 2") ||
		!strings.Contains(now["/opt/coffer/etc/coffer-qemu-soft.toml"], "default_memory = 256") {
		t.Errorf("%q, %v", kernels, now)
	}
	uninstall(t, o)
	same(t, before, tree(t, o.Root))
}

// TestDied installs and uninstalls with a process that dies after each of its
// changes of the file system, and cleans up after it.
func TestDied(t *testing.T) {
	t.Parallel()
	for _, during := range []string{"install", "upgrade", "uninstall"} {
		t.Run(during, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				o := options(t, "1.7.20", map[string]string{"etc/containerd/config.toml": main2, "etc/containerd/certs/a.toml": "version = 2\n", "opt/x": ""})
				before := tree(t, o.Root)
				if during != "install" {
					install(t, o)
				}
				if during == "upgrade" {
					o.Shim, o.Program, o.GuestImage = sources(t, "2")
				}
				if done := dieAt(t, o, during, step); done {
					if step < 10 {
						t.Fatalf("only %d steps", step)
					}
					return
				}
				if step%2 == 0 {
					install(t, o) // on top of what is left
				}
				if _, err := Uninstall(t.Context(), o); err != nil && !errors.Is(err, ErrNotInstalled) {
					t.Fatalf("step %d: %v", step, err)
				}
				same(t, before, tree(t, o.Root))
				if t.Failed() {
					t.Fatalf("died at step %d", step)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	plain := map[string]string{"etc/containerd/config.toml": "version = 2\n"}
	for _, tc := range []struct {
		name    string
		version string
		files   map[string]string
		change  func(*Options)
		want    string
	}{
		{"too old", "1.5.18", plain, nil, "containerd 1.5.18 is too old: expected 1.6 or newer"},
		{"no version", "", plain, nil, "version is not known"},
		{"odd version", "two", plain, nil, `expected N.N.N, got "two"`},
		{"version 1", "1.7.0", map[string]string{"etc/containerd/config.toml": "[plugins.cri]\n"}, nil, "is of version 1: expected 2 to 2"},
		{"newer configuration", "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 4\n"}, nil, "is of version 4, but containerd 2.2.9 reads versions 2 to 3"},
		{"broken", "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 2\n[x\n"}, nil, "config.toml: line 3"},
		{"no CRI", "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 2\ndisabled_plugins = [\"cri\"]\n"}, nil, "turns its CRI plugin off"},
		{"foreign drop-in", "2.2.9", merged(plain, map[string]string{"etc/containerd/conf.d/coffer.toml": "x"}), nil, "conf.d/coffer.toml is there and was not written by coffer install"},
		{"foreign shim", "1.7.0", merged(plain, map[string]string{"usr/local/bin/" + ShimName: "x"}), nil, "is there and was not written"},
		{"foreign prefix", "2.2.9", merged(plain, map[string]string{"opt/coffer": "x"}), nil, "record /opt/coffer/install/record.json: not a directory"},
		{"foreign template", "", map[string]string{"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "version = 2\n", "var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl": "x"}, nil, "config.toml.tmpl is there"},
		{"nothing", "2.2.9", nil, nil, "no containerd was found"},
		{"CRI-O", "2.2.9", map[string]string{"usr/bin/crio": ""}, nil, "CRI-O is not supported"},
		{"two", "2.2.9", merged(plain, map[string]string{"var/lib/rancher/k3s/agent/etc/containerd/config.toml": ""}), nil, "the files of several: [containerd k3s]"},
		{"no firmware", "2.2.9", plain, func(o *Options) { o.Handlers = []string{"coffer-qemu-snp"} }, "no firmware for it on this node"},
		{"firmware elsewhere", "2.2.9", plain, func(o *Options) { o.Firmware = map[string]string{"tdx": "/nowhere"} }, "none of /nowhere is a file"},
		{"unknown handler", "2.2.9", plain, func(o *Options) { o.Handlers = []string{"kata"} }, `got "kata"`},
		{"prefix", "2.2.9", plain, func(o *Options) { o.Prefix = "opt/coffer" }, "expected a clean absolute path"},
		{"no shim", "2.2.9", plain, func(o *Options) { o.Shim = "/nowhere" }, "program containerd-shim-coffer-v2"},
		{"configuration of handlers", "2.2.9", plain, func(o *Options) { o.Check = func([]byte) error { return errors.New("no") } }, "configuration of handler coffer-qemu-soft: no"},
		{"bad image", "2.2.9", plain, func(o *Options) { put(t, o.GuestImage, map[string]string{"initrd": "other!"}) }, "initrd has digest"},
		{"bad record", "2.2.9", merged(plain, map[string]string{"opt/coffer/install/record.json": `{"format":1,"files":[{"path":"../x","sha256":["a"]}]}`}), nil, "expected a clean absolute path"},
		{"shim's sandboxes", "2.2.9", plain, func(o *Options) { o.Sandboxer = SandboxerShim }, "sandboxer: shim needs containerd 2.3 or newer, this node has 2.2.9"},
		{"shim's sandboxes of old", "1.7.0", plain, func(o *Options) { o.Sandboxer = SandboxerShim }, "needs containerd 2.3 or newer, this node has 1.7.0"},
		{"missing import", "1.7.0", map[string]string{"etc/containerd/config.toml": "version = 2\nimports = [\"/nowhere.toml\"]\n"}, nil, "imports /nowhere.toml, which does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := options(t, tc.version, tc.files)
			if tc.change != nil {
				tc.change(&o)
			}
			before := tree(t, o.Root)
			if _, err := tryInstall(t, o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			same(t, before, tree(t, o.Root))
		})
	}
}

// TestLinksStayInside: no link of the node leads out of its root.
func TestLinksStayInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	put(t, outside, map[string]string{"config.toml": "version = 2\n"})
	for _, link := range []string{"etc", "opt", "etc/containerd", "etc/containerd/config.toml", "opt/coffer"} {
		o := options(t, "2.2.9", map[string]string{"x": ""})
		o.Flavour = Plain
		if err := os.MkdirAll(filepath.Join(o.Root, filepath.Dir(link)), 0o755); err != nil {
			t.Fatal(err)
		}
		target := outside
		if filepath.Ext(link) == ".toml" {
			target = filepath.Join(outside, "config.toml")
		}
		if err := os.Symlink(target, filepath.Join(o.Root, link)); err != nil {
			t.Fatal(err)
		}
		before := tree(t, outside)
		if _, err := tryInstall(t, o); err == nil {
			t.Errorf("%s: installed through a link", link)
		}
		same(t, before, tree(t, outside))
	}
}

func TestChangedFilesStay(t *testing.T) {
	t.Parallel()
	o := options(t, "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 3\n"})
	install(t, o)
	put(t, o.Root, map[string]string{"opt/coffer/etc/coffer-qemu-soft.toml": "mine"})
	if _, err := tryInstall(t, o); err == nil || !strings.Contains(err.Error(), "was changed since it was installed") {
		t.Errorf("%v", err)
	}
	r := uninstall(t, o)
	if !slices.ContainsFunc(r.Notes, func(s string) bool {
		return strings.Contains(s, "left /opt/coffer/etc/coffer-qemu-soft.toml")
	}) {
		t.Errorf("%q", r.Notes)
	}
	if _, err := os.Stat(filepath.Join(o.Root, "opt/coffer/etc/coffer-qemu-soft.toml")); err != nil {
		t.Error(err)
	}
	// It is a foreign file from now on.
	if _, err := tryInstall(t, o); err == nil || !strings.Contains(err.Error(), "was not written by coffer install") {
		t.Errorf("%v", err)
	}
}

// TestRestart: what was not restarted is asked for again, until it was.
func TestRestart(t *testing.T) {
	t.Parallel()
	o := options(t, "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 3\n", "usr/bin/systemctl": ""})
	if err := os.Chmod(filepath.Join(o.Root, "usr/bin/systemctl"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := tree(t, o.Root)
	var calls []string
	broken := errors.New("no bus")
	o.Restarts = true
	o.Exec = func(_ context.Context, argv ...string) ([]byte, error) {
		calls = append(calls, strings.Join(argv[1:], " "))
		if argv[1] == "restart" {
			return nil, broken
		}
		return nil, nil
	}
	for range 2 {
		r := install(t, o)
		if !r.Restart {
			t.Fatal("no restart is asked for")
		}
		if _, err := Restart(t.Context(), o, r.Units); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	}
	broken = nil
	if done, err := Restart(t.Context(), o, install(t, o).Units); err != nil || !slices.Equal(done, []string{"containerd.service"}) {
		t.Errorf("%q, %v", done, err)
	}
	if r := install(t, o); r.Restart {
		t.Error("it was restarted")
	}
	if want := []string{"is-active --quiet containerd.service", "restart containerd.service"}; !slices.Equal(calls[:2], want) {
		t.Errorf("%q", calls)
	}
	if r := uninstall(t, o); !r.Restart {
		t.Error("no restart after the removal")
	}
	same(t, before, tree(t, o.Root))
}

// TestContainerdRefuses: what containerd does not read is taken back.
func TestContainerdRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		dump func(call int) (string, error)
		want string
	}{
		{"broken before", func(int) (string, error) { return "", errors.New("broken") }, "as it is now: broken"},
		{"broken by us", func(call int) (string, error) {
			if call == 1 {
				return "version = 3\n", nil
			}
			return "", errors.New("broken")
		}, "does not read its configuration with our handlers: broken"},
		{"not seen", func(int) (string, error) { return "version = 3\n", nil }, "does not see the handler coffer-qemu-soft"},
		{"others changed", func(call int) (string, error) {
			return fmt.Sprintf("version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.coffer-qemu-soft]\nruntime_type=\"x\"\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"n%d\"\n", call), nil
		}, "another value of plugins.io.containerd.cri.v1.images.snapshotter"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := options(t, "2.2.9", map[string]string{"etc/containerd/config.toml": "version = 3\n", "usr/bin/containerd": ""})
			if err := os.Chmod(filepath.Join(o.Root, "usr/bin/containerd"), 0o755); err != nil {
				t.Fatal(err)
			}
			call := 0
			o.Exec = func(_ context.Context, argv ...string) ([]byte, error) {
				call++
				text, err := tc.dump(call)
				return []byte(text), err
			}
			before := tree(t, o.Root)
			if _, err := tryInstall(t, o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			same(t, before, tree(t, o.Root))
		})
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"complete":true,"program":"","handlers":[],"containerd":{"flavour":"","version":"","config":"","config_version":2,"drop_in":"","units":[]},"directories":["/a"],"files":[{"path":"/a/b","sha256":["c"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for _, f := range r.Files {
			if !strings.HasPrefix(f.Path, "/") || strings.Contains(f.Path, "/../") {
				t.Fatalf("%q", f.Path)
			}
		}
	})
}
