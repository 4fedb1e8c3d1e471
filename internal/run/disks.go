package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/podpolicy"
)

// scratchSerial is the serial number of the scratch disk.
const scratchSerial = "scratch"

// minDisk is less than any use of a disk needs.
const minDisk = 32 << 20

// Volume is a block volume of the policy and what holds it on this machine.
type Volume struct {
	// Name is the policy's.
	Name string
	// File is a raw image or a block device.
	File string
	// Size in bytes makes the file when it is missing; 0 does not.
	Size int64
}

// volumeName is a volume's name in a policy.
var volumeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// ParseVolume reads NAME=FILE[:SIZE].
func ParseVolume(s string) (Volume, error) {
	name, file, ok := strings.Cut(s, "=")
	if !ok || !volumeName.MatchString(name) || file == "" {
		return Volume{}, fmt.Errorf("expected NAME=FILE or NAME=FILE:SIZE, got %q", s)
	}
	v := Volume{Name: name, File: file}
	if i := strings.LastIndexByte(file, ':'); i > 0 {
		size, err := ParseSize(file[i+1:])
		if err != nil {
			return Volume{}, fmt.Errorf("%s: size: %w", name, err)
		}
		v.File, v.Size = file[:i], size
	}
	return v, nil
}

// ParseSize reads the size of a disk: a number of bytes with or without suffix.
func ParseSize(s string) (int64, error) {
	bytes, err := podpolicy.ParseBytes(s)
	if err != nil {
		return 0, err
	}
	if bytes < minDisk || bytes > 1<<44 || bytes%4096 != 0 {
		return 0, fmt.Errorf("expected 32Mi to 16Ti in units of 4Ki, got %s", s)
	}
	return int64(bytes), nil
}

func (o Options) checkDisks() []error {
	var errs []error
	if len(o.Volumes) > 0 && !o.sealed() {
		errs = append(errs, errors.New("--volume: the key of a volume is given to an attested pod with a policy only: leave out --unsealed and --tee none"))
	}
	if len(o.Volumes) > vmm.MaxDisks-1 {
		errs = append(errs, fmt.Errorf("--volume: expected at most %d, got %d", vmm.MaxDisks-1, len(o.Volumes)))
	}
	seen := map[string]bool{}
	for _, v := range o.Volumes {
		if seen[v.Name] {
			errs = append(errs, fmt.Errorf("--volume %s: it is given twice", v.Name))
		}
		seen[v.Name] = true
	}
	return errs
}

// matchVolumes holds the policy's block volumes against those of the caller.
func matchVolumes(policy *podpolicy.Policy, volumes []Volume) error {
	for _, v := range volumes {
		switch p, ok := policy.Volumes[v.Name]; {
		case !ok:
			return hint.New(fmt.Errorf("--volume %s: the policy has no volume of that name", v.Name),
				`a policy with a block volume is given with --policy: {"kind":"block","key":"kbs:///…","filesystem":"ext4"}`)
		case p.Kind != podpolicy.VolumeBlock:
			return fmt.Errorf("--volume %s: expected a volume of kind block in the policy, it is %s", v.Name, p.Kind)
		}
	}
	for name, p := range policy.Volumes {
		if p.Kind == podpolicy.VolumeBlock && !slices.ContainsFunc(volumes, func(v Volume) bool { return v.Name == name }) {
			return hint.New(fmt.Errorf("volume %s of the policy is a block volume, and no disk is given for it", name), "give one with --volume "+name+"=FILE:SIZE")
		}
	}
	return nil
}

// diskSet are the disks of a run, until Close.
type diskSet struct {
	disks   []vmm.Disk
	scratch string            // serial number; empty without one
	serials map[string]string // of volumes
	files   []*os.File
}

// openDisks opens or makes what the options ask for.
func openDisks(o Options) (_ *diskSet, err error) {
	d := &diskSet{serials: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if o.Scratch != 0 {
		f, err := vmm.Unlinked(scratchDir(), o.Scratch)
		if err != nil {
			return nil, fmt.Errorf("--scratch: %w", err)
		}
		d.scratch = scratchSerial
		d.add(vmm.Disk{Serial: scratchSerial}, f)
	}
	for i, v := range o.Volumes {
		f, device, err := v.open()
		if err != nil {
			return nil, fmt.Errorf("--volume %s: %w", v.Name, err)
		}
		d.serials[v.Name] = "volume-" + strconv.Itoa(i)
		d.add(vmm.Disk{Serial: d.serials[v.Name], BlockDevice: device}, f)
	}
	return d, nil
}

func (d *diskSet) add(disk vmm.Disk, f *os.File) {
	disk.Image.File = f
	d.disks, d.files = append(d.disks, disk), append(d.files, f)
}

// Close closes the files; a machine that runs keeps its own.
func (d *diskSet) Close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	d.files = nil
	return errors.Join(errs...)
}

// scratchDir is where large temporary files belong (file-hierarchy(7)): /tmp is
// often memory.
func scratchDir() string {
	if dir := os.Getenv("TMPDIR"); filepath.IsAbs(dir) {
		return dir
	}
	if info, err := os.Stat("/var/tmp"); err == nil && info.IsDir() {
		return "/var/tmp"
	}
	return os.TempDir()
}

// open opens the volume's file, or makes it.
func (v Volume) open() (_ *os.File, device bool, err error) {
	f, err := os.OpenFile(v.File, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if v.Size == 0 {
			return nil, false, hint.New(err, "a size makes it: --volume "+v.Name+"="+v.File+":1Gi")
		}
		if f, err = os.OpenFile(v.File, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			err = f.Truncate(v.Size)
		}
	}
	if f == nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, false, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	device = info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	if !device && !info.Mode().IsRegular() {
		return nil, false, fmt.Errorf("%s: expected a file or a block device", v.File)
	}
	size, err := f.Seek(0, 2)
	if err == nil && v.Size != 0 && size != v.Size {
		err = fmt.Errorf("%s has %d bytes, and not %d: leave the size out to use it as it is", v.File, size, v.Size)
	}
	return f, device, err
}

// writeOutTime bounds the end of a machine that has volumes to write out. It is
// longer than the guest takes at most (34 s, internal/guest/boot).
const writeOutTime = 40 * time.Second

// writeOut has the guest close its volumes before the machine ends: what it has
// not written yet would be lost. A run that was interrupted twice has ended its
// machine already.
func writeOut(ctx context.Context, sb *sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeOutTime)
	defer cancel()
	if err := sb.Shutdown(ctx); err != nil {
		return fmt.Errorf("the last writes to the volumes may be lost: %w", err)
	}
	return nil
}

// attachVolumes tells the guest which disk is which volume.
func attachVolumes(ctx context.Context, sb *sandbox.Sandbox, o Options, d *diskSet) error {
	for _, v := range o.Volumes {
		if _, err := sb.Agent().AttachVolume(ctx, &agentapi.AttachVolumeRequest{Volume: v.Name, Disk: d.serials[v.Name]}); err != nil {
			return err
		}
	}
	return nil
}
