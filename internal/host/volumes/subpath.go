package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxWalk bounds the search for a part of a volume.
const maxWalk = 10_000

// subPath is a mount of what the kubelet has bind-mounted for a subPath. Its
// path names the volume; the part of the volume is found as the kernel tells
// it: the mount's root, compared with where the volume lies in the same file
// system, and held against the inode.
func (p *planner) subPath(at place, source string, mt specs.Mount) error {
	if at.container != p.c.Name {
		return fmt.Errorf("the subPath belongs to container %s", clip(at.container))
	}
	plugins, err := p.m.pod.plugins(at.volume)
	if err != nil {
		return fmt.Errorf("volume %s: %w", clip(at.volume), err)
	}
	if len(plugins) == 0 {
		// A host path has no directory in the pod's.
		mt.Source = source
		return p.hostPath(mt)
	}
	mounts, err := p.machineMounts()
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		v := place{kind: placeVolume, plugin: plugin, volume: at.volume}
		dir := filepath.Join(p.m.pod.path, "volumes", plugin, at.volume)
		part, ok, err := findPart(mounts, dir, source)
		if err != nil {
			return fmt.Errorf("volume %s: subPath: %w", clip(at.volume), err)
		}
		if !ok {
			continue
		}
		if v.atomic() {
			if part, err = inVersion(part); err != nil {
				return fmt.Errorf("volume %s: subPath: %w", clip(at.volume), err)
			}
		}
		if part == "." {
			part = ""
		}
		return p.volume(v, part, mt)
	}
	return fmt.Errorf("volume %s: what the kubelet has mounted for the subPath is not in the volume (%s)", clip(at.volume), strings.Join(plugins, ", "))
}

// plugins lists those that have a volume of this name.
func (p *podDir) plugins(volume string) ([]string, error) {
	names, err := p.list("volumes")
	if err != nil {
		return nil, err
	}
	var plugins []string
	for _, name := range names {
		if f, err := p.open(path.Join("volumes", name, volume), unix.O_PATH|unix.O_DIRECTORY); err == nil {
			_ = f.Close()
			plugins = append(plugins, name)
		}
	}
	return plugins, nil
}

// findPart finds the path inside the directory dir of what is mounted at source.
func findPart(mounts []mount, dir, source string) (part string, ok bool, err error) {
	on, mounted := mountAt(mounts, source)
	of, found := mountOf(mounts, dir)
	if !mounted || !found {
		return "", false, errors.New("the kubelet has not mounted it, or where this process does not see it (the shim needs the kubelet's mount namespace)")
	}
	want, err := os.Lstat(source)
	if err != nil {
		return "", false, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", false, err
	}
	defer root.Close() //nolint:errcheck // a directory
	if part, ok := within(on, of, dir); ok {
		if strings.HasSuffix(on.root, deletedMark) {
			return part, true, nil // a version that was replaced: the name is the same in the next
		}
		if got, err := root.Lstat(part); err == nil && os.SameFile(got, want) {
			return part, true, nil
		}
	}
	// File systems may be mounted in ways that roots do not tell.
	return search(root, want)
}

// search looks for a file below a directory by its inode.
func search(root *os.Root, want fs.FileInfo) (part string, ok bool, err error) {
	seen := 0
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if seen++; seen > maxWalk {
			return fmt.Errorf("not found among the first %d files of the volume", maxWalk)
		}
		if err != nil {
			return nil //nolint:nilerr // it may have been removed meanwhile
		}
		if info, err := e.Info(); err == nil && os.SameFile(info, want) {
			part, ok = name, true
			return fs.SkipAll
		}
		return nil
	})
	return part, ok, err
}

// inVersion is the name of a file, of a directory of files, or of the whole, without the
// directory of the version that the kubelet's writer has put it in.
func inVersion(part string) (string, error) {
	version, name, ok := strings.Cut(part, "/")
	switch {
	case part == ".":
		return "", nil
	case !strings.HasPrefix(version, ".."):
		return "", fmt.Errorf("expected one of the volume's files, got %q", clip(part))
	case !ok:
		return "", nil
	}
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("file %q: %w", clip(name), err)
	}
	return name, nil
}
