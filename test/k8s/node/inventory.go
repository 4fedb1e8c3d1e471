package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Process is one that runs in the node.
type Process struct {
	// PID is the process as this machine sees it, Inner as the node does.
	PID, Inner int
	Args       []string
}

// Name is that of its program's file, as it was called.
func (p Process) Name() string {
	if len(p.Args) == 0 {
		return ""
	}
	return filepath.Base(p.Args[0])
}

// Processes lists what runs in the node's PID namespace and in those below it,
// containers included.
func (n *Node) Processes() ([]Process, error) {
	first := n.PID()
	if first == 0 {
		return nil, errDown
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	parents, inner := map[int]int{}, map[int]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) == 2 && fields[0] == "PPid:":
				parents[pid], _ = strconv.Atoi(fields[1])
			case len(fields) > 2 && fields[0] == "NSpid:":
				inner[pid], _ = strconv.Atoi(fields[2])
			}
		}
	}
	var list []Process
	for pid := range inner {
		// Commands of [Node.Command] come from outside; their PID namespace tells.
		if !descends(pid, first, parents) && !sameSpace(pid, first) {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		list = append(list, Process{PID: pid, Inner: inner[pid], Args: args})
	}
	slices.SortFunc(list, func(a, b Process) int { return a.PID - b.PID })
	return list, nil
}

func descends(pid, from int, parents map[int]int) bool {
	for range 1000 {
		if pid == from {
			return true
		}
		parent, ok := parents[pid]
		if !ok || parent == 0 {
			return false
		}
		pid = parent
	}
	return false
}

func sameSpace(a, b int) bool {
	x, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", a))
	if err != nil {
		return false
	}
	y, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b))
	return err == nil && x == y
}

// Inventory is what is there on a node: one line for each process, mount,
// interface, network namespace, cgroup, and file of those directories in which
// pods have some.
type Inventory []string

// kept are directories of the node in which every entry belongs to a pod, and
// how deep to look.
func kept() map[string]int {
	return map[string]int{
		"run/coffer": 4,
		"run/netns":  1,
		"run/containerd/io.containerd.runtime.v2.task":            2,
		"run/containerd/io.containerd.sandbox.controller.v1.shim": 2,
		"run/containerd/io.containerd.grpc.v1.cri":                2,
		"run/containerd/s": 1,
		"disk/overlay/var/lib/upper/cni/networks/node": 1,
		"disk/overlay/var/lib/upper/coffer":            2,
		"disk/kubelet/pods":                            1,
		"log/var/pods":                                 1,
		"log/var/containers":                           1,
	}
}

// Inventory looks at the node now.
func (n *Node) Inventory() (Inventory, error) {
	var list Inventory
	processes, err := n.Processes()
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		list = append(list, fmt.Sprintf("process %d %s", p.PID, clip(strings.Join(p.Args, " "), 160)))
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.PID()))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			list = append(list, "mount "+fields[4])
		}
	}
	if err := n.inside(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			list = append(list, "interface "+l.Attrs().Name)
		}
		return err
	}); err != nil {
		return nil, err
	}
	for dir, depth := range kept() {
		list = append(list, below(filepath.Join(n.dir, dir), "file "+dir, depth)...)
	}
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		list = append(list, groups(filepath.Join(h, n.id), "cgroup "+filepath.Base(h))...)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func clip(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func below(dir, name string, depth int) Inventory {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list Inventory
	for _, e := range entries {
		list = append(list, name+"/"+e.Name())
		if e.IsDir() && depth > 1 {
			list = append(list, below(filepath.Join(dir, e.Name()), name+"/"+e.Name(), depth-1)...)
		}
	}
	return list
}

func groups(dir, name string) Inventory {
	var list Inventory
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		// Cgroups come and go while they are looked at.
		if err == nil && e.IsDir() && path != dir {
			list = append(list, name+strings.TrimPrefix(path, dir))
		}
		return nil
	})
	return list
}

// Since is what is there now and was not before.
func (i Inventory) Since(before Inventory) Inventory {
	var more Inventory
	for _, line := range i {
		if _, was := slices.BinarySearch(before, line); !was {
			more = append(more, line)
		}
	}
	return more
}

// LeftoverError lists what pods have left behind.
type LeftoverError struct{ Left Inventory }

func (e *LeftoverError) Error() string {
	return fmt.Sprintf("%d left behind:\n  %s", len(e.Left), strings.Join(e.Left, "\n  "))
}

// Settle waits until the node has nothing that it had not before; a node's own
// programs may have been restarted. The error is a [*LeftoverError].
func (n *Node) Settle(ctx context.Context, before Inventory, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var left Inventory
	err := poll(ctx, "leftovers", func(context.Context) error {
		now, err := n.Inventory()
		if err != nil {
			return err
		}
		left = slices.DeleteFunc(now.Since(before), n.own)
		if len(left) > 0 {
			return &LeftoverError{Left: left}
		}
		return nil
	})
	if err != nil && len(left) > 0 {
		return &LeftoverError{Left: left}
	}
	return err
}

// own tells whether a line is about one of the node's programs, or about what
// they keep between pods.
func (n *Node) own(line string) bool {
	if line == "interface cni0" || strings.HasPrefix(line, "file disk/overlay/var/lib/upper/cni/networks/node/l") ||
		strings.HasPrefix(line, "file disk/overlay/var/lib/upper/coffer/softtee") {
		return true // cni0; last_reserved_ip.* and lock; the node's key
	}
	if strings.HasPrefix(line, "file run/coffer/accel") || strings.HasPrefix(line, "file run/coffer/_ended") {
		return true // what the node's processor can do, found out once; notices that wait for the DaemonSet
	}
	if strings.HasSuffix(line, " "+initName) || strings.HasSuffix(line, "/k8s.io") || strings.HasSuffix(line, "/containers") || strings.HasSuffix(line, "/sandboxes") {
		return true // directories that containerd makes for the first pod
	}
	// The kubelet's levels of service, which stay.
	if strings.HasPrefix(line, "cgroup ") && !strings.Contains(line, "/pod") && strings.Contains(line, "/kubepods") {
		return true
	}
	for _, p := range n.programs() {
		if strings.HasPrefix(line, "process ") && strings.Contains(line, " "+p.Path+" ") {
			return true
		}
	}
	return false
}

// Kill ends every process of the node whose program has the name and whose
// arguments contain all of the words; it returns how many.
func (n *Node) Kill(name string, words ...string) (int, error) {
	list, err := n.Processes()
	if err != nil {
		return 0, err
	}
	count := 0
	var errs []error
	for _, p := range list {
		args := strings.Join(p.Args, " ")
		if p.Name() != name || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(args, w) }) {
			continue
		}
		process, err := os.FindProcess(p.PID)
		if err == nil {
			err = process.Kill()
		}
		if err == nil {
			count++
		} else if !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	return count, errors.Join(errs...)
}
