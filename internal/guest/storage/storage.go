// Package storage opens the disks that the host gives a pod: a scratch disk for
// what need not outlive the pod, and block volumes of the policy.
//
// A disk belongs to the host. It is used below dm-crypt with dm-integrity
// (AES-XTS and HMAC-SHA-256 in sectors of 4,096 bytes), so that the host neither
// reads what the pod writes nor alters it unnoticed: a sector that was altered
// cannot be read. The key of a scratch disk is made in the guest and never
// leaves it; the key of a volume comes from the trustee and opens a LUKS2 header
// that package luks has read once and checked.
//
// What the host can do is to give back an older state of a sector or of the
// whole disk, or none.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/storage/mapper"
	"github.com/coffer-project/coffer/secret"
)

// Options are what a [Manager] works with.
type Options struct {
	Logger *slog.Logger
	// Rand gives the keys of scratch disks and of new volumes.
	Rand io.Reader
	// Drivers loads the drivers of disks. It is called before the first one is
	// used, and may be called again.
	Drivers func(ctx context.Context) error
	// Reaper starts mke2fs.
	Reaper *reaper.Reaper
	// Mke2fs is that program's path.
	Mke2fs string
	// Dir is where file systems of volumes are mounted, each below its name.
	Dir string
	// KeyMemoryKiB bounds the memory that a volume's header may have the guest
	// spend on deriving a key; 0: luks.DefaultMemoryKiB.
	KeyMemoryKiB uint32
}

// Manager holds a pod's disks. It is safe for concurrent use; it opens one disk
// at a time.
type Manager struct {
	o Options

	mu      sync.Mutex
	dm      *mapper.Control // nil before the first disk
	slots   [slots]bool
	serials map[string]bool // of disks in use
	volumes map[string]*opened
	scratch *scratch
	order   []*opened // in the order of opening
}

// opened is a disk in use.
type opened struct {
	disk    *disk
	mapping *mapping
	dir     string // where it is mounted; empty: it is not
	result  Opened
}

// New returns a manager of no disks.
func New(o Options) *Manager {
	return &Manager{o: o, serials: map[string]bool{}, volumes: map[string]*opened{}}
}

// begin finds a disk for exclusive use.
func (m *Manager) begin(ctx context.Context, serial string) (*disk, error) {
	if m.serials[serial] {
		return nil, fmt.Errorf("disk %s: it is in use already", serial)
	}
	if m.dm == nil {
		if err := m.o.Drivers(ctx); err != nil {
			return nil, fmt.Errorf("drivers of disks: %w", err)
		}
		dm, err := mapper.Open()
		if err != nil {
			return nil, err
		}
		m.dm = dm
	}
	d, err := findDisk(ctx, "/sys/block", "/dev", serial, diskLimit)
	if err != nil {
		return nil, err
	}
	m.serials[serial] = true
	return d, nil
}

// keep remembers an open disk for Close.
func (m *Manager) keep(o *opened) { m.order = append(m.order, o) }

// drop ends the use of a disk that is unmounted or was never mounted.
func (m *Manager) drop(ctx context.Context, o *opened) error {
	var errs []error
	if o.mapping != nil {
		errs = append(errs, m.closeMapping(ctx, o.mapping))
	}
	errs = append(errs, o.disk.Close())
	delete(m.serials, o.disk.serial)
	return errors.Join(errs...)
}

// Close unmounts every disk, writes what is still in memory, and forgets the
// keys. Nothing may use the disks any more; it may be called again.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for len(m.order) > 0 {
		o := m.order[len(m.order)-1]
		m.order = m.order[:len(m.order)-1]
		if o.dir != "" {
			errs = append(errs, unmount(o.dir))
			// The mount point of a volume is ours.
			if m.scratch == nil || m.scratch.opened != o {
				errs = append(errs, os.Remove(o.dir))
			}
		}
		errs = append(errs, m.drop(ctx, o))
	}
	m.volumes, m.scratch = map[string]*opened{}, nil
	if m.dm != nil {
		errs = append(errs, m.dm.Close())
		m.dm = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the disks: %w", err)
	}
	return nil
}

// random returns a new key.
func (m *Manager) random(n int) (secret.Bytes, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(m.o.Rand, b); err != nil {
		return secret.Bytes{}, fmt.Errorf("random key: %w", err)
	}
	return secret.New(b), nil
}
