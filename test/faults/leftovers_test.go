package faults

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cleanBound is how long after the last `delete` something may still be going.
const cleanBound = 30 * time.Second

// expectClean waits until nothing of the pod is left and fails if something is.
func (n *node) expectClean() {
	n.t.Helper()
	var left []string
	for end := time.Now().Add(cleanBound); ; wait(50 * time.Millisecond) {
		if left = n.left(); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		n.t.Errorf("left behind: %s", l)
	}
}

// left lists everything that is there of the pod, besides what the test has made.
func (n *node) left() []string {
	var left []string
	for _, pid := range n.processes() {
		left = append(left, fmt.Sprintf("process %d: %s", pid, commandLine(pid)))
	}
	if len(left) > 0 {
		return left // the rest is theirs
	}
	return slices.Concat(n.openFiles(), n.mounts(), n.groups(), n.devices(), n.files())
}

// pids are all processes but this one.
func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			all = append(all, pid)
		}
	}
	return all
}

func proc(pid int, name string) string {
	data, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
	return string(data)
}

func commandLine(pid int) string {
	line := strings.ReplaceAll(proc(pid, "cmdline"), "\x00", " ")
	return fmt.Sprintf("%.200s (%s)", line, strings.TrimSpace(proc(pid, "comm")))
}

// noteSpaces remembers the PID namespaces of the pod's processes: whoever is in
// one of them is the pod's, whatever it looks like. They are held open, so that
// the kernel does not give their numbers to others.
func (n *node) noteSpaces() {
	own, _ := os.Readlink("/proc/self/ns/pid")
	for _, pid := range n.processes() {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil {
			continue // it has just ended
		}
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil || name == own || n.spaces[name] != nil {
			_ = f.Close()
			continue
		}
		n.spaces[name] = f
	}
}

// processes are those of the pod: they have the node's directory or a
// container's id in their arguments, environment, control groups or working
// directory, or are in a namespace of the pod.
func (n *node) processes() []int {
	marks := n.marks()
	var found []int
	for _, pid := range pids() {
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		space, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		text := proc(pid, "cmdline") + proc(pid, "environ") + proc(pid, "cgroup") + cwd
		if (slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) }) || n.spaces[space] != nil) && !zombie(pid) {
			found = append(found, pid)
		}
	}
	return found
}

func zombie(pid int) bool {
	stat := proc(pid, "stat")
	i := strings.LastIndexByte(stat, ')')
	return i < 0 || i+2 >= len(stat) || stat[i+2] == 'Z' || stat[i+2] == 'X'
}

func (n *node) marks() []string { return append([]string{n.dir + "/", n.pod}, n.names...) }

// openFiles are descriptors of others that lead to the node's directory: pipes of
// standard streams, locks, sockets with a path.
func (n *node) openFiles() []string {
	var found []string
	for _, pid := range pids() {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, n.dir+"/") {
				found = append(found, fmt.Sprintf("process %d (%s) has %s open", pid, commandLine(pid), to))
			}
		}
	}
	return found
}

// mounts are those in any mount namespace that name the pod.
func (n *node) mounts() []string {
	seen := map[string]bool{}
	var found []string
	for _, pid := range append(pids(), os.Getpid()) {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		for line := range strings.Lines(proc(pid, "mountinfo")) {
			if slices.ContainsFunc(n.marks(), func(m string) bool { return strings.Contains(line, m) }) && !slices.ContainsFunc(n.own, func(at string) bool { return strings.Contains(line, " "+at+" rw") }) {
				found = append(found, "mount: "+strings.TrimSpace(line))
			}
		}
	}
	return found
}

// ownFile is a file of the test's in a directory where a shim makes some.
const ownFile = "test"

// groups are control groups that name the pod, in every hierarchy.
func (n *node) groups() []string {
	var found []string
	var look func(dir string)
	look = func(dir string) {
		// A directory without others has two links: most groups need not be read.
		if info, err := os.Stat(dir); err != nil || info.Sys().(*syscall.Stat_t).Nlink == 2 {
			return
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case !e.IsDir():
			case slices.ContainsFunc(n.marks(), func(m string) bool { return strings.Contains(e.Name(), m) }):
				found = append(found, "control group "+path)
			default:
				look(path)
			}
		}
	}
	look("/sys/fs/cgroup")
	for _, mounted := range []string{"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"} {
		if _, err := os.Stat(mounted); err == nil {
			return found
		}
	}
	if fd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC); err == nil {
		defer unix.Close(fd)
		if unix.FsconfigCreate(fd) != nil {
			return found
		}
		if mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0); err == nil {
			defer unix.Close(mount)
			look(fmt.Sprintf("/proc/self/fd/%d", mount))
		}
	}
	return found
}

// devices are network devices and queueing disciplines in the pod's namespace
// that the test has not made.
func (n *node) devices() []string {
	var found []string
	links, err := n.net.Netlink.LinkList()
	if err != nil {
		return []string{"the network namespace cannot be looked at: " + err.Error()}
	}
	for _, l := range links {
		if l.Type() == "tuntap" || l.Type() == "tun" {
			found = append(found, "network device "+l.Attrs().Name)
		}
		disciplines, err := n.net.Netlink.QdiscList(l)
		if err != nil {
			continue
		}
		for _, q := range disciplines {
			if q.Type() == "ingress" || q.Type() == "clsact" {
				found = append(found, fmt.Sprintf("%s qdisc on %s", q.Type(), l.Attrs().Name))
			}
		}
	}
	return found
}

// files are those in directories where a shim makes some. What is in a bundle is
// removed by containerd.
func (n *node) files() []string {
	var found []string
	for _, dir := range []string{"state", "s", "tmp", "scratch", "kubelet"} {
		_ = filepath.WalkDir(n.path(dir), func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(n.dir, path)
			switch {
			case err != nil, rel == dir:
				return nil //nolint:nilerr // gone meanwhile
			case rel == "state/k8s.io", d.Name() == ownFile: // of all pods; of the test
				return nil
			case rel == "state/accel", rel == "state/_ended": // what the node's processor can do; notices, until the DaemonSet has told them
				return fs.SkipDir
			case strings.HasPrefix(rel, "kubelet/pods"): // the test is the kubelet
				return nil
			}
			found = append(found, "file "+rel)
			return nil
		})
	}
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run", "/run/crun", "/run/coffer", "/run/netns"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if slices.ContainsFunc(n.marks(), func(m string) bool { return strings.Contains(e.Name(), m) }) {
				found = append(found, "file "+filepath.Join(dir, e.Name()))
			}
		}
	}
	return found
}
