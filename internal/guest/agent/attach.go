package agent

import (
	"context"
	"errors"
	"strconv"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/storage"
	"github.com/coffer-project/coffer/podpolicy"
)

// Disks opens block volumes of the policy; see [storage.Manager].
type Disks interface {
	OpenVolume(ctx context.Context, v storage.Volume) (storage.Opened, error)
	// OpenRaw opens a disk as it is, in the clear, for a volume of an unsealed
	// pod. A volume that is open already is opened again, on the same disk only.
	OpenRaw(ctx context.Context, name, serial string) (storage.Opened, error)
}

// RuleVolumeDisk refuses a disk that is not what its volume's key opens.
const RuleVolumeDisk = "volume.disk"

// AttachVolume implements the protocol.
func (a *Agent) AttachVolume(ctx context.Context, req *agentapi.AttachVolumeRequest) (*agentapi.AttachVolumeResponse, error) {
	if err := a.attachVolume(ctx, req.GetVolume(), req.GetDisk()); err != nil {
		return nil, a.fail(ctx, "AttachVolume", err)
	}
	return &agentapi.AttachVolumeResponse{}, nil
}

// attachVolume opens a disk with the key that the policy names, which a trustee
// gives only to a guest that has attested; in an unsealed pod, without one.
func (a *Agent) attachVolume(ctx context.Context, name, disk string) error {
	sb, err := a.theSandbox()
	if err != nil {
		return err
	}
	if sb.scratch != "" && disk == sb.scratch {
		return &podpolicy.Refusal{Rule: podpolicy.RuleVolumeAttach, Path: "disk", Expected: "a disk other than the pod's scratch disk", Got: strconv.Quote(disk),
			Help: "CreateSandbox gave this disk to the pod for its images and ephemeral volumes; attach the volume's own disk"}
	}
	if err := sb.guard.Attach(name, disk); err != nil {
		return err
	}
	err = a.openVolume(ctx, sb, name, disk)
	if err == nil {
		return nil
	}
	if back := sb.guard.AttachFailed(name, disk); back != nil {
		a.log.DebugContext(ctx, "a volume stays attached", "volume", name, "error", back)
	}
	if errors.Is(err, storage.ErrRefused) {
		return &podpolicy.Refusal{Rule: RuleVolumeDisk, Path: "volumes." + name, Expected: "a disk that the volume's key opens, or a blank one", Got: clip(err.Error()),
			Help: "nothing was written to the disk; give the pod the disk that the volume was made on"}
	}
	return err
}

func (a *Agent) openVolume(ctx context.Context, sb *sandbox, name, disk string) error {
	config, err := sb.guard.Volume(name)
	if err != nil {
		return err
	}
	if !sb.guard.Sealed() {
		// Nobody has given it a key: it is the host's disk, as the whole pod is the
		// host's.
		opened, err := a.o.Disks.OpenRaw(ctx, name, disk)
		if err != nil {
			return failed("volume", err)
		}
		sb.keepDevice(a, name, opened.Device)
		return nil
	}
	if err := a.attest(ctx, sb); err != nil {
		return err
	}
	key, err := sb.hub.Resource(ctx, config.Key)
	if err != nil {
		if refusalOf(err) == nil && ctx.Err() == nil {
			err = failed("secret", err)
		}
		return err
	}
	opened, err := a.o.Disks.OpenVolume(ctx, storage.Volume{Name: name, Serial: disk, Key: key, Filesystem: config.Filesystem, Group: config.Group})
	if err != nil {
		if errors.Is(err, storage.ErrRefused) || ctx.Err() != nil {
			return err
		}
		return failed("volume", err)
	}
	if opened.Dir != "" {
		return sb.volumes.Mounted(name, opened.Dir)
	}
	sb.keepDevice(a, name, opened.Device)
	return nil
}

func (sb *sandbox) keepDevice(a *Agent, volume, device string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sb.devices[volume] = device
}
