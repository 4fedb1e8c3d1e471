package install

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// daemons are the containerd programs of this machine: Debian's, and those of
// `make k8s-node`.
func daemons(t *testing.T) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		unsupported(t, "needs the right to change the root directory")
	}
	built, err := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("COFFER_K8S_PROGRAMS"), "../../build/k8s"), "containerd-*/containerd"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := exec.LookPath("containerd"); err == nil {
		built = append(built, p)
	}
	if len(built) == 0 {
		unsupported(t, "no containerd: install it, or run `make k8s-node`")
	}
	return built
}

func unsupported(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE_K8S") != "" {
		t.Fatalf("%s, and COFFER_REQUIRE_K8S is set", why)
	}
	t.Skip(why)
}

// TestRealContainerd has real daemons read what was installed.
func TestRealContainerd(t *testing.T) {
	t.Parallel()
	for _, daemon := range daemons(t) {
		version, err := exec.Command(daemon, "--version").Output()
		if err != nil {
			t.Fatal(err)
		}
		c := &Containerd{}
		if err := c.setVersion(string(version)); err != nil {
			t.Fatal(err)
		}
		configs := map[string]string{
			"none":        "",
			"2 of Debian": "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n",
			"2":           main2 + "  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.special]\n    runtime_type = \"io.containerd.special.v2\"\n",
		}
		if c.Major >= 2 {
			configs["3"] = "version = 3\nimports = [\n  'conf.d/*.toml',\n]\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/x']\n"
		}
		if c.greatest() >= 4 {
			configs["4"] = "version = 4\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/x']\n"
		}
		for name, text := range configs {
			t.Run(c.Version+"/"+name, func(t *testing.T) {
				t.Parallel()
				o := options(t, "", map[string]string{"etc/containerd/x": ""})
				o.Flavour = Plain
				if text != "" {
					put(t, o.Root, map[string]string{"etc/containerd/config.toml": text})
				}
				putProgram(t, o.Root, daemon)
				if c.sandboxer(SandboxerShim) == nil {
					o.Sandboxer = SandboxerShim
				}
				before := tree(t, o.Root)
				r := install(t, o)
				if !r.Checked {
					t.Errorf("not checked: %q", r.Notes)
				}
				judge(t, o, c, text)
				first := tree(t, o.Root)
				if again := install(t, o); !again.Checked || again.Restart || len(again.Written) > 0 {
					t.Errorf("installed again: %+v", again)
				}
				same(t, first, tree(t, o.Root))
				uninstall(t, o)
				same(t, before, tree(t, o.Root))
			})
		}
	}
}

// judge reads what containerd makes of it.
func judge(t *testing.T, o Options, c *Containerd, text string) {
	t.Helper()
	out, err := Chroot(o.Root)(t.Context(), "/usr/bin/containerd", "config", "dump")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := boundedtoml.Decode(out, execOutput)
	if err != nil {
		t.Fatal(err)
	}
	plugin := criPlugin2
	if c.Major >= 2 {
		plugin = criPlugin3
	}
	runtimes := table(table(table(table(doc, "plugins"), plugin), "containerd"), "runtimes")
	soft := table(runtimes, "coffer-qemu-soft")
	if soft["runtime_type"] != RuntimeType || table(soft, "options")["ConfigPath"] != "/opt/coffer/etc/coffer-qemu-soft.toml" || soft["privileged_without_host_devices"] != true ||
		fmt.Sprint(soft["pod_annotations"]) != "[coffer-project.io/* io.katacontainers.config.hypervisor.cc_init_data]" {
		t.Errorf("%v", soft)
	}
	if c.Major >= 2 && (soft["runtime_path"] != "/opt/coffer/bin/"+ShimName || soft["sandboxer"] != cmp.Or(o.Sandboxer, SandboxerPod)) {
		t.Errorf("%v", soft)
	}
	if runtimes["runc"] == nil && !strings.Contains(text, "special") {
		t.Error("the default runtime is gone")
	}
	if strings.Contains(text, "special") && (table(runtimes, "special")["runtime_type"] != "io.containerd.special.v2" || !strings.Contains(string(out), "my/pause:1")) {
		t.Error("the rest of the section is gone")
	}
}

// putProgram copies a program and the libraries that it is linked to.
func putProgram(t *testing.T, root, program string) {
	t.Helper()
	files := map[string]string{program: "usr/bin/containerd"}
	if out, err := exec.Command("ldd", program).Output(); err == nil {
		for _, word := range strings.Fields(string(out)) {
			if filepath.IsAbs(word) {
				files[word] = word
			}
		}
	}
	// A process that is forked while a program is written has it open, and the
	// program cannot be run then.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for from, to := range files {
		in, err := os.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(out, in)
		if e := out.Close(); err != nil || e != nil {
			t.Fatal(err, e)
		}
		_ = in.Close()
	}
}
