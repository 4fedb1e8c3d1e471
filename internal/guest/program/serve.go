package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/storage"
)

// plain are the flags of an agent that is a plain process.
type plain struct {
	socket        string
	fd            int
	dir           string
	crun          string
	cgroup        string
	ownNamespaces bool
	debug         bool
}

func parsePlain(args []string, stderr io.Writer) (plain, error) {
	var p plain
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&p.socket, "unix", "", "listen on the UNIX socket `PATH`")
	flags.IntVar(&p.fd, "fd", -1, "serve the one host that is connected to the inherited socket `N`, and end with it")
	development := flags.Bool("development", false, "run without a TEE; required")
	flags.StringVar(&p.dir, "dir", "/run/coffer", "keep state below `DIR`")
	flags.StringVar(&p.crun, "crun", "/usr/bin/crun", "run containers with the program at `PATH`")
	flags.StringVar(&p.cgroup, "cgroup", "/coffer", "put containers into children of the control group `PATH`")
	flags.BoolVar(&p.ownNamespaces, "own-namespaces", false, "this is the first process of new mount, process, UTS and IPC namespaces: make the mounts of a guest, with --dir below /run, and leave the network as it is")
	flags.BoolVar(&p.debug, "debug", false, "log debug messages")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return p, err
		}
		return p, usageError(err.Error())
	}
	switch {
	case flags.NArg() > 0:
		return p, usageError(fmt.Sprintf("serve: unexpected argument %q", flags.Arg(0)))
	case p.socket == "" && p.fd < 0:
		return p, usageError("serve: --unix is required")
	case p.socket != "" && p.fd >= 0:
		return p, usageError("serve: --unix and --fd exclude each other")
	case !*development:
		return p, usageError("serve: a plain process has no TEE and proves nothing; say --development if that is wanted")
	case p.ownNamespaces && os.Getpid() != 1:
		return p, usageError("serve: --own-namespaces is for the first process of a process namespace")
	case p.ownNamespaces && !strings.HasPrefix(p.dir, "/run/"):
		return p, usageError("serve: --own-namespaces: expected --dir below /run, got " + p.dir)
	case filepath.Clean("/"+p.cgroup) != p.cgroup:
		return p, usageError("serve: --cgroup: expected an absolute path, got " + p.cgroup)
	}
	return p, nil
}

// serve runs the agent as a plain process.
func serve(args []string, stderr io.Writer) error {
	o, err := parsePlain(args, stderr)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, end := context.WithCancel(ctx)
	defer end()
	// The machine's own resolver files are left alone.
	etc := filepath.Join(o.dir, "etc")
	if o.ownNamespaces {
		if err := makeGuestMounts(etc); err != nil {
			return err
		}
	}
	transport, closeTransport, err := o.transport(ctx)
	if err != nil {
		return err
	}
	defer closeTransport()
	reap, err := reaper.New(time.Now)
	if err != nil {
		return err
	}
	go func() { _ = reap.Run(ctx) }()
	p := parts{
		log: log, cmdline: boot.Cmdline{TEE: boot.TEENone, Development: true}, reaper: reap, places: newPlaces(o.dir, nil), disks: noDisks{}, dir: o.dir,
		etc: etc, crun: o.crun, cgroup: o.cgroup, plain: true, keepNetwork: o.ownNamespaces,
		marks: func() []boot.Mark { return nil },
		ready: func(context.Context) error { return nil }, end: func() { time.AfterFunc(goodbye, end) },
	}
	if _, err := unix.Getrandom(p.bootID[:], 0); err != nil {
		return err
	}
	a, err := build(p)
	if err != nil {
		return err
	}
	for _, name := range []string{storeDir, "pod"} {
		defer unix.Unmount(filepath.Join(o.dir, name), unix.MNT_DETACH) //nolint:errcheck // best effort at the end
	}
	if err := a.Serve(ctx, transport); ctx.Err() == nil && !errors.Is(err, agent.ErrShutdown) {
		return err
	}
	return nil
}

// transport opens what the host is heard on.
func (o plain) transport(ctx context.Context) (agent.Transport, func(), error) {
	if o.fd >= 0 {
		f := os.NewFile(uintptr(o.fd), "host")
		defer f.Close() //nolint:errcheck // net.FileConn has a copy
		conn, err := net.FileConn(f)
		if err != nil {
			return nil, nil, fmt.Errorf("--fd %d: expected an inherited socket: %w", o.fd, err)
		}
		return &onlyTransport{conn: conn}, func() { _ = conn.Close() }, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", o.socket)
	if err != nil {
		return nil, nil, err
	}
	return &listenTransport{l}, func() { _ = l.Close() }, nil // removes the socket
}

// onlyTransport has one connection, and ends with it.
type onlyTransport struct{ conn net.Conn }

// Next implements agent.Transport.
func (t *onlyTransport) Next(context.Context) (io.ReadWriteCloser, error) {
	if t.conn == nil {
		return nil, errors.New("the host has gone")
	}
	conn := t.conn
	t.conn = nil
	return conn, nil
}

// noDisks are those of an agent that has no machine: the disks it sees are its
// host's.
type noDisks struct{}

// errNoDisks refuses a disk.
var errNoDisks = errors.New("this agent is a plain process and has no disks: those of its host are left alone")

// OpenRaw implements agent.Disks.
func (noDisks) OpenRaw(context.Context, string, string) (storage.Opened, error) {
	return storage.Opened{}, errNoDisks
}

// OpenVolume implements agent.Disks.
func (noDisks) OpenVolume(context.Context, storage.Volume) (storage.Opened, error) {
	return storage.Opened{}, errNoDisks
}
