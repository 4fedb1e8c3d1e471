package podcgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Files of the kernel: cgroups(7), and Linux's admin-guide/cgroup-v1 and -v2.
const (
	procsFile       = "cgroup.procs"
	controllersFile = "cgroup.controllers" // of version 2 only
)

// tree is the file system of all hierarchies, each of version 1 in a directory
// of its own. Names are relative.
type tree interface {
	Mkdir(name string) error
	// Rmdir removes a group without processes.
	Rmdir(name string) error
	ReadFile(name string) ([]byte, error)
	WriteFile(name, content string) error
	// Groups lists the directories in one.
	Groups(name string) ([]string, error)
	Close() error
}

// rootTree is the kernel's.
type rootTree struct{ *os.Root }

func openTree(root string) (tree, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	return rootTree{r}, nil
}

func (r rootTree) Mkdir(name string) error { return r.Root.Mkdir(name, 0o755) }

func (r rootTree) Rmdir(name string) error { return r.Remove(name) }

// maxRead bounds a file of the kernel's, which are shorter; only lists of very
// many processes are not.
const maxRead = 1 << 20

func (r rootTree) ReadFile(name string) ([]byte, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return io.ReadAll(io.LimitReader(f, maxRead))
}

func (r rootTree) WriteFile(name, content string) error {
	f, err := r.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

func (r rootTree) Groups(name string) ([]string, error) {
	entries, err := fs.ReadDir(r.FS(), name)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, e.Name())
		}
	}
	return list, nil
}

// readSelf reads where the process is: the path in the hierarchy of each
// controller, by its name, and of version 2 by the empty name.
func readSelf(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("control groups of this process: %w", err)
	}
	return parseSelf(string(text)), nil
}

// parseSelf reads the lines NUMBER:CONTROLLERS:PATH of cgroups(7).
func parseSelf(text string) map[string]string {
	self := map[string]string{}
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !path.IsAbs(parts[2]) {
			continue
		}
		for name := range strings.SplitSeq(parts[1], ",") {
			self[strings.TrimPrefix(name, "name=")] = path.Clean(parts[2])
		}
	}
	return self
}

// hierarchy is a tree of groups.
type hierarchy struct {
	// dir is its directory: "." of version 2.
	dir         string
	controllers []string
	unified     bool
	// origin is where the process was.
	origin string
}

func (h hierarchy) name() string {
	if h.unified {
		return "cgroup version 2"
	}
	return h.dir
}

// at is the name of a file or group in the tree.
func (h hierarchy) at(p string, file ...string) string {
	return path.Join(append([]string{h.dir, "." + p}, file...)...)
}

// leaf is where the process is put for a group.
func (h hierarchy) leaf(p string) string {
	if h.unified {
		return path.Join(p, leafHost)
	}
	return p
}

// needed are the controllers without which a pod is not limited.
func needed() []string { return []string{"cpu", "memory", "pids"} }

// hierarchies finds those that are mounted: the one of version 2, or, where it
// is not the top, those of version 1.
func hierarchies(t tree, self map[string]string) ([]hierarchy, error) {
	if text, err := t.ReadFile(controllersFile); err == nil {
		return []hierarchy{{dir: ".", controllers: strings.Fields(string(text)), unified: true, origin: origin(self, "")}}, nil
	}
	dirs, err := t.Groups(".")
	if err != nil {
		return nil, err
	}
	var list []hierarchy
	for _, dir := range dirs {
		if _, err := t.ReadFile(path.Join(dir, controllersFile)); err == nil {
			continue // version 2 without controllers, beside those of version 1
		}
		if _, err := t.ReadFile(path.Join(dir, procsFile)); err != nil {
			continue
		}
		names := strings.Split(dir, ",")
		list = append(list, hierarchy{dir: dir, controllers: names, origin: origin(self, names[0])})
	}
	if len(list) == 0 {
		return nil, errors.New("no hierarchy of control groups is mounted on this node")
	}
	return list, nil
}

func origin(self map[string]string, name string) string {
	if p, ok := self[name]; ok {
		return p
	}
	return "/"
}

// choose returns the hierarchies in which the pod has a group, or all where it
// has one nowhere, and the needed controllers that are not among them.
func choose(t tree, all []hierarchy, parent string) (chosen []hierarchy, missing []string) {
	for _, h := range all {
		if _, err := t.Groups(h.at(parent)); err == nil {
			chosen = append(chosen, h)
		}
	}
	if len(chosen) == 0 {
		chosen = all
	}
	for _, name := range needed() {
		if !slices.ContainsFunc(chosen, func(h hierarchy) bool { return slices.Contains(h.controllers, name) }) {
			missing = append(missing, name)
		}
	}
	return chosen, missing
}

// make makes a group, with those above it that are missing.
func (h hierarchy) make(t tree, p string) error {
	done := "/"
	for name := range strings.SplitSeq(h.leaf(p)[1:], "/") {
		next := path.Join(done, name)
		err := t.Mkdir(h.at(next))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := h.fillCPUSet(t, done, next); err != nil {
			return err
		}
		done = next
	}
	return nil
}

// fillCPUSet gives a new group of version 1 its parent's processors and memory
// nodes: without any it takes no process (Linux's cgroup-v1/cpusets).
func (h hierarchy) fillCPUSet(t tree, parent, p string) error {
	if h.unified || !slices.Contains(h.controllers, "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := t.ReadFile(h.at(p, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue
		}
		above, err := t.ReadFile(h.at(parent, file))
		if err != nil {
			return err
		}
		if err := t.WriteFile(h.at(p, file), strings.TrimSpace(string(above))); err != nil {
			return err
		}
	}
	return nil
}
