package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/luks"
	"github.com/coffer-project/coffer/secret"
)

// nameRE is what a volume may be called: a DNS label or something like it.
var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// Lengths of a volume's key in bytes. A short one could be guessed by the host,
// which has the header.
const (
	minKey = 32
	maxKey = 512
)

// Volume is a block volume of the policy.
type Volume struct {
	// Name is the policy's.
	Name string
	// Serial is the disk's, as the host says.
	Serial string
	// Key opens the LUKS2 header: 32 to 512 bytes, as they are. It stays the
	// caller's.
	Key secret.Bytes
	// Filesystem is ext4, or empty for the bare device.
	Filesystem string
	// Group owns the file system's root directory, which is made writable for
	// it; nil leaves that alone.
	Group *uint32
}

// Opened is an open volume.
type Opened struct {
	// Device is the path of the decrypted block device.
	Device string
	// Dir is where its file system is mounted; empty without one.
	Dir string
	// New tells that the volume was made just now.
	New bool
}

// ErrRefused is wrapped by errors about what is on a disk: it is not blank, its
// header is refused, its key is another one. Trying again does not help.
var ErrRefused = errors.New("the disk is refused")

// OpenVolume opens a volume. A disk with a LUKS2 header is opened with the key;
// a blank one becomes a new volume; any other is refused and not touched. A
// volume that is open already is returned again, for the same disk only.
func (m *Manager) OpenVolume(ctx context.Context, v Volume) (_ Opened, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}()
	if err := v.validate(); err != nil {
		return Opened{}, err
	}
	if o := m.volumes[v.Name]; o != nil {
		if o.disk.serial != v.Serial {
			return Opened{}, fmt.Errorf("it is open on disk %s already, and not on %s", o.disk.serial, v.Serial)
		}
		return o.result, nil
	}
	began := time.Now()
	d, err := m.begin(ctx, v.Serial)
	if err != nil {
		return Opened{}, err
	}
	o := &opened{disk: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.drop(ctx, o))
		}
	}()
	if err := m.unlock(ctx, v, o); err != nil {
		return Opened{}, fmt.Errorf("disk %s: %w", v.Serial, err)
	}
	o.result.Device = o.mapping.top().Path()
	if v.Filesystem != "" {
		if err := m.mountVolume(v, o); err != nil {
			return Opened{}, err
		}
	}
	m.volumes[v.Name] = o
	m.keep(o)
	m.o.Logger.InfoContext(ctx, "volume open", "volume", v.Name, "disk", v.Serial, "bytes", d.size, "usable", o.mapping.size, "new", o.result.New, "took", time.Since(began))
	return o.result, nil
}

// OpenRaw opens a disk as it is for a volume, without any protection. A volume
// that is open already is opened again, on the same disk only.
func (m *Manager) OpenRaw(ctx context.Context, name, serial string) (Opened, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.volumes[name]; o != nil {
		if o.disk.serial != serial {
			return Opened{}, fmt.Errorf("volume %s: it is open on disk %s already, and not on %s", name, o.disk.serial, serial)
		}
		// The disk may have been taken out and put in again, and be another device.
		m.order = slices.DeleteFunc(m.order, func(other *opened) bool { return other == o })
		delete(m.volumes, name)
		if err := m.drop(ctx, o); err != nil {
			return Opened{}, fmt.Errorf("volume %s: %w", name, err)
		}
	}
	d, err := m.begin(ctx, serial)
	if err != nil {
		return Opened{}, fmt.Errorf("volume %s: %w", name, err)
	}
	o := &opened{disk: d, result: Opened{Device: d.Name()}}
	m.volumes[name] = o
	m.keep(o)
	m.o.Logger.InfoContext(ctx, "volume open in the clear", "volume", name, "disk", serial, "bytes", d.size)
	return o.result, nil
}

