package podcgroup

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernel is a file system of control groups with the rules that matter here, and
// one process, which writes.
type kernel struct {
	files map[string]string // of groups and hierarchies
	dirs  map[string]bool
	procs map[string]bool // groups that have the process, or others
	// fail is a file whose writing fails.
	fail   string
	closed bool
}

// newKernel has hierarchies of version 1, or with none that of version 2, in which
// the process is in /containerd, and where the pod has groups.
func newKernel(pod string, controllers ...string) *kernel {
	k := &kernel{files: map[string]string{}, dirs: map[string]bool{".": true}, procs: map[string]bool{}}
	if len(controllers) == 0 {
		k.populate(".")
		k.files[controllersFile] = "cpuset cpu io memory pids\n"
		controllers = []string{"."}
	}
	for _, c := range controllers {
		if c != "." {
			k.dirs[c] = true
			k.populate(c)
			if c == "cpuset" {
				k.files["cpuset/cpuset.cpus"], k.files["cpuset/cpuset.mems"] = "0-3\n", "0\n"
			}
		}
		k.all(path.Join(c, "containerd"))
		k.procs[path.Join(c, "containerd")] = true
		if pod != "" {
			k.all(path.Join(c, pod))
		}
	}
	return k
}

// all makes a group with those above it.
func (k *kernel) all(name string) {
	if !k.dirs[name] {
		k.all(path.Dir(name))
		_ = k.Mkdir(name)
	}
	if strings.HasPrefix(name, "cpuset/") {
		k.files[name+"/cpuset.cpus"], k.files[name+"/cpuset.mems"] = "2\n", "0\n"
	}
}

func (k *kernel) populate(dir string) {
	k.files[path.Join(dir, procsFile)] = ""
	switch {
	case strings.HasPrefix(dir, "cpuset"):
		k.files[dir+"/cpuset.cpus"], k.files[dir+"/cpuset.mems"] = "\n", "\n"
	case strings.HasPrefix(dir, "memory"):
		k.files[dir+"/memory.limit_in_bytes"] = "9223372036854771712\n"
		k.files[dir+"/memory.failcnt"] = "0\n"
		k.files[dir+"/memory.oom_control"] = "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"
	case k.files[controllersFile] != "":
		k.files[path.Join(dir, controllersFile)] = "memory\n"
		k.files[path.Join(dir, "memory.max")] = "max\n"
		k.files[path.Join(dir, "memory.events")] = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n"
	}
}

func failed(err error, name string) error { return &fs.PathError{Op: "fake", Path: name, Err: err} }

func (k *kernel) Mkdir(name string) error {
	switch {
	case k.dirs[name]:
		return failed(unix.EEXIST, name)
	case !k.dirs[path.Dir(name)]:
		return failed(unix.ENOENT, name)
	}
	k.dirs[name] = true
	k.populate(name)
	return nil
}

func (k *kernel) Rmdir(name string) error {
	below, err := k.Groups(name)
	switch {
	case err != nil:
		return err
	case len(below) > 0 || k.procs[name]:
		return failed(unix.EBUSY, name)
	}
	delete(k.dirs, name)
	maps.DeleteFunc(k.files, func(f, _ string) bool { return path.Dir(f) == name })
	return nil
}

func (k *kernel) ReadFile(name string) ([]byte, error) {
	text, ok := k.files[name]
	if !ok {
		return nil, failed(unix.ENOENT, name)
	}
	if path.Base(name) == procsFile && k.procs[path.Dir(name)] {
		text = "4711\n"
	}
	return []byte(text), nil
}

func (k *kernel) WriteFile(name, content string) error {
	dir := path.Dir(name)
	if _, ok := k.files[name]; !ok {
		return failed(unix.ENOENT, name)
	}
	if name == k.fail {
		return failed(unix.EINVAL, name)
	}
	if path.Base(name) != procsFile {
		k.files[name] = content
		return nil
	}
	if cpus, ok := k.files[dir+"/cpuset.cpus"]; ok && strings.TrimSpace(cpus) == "" {
		return failed(unix.ENOSPC, name)
	}
	tree, _, _ := strings.Cut(name, "/")
	for g := range k.procs {
		if k.files[controllersFile] != "" || strings.HasPrefix(g+"/", tree+"/") {
			delete(k.procs, g)
		}
	}
	k.procs[dir] = true
	return nil
}

func (k *kernel) Groups(name string) ([]string, error) {
	if !k.dirs[name] {
		return nil, failed(unix.ENOENT, name)
	}
	var list []string
	for d := range k.dirs {
		if d != name && path.Dir(d) == name {
			list = append(list, path.Base(d))
		}
	}
	slices.Sort(list)
	return list, nil
}

func (k *kernel) Close() error { k.closed = true; return nil }

// where lists the groups with processes.
func (k *kernel) where() string {
	return strings.Join(slices.Sorted(maps.Keys(k.procs)), " ")
}

// groups lists all groups.
func (k *kernel) groups() string {
	return strings.Join(slices.Sorted(maps.Keys(k.dirs)), " ")
}

func self(t *testing.T, text string) map[string]string {
	t.Helper()
	return parseSelf(text)
}
