package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/host/qmp"
)

// ErrNoDisk says that no disk with the serial number was attached.
var ErrNoDisk = errors.New("no such disk was attached")

// plugTime bounds the emulator's part of plugging a disk, which takes
// milliseconds.
const plugTime = 20 * time.Second

var errSilent = fmt.Errorf("the emulator did not answer within %s", plugTime)

// AttachDisk gives the running machine another disk; the machine must have a
// free slot (Machine.DiskSlots). The emulator gets the open file and needs no
// access to the path. The image may be closed when AttachDisk returns. The
// guest's kernel finds the disk a moment later, by its serial number. When
// AttachDisk fails nothing of the disk is left in the machine.
func (vm *VM) AttachDisk(ctx context.Context, d Disk) error {
	hot, err := vm.slots.take(d.Serial)
	if err != nil {
		return err
	}
	err = vm.attach(ctx, d, hot)
	vm.slots.release(hot, err == nil)
	if err != nil {
		return fmt.Errorf("disk %s: attach: %w", d.Serial, vm.explain(err))
	}
	return nil
}

func (vm *VM) attach(ctx context.Context, d Disk, hot *hotDisk) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	file, err := d.open()
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // the emulator has its own
	// From here on what was begun is finished: a command whose reply nobody
	// waits for would leave a disk that nobody knows of.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), plugTime, errSilent)
	defer cancel()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := vm.monitor.ExecuteFile(ctx, "add-fd", nil, file, &set); err != nil {
		return err
	}
	err = vm.monitor.Execute(ctx, "blockdev-add", d.node(hot.id, "/dev/fdset/"+strconv.Itoa(set.ID)), nil)
	if err == nil {
		if err = vm.monitor.Execute(ctx, "device_add", vm.device(d, hot), nil); err != nil {
			vm.undo(ctx, "blockdev-del", map[string]any{"node-name": hot.id})
		}
	}
	// The block node has a duplicate of the descriptor and needs no other.
	vm.undo(ctx, "remove-fd", map[string]any{"fdset-id": set.ID})
	return err
}

// undo runs a command whose failure changes nothing for the caller: what it
// removes is gone with the machine at the latest.
func (vm *VM) undo(ctx context.Context, command string, args map[string]any) {
	if err := vm.monitor.Execute(ctx, command, args, nil); err != nil {
		vm.log.DebugContext(ctx, "cleaning up after a disk", "command", command, "error", err)
	}
}

// open opens the image anew, as the emulator asks of a descriptor: with exactly
// the access it wants, and an offset of its own.
func (d Disk) open() (*os.File, error) {
	if d.Image.absent() || d.Image.Path != "" && d.Image.File != nil {
		return nil, errors.New("image: expected a path or an open file, got none or both")
	}
	flag, path := os.O_RDWR, d.Image.Path
	if d.ReadOnly {
		flag = os.O_RDONLY
	}
	if d.Image.File != nil {
		path = "/proc/self/fd/" + strconv.Itoa(int(d.Image.File.Fd()))
	}
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		device := info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
		switch {
		case d.BlockDevice && !device:
			err = fmt.Errorf("expected a block device, got a file of mode %s", info.Mode())
		case !d.BlockDevice && !info.Mode().IsRegular():
			err = fmt.Errorf("expected a regular file, got one of mode %s", info.Mode())
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image %s: %w", d.Image.Path, err), file.Close())
	}
	return file, nil
}

// node is the block node of the image, with the same properties as that of a
// disk the machine starts with.
func (d Disk) node(id, filename string) map[string]any {
	driver := "file"
	if d.BlockDevice {
		driver = "host_device"
	}
	return map[string]any{
		"driver": "raw", "node-name": id, "read-only": d.ReadOnly, "discard": "ignore", "detect-zeroes": "off",
		"file": map[string]any{"driver": driver, "filename": filename},
	}
}

func (vm *VM) device(d Disk, hot *hotDisk) map[string]any {
	device := map[string]any{
		"driver": "virtio-blk-pci", "id": hot.id, "bus": slotName(hot.slot), "drive": hot.id, "serial": d.Serial,
		"werror": "report", "rerror": "report",
	}
	if vm.hidden {
		device["disable-legacy"], device["iommu_platform"] = "on", true
	}
	return device
}

// DetachDisk takes a disk out that AttachDisk gave. The guest should no longer
// use it: its kernel drops what it had not written. DetachDisk waits until that
// kernel has let go, which a guest may never do: the caller bounds it with ctx,
// and may try again. The emulator has closed the image when DetachDisk returns.
// The error for a disk that is not there is ErrNoDisk.
func (vm *VM) DetachDisk(ctx context.Context, serial string) error {
	hot, err := vm.slots.hold(serial)
	if err != nil {
		return err
	}
	err = vm.detach(ctx, hot)
	vm.slots.release(hot, err != nil)
	if err != nil {
		return fmt.Errorf("disk %s: detach: %w", serial, vm.explain(err))
	}
	return nil
}

func (vm *VM) detach(ctx context.Context, hot *hotDisk) error {
	command, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), plugTime, errSilent)
	defer cancel()
	err := vm.monitor.Execute(command, "device_del", map[string]any{"id": hot.id}, nil)
	refusal, refused := errors.AsType[*qmp.Error](err)
	switch {
	case err == nil, refused && strings.Contains(refusal.Desc, underWay):
		if err := vm.deleted(ctx, hot); err != nil {
			return err
		}
	case refused && refusal.Class == "DeviceNotFound": // gone since an earlier try
	default:
		return err
	}
	command, cancel = context.WithTimeoutCause(context.WithoutCancel(ctx), plugTime, errSilent)
	defer cancel()
	return vm.monitor.Execute(command, "blockdev-del", map[string]any{"node-name": hot.id}, nil)
}

// underWay is in QEMU's refusal to remove a device that the guest was already
// asked to release (qmp_device_del; the class is GenericError).
const underWay = "already in the process of unplug"

func (vm *VM) deleted(ctx context.Context, hot *hotDisk) error {
	select {
	case gone := <-hot.deleted:
		if !gone {
			return errors.New("the guest's kernel does not let go of the disk (is it still in use?)")
		}
		return nil
	case <-vm.done:
		return vm.end
	case <-ctx.Done():
		return fmt.Errorf("the guest's kernel has not let go of the disk: %w", context.Cause(ctx))
	}
}

// explain returns how the machine ended where that is why a command failed.
func (vm *VM) explain(err error) error {
	if !errors.Is(err, qmp.ErrClosed) {
		return err
	}
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	select {
	case <-vm.done:
		return vm.end
	case <-timer.C:
		return err
	}
}
