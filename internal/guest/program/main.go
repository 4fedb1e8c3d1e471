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
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/machine"
	"github.com/coffer-project/coffer/internal/guest/reaper"
)

const usage = `coffer-agent is the agent of a Coffer guest. As PID 1 it boots the guest.

Usage:
  coffer-agent serve --unix PATH --development [--dir DIR] [--crun PATH] [--debug]
        serve the agent protocol on a UNIX socket, without a virtual machine
        and without a TEE; for tests
  coffer-agent version
`

// Main runs the program and returns its exit status: 0, 1 for a failure, 2
// for wrong usage.
func Main(args []string, stdout, stderr io.Writer) int {
	switch {
	case filepath.Base(args[0]) == machine.PauseName:
		_ = machine.Pause() // the agent sees that it has ended
		return 1
	case os.Getpid() == 1 && len(args) == 1:
		Guest()
	case len(args) == 2 && args[1] == "version":
		_, _ = fmt.Fprintln(stdout, Version)
		return 0
	case len(args) > 1 && args[1] == "serve":
		switch err := serve(args[2:], stderr); {
		case errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, new(usageError)):
			_, _ = fmt.Fprintf(stderr, "coffer-agent: %v\n%s", err, usage)
			return 2
		case err != nil:
			_, _ = fmt.Fprintln(stderr, "coffer-agent:", err)
			return 1
		}
		return 0
	}
	_, _ = io.WriteString(stderr, usage)
	return 2
}

// usageError is a mistake on the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

// serve runs the agent as a plain process.
func serve(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("unix", "", "listen on the UNIX socket `PATH`")
	development := flags.Bool("development", false, "run without a TEE; required")
	dir := flags.String("dir", "/run/coffer", "keep state below `DIR`")
	crun := flags.String("crun", "/usr/bin/crun", "run containers with the program at `PATH`")
	debug := flags.Bool("debug", false, "log debug messages")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError(err.Error())
	}
	switch {
	case flags.NArg() > 0:
		return usageError(fmt.Sprintf("serve: unexpected argument %q", flags.Arg(0)))
	case *socket == "":
		return usageError("serve: --unix is required")
	case !*development:
		return usageError("serve: a plain process has no TEE and proves nothing; say --development if that is wanted")
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, end := context.WithCancel(ctx)
	defer end()
	reap, err := reaper.New(time.Now)
	if err != nil {
		return err
	}
	go func() { _ = reap.Run(ctx) }()
	p := parts{
		log: log, cmdline: boot.Cmdline{TEE: boot.TEENone, Development: true}, reaper: reap, places: newPlaces(log, reap, *dir), dir: *dir,
		// The machine's own resolver files are left alone.
		etc: filepath.Join(*dir, "etc"), crun: *crun,
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
		defer unix.Unmount(filepath.Join(*dir, name), unix.MNT_DETACH) //nolint:errcheck // best effort at the end
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", *socket)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // removes the socket
	if err := a.Serve(ctx, &listenTransport{l}); ctx.Err() == nil && !errors.Is(err, agent.ErrShutdown) {
		return err
	}
	return nil
}
