package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/volume"
	"github.com/coffer-project/coffer/podpolicy"
)

// volumes are what one container gets of the pod's.
type volumes struct {
	mounts  []container.Mount
	devices []container.Device
	dirs    []*volume.Directory // they must stay open until the container is made
}

func (v *volumes) close() {
	for _, d := range v.dirs {
		_ = d.Close()
	}
}

// mounts makes the container's volumes and says where they are. What it returns
// must be closed, also with an error.
func (a *Agent) mounts(ctx context.Context, sb *sandbox, p *podpolicy.ContainerConfig) (*volumes, error) {
	v := &volumes{}
	for _, m := range p.Mounts {
		if err := a.addMount(ctx, sb, v, m); err != nil {
			return v, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(podFiles())) {
		path := podFiles()[name]
		if slices.ContainsFunc(p.Mounts, func(m podpolicy.MountConfig) bool { return m.Path == path || m.Path == "/etc" }) {
			continue // the policy has its own
		}
		v.mounts = append(v.mounts, container.Mount{Source: filepath.Join(a.o.PodDir, name), Path: path, ReadOnly: p.ReadOnlyRoot})
	}
	if a.o.SharedMemory != "" && !slices.ContainsFunc(p.Mounts, func(m podpolicy.MountConfig) bool { return m.Path == sharedMemory }) {
		v.mounts = append(v.mounts, container.Mount{Source: a.o.SharedMemory, Path: sharedMemory})
	}
	return v, nil
}

// sharedMemory is where shm_open(3) looks.
const sharedMemory = "/dev/shm"

func (a *Agent) addMount(ctx context.Context, sb *sandbox, v *volumes, m podpolicy.MountConfig) error {
	config, err := sb.guard.Volume(m.Volume)
	if err != nil {
		return err
	}
	switch m.Kind {
	case podpolicy.VolumeEphemeral:
		err = sb.volumes.Ephemeral(m.Volume, volume.Ephemeral{Bytes: m.SizeBytes, Memory: m.Medium == podpolicy.MediumMemory, Group: config.Group})
	case podpolicy.VolumeFiles:
		err = a.makeFiles(ctx, sb, config)
	case podpolicy.VolumeBlock:
		if m.Device {
			return a.addDevice(sb, v, m)
		}
		// It was opened and taken in when the host attached its disk.
	default:
		err = unready("volume %s: kind %q is not known to this guest", m.Volume, m.Kind)
	}
	if err != nil {
		return err
	}
	written := m.Kind != podpolicy.VolumeFiles
	open := func() (*volume.Directory, error) { return sb.volumes.Open(m.Volume, m.SubPath, written) }
	if !written && m.SubPath != "" {
		open = func() (*volume.Directory, error) { return sb.volumes.OpenPart(m.Volume, m.SubPath) }
	}
	dir, err := open()
	if !written && errors.Is(err, fs.ErrNotExist) {
		return &podpolicy.Refusal{Rule: podpolicy.RuleVolumeEmpty, Path: "mounts." + m.Path + ".subPath", Expected: "files of volume " + strconv.Quote(m.Volume) + ", with " + strconv.Quote(m.SubPath), Got: "nothing",
			Help: "put the files of the volume before the container is created: a part of them is mounted as it is then"}
	}
	if err != nil {
		return failed("volume", err)
	}
	v.dirs = append(v.dirs, dir)
	v.mounts = append(v.mounts, container.Mount{Source: dir.Path(), Path: m.Path, ReadOnly: m.ReadOnly, Exec: written || config.Executable})
	return nil
}

func (a *Agent) addDevice(sb *sandbox, v *volumes, m podpolicy.MountConfig) error {
	a.mu.Lock()
	device := sb.devices[m.Volume]
	a.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return failed("volume", fmt.Errorf("volume %s: no block device %q: %v", m.Volume, device, err)) //nolint:errorlint // it may be nil
	}
	v.devices = append(v.devices, container.Device{Path: m.Path, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), ReadOnly: m.ReadOnly})
	return nil
}

// ownership is what a volume's group amounts to.
func ownership(config podpolicy.VolumeConfig) []volume.Option {
	if config.Group == nil {
		return nil
	}
	return []volume.Option{volume.WithGroup(*config.Group)}
}

// makeFiles makes a volume of files. What the host has to send comes by PutFiles,
// and takes what the guest fetches along.
func (a *Agent) makeFiles(ctx context.Context, sb *sandbox, config podpolicy.VolumeConfig) error {
	if config.HostFiles {
		return sb.volumes.Files(config.Name)
	}
	options, err := a.fetchFiles(ctx, sb, config)
	if err != nil {
		return err
	}
	if err := sb.volumes.Make(config.Name, options...); err != nil {
		return failed("volume", err)
	}
	return nil
}

// fetchFiles gets the files of a volume that are secrets: sealed ones and
// resources of a trustee. One that cannot be had is an error.
func (a *Agent) fetchFiles(ctx context.Context, sb *sandbox, config podpolicy.VolumeConfig) ([]volume.Option, error) {
	options := ownership(config)
	if len(config.Sealed)+len(config.Resources) == 0 {
		return options, nil
	}
	if err := a.attest(ctx, sb); err != nil {
		return nil, err
	}
	contents, err := sb.hub.Files(ctx, config.Sealed, config.Resources)
	if err != nil {
		err = fmt.Errorf("volume %s: %w", config.Name, err)
		if refusalOf(err) == nil && ctx.Err() == nil {
			err = failed("secret", err)
		}
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		mode, err := config.FileMode(name)
		if err != nil {
			return nil, err
		}
		options = append(options, volume.WithFiles(volume.File{Name: name, Mode: fs.FileMode(mode), Content: contents[name].Expose()}))
	}
	return options, nil
}
