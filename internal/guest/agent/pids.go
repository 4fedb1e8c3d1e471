package agent

import (
	"errors"
	"fmt"
	"os"

	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/podpolicy"
)

// pidNamespace is where a container's processes are.
type pidNamespace struct {
	// path for the runtime; empty: a new one.
	path string
	file *os.File // what the path leads to; nil if it is not ours
}

func (n pidNamespace) close() {
	if n.file != nil {
		_ = n.file.Close()
	}
}

// pidNamespace opens that of another container, if the container is to be among
// its processes. It stays what it is until the runtime has joined it: a path by
// the number of a process might lead to another one by then.
func (a *Agent) pidNamespace(sb *sandbox, p *podpolicy.ContainerConfig) (pidNamespace, error) {
	if p.Target == "" {
		return pidNamespace{path: sb.pidNamespace}, nil
	}
	c, _, err := a.lookup(p.Target)
	if err != nil {
		return pidNamespace{}, err
	}
	f, err := c.c.Init.PIDNamespace()
	if errors.Is(err, reaper.ErrExited) {
		return pidNamespace{}, unready("%s, whose processes are to be shared, has ended", c.init)
	}
	if err != nil {
		return pidNamespace{}, failed("runtime", fmt.Errorf("PID namespace of %s: %w", c.init, err))
	}
	return pidNamespace{fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), f}, nil
}
