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
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// detachTime bounds taking a disk away that the guest does not want.
const detachTime = 10 * time.Second

// hasDevice tells the nodes that every container has in the guest.
func hasDevice(path string) bool {
	return slices.Contains([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}, path)
}

// claimed is a block device of a claim that a container has.
type claimed struct {
	dev specs.LinuxDevice
	// link is the kubelet's, below the pod's directory: its name is that of the
	// PersistentVolume.
	link     string
	readOnly bool
}

// devices looks at linux.devices: containerd has resolved the kubelet's link, so
// only the numbers of the device are left of it.
func (p *planner) devices() error {
	var blocks []claimed
	for _, d := range p.c.Devices {
		if d.Type != "b" {
			if !p.c.Privileged && !hasDevice(d.Path) {
				return fmt.Errorf("device %s: a guest has no devices of the node", clip(d.Path))
			}
			continue
		}
		link, err := p.m.pod.claimOf(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))
		if err != nil {
			return fmt.Errorf("device %s: %w", clip(d.Path), err)
		}
		if link == "" && p.c.Privileged {
			continue
		}
		if link == "" {
			return fmt.Errorf("device %s (%d:%d): it belongs to no claim of the pod; a guest gets the devices of claims with volumeMode: Block only", clip(d.Path), d.Major, d.Minor)
		}
		blocks = append(blocks, claimed{d, link, !writable(p.c.DeviceRules, d)})
	}
	if len(blocks) == 0 {
		return nil
	}
	places, err := p.m.namePlaces(p.c.Name, blocks)
	if err != nil {
		return err
	}
	for i, b := range blocks {
		if err := p.block(b, places[i]); err != nil {
			return fmt.Errorf("device %s: %w", clip(b.dev.Path), err)
		}
	}
	return nil
}

// writable reads the rules by which the kubelet tells that a claim is read-only.
func writable(rules []specs.LinuxDeviceCgroup, d specs.LinuxDevice) bool {
	for _, r := range rules {
		if r.Allow && r.Type == "b" && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor {
			return strings.Contains(r.Access, "w")
		}
	}
	return true
}

// block puts a device into the proposal.
func (p *planner) block(b claimed, at blockPlace) error {
	v, err := p.newVolume(at.volume, b.link)
	if err != nil {
		return err
	}
	v.spec.Kind = agentapi.Volume_BLOCK
	d := &disk{
		volume: v.name, serial: serial(p.m.o.PodUID, v.name), path: filepath.Join(p.m.pod.path, b.link),
		dev: unix.Mkdev(uint32(b.dev.Major), uint32(b.dev.Minor)), readOnly: b.readOnly,
	}
	v.work, v.lasting = d.attach, true
	p.addVolume(v)
	if at.mount != nil {
		p.proposal.Mounts = append(p.proposal.Mounts, &agentapi.Mount{Path: at.mount.Path, Volume: v.name, ReadOnly: at.mount.ReadOnly, SubPath: at.mount.SubPath})
		return nil
	}
	p.proposal.Devices = append(p.proposal.Devices, &agentapi.Device{Path: b.dev.Path, Volume: v.name, ReadOnly: b.readOnly || at.readOnly})
	return nil
}

// serial is by what the guest finds a pod's disk: the same in the pod's life, and
// unlike that of any other volume.
func serial(uid, volume string) string {
	sum := sha256.Sum256([]byte(uid + "\x00" + volume))
	return "v-" + hex.EncodeToString(sum[:9])
}

// claimOf finds the kubelet's link to a block device, in volumeDevices/PLUGIN/PV
// of the pod's directory (kubernetes@v1.35.4 makeBlockVolumes); empty for none.
func (p *podDir) claimOf(dev uint64) (string, error) {
	plugins, err := p.list("volumeDevices")
	if err != nil {
		return "", err
	}
	for _, plugin := range plugins {
		names, err := p.list(filepath.Join("volumeDevices", plugin))
		if err != nil {
			return "", err
		}
		for _, name := range names {
			link := filepath.Join("volumeDevices", plugin, name)
			var st unix.Stat_t // the link leads to wherever the device is
			if err := unix.Stat(filepath.Join(p.path, link), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev {
				return link, nil
			}
		}
	}
	return "", nil
}

// disk brings a block device into the guest. It is for one goroutine at a time.
type disk struct {
	volume, serial, path string
	dev                  uint64
	readOnly             bool
	open                 bool // by the guest
}

// attach gives the machine the disk, and has the guest open it. A disk that the
// guest does not open is taken away again.
func (d *disk) attach(ctx context.Context, h Host) error {
	if d.open {
		return nil
	}
	f, err := d.device()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the machine has its own
	if err := h.AttachDisk(ctx, vmm.Disk{Serial: d.serial, Image: vmm.Input{File: f}, BlockDevice: true, ReadOnly: d.readOnly}); err != nil {
		return fmt.Errorf("the device could not be given to the machine: %w", err)
	}
	_, err = h.Agent().AttachVolume(ctx, &agentapi.AttachVolumeRequest{Volume: d.volume, Disk: d.serial})
	if err == nil {
		d.open = true
		return nil
	}
	err = fmt.Errorf("the guest did not open the disk: %w", err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	if back := h.DetachDisk(ctx, d.serial); back != nil {
		err = errors.Join(err, fmt.Errorf("and it could not be taken away again: %w", back))
	}
	return err
}

// device opens the device that the container was given, and no other.
func (d *disk) device() (*os.File, error) {
	mode := os.O_RDWR
	if d.readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(d.path, mode|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != d.dev {
		_ = f.Close()
		return nil, fmt.Errorf("%s: expected the block device %d:%d, got something else (%v)", d.path, unix.Major(d.dev), unix.Minor(d.dev), err) //nolint:errorlint // it may be nil
	}
	return f, nil
}
