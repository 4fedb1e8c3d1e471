package volumes

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// podDir is the directory that the kubelet keeps for one pod.
type podDir struct {
	// path is real, if the directory exists: no part of it is a link.
	path string
	// names are the paths by which mounts may call it.
	names []string
}

// newPodDir finds the directory of a pod. Without a kubelet there is none, and
// nothing is in it.
func newPodDir(root, uid string) *podDir {
	if uid == "" || uid == "." || uid == ".." || strings.ContainsAny(uid, "/\x00") || !filepath.IsAbs(root) {
		return &podDir{}
	}
	name := filepath.Join(root, "pods", uid)
	p := &podDir{path: name, names: []string{name}}
	// The root may be a link, and pods in it, too.
	if real, err := filepath.EvalSymlinks(root); err == nil {
		p.names = append(p.names, filepath.Join(real, "pods", uid))
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		p.path, p.names = real, append(p.names, real)
	}
	return p
}

// relative is the path of something in the pod's directory, however the source
// of a mount calls it.
func (p *podDir) relative(source string) (string, bool) {
	if rel, ok := p.below(source); ok {
		return rel, true
	}
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return "", false
	}
	return p.below(real)
}

func (p *podDir) below(path string) (string, bool) {
	for _, name := range p.names {
		if rel, err := filepath.Rel(name, path); err == nil && filepath.IsLocal(rel) {
			return rel, true
		}
	}
	return "", false
}

// open opens something below the directory, without following links.
func (p *podDir) open(rel string, flags uint64) (*os.File, error) {
	if p.path == "" {
		return nil, errors.New("there is no kubelet")
	}
	dir, err := unix.Open(p.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.path, Err: err}
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// group is the group that a volume was given to, nil for none. It fails if the
// directory is none of the pod's, or a link.
func (p *podDir) group(dir string) (*uint32, error) {
	rel, err := filepath.Rel(p.path, dir)
	if err != nil {
		return nil, err
	}
	f, err := p.open(rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return groupIn(info), nil
}

// list names what is in a directory, sorted; nothing if there is none.
func (p *podDir) list(rel string) ([]string, error) {
	if p.path == "" {
		return nil, nil
	}
	dir, err := p.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // a directory
	names, err := dir.Readdirnames(maxWalk)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}
