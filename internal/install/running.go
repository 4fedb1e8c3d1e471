package install

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// ErrInUse means that pods of this runtime run on the node.
var ErrInUse = errors.New("pods of this runtime are running")

// running lists the processes of the node whose program is our shim. A node
// without /proc has none.
func (n *node) running() ([]int, error) {
	entries, err := fs.ReadDir(n.FS(), "proc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("/proc of the node: %w", cause(err))
	}
	shim := path.Join(n.prefix, "bin", ShimName)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// One that ends meanwhile has no link any more.
		if exe, err := n.Readlink("proc/" + e.Name() + "/exe"); err == nil && strings.TrimSuffix(exe, " (deleted)") == shim {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// idle is nil when no pod of this runtime runs.
func (n *node) idle() error {
	pids, err := n.running()
	if err != nil || len(pids) == 0 {
		return err
	}
	return fmt.Errorf("%w: %d shims, the first is process %d (delete the pods; --force removes the runtime under them, and leaves machines that nobody ends)", ErrInUse, len(pids), pids[0])
}
