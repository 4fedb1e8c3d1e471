package program

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/machine"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/storage"
	"github.com/coffer-project/coffer/internal/guest/volume"
)

// places makes the stores of the pod, below dir.
type places struct {
	dir   string
	disks *storage.Manager // nil: there are none

	mu      sync.Mutex
	volumes []*volume.Manager
}

func newPlaces(dir string, disks *storage.Manager) *places { return &places{dir: dir, disks: disks} }

// newDisks are those of the machine.
func newDisks(log *slog.Logger, reap *reaper.Reaper, dir string) *storage.Manager {
	return storage.New(storage.Options{
		Logger: log, Rand: rand.Reader, Drivers: boot.LoadDiskModules, Reaper: reap, Mke2fs: "/usr/bin/mke2fs", Dir: filepath.Join(dir, "disks"),
	})
}

// Close writes out and closes the pod's disks, which are the only thing of a
// guest that outlives it. No container runs any more.
func (p *places) Close(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, v := range p.volumes {
		errs = append(errs, v.Close())
	}
	if p.disks != nil {
		errs = append(errs, p.disks.Close(ctx))
	}
	return errors.Join(errs...)
}

// Open implements [agent.Places]: without a scratch disk images lie in a tmpfs of
// their own.
func (p *places) Open(ctx context.Context, scratchDisk string) (*image.Store, *volume.Manager, error) {
	if scratchDisk != "" && p.disks == nil {
		return nil, nil, errNoDisks
	}
	dir := filepath.Join(p.dir, storeDir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, nil, err
	}
	volumes, err := volume.NewManager(filepath.Join(p.dir, "volumes"))
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	p.volumes = append(p.volumes, volumes)
	p.mu.Unlock()
	if scratchDisk != "" {
		if err := p.disks.Scratch(ctx, scratchDisk, dir); err != nil {
			return nil, nil, err
		}
		volumes.UseDisk(p.disks)
	} else if err := mountMemory(dir); err != nil {
		return nil, nil, err
	}
	store, err := image.NewStore(filepath.Join(dir, "images"))
	return store, volumes, err
}

// storeDir is where images are, and on a disk volumes, too.
const storeDir = "store"

func mountMemory(dir string) error {
	memory, err := machine.Memory()
	if err != nil {
		return fmt.Errorf("size of memory: %w", err)
	}
	size := fmt.Sprintf("mode=0711,size=%d", image.TmpfsSize(memory))
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, size); err != nil {
		return fmt.Errorf("mount the image store: %w", err)
	}
	return nil
}