func (v Volume) validate() error {
	switch n := v.Key.Len(); {
	case !nameRE.MatchString(v.Name):
		return errors.New("name: expected 1 to 63 characters of [a-z0-9._-]")
	case n < minKey || n > maxKey:
		return fmt.Errorf("key: expected %d to %d bytes, got %d (make one with: head -c 32 /dev/urandom)", minKey, maxKey, n)
	case v.Filesystem != "" && v.Filesystem != "ext4":
		return fmt.Errorf("filesystem: expected ext4, or none for a device, got %q", v.Filesystem)
	}
	return nil
}

// unlock opens what the disk holds, or makes a new volume of it.
func (m *Manager) unlock(ctx context.Context, v Volume, o *opened) error {
	d := o.disk
	h, err := luks.Read(d, d.size, luks.Limits{MemoryKiB: m.o.KeyMemoryKiB})
	if errors.Is(err, luks.ErrNotLUKS) {
		return m.format(ctx, v, o)
	}
	if _, ok := errors.AsType[*luks.ReadError](err); ok {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	key, err := h.Unlock(v.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	defer key.Clear()
	a := area{disk: d, offset: h.DataOffset}
	sb := make([]byte, superblockSize)
	if _, err := d.ReadAt(sb, h.DataOffset); err != nil {
		return &luks.ReadError{Offset: h.DataOffset, Err: err}
	}
	if _, err := parseSuperblock(sb, a.sectors()); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	o.mapping, _, err = m.open(ctx, "volume-"+v.Name, a, journaled, sb, key)
	return err
}

// format makes a new volume of a blank disk. The header is written last: a disk
// with a header is a whole volume.
func (m *Manager) format(ctx context.Context, v Volume, o *opened) error {
	d := o.disk
	if err := luks.Blank(d, d.size); err != nil {
		if _, ok := errors.AsType[*luks.NotBlankError](err); ok {
			return fmt.Errorf("%w: %w, and no LUKS2 header; only a disk of zeros becomes a new volume (if nothing on it is needed: blkdiscard -z, or a new sparse file)", ErrRefused, err)
		}
		return err
	}
	if d.size < luks.MinDiskSize {
		return fmt.Errorf("%w: a volume needs %d MiB, the disk has %d bytes", ErrRefused, luks.MinDiskSize>>20, d.size)
	}
	n, err := luks.Create(m.o.Rand, v.Key)
	if err != nil {
		return err
	}
	defer n.Key.Clear()
	var sb []byte
	o.mapping, sb, err = m.open(ctx, "volume-"+v.Name, area{disk: d, offset: luks.NewDataOffset}, journaled, nil, n.Key)
	if err != nil {
		return err
	}
	device := o.mapping.top().Path()
	if v.Filesystem != "" {
		err = m.mkfs(ctx, device, o.mapping.size, volumeExt4())
	} else {
		err = wipe(ctx, device, o.mapping.size)
	}
	if err != nil {
		return err
	}
	for _, part := range []struct {
		data []byte
		at   int64
	}{{sb, luks.NewDataOffset}, {n.Header, 0}} {
		if _, err := d.WriteAt(part.data, part.at); err != nil {
			return fmt.Errorf("write the header: %w", err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("write the header: %w", err)
		}
	}
	o.result.New = true
	return nil
}

// mountVolume mounts the file system below the manager's directory.
func (m *Manager) mountVolume(v Volume, o *opened) (err error) {
	dir := filepath.Join(m.o.Dir, v.Name)
	if err := os.MkdirAll(m.o.Dir, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := mountExt4(o.result.Device, dir, ""); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	if v.Group != nil {
		if err := giveTo(dir, *v.Group); err != nil {
			return errors.Join(err, unmount(dir), os.Remove(dir))
		}
	}
	o.dir, o.result.Dir = dir, dir
	return nil
}

// giveTo lets a group write a file system's root directory, as Kubernetes' fsGroup
// does. What is below was made by the group, or is left to its owner.
func giveTo(dir string, group uint32) error {
	if err := os.Chown(dir, -1, int(group)); err != nil {
		return fmt.Errorf("group %d: %w", group, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if err := unix.Chmod(dir, st.Mode&0o7777|unix.S_ISGID|0o070); err != nil {
		return fmt.Errorf("group %d: %w", group, err)
	}
	return nil
}
