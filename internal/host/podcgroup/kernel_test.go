package podcgroup_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/podcgroup"
)

// Names of the environment with which this program is the one that enters.
const (
	envRoot = "COFFER_PODCGROUP_TEST_ROOT"
	envPath = "COFFER_PODCGROUP_TEST_PATH"
)

// TestMain makes this program a process that enters a group, starts a child, and
// does what it is told by lines on standard input.
func TestMain(m *testing.M) {
	if os.Getenv(envPath) == "" {
		os.Exit(m.Run())
	}
	if err := enterer(); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

func enterer() error {
	g, err := podcgroup.Enter(podcgroup.Options{
		Root: os.Getenv(envRoot), Path: os.Getenv(envPath), Warn: func(m string) { fmt.Fprintln(os.Stderr, m) },
		Note: func(made []string) error { _, err := fmt.Println("made", strings.Join(made, " ")); return err },
	})
	if err != nil {
		return err
	}
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		return err
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	fmt.Println("child", child.Process.Pid)
	for {
		var word string
		if _, err := fmt.Scanln(&word); err != nil {
			return err
		}
		switch word {
		case "eat":
			// It is in the group, and so the kernel kills it.
			eater := exec.Command("dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1")
			err := eater.Run()
			killed, own := g.OutOfMemory()
			fmt.Printf("eaten %v %v %d %v\n", killed, own, g.Limit(), err)
		case "remove":
			_ = child.Process.Kill()
			_ = child.Wait()
			if err := g.Remove(); err != nil {
				return err
			}
			return nil
		}
	}
}

// roots are this machine's: hierarchies of version 1, and one of version 2, which
// has hardly any controllers where those of version 1 have them.
func roots(t *testing.T) map[string]string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	found := map[string]string{}
	for _, root := range []string{podcgroup.DefaultRoot, podcgroup.DefaultRoot + "/unified"} {
		if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
			found["version 2"] = root
		} else if _, err := os.Stat(root + "/memory/cgroup.procs"); err == nil {
			found["version 1"] = root
		}
	}
	if len(found) == 0 {
		t.Skip("no control groups are mounted")
	}
	return found
}

// process is the other program.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    interface{ Write([]byte) (int, error) }
	lines chan string
}

func start(t *testing.T, root, path string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(self), lines: make(chan string, 100)}
	p.cmd.Env = append(os.Environ(), envRoot+"="+root, envPath+"="+path)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// Write takes the other's output.
func (p *process) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		p.lines <- strings.TrimSpace(line)
	}
	return len(b), nil
}

func (p *process) expect(prefix string) string {
	p.t.Helper()
	select {
	case line := <-p.lines:
		rest, ok := strings.CutPrefix(line, prefix+" ")
		if !ok {
			p.t.Fatalf("expected %q, got %q", prefix, line)
		}
		return rest
	case <-time.After(30 * time.Second):
		p.t.Fatalf("no %q", prefix)
	}
	return ""
}

func (p *process) say(word string) {
	p.t.Helper()
	if _, err := p.in.Write([]byte(word + "\n")); err != nil {
		p.t.Fatal(err)
	}
}

// of is where a process is, without the numbers of hierarchies.
func of(t *testing.T, pid string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// left lists groups below a root of a name.
func left(t *testing.T, root, name string) []string {
	t.Helper()
	var list []string
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(path, name) {
			list = append(list, path)
		}
		return nil
	})
	return list
}

func TestKernel(t *testing.T) {
	for version, root := range roots(t) {
		t.Run(version, func(t *testing.T) {
			name := fmt.Sprintf("coffer-podcgroup-%d", os.Getpid())
			path := "/" + name + "/pod1/box"
			made := []string{path, "/" + name + "/pod1", "/" + name}
			t.Cleanup(func() {
				if err := podcgroup.Remove(root, made); err != nil {
					t.Error(err)
				}
			})
			t.Run("remove", func(t *testing.T) {
				p := start(t, root, path)
				if got := p.expect("made"); got != strings.Join(made, " ") {
					t.Errorf("made %s", got)
				}
				in := 0
				for _, pid := range []string{fmt.Sprint(p.cmd.Process.Pid), p.expect("child")} {
					for _, line := range of(t, pid) {
						if strings.HasSuffix(line, map[string]string{"version 1": path, "version 2": path + "/host"}[version]) {
							in++
						}
					}
				}
				if want := map[string]int{"version 1": 2 * len(hierarchies(t, root)), "version 2": 2}[version]; in != want {
					t.Errorf("%d memberships, expected %d", in, want)
				}
				before := of(t, "self")
				p.say("remove")
				if err := p.cmd.Wait(); err != nil {
					t.Errorf("%v: %s", err, <-p.lines)
				}
				if l := left(t, root, name); len(l) > 0 || !slices.Equal(of(t, "self"), before) {
					t.Errorf("left %q", l)
				}
			})
			t.Run("killed", func(t *testing.T) {
				p := start(t, root, path)
				p.expect("made")
				child := p.expect("child")
				if err := p.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = p.cmd.Wait()
				if err := podcgroup.Remove(root, made); err == nil || !strings.Contains(err.Error(), "still has processes") {
					t.Errorf("with a process in it: %v", err)
				}
				if err := exec.Command("kill", "-9", child).Run(); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if err := podcgroup.Remove(root, made); err != nil {
						t.Error(err)
					}
				}
				if l := left(t, root, name); len(l) > 0 {
					t.Errorf("left %q", l)
				}
			})
		})
	}
}

// hierarchies are the directories of version 1.
func hierarchies(t *testing.T, root string) []string {
	t.Helper()
	dirs, err := filepath.Glob(root + "/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(dirs, func(f string) bool {
		info, err := os.Lstat(filepath.Dir(f))
		_, v2 := os.Stat(filepath.Dir(f) + "/cgroup.controllers")
		return err != nil || !info.IsDir() || v2 == nil
	})
}

// TestOutOfMemory: the kernel kills a process for the pod's limit.
func TestOutOfMemory(t *testing.T) {
	root, ok := roots(t)["version 1"]
	if !ok {
		t.Skip("no controller of memory in a hierarchy of version 1")
	}
	name := fmt.Sprintf("coffer-podcgroup-oom-%d", os.Getpid())
	pod := filepath.Join(root, "memory", name)
	if err := os.Mkdir(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := podcgroup.Remove(root, []string{"/" + name + "/box", "/" + name}); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(pod, "memory.limit_in_bytes"), []byte("67108864"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, root, "/"+name+"/box")
	if got := p.expect("made"); got != "/"+name+"/box" {
		t.Errorf("made %s", got)
	}
	p.expect("child")
	p.say("eat")
	if got := p.expect("eaten"); !strings.HasPrefix(got, "true true 67108864 ") {
		t.Errorf("got %s", got)
	}
	p.say("remove")
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(pod, "box")); err == nil {
		t.Error("it is left")
	}
}
