package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/machine"
	"github.com/coffer-project/coffer/internal/guest/volume"
)

// places makes the stores of the pod, below dir.
type places struct {
	dir   string
	ready func(ctx context.Context) error
}

// Open implements [agent.Places].
func (p *places) Open(ctx context.Context, scratchDisk string) (*image.Store, *volume.Manager, error) {
	if scratchDisk != "" {
		return nil, nil, errors.New("scratch disks are not supported by this guest yet")
	}
	images := filepath.Join(p.dir, "images")
	if err := os.MkdirAll(images, 0o711); err != nil {
		return nil, nil, err
	}
	memory, err := machine.Memory()
	if err != nil {
		return nil, nil, fmt.Errorf("size of memory: %w", err)
	}
	size := fmt.Sprintf("mode=0700,size=%d", image.TmpfsSize(memory))
	if err := unix.Mount("tmpfs", images, "tmpfs", unix.MS_NODEV, size); err != nil {
		return nil, nil, fmt.Errorf("mount the image store: %w", err)
	}
	store, err := image.NewStore(images)
	if err != nil {
		return nil, nil, err
	}
	volumes, err := volume.NewManager(filepath.Join(p.dir, "volumes"))
	return store, volumes, err
}
