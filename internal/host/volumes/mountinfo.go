package volumes

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Bounds on the kernel's list of mounts: a node with a thousand pods has some
// ten thousand.
const (
	maxMounts    = 200_000
	maxMountLine = 32 << 10
)

// mount is a line of mountinfo, proc_pid_mountinfo(5).
type mount struct {
	// device is major:minor of the file system.
	device string
	// root is the directory of the file system that is mounted, point where.
	root, point string
	fsType      string
}

// readMounts reads the mounts of this process's namespace, in the order in which
// they were made at any one point.
func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return parseMounts(f)
}

func parseMounts(r io.Reader) ([]mount, error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxMountLine)
	var mounts []mount
	for s.Scan() {
		if len(mounts) >= maxMounts {
			return nil, fmt.Errorf("mountinfo: more than %d mounts", maxMounts)
		}
		m, err := parseMount(s.Text())
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return mounts, nil
}

// parseMount reads a line: id, parent, device, root, point, options, optional
// fields, a hyphen, type, source, options of the file system.
func parseMount(line string) (mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	head, tail := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(head) < 6 || len(tail) < 1 || tail[0] == "" {
		return mount{}, fmt.Errorf("mountinfo: expected six fields, a hyphen and a type, got %q", clip(line))
	}
	m := mount{device: head[2], root: unescape(head[3]), point: unescape(head[4]), fsType: tail[0]}
	if !filepath.IsAbs(m.point) || m.root == "" {
		return mount{}, fmt.Errorf("mountinfo: expected an absolute mount point and a root, got %q", clip(line))
	}
	return m, nil
}

// unescape replaces \040 and the like, by which the kernel writes blanks.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) && s[i+1] < '4' {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

// mountAt is what lies on top at a mount point.
func mountAt(mounts []mount, point string) (mount, bool) {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].point == point {
			return mounts[i], true
		}
	}
	return mount{}, false
}

// mountOf is the mount that a path lies on.
func mountOf(mounts []mount, path string) (mount, bool) {
	for {
		if m, ok := mountAt(mounts, path); ok {
			return m, true
		}
		if path == "/" {
			return mount{}, false
		}
		path = filepath.Dir(path)
	}
}

// within finds a mount's root in the file system below a directory's place in the same
// one: the path from dir to what is mounted. It fails for another file system
// and for what lies outside.
func within(m mount, of mount, dir string) (string, bool) {
	if m.device != of.device {
		return "", false
	}
	down, err := filepath.Rel(of.point, dir)
	if err != nil || !filepath.IsLocal(down) {
		return "", false
	}
	rel, err := filepath.Rel(filepath.Join(of.root, down), strings.TrimSuffix(m.root, deletedMark))
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return rel, true
}

// deletedMark is what the kernel writes behind the root of a mount whose
// directory was removed.
const deletedMark = "//deleted"
