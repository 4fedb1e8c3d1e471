package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the guest image keeps kernel modules: uncompressed files, and lists of
// their names in load order, one per line.
const (
	// ModuleList is what every pod needs.
	ModuleList = "/usr/lib/coffer/modules.list"
	// TEEModuleList is what hardware may need: TEE drivers, vsock.
	TEEModuleList = "/usr/lib/coffer/modules.tee.list"
	// DiskModuleList is what disks need: virtio-blk, device-mapper, quota.
	DiskModuleList = "/usr/lib/coffer/modules.disk.list"
	// MemoryModuleList is what gives unused memory back to the host.
	MemoryModuleList = "/usr/lib/coffer/modules.memory.list"
	ModuleDir        = "/usr/lib/coffer/modules"
)

// parseModules reads a module list. Names carry no directory; the suffix .ko
// may be left out; empty lines and lines with # are skipped.
func parseModules(raw []byte) ([]string, error) {
	var names []string
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		name := strings.TrimSpace(sc.Text())
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if strings.ContainsAny(name, "/ \t") {
			return nil, fmt.Errorf("module list: %q is not a file name", name)
		}
		if !strings.HasSuffix(name, ".ko") {
			name += ".ko"
		}
		names = append(names, name)
	}
	return names, sc.Err()
}

// loadTEEModules loads the drivers of hardware that may be there. A driver that
// finds none says ENODEV; which TEE there is, is decided by whoever looks for
// its interface, and a guest that finds none refuses to attest.
func loadTEEModules(ctx context.Context) error {
	if _, err := os.Stat(TEEModuleList); errors.Is(err, fs.ErrNotExist) {
		return nil // a guest image without hardware support
	}
	return loadModules(ctx, TEEModuleList, unix.ENODEV)
}

// LoadDiskModules loads the drivers of disks and of their encryption. It is
// called with the first disk: a pod without one need not wait for them.
func LoadDiskModules(ctx context.Context) error {
	if _, err := os.Stat(DiskModuleList); errors.Is(err, fs.ErrNotExist) {
		return errors.New("this guest image has no drivers for disks")
	}
	return loadModules(ctx, DiskModuleList)
}

// LoadMemoryModules loads the driver that gives free memory back to the host. It
// is not for guests of hardware TEEs, whose memory is not the host's to take; on a
// machine without the device it does nothing.
func LoadMemoryModules(ctx context.Context) error {
	if _, err := os.Stat(MemoryModuleList); errors.Is(err, fs.ErrNotExist) {
		return nil // a guest image that keeps its memory
	}
	return loadModules(ctx, MemoryModuleList, unix.ENODEV)
}

// loadModules loads every module of a list. One that is loaded already, by this
// list or another, or built in, is as good; so is one that fails with a tolerated error.
func loadModules(ctx context.Context, list string, tolerated ...unix.Errno) error {
	raw, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	names, err := parseModules(raw)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := loadModule(filepath.Join(ModuleDir, name))
		if slices.ContainsFunc(tolerated, func(e unix.Errno) bool { return errors.Is(err, e) }) {
			continue
		}
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

// loadModule loads a module and removes its file, which is in memory and of no
// more use. One without a file is an error unless it has been loaded.
func loadModule(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && isLoaded(path) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("finit_module: %w", err)
	}
	return os.Remove(path)
}

// isLoaded tells whether the kernel has the module of a file. It writes names with
// underscores.
func isLoaded(file string) bool {
	name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
	_, err := os.Stat(filepath.Join("/sys/module", name))
	return err == nil
}
