package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/luks"
)

// scratch is the pod's scratch disk.
type scratch struct {
	*opened
	projects uint32 // handed out
}

// volumesDir is where directories are, below the scratch disk's root.
const volumesDir = "volumes"

// scratchOptions leave inode tables unwritten until they are used, and do not
// read ahead in them. Project quotas bound directories.
const scratchOptions = "noinit_itable,inode_readahead_blks=0,prjquota"

// Scratch opens the disk with the serial number under a key that is made here
// and now, makes a file system on it and mounts it on dir, which exists. What
// was on the disk is gone. It can be called once.
func (m *Manager) Scratch(ctx context.Context, serial, dir string) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scratch != nil {
		return errors.New("scratch disk: there is one already")
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("scratch disk: %w", err)
		}
	}()
	began := time.Now()
	d, err := m.begin(ctx, serial)
	if err != nil {
		return err
	}
	o := &opened{disk: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.drop(ctx, o))
		}
	}()
	if d.size < minScratch {
		return fmt.Errorf("disk %s: expected at least %d MiB, got %d bytes", serial, minScratch>>20, d.size)
	}
	key, err := m.random(luks.KeySize)
	if err != nil {
		return err
	}
	defer key.Clear()
	if o.mapping, _, err = m.open(ctx, "scratch", area{disk: d}, direct, nil, key); err != nil {
		return err
	}
	device := o.mapping.top().Path()
	if err := m.mkfs(ctx, device, o.mapping.size, scratchExt4()); err != nil {
		return err
	}
	if err := mountExt4(device, dir, scratchOptions); err != nil {
		return err
	}
	o.dir = dir
	if err := prepareScratch(dir); err != nil {
		return errors.Join(err, unmount(dir))
	}
	m.scratch = &scratch{opened: o}
	m.keep(o)
	m.o.Logger.InfoContext(ctx, "scratch disk open", "disk", serial, "bytes", d.size, "usable", o.mapping.size, "took", time.Since(began))
	return nil
}

func prepareScratch(dir string) error {
	// Containers enter below; they need not see what is beside.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Mkdir(filepath.Join(dir, volumesDir), 0o711)
}

// HasScratch tells whether there is a scratch disk.
func (m *Manager) HasScratch() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.scratch != nil
}

// Directory makes a directory on the scratch disk that holds at most size bytes,
// rounded up to whole kilobytes (0: as much as the disk), and returns its path.
// Its name is new, its mode 0700. Whoever fills it gets "disk quota exceeded".
func (m *Manager) Directory(name string, size uint64) (path string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scratch == nil {
		return "", errors.New("scratch disk: there is none")
	}
	if !nameRE.MatchString(name) {
		return "", fmt.Errorf("directory %q: not a name", name)
	}
	path = filepath.Join(m.scratch.dir, volumesDir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("scratch disk: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("scratch disk: directory %s: %w", name, errors.Join(err, os.Remove(path)))
			path = ""
		}
	}()
	m.scratch.projects++
	return path, limitDirectory(path, m.scratch.projects, size)
}
