// Package shim is what a containerd shim is besides its Task service: how it
// is started, found again, told to go, and cleaned up after.
//
// containerd runs the program for a few things. `start` finds the daemon of
// the container's pod, or makes its socket and starts it ([Program.Main] with
// no action), and prints the socket's address, in the dialect that this
// containerd asks for. `delete` removes what a dead daemon left. `-v` and
// `-info` describe the program. The daemon serves the Task and Sandbox
// services that [Program.Open] returns, one daemon for a pod, until they ask
// it to end. Package events carries its news to containerd, package podstate
// notes what `delete` has to remove.
//
// A containerd that gives a pod up does not always say so. It asks for the end
// with the context of the caller, who may have gone; it hangs up and removes the
// bundle at once, so that a `delete` beside it finds nothing; it is killed and
// its directories removed. So a daemon also ends by itself, when for
// [Settings.Linger] both of this were so:
//
//   - Nobody was connected. containerd holds a connection for the sandbox and
//     for each task as long as it means to ask anything, and makes them anew
//     when it is started again: while there is one, a dead pod is kept, so that
//     Wait, State and Delete answer however late they are.
//   - Nothing would be lost: the pod has ended, or was never made
//     ([Services.Over]), or its bundle is gone, without which no containerd
//     finds the daemon again.
//
// The ends of containers are told and noted before. Where the bundle is still
// there, the note of those that containerd has not asked for stays for the
// `delete` of a containerd that comes back, or, when the bundle has gone, for
// the next daemon's sweep.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/host/shim/events"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
	"github.com/coffer-project/coffer/internal/host/space"
)

// Program is a shim: what is the same for every shim is in this package, what
// is not is here.
type Program struct {
	// Name is the runtime type, such as io.containerd.coffer.v2.
	Name    string
	Version string
	// Configure reads the configuration at path; an empty path is the default
	// one. `start` calls it, so that a mistake is told at once, and the daemon.
	Configure func(path string) (Settings, error)
	// Open makes the daemon's services. ctx ends with the daemon.
	Open func(ctx context.Context, d *Daemon) (*Services, error)
	// Release removes what a dead daemon left outside of its processes and
	// files; see podstate.Cleaner.
	Release func(podstate.State) error
}

// Settings are the parts of a configuration that matter here.
type Settings struct {
	// StateDir is where pods' directories are.
	StateDir string
	Debug    bool
	// Linger is how long a daemon that nobody is connected with, and whose pod
	// nobody can need, goes on; zero is DefaultLinger.
	Linger time.Duration
}

// Daemon is what services get to know and to use.
type Daemon struct {
	// ID and Namespace are the pod's, as containerd calls it. Bundle is the
	// directory of its first container, or of its sandbox.
	ID, Namespace, Bundle string
	// Config is the configuration's path; empty for the default.
	Config string
	Logger *slog.Logger
	// Publisher tells containerd, in order and without waiting.
	Publisher *events.Publisher
	// State notes what has to be removed if this process is killed. Its
	// directory is the pod's.
	State *podstate.File
	// Shutdown ends the daemon: calls in flight are answered, Services.Close is
	// called, waiting events are sent. It returns at once.
	Shutdown func()
}

// Services are what the daemon serves.
type Services struct {
	// Register registers the Task services, of version 2 and 3, and the Sandbox
	// service.
	Register func(*ttrpc.Server)
	// Close ends the pod when it has not ended yet. ctx bounds it.
	Close func(ctx context.Context) error
	// Over tells that the pod has ended, or that none was made yet: nothing but
	// the memory of it would be lost. It may be called at any time.
	Over func() bool
}

// Process is what a program has of its process.
type Process struct {
	Args []string // without the program's name
	Env  []string // as of os.Environ
	// Executable is the program's path, with which it starts itself again.
	Executable string
	// Dir is the working directory: a bundle, for `start` and the daemon.
	Dir            string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// SocketDir is where sockets are when containerd does not say; empty is
	// DefaultSocketDir.
	SocketDir string
}

// DefaultLinger is generous: containerd connects at once, and one that is
// started again is back within seconds.
const DefaultLinger = 2 * time.Minute

// DefaultSocketDir is containerd's directory for shims' sockets, which has to
// be short: containerd/containerd v2 defaults.DefaultStateDir and "s".
const DefaultSocketDir = "/run/containerd/s"

// Self is the process of this program.
func Self() (Process, error) {
	path, err := os.Executable()
	if err != nil {
		return Process{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return Process{}, err
	}
	return Process{
		Args: os.Args[1:], Env: os.Environ(), Executable: path, Dir: dir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}, nil
}

// getenv is the variable's last value, which is the one that counts.
func (p Process) getenv(name string) string {
	for _, v := range slices.Backward(p.Env) {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// Main does what containerd asks for and returns the exit status. What goes to
// standard output is for containerd to parse. containerd shows what a failing
// program writes to standard error, which is one line.
func (p Program) Main(ctx context.Context, proc Process) int {
	if err := p.run(ctx, proc); err != nil {
		_, _ = fmt.Fprintf(proc.Stderr, "%s: %v\n", p.Name, space.Explain(err))
		return 1
	}
	return 0
}

func (p Program) run(ctx context.Context, proc Process) error {
	f, err := parseFlags(proc.Args)
	if err != nil {
		return err
	}
	if proc.SocketDir == "" {
		proc.SocketDir = DefaultSocketDir
	}
	switch {
	case f.version:
		return p.printVersion(proc)
	case f.info:
		return p.printInfo(proc)
	}
	if err := errors.Join(podstate.CheckID("-namespace", f.namespace), podstate.CheckID("-id", f.id)); err != nil {
		return err
	}
	switch f.action {
	case "start":
		return p.start(ctx, proc, f)
	case "delete":
		return p.delete(ctx, proc, f)
	case "":
		return p.serve(ctx, proc, f)
	default:
		return fmt.Errorf("action: expected start, delete or none, got %q", f.action)
	}
}
