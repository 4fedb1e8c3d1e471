package program

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// resolverFiles are those that a guest writes for itself and its containers.
var resolverFiles = []string{"resolv.conf", "hosts", "hostname"}

// makeGuestMounts gives a process in a mount namespace of its own the places of
// a guest: its own process table and control groups, an empty /run, and, in
// etc, resolver files that are not its host's. They begin as a copy of these.
// Nothing of it is seen outside, or left when the namespace goes.
func makeGuestMounts(etc string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Read before /run is covered: resolv.conf may be a link to there.
	contents, places := map[string][]byte{}, map[string]string{}
	for _, name := range resolverFiles {
		raw, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("resolver files: %w", err)
		}
		contents[name] = raw
		if at, err := filepath.EvalSymlinks(filepath.Join("/etc", name)); err == nil {
			places[name] = at
		}
	}
	for _, m := range []struct{ source, target, kind, options string }{
		{"proc", "/proc", "proc", ""},
		// Whatever layout the machine has is covered up.
		{"tmpfs", "/sys/fs/cgroup", "tmpfs", "mode=0755"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.target, err)
		}
	}
	return ownResolver(etc, contents, places)
}

// ownResolver puts files of our own over the machine's.
func ownResolver(etc string, contents map[string][]byte, places map[string]string) error {
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fmt.Errorf("resolver files: %w", err)
	}
	for _, name := range resolverFiles {
		own := filepath.Join(etc, name)
		if err := os.WriteFile(own, contents[name], 0o644); err != nil {
			return fmt.Errorf("resolver files: %w", err)
		}
		at, ok := places[name]
		if !ok {
			continue
		}
		if strings.HasPrefix(at, "/run/") {
			// The link leads nowhere now: it shall lead here.
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return fmt.Errorf("resolver files: %w", err)
			}
			if err := os.Symlink(own, at); err != nil {
				return fmt.Errorf("resolver files: %w", err)
			}
			continue
		}
		if err := unix.Mount(own, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("resolver files: mount over %s: %w", at, err)
		}
	}
	return nil
}
