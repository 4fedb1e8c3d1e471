package volumes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// singleFile is the name in the guest of a file whose name the guest does not
// take.
const singleFile = "file"

// nodePath is a path of the node, and why a guest cannot have it.
type nodePath struct {
	path string
	// below tells that everything inside is meant, too.
	below bool
	help  string
}

// nodePaths lists what programs are known to mount and a copy would be of no use
// for, or of too much.
func (m *Manager) nodePaths() []nodePath {
	runtimes := "a confidential pod cannot steer the node's containers"
	return []nodePath{
		{"/", false, "a confidential pod cannot have the node's root; name the directory that is needed"},
		{"/proc", true, "the guest has a /proc of its own; remove the mount"},
		{"/sys", true, "the guest has a /sys of its own; remove the mount"},
		{"/dev", true, "the guest has devices of its own; a claim with volumeMode: Block gives it a disk"},
		{"/run", false, "sockets of the node's services do not work in a guest; reach them over the network"},
		{"/var/run", false, "sockets of the node's services do not work in a guest; reach them over the network"},
		{"/run/docker.sock", false, runtimes}, {"/var/run/docker.sock", false, runtimes},
		{"/run/containerd", true, runtimes}, {"/var/run/containerd", true, runtimes}, {"/var/lib/containerd", true, runtimes},
		{"/run/crio", true, runtimes}, {"/var/run/crio", true, runtimes}, {"/var/lib/docker", true, runtimes},
		{filepath.Clean(m.o.KubeletRoot), true, "the kubelet's directory has secrets of other pods"},
	}
}

// hostPath is a mount of a path of the node.
func (p *planner) hostPath(mt specs.Mount) error {
	if strings.Contains(mt.Source, "/image-volumes/") {
		return errors.New("volumes of images are not supported; copy what is needed with an init container into an emptyDir")
	}
	if err := p.mayCopy("hostPath " + clip(mt.Source)); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(mt.Source))
	return p.copied("hostpath-"+hex.EncodeToString(sum[:8]), mt.Source, "hostPath "+clip(mt.Source), "", mt)
}

// claim is a mount of a volume that is a file system of the node's: of a claim, or
// of a driver.
func (p *planner) claim(at place, dir, sub string, mt specs.Mount) error {
	what := fmt.Sprintf("volume %s (%s)", clip(at.volume), clip(strings.ReplaceAll(at.plugin, "~", "/")))
	if !slices.Contains(mt.Options, "ro") && !slices.Contains(mt.Options, "rro") {
		return fmt.Errorf("%s: a file system of the node cannot be mounted in a guest; use a claim with volumeMode: Block, or an emptyDir", what)
	}
	if err := p.mayCopy(what); err != nil {
		return err
	}
	name := at.volume
	if !isLabel(name) {
		sum := sha256.Sum256([]byte(dir))
		name = "volume-" + hex.EncodeToString(sum[:8])
	}
	return p.copied(name, dir, what, sub, mt)
}

func (p *planner) mayCopy(what string) error {
	switch {
	case p.m.o.Sealed:
		return fmt.Errorf("%s: the pod is sealed, and no pod policy has files of the node; use a ConfigMap, an emptyDir, or a claim with volumeMode: Block", what)
	case p.m.o.HostPath != CopyHostPath:
		return fmt.Errorf("%s: this node gives guests no files of its own (host_path in the runtime's configuration); use a ConfigMap, an emptyDir, or a claim with volumeMode: Block", what)
	}
	return nil
}

// copied is a volume with a copy of a directory or file of the node.
func (p *planner) copied(name, path, what, sub string, mt specs.Mount) error {
	real, isDir, err := p.m.copyable(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	v, err := p.newVolume(name, real)
	if err != nil {
		return err
	}
	v.spec.Kind = agentapi.Volume_FILES
	o := &once{name: name, path: real, what: what, warn: p.m.o.Warn}
	if !isDir {
		o.file = filepath.Base(real)
		if sub = o.file; checkName(sub) != nil {
			sub = singleFile
		}
		o.as = sub
	}
	v.work = o.send
	return p.add(v, mt, sub, true)
}

// copyable checks a path of the node, by its name and by what it is.
func (m *Manager) copyable(path string) (real string, isDir bool, err error) {
	if real, err = filepath.EvalSymlinks(path); err != nil {
		return "", false, err
	}
	for _, name := range []string{path, real} {
		if ofPod, _ := m.pod.below(name); ofPod != "" {
			continue
		}
		for _, n := range m.nodePaths() {
			if rel, err := filepath.Rel(n.path, name); err == nil && (rel == "." || n.below && filepath.IsLocal(rel)) {
				return "", false, errors.New(n.help)
			}
		}
	}
	info, err := os.Lstat(real)
	if err != nil {
		return "", false, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", false, fmt.Errorf("it is %s, which cannot be copied into a guest", typeName(info.Mode()))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(real, &st); err != nil {
		return "", false, fmt.Errorf("statfs: %w", err)
	}
	if name, ok := kernelFiles(st.Type); ok {
		return "", false, fmt.Errorf("it is of the kernel's %s, which cannot be copied into a guest", name)
	}
	return real, info.IsDir(), nil
}

// kernelFiles names a file system whose files are no data, by its magic number.
func kernelFiles(magic int64) (name string, ok bool) {
	name, ok = map[int64]string{
		unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup", unix.CGROUP2_SUPER_MAGIC: "cgroup2",
		unix.DEVPTS_SUPER_MAGIC: "devpts", unix.DEBUGFS_MAGIC: "debugfs", unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs",
		unix.BPF_FS_MAGIC: "bpf", unix.EFIVARFS_MAGIC: "efivarfs", unix.NSFS_MAGIC: "nsfs",
	}[magic]
	return name, ok
}

// once copies files of the node into the guest, one time.
type once struct {
	name, path, what string
	// file is the one of the directory's, and as its name in the guest; empty for
	// all of the directory path.
	file, as string
	warn     func(string)

	version uint64
	done    bool
}

func (o *once) send(ctx context.Context, h Host) error {
	if o.done {
		return nil
	}
	s, err := o.read()
	if err != nil {
		return fmt.Errorf("%s: %w", o.what, err)
	}
	o.version++
	if err := put(ctx, h, o.name, o.version, s); err != nil {
		return fmt.Errorf("%s: the guest did not take the files: %w", o.what, err)
	}
	o.done = true
	o.warn(o.what + ": copied into the guest once and read-only; changes are not seen, nothing is written back" + leftOut(s.omitted))
	return nil
}

func (o *once) read() (*snapshot, error) {
	dir := o.path
	if o.file != "" {
		dir = filepath.Dir(o.path)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory
	r := reader{root: root, lenient: true}
	if o.file == "" {
		return r.read()
	}
	if err := r.file(o.file); err != nil {
		return nil, err
	}
	r.out.files[0].name = o.as
	return &r.out, nil
}

// leftOut names some of what was not copied.
func leftOut(names []string) string {
	const most = 5
	switch n := len(names); {
	case n == 0:
		return ""
	case n <= most:
		return "; left out (a link that leads outside, or a name that the guest does not take): " + strings.Join(names, ", ")
	default:
		return fmt.Sprintf("; left out (links that lead outside, or names that the guest does not take): %s and %d more", strings.Join(names[:most], ", "), n-most)
	}
}
