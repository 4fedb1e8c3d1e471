package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/container"
)

// maxNodes is how many devices a container is given: a guest has some dozens.
const maxNodes = 512

// own are what every container has of its own, and not the machine's.
func own() []string {
	return []string{"console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
}

// Nodes lists the device nodes in dev (for example /dev) and its directories, but
// for those that every container has of its own.
func Nodes(dev string) ([]container.Node, error) {
	var nodes []container.Node
	err := filepath.WalkDir(dev, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(path, dev), "/")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it has gone meanwhile
		case err != nil:
			return err
		case slices.Contains(own(), name) && d.IsDir():
			return fs.SkipDir
		case slices.Contains(own(), name) || d.Type()&fs.ModeDevice == 0:
			return nil
		case len(nodes) == maxNodes:
			return fmt.Errorf("more than %d devices", maxNodes)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		nodes = append(nodes, container.Node{
			Path: filepath.Join("/dev", name), Type: kind, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Mode: os.FileMode(st.Mode & 0o777), GID: st.Gid,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("device nodes: %w", err)
	}
	return nodes, nil
}
