package volumes

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// planner finds out what a container's mounts and devices are. It reads and
// changes nothing but its own fields.
type planner struct {
	m        *Manager
	c        Container
	mounts   []mount // of this machine; nil before they are needed
	proposal *Proposal
	use      *use
}

func (p *planner) plan() error {
	for _, mt := range p.c.Mounts {
		if err := p.mount(mt); err != nil {
			return fmt.Errorf("mount at %s: %w", clip(mt.Destination), err)
		}
	}
	return p.devices()
}

// ofGuest tells what the guest mounts into every container itself: the kernel's
// file systems, and every tmpfs of a specification that containerd makes.
func ofGuest(mt specs.Mount) bool {
	switch mt.Type {
	case "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs":
		return true
	case "tmpfs":
		return slices.Contains([]string{"/dev", "/dev/shm", "/run"}, filepath.Clean(mt.Destination))
	}
	return false
}

func (p *planner) mount(mt specs.Mount) error {
	switch {
	case !filepath.IsAbs(mt.Destination):
		return errors.New("expected an absolute path in the container")
	case ofGuest(mt):
		return nil
	case mt.Type == "tmpfs":
		return errors.New("a tmpfs that is no volume of the pod is not supported; use an emptyDir with medium: Memory")
	case mt.Type != "bind" && mt.Type != "none" && mt.Type != "":
		return fmt.Errorf("expected a bind mount, got type %q; the guest mounts volumes of the pod only", clip(mt.Type))
	case !filepath.IsAbs(mt.Source) || len(mt.Source) > maxSource || strings.ContainsRune(mt.Source, 0):
		return fmt.Errorf("expected an absolute path of the node as source, got %q", clip(mt.Source))
	}
	mt.Source, mt.Destination = filepath.Clean(mt.Source), filepath.Clean(mt.Destination)
	if rel, ok := p.m.pod.relative(mt.Source); ok {
		return p.ofPod(rel, mt)
	}
	if ofRuntime(mt) {
		return nil
	}
	return p.hostPath(mt)
}

// ofPod is a mount of something in the pod's directory.
func (p *planner) ofPod(rel string, mt specs.Mount) error {
	at, err := parsePlace(rel)
	if err != nil {
		return err
	}
	switch at.kind {
	case placeHosts:
		if mt.Destination != "/etc/hosts" {
			return errors.New("the pod's hosts file belongs to /etc/hosts")
		}
		if p.proposal.Hosts, err = p.m.pod.hosts(); err != nil {
			return fmt.Errorf("the kubelet's hosts file: %w", err)
		}
		return nil
	case placeContainer:
		if at.container != p.c.Name {
			return fmt.Errorf("the file belongs to container %s", clip(at.container))
		}
		p.proposal.TerminationPath, p.use.messageFile = mt.Destination, rel
		return nil
	case placeSubPath:
		return p.subPath(at, filepath.Join(p.m.pod.path, rel), mt)
	case placeVolume:
	}
	return p.volume(at, "", mt)
}

// volume is a mount of a volume, or of a part of it.
func (p *planner) volume(at place, sub string, mt specs.Mount) error {
	dir := filepath.Join(p.m.pod.path, "volumes", at.plugin, at.volume)
	switch {
	case at.atomic() && at.rest == "":
		return p.files(at, dir, sub, mt)
	case at.plugin == pluginEmptyDir && at.rest == "":
		return p.emptyDir(at, dir, sub, mt)
	case at.rest != "" && (at.atomic() || at.plugin == pluginEmptyDir):
		return fmt.Errorf("volume %s: expected the volume's directory, got %q below it", clip(at.volume), clip(at.rest))
	}
	return p.claim(at, filepath.Join(dir, at.rest), sub, mt)
}

// files is a volume whose files Kubernetes writes.
func (p *planner) files(at place, dir, sub string, mt specs.Mount) error {
	v, err := p.newVolume(guestName(at), dir)
	if err != nil {
		return err
	}
	group, err := p.m.pod.group(dir)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.name, err)
	}
	v.spec.Kind, v.spec.Group, v.watch = agentapi.Volume_FILES, group, dir
	f := &files{name: v.name, read: func() (*snapshot, error) { return readVolume(dir) }}
	v.work = f.send
	return p.add(v, mt, sub, true)
}

