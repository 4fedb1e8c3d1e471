// Package podcgroup puts a pod's shim and machine into the pod's control group,
// so that what the kubelet sets there (limits, requests, and with them the
// overhead of the RuntimeClass) holds for them.
//
// The container runtime says which group that is (linux.cgroupsPath of the
// sandbox's bundle; [Parse] reads both of its forms). [Enter] makes it, below the
// pod's own group, which the kubelet has made, and moves the calling process
// there; children are born in it. [Group.Leave] moves the process back to where
// it came from, [Group.Remove] removes what Enter made, and after a crash
// [Remove] does. No process is ever killed here.
//
// Version 1 has a tree for each controller: the process is in the group of each
// that the pod has one in. Version 2 has one tree, in which only leaves have
// processes; the group has two, of which one is for containers that are made
// beside the machine. systemd is not asked: its slices are found, and a scope's
// directory is made in the slice of the pod.
package podcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
)

// Leaves of a group of version 2.
const (
	leafHost       = "host"
	leafContainers = "containers"
)

// Options of Enter.
type Options struct {
	// Path is what the container runtime says, in either form.
	Path string
	// Note, when not nil, is told what [Remove] is to be given after a crash, before
	// any of it is made. An error of it is Enter's.
	Note func(made []string) error
	// Warn, when not nil, is told what of the pod is not limited.
	Warn func(message string)

	// Root is where control groups are mounted, Self the calling process's
	// membership; empty: /sys/fs/cgroup and /proc/self/cgroup.
	Root, Self string
}

// Places on every Linux.
const (
	DefaultRoot = "/sys/fs/cgroup"
	defaultSelf = "/proc/self/cgroup"
)

// Group is a group that the process is in. Its methods are safe for concurrent
// use.
type Group struct {
	tree   tree
	path   string
	made   []string
	trees  []hierarchy
	before counts

	mu      sync.Mutex
	in      bool // the process is in it
	removed bool
}

// Enter makes the group and moves the calling process, all its threads, into it.
// A group that is there already has to be empty. After an error the process is
// where it was, and nothing is left.
func Enter(o Options) (*Group, error) {
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	if o.Self == "" {
		o.Self = defaultSelf
	}
	t, err := openTree(o.Root)
	if err != nil {
		return nil, err
	}
	self, err := readSelf(o.Self)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	g, err := enter(t, self, o)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return g, nil
}

func enter(t tree, self map[string]string, o Options) (*Group, error) {
	p, err := Parse(o.Path)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Group, error) { return nil, fmt.Errorf("control group %s: %w", p, err) }
	all, err := hierarchies(t, self)
	if err != nil {
		return fail(err)
	}
	trees, missing := choose(t, all, path.Dir(p))
	if len(missing) > 0 && o.Warn != nil {
		o.Warn(fmt.Sprintf("the node does not limit the pod's machine in %s: there is no control group of the pod for it", strings.Join(missing, ", ")))
	}
	if err := vacant(t, trees, p); err != nil {
		return fail(err)
	}
	g := &Group{tree: t, path: p, trees: trees, made: absent(t, trees, p)}
	if o.Note != nil {
		if err := o.Note(slices.Clone(g.made)); err != nil {
			return fail(err)
		}
	}
	if err := g.join(); err != nil {
		return nil, errors.Join(fmt.Errorf("control group %s: %w", p, err), g.Leave(), g.remove())
	}
	g.before = g.counts()
	return g, nil
}

// vacant refuses a group that somebody uses.
func vacant(t tree, trees []hierarchy, p string) error {
	for _, h := range trees {
		below, err := t.Groups(h.at(p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		procs, err := t.ReadFile(h.at(p, procsFile))
		if err != nil {
			return err
		}
		if len(below) > 0 || len(strings.TrimSpace(string(procs))) > 0 {
			return errors.New("expected one of the pod's own, got one that others use: another pod of that id may not have ended, or linux.cgroupsPath names a group of somebody else")
		}
	}
	return nil
}

// absent lists the groups that have to be made, the deepest first; the last
// one's removal is ours in any case.
func absent(t tree, trees []hierarchy, p string) []string {
	list := []string{p}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		for _, h := range trees {
			if _, err := t.Groups(h.at(dir)); err == nil {
				return list
			}
		}
		list = append(list, dir)
	}
	return list
}

// joinAttempts is for groups above ours that another pod removes while they are
// made: it made them, too.
const joinAttempts = 3

func (g *Group) join() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, h := range g.trees {
		var err error
		for range joinAttempts {
			if err = h.make(g.tree, g.path); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		if err == nil {
			err = g.tree.WriteFile(h.at(h.leaf(g.path), procsFile), thisProcess)
		}
		if err != nil {
			g.trees = g.trees[:i+1]
			g.in = i > 0
			return fmt.Errorf("%s: %w", h.name(), err)
		}
	}
	g.in = true
	return nil
}

// thisProcess stands for the process that writes it (cgroups(7), cgroup.procs),
// whatever its id in its PID namespace.
const thisProcess = "0"

// Path is the group's path in every hierarchy.
func (g *Group) Path() string { return g.path }

// Containers is the path of the group for containers that are made beside the
// machine, in the hierarchy of version 2; empty where that has no controllers.
func (g *Group) Containers() string {
	if !g.trees[0].unified {
		return ""
	}
	return path.Join(g.path, leafContainers)
}

// Leave moves the process back to where it came from, or, where that is gone,
// to the top. It may be called again.
func (g *Group) Leave() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.in {
		return nil
	}
	var errs []error
	for _, h := range g.trees {
		err := g.tree.WriteFile(h.at(h.origin, procsFile), thisProcess)
		if err != nil {
			err = g.tree.WriteFile(h.at("/", procsFile), thisProcess)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("leave the control group %s: %s: %w", g.path, h.name(), err))
		}
	}
	g.in = len(errs) > 0
	return errors.Join(errs...)
}

// Remove leaves the group if the process is still in it, and removes what Enter
// made. It may be called again.
func (g *Group) Remove() error {
	if err := g.Leave(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed {
		return nil
	}
	if err := g.remove(); err != nil {
		return err
	}
	g.removed = true
	return g.tree.Close()
}

func (g *Group) remove() error { return remove(g.tree, g.trees, g.made) }
