// Package machine is the guest's machine in the agent's hands: host name,
// kernel parameters, network, and the process that holds a shared PID
// namespace.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// Options configure a Machine.
type Options struct {
	// Ready waits for drivers; End begins the machine's end.
	Ready func(ctx context.Context) error
	End   func()
	// Etc is where the agent's own resolver reads, /etc.
	Etc string
	// ProcSys is /proc/sys.
	ProcSys string
	Reaper  *reaper.Reaper
	Network *network.Manager
}

// Machine is this machine. It is safe for concurrent use.
type Machine struct {
	o Options

	mu    sync.Mutex
	pause *reaper.Process
}

// New returns the machine.
func New(o Options) *Machine { return &Machine{o: o} }

// Ready waits until all drivers are there.
func (m *Machine) Ready(ctx context.Context) error { return m.o.Ready(ctx) }

// SetHostname names the machine; its containers share the name.
func (m *Machine) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

// SetSysctl sets a kernel parameter, a.b.c, beneath /proc/sys.
func (m *Machine) SetSysctl(name, value string) error {
	root, err := os.OpenRoot(m.o.ProcSys)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory
	f, err := root.OpenFile(strings.ReplaceAll(name, ".", "/"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this kernel has no parameter %s", name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// ApplyNetwork configures the network.
func (m *Machine) ApplyNetwork(ctx context.Context, c network.Config) error {
	return m.o.Network.Apply(ctx, c)
}

// WriteNetworkFiles writes the resolver's files into dir and for the agent.
func (m *Machine) WriteNetworkFiles(dir string, f network.Files) error {
	if m.o.Network.Keep && len(f.Addresses) == 0 {
		var err error
		if f.Addresses, err = network.Addresses(); err != nil {
			return err
		}
	}
	for _, d := range []string{dir, m.o.Etc} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := f.Write(d); err != nil {
			return err
		}
	}
	return nil
}

// SharedPIDs starts the process that is PID 1 of the pod's shared namespace,
// once, and returns the namespace's path when it is fit to be seen there.
func (m *Machine) SharedPIDs() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pause == nil {
		p, err := m.startPause()
		if err != nil {
			return "", err
		}
		m.pause = p
	}
	return filepath.Join("/proc", fmt.Sprint(m.pause.PID), "ns/pid"), nil
}

func (m *Machine) startPause() (*reaper.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close() //nolint:errcheck // /dev/null
	ready, done, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close() //nolint:errcheck // read only
	p, err := m.o.Reaper.Start("/proc/self/exe", []string{PauseName}, &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{null, null, null, readyFD: done},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS},
	})
	_ = done.Close()
	if err != nil {
		return nil, err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		_ = p.Signal(unix.SIGKILL)
		return nil, fmt.Errorf("%s gave up: %w", PauseName, err)
	}
	return p, nil
}

// Shutdown begins the end.
func (m *Machine) Shutdown() { m.o.End() }

// Memory is how much memory the machine has, in bytes.
func Memory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	return uint64(info.Totalram) * uint64(info.Unit), nil
}