// emptyDir is a volume of the guest's own; nothing of it is on the node.
func (p *planner) emptyDir(at place, dir, sub string, mt specs.Mount) error {
	v, err := p.newVolume(at.volume, dir)
	if err != nil {
		return err
	}
	if v.spec.Group, err = p.m.pod.group(dir); err != nil {
		return fmt.Errorf("volume %s: %w", v.name, err)
	}
	mounts, err := p.machineMounts()
	if err != nil {
		return err
	}
	v.spec.Kind = agentapi.Volume_EPHEMERAL
	// The kubelet mounts something here for a medium only.
	switch on, mounted := mountAt(mounts, dir); {
	case mounted && on.fsType == "tmpfs":
		v.spec.Kind = agentapi.Volume_MEMORY
		if v.spec.SizeBytes, err = sizeOf(dir); err != nil {
			return fmt.Errorf("volume %s: %w", v.name, err)
		}
	case mounted && on.fsType == "hugetlbfs":
		return fmt.Errorf("volume %s: an emptyDir of huge pages is not supported; use medium: Memory", v.name)
	}
	return p.add(v, mt, sub, false)
}

// sizeOf is how much a file system holds.
func sizeOf(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	return st.Blocks * uint64(max(st.Bsize, 0)), nil
}

// newVolume is a volume that nobody uses yet. The name is one that the guest takes.
func (p *planner) newVolume(name, source string) (*volume, error) {
	if !isLabel(name) {
		return nil, fmt.Errorf("volume %q: expected a DNS label as name", clip(name))
	}
	return &volume{name: name, source: source, spec: &agentapi.Volume{Name: name}, users: map[string]bool{}}, nil
}

// add puts a volume and its mount into the proposal.
func (p *planner) add(v *volume, mt specs.Mount, sub string, files bool) error {
	readOnly, err := p.options(v.name, mt, files)
	if err != nil {
		return err
	}
	p.addVolume(v)
	p.proposal.Mounts = append(p.proposal.Mounts, &agentapi.Mount{Path: mt.Destination, Volume: v.name, ReadOnly: readOnly || files, SubPath: sub})
	return nil
}

func (p *planner) addVolume(v *volume) {
	if slices.ContainsFunc(p.use.volumes, func(o *volume) bool { return o.name == v.name && o.source == v.source }) {
		return
	}
	p.use.volumes = append(p.use.volumes, v)
	p.proposal.Volumes = append(p.proposal.Volumes, v.spec)
}

// options reads a mount's options: what cannot be had is an error where a
// container would miss it, and a warning where it would hardly notice.
func (p *planner) options(name string, mt specs.Mount, files bool) (readOnly bool, err error) {
	for _, o := range mt.Options {
		switch o {
		case "ro", "rro":
			readOnly = true
		case "rshared", "shared":
			return false, fmt.Errorf("volume %s: mounts made in the container cannot be passed to the node; remove mountPropagation: Bidirectional", name)
		case "rslave", "slave":
			p.m.o.Warn(fmt.Sprintf("volume %s at %s of container %s: the guest does not see what is mounted on the node (mountPropagation: HostToContainer)", name, mt.Destination, p.c.Name))
		case "noexec":
			if !files {
				p.m.o.Warn(fmt.Sprintf("volume %s at %s of container %s: programs in it can be run (noexec has no effect)", name, mt.Destination, p.c.Name))
			}
		}
	}
	return readOnly, nil
}

// machineMounts are read once, when the first mount needs them.
func (p *planner) machineMounts() ([]mount, error) {
	if p.mounts == nil {
		mounts, err := readMounts()
		if err != nil {
			return nil, fmt.Errorf("mounts of the node: %w", err)
		}
		p.mounts = mounts
	}
	return p.mounts, nil
}

// ofRuntime recognises what containerd mounts into every container and the guest
// makes itself: the sandbox's files (containerd@v2.2.9
// internal/cri/server/helpers.go), and the directories for an image's VOLUMEs,
// which the guest's image has.
func ofRuntime(mt specs.Mount) bool {
	parts := strings.Split(mt.Source, "/")
	n := len(parts)
	if n < 5 {
		return false
	}
	ours := func(dir string) bool { return strings.HasPrefix(dir, "io.containerd.") }
	if parts[n-3] == "sandboxes" && ours(parts[n-4]) {
		return map[string]string{"/etc/hostname": "hostname", "/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf", "/dev/shm": "shm"}[mt.Destination] == parts[n-1]
	}
	return parts[n-2] == "volumes" && parts[n-4] == "containers" && ours(parts[n-5])
}
