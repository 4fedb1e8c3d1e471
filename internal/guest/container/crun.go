// Package container runs containers inside the guest with crun, an OCI
// runtime: it builds the runtime's configuration from what the pod policy
// allows, and looks after standard streams, exit, memory exhaustion, limits
// and figures.
//
// The virtual machine is the pod's boundary towards the host. Namespaces,
// capabilities and seccomp separate the containers of one pod from each
// other and from the agent.
package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// maxLog bounds what is read of the runtime's messages.
const maxLog = 8 << 10

// Options configure a [Crun].
type Options struct {
	// Path of the runtime's program, for example /usr/bin/crun.
	Path string
	// StateDir holds the runtime's own state, BundleDir one directory per
	// container; both on a tmpfs.
	StateDir, BundleDir string
	// CgroupRoot is where cgroup2 is mounted; containers get a child of
	// CgroupParent, for example "/coffer", below it.
	CgroupRoot, CgroupParent string
	Reaper                   *reaper.Reaper
	// WithoutMissing leaves out limits for which the machine has no controller, and
	// capabilities that this process does not have, instead of failing. For
	// development on ordinary machines only.
	WithoutMissing bool
}

// Crun runs containers. It is safe for concurrent use; calls for one
// container must not overlap, except on its processes.
type Crun struct{ o Options }

// NewCrun checks the options and makes the directories.
func NewCrun(o Options) (*Crun, error) {
	if _, err := os.Stat(o.Path); err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	for _, dir := range []string{o.StateDir, o.BundleDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("container runtime: %w", err)
		}
	}
	return &Crun{o: o}, nil
}

// IO says which streams a process has.
type IO struct {
	// Terminal gives it a pseudo-terminal instead of pipes.
	Terminal bool
	// Stdin gives it an open standard input; without, it reads /dev/null, or a
	// terminal on which nobody types.
	Stdin bool
}

// Container is a container that was created.
type Container struct {
	ID string
	// Init is its first process, which waits until Start.
	Init *Process

	crun   *Crun
	bundle string
	cgroup string
}

// Create makes a container: everything is set up and its first process waits
// for Start. The spec's CgroupsPath is filled in. On error nothing is left.
func (c *Crun) Create(ctx context.Context, id string, spec *specs.Spec, streams IO) (_ *Container, err error) {
	bundle := filepath.Join(c.o.BundleDir, id)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	cgroup := filepath.Join(c.o.CgroupParent, id)
	ctr := &Container{ID: id, crun: c, bundle: bundle, cgroup: filepath.Join(c.o.CgroupRoot, cgroup)}
	defer func() {
		if err != nil {
			_ = ctr.Delete(context.WithoutCancel(ctx))
		}
	}()
	spec.Linux.CgroupsPath = cgroup
	if c.o.WithoutMissing {
		c.dropMissing(spec.Linux.Resources)
		if err := dropCapabilities(spec.Process); err != nil {
			return nil, fmt.Errorf("container %s: %w", id, err)
		}
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	ctr.Init, err = c.spawn(ctx, bundle, "init", streams, func(pidFile, console string) []string {
		args := []string{"create", "--bundle", bundle, "--pid-file", pidFile}
		if console != "" {
			args = append(args, "--console-socket", console)
		}
		return append(args, id)
	})
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return ctr, nil
}

// Start lets the first process run.
func (c *Container) Start(ctx context.Context) error {
	if err := c.crun.run(ctx, c.bundle, []string{"start", c.ID}, nil); err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return nil
}

// Exec starts another process in the container; execID names its files.
func (c *Container) Exec(ctx context.Context, execID string, process *specs.Process, streams IO) (*Process, error) {
	if c.crun.o.WithoutMissing {
		if err := dropCapabilities(process); err != nil {
			return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
		}
	}
	raw, err := json.Marshal(process)
	if err != nil {
		return nil, err
	}
	// The prefix keeps a chosen id away from the names used for the first process.
	name := "exec-" + execID
	file := filepath.Join(c.bundle, name+".json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	defer os.Remove(file) //nolint:errcheck // deleted with the bundle at the latest
	p, err := c.crun.spawn(ctx, c.bundle, name, streams, func(pidFile, console string) []string {
		args := []string{"exec", "--detach", "--pid-file", pidFile, "--process", file}
		if console != "" {
			args = append(args, "--console-socket", console)
		}
		return append(args, c.ID)
	})
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.ID, err)
	}
	return p, nil
}

// KillAll kills every process of the container, at once where the kernel can
// (cgroup.kill, Linux 5.14).
func (c *Container) KillAll() error {
	err := c.set("cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no cgroup, no processes
	}
	return err
}

// SignalAll sends sig to every process of the container.
func (c *Container) SignalAll(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.KillAll()
	}
	raw, err := os.ReadFile(filepath.Join(c.cgroup, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for field := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 1 {
			continue
		}
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Delete kills what still runs and removes the container and its files. A
// container that is gone already is no error.
func (c *Container) Delete(ctx context.Context) error {
	killErr := c.KillAll()
	if c.Init != nil {
		if _, err := c.Init.Wait(ctx); err != nil {
			return fmt.Errorf("delete container %s: %w", c.ID, errors.Join(err, killErr))
		}
	}
	var err error
	if _, serr := os.Stat(filepath.Join(c.crun.o.StateDir, c.ID)); serr == nil {
		err = c.crun.run(ctx, c.bundle, []string{"delete", "--force", c.ID}, nil)
	}
	// The runtime may have failed before it knew the container.
	if rerr := os.Remove(c.cgroup); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
		err = rerr
	}
	err = errors.Join(err, os.RemoveAll(c.bundle))
	if err != nil {
		return fmt.Errorf("delete container %s: %w", c.ID, err)
	}
	return nil
}

// spawn runs a command of the runtime that leaves a process behind.
func (c *Crun) spawn(ctx context.Context, bundle, name string, streams IO, args func(pidFile, console string) []string) (_ *Process, err error) {
	pidFile := filepath.Join(bundle, name+".pid")
	defer os.Remove(pidFile) //nolint:errcheck // deleted with the bundle at the latest
	p := &Process{}
	defer func() {
		if err != nil {
			p.CloseIO()
		}
	}()
	var files []*os.File
	var socket *consoleSocket
	var console string
	if streams.Terminal {
		socket, err = listenConsole(bundle)
		if err != nil {
			return nil, err
		}
		defer socket.close()
		console = socket.path
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close() //nolint:errcheck // /dev/null
		files = []*os.File{null, null, null}
	} else {
		files, err = p.pipes(streams.Stdin)
		defer closeAll(files)
		if err != nil {
			return nil, err
		}
	}
	claim := c.o.Reaper.Claim()
	defer claim.Release()
	if err := c.run(ctx, bundle, args(pidFile, console), files); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pidFile, err)
	}
	if p.Process, err = claim.Watch(pid); err != nil {
		return nil, err
	}
	if socket != nil {
		master, err := socket.receive(ctx)
		if err != nil {
			_ = p.Signal(unix.SIGKILL)
			return nil, err
		}
		p.setTerminal(master, streams.Stdin)
	}
	return p, nil
}

// run runs one command of the runtime to its end. Its messages are the error.
func (c *Crun) run(ctx context.Context, bundle string, args []string, files []*os.File) error {
	log, err := os.CreateTemp(bundle, "log-")
	if err != nil {
		return err
	}
	defer func() { _ = log.Close(); _ = os.Remove(log.Name()) }()
	if files == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close() //nolint:errcheck // /dev/null
		files = []*os.File{null, log, log}
	}
	argv := append([]string{"crun", "--root", c.o.StateDir, "--cgroup-manager", "cgroupfs",
		"--log", log.Name(), "--log-format", "text"}, args...)
	p, err := c.o.Reaper.Start(c.o.Path, argv, &os.ProcAttr{Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}, Files: files})
	if err != nil {
		return err
	}
	status, err := p.Wait(ctx)
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		<-p.Done()
		return fmt.Errorf("crun %s: %w", args[0], context.Cause(ctx))
	}
	if status.Code == 0 {
		return nil
	}
	msg := make([]byte, maxLog)
	n, rerr := log.ReadAt(msg, 0)
	if rerr != nil && !errors.Is(rerr, io.EOF) {
		n = 0
	}
	said, help := bytes.TrimSpace(msg[:n]), ""
	if bytes.Contains(said, []byte("executable file `")) { // crun 1.8, libcrun/container.c
		help = "; check the container's command, and that its image has this program"
	}
	return fmt.Errorf("crun %s: exit status %d: %s%s", args[0], status.Code, said, help)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
