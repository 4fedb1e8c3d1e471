package program

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// gcPercent trades a little time for memory: what the agent does not use is
// the workload's.
const gcPercent = 50

// goodbye is how long a host that has called Shutdown may stay.
const goodbye = time.Second

// guest is the state of a guest from boot to end.
type guest struct {
	log    *slog.Logger
	boot   boot.Guest
	reap   *reaper.Reaper
	places *places // nil until the agent is made
	level  slog.LevelVar

	mu    sync.Mutex
	marks []boot.Mark

	drivers     chan struct{} // closed when driversErr is set
	driversErr  error
	driversOnce sync.Once

	teeOnce sync.Once
	teeErr  error
}

// Guest is PID 1. It boots, serves, and ends the machine; it does not return.
// A panic is not recovered from: it ends PID 1, and with it the machine.
func Guest() {
	debug.SetGCPercent(gcPercent)
	g := &guest{drivers: make(chan struct{})}
	g.mark("start")
	g.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &g.level}))
	reap, err := reaper.New(time.Now)
	if err != nil {
		// Without it nothing can be started; the kernel knows what to do.
		panic(err) //nolint:forbidigo // the end of PID 1 ends the machine
	}
	g.reap = reap
	if err := g.run(context.Background()); err != nil {
		g.log.Error("the guest ends", "error", err)
	}
	boot.PowerOff(g.log, g.reap.Idle, g.closePlaces)
}

// closePlaces is the last thing to be done before the power goes off.
func (g *guest) closePlaces(ctx context.Context) {
	if g.places == nil {
		return
	}
	if err := g.places.Close(ctx); err != nil {
		g.log.WarnContext(ctx, "close the pod's disks", "error", err)
	}
}

func (g *guest) mark(name string) {
	m := boot.NewMark(name)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.marks = append(g.marks, m)
}

func (g *guest) allMarks() []boot.Mark {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.marks)
}

// phases runs boot phases and keeps their marks.
func (g *guest) phases(ctx context.Context, phases []boot.Phase) error {
	marks, err := boot.Run(ctx, g.log, phases)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.marks = append(g.marks, marks...)
	return err
}

// loadDrivers loads them once and returns how that ended.
func (g *guest) loadDrivers(ctx context.Context) error {
	g.driversOnce.Do(func() {
		g.driversErr = g.phases(ctx, boot.DriverPhases())
		close(g.drivers)
	})
	return g.driversErr
}

// loadTEE loads the drivers of a hardware TEE, once.
func (g *guest) loadTEE(ctx context.Context) error {
	g.teeOnce.Do(func() { g.teeErr = g.phases(ctx, boot.TEEPhases()) })
	return g.teeErr
}

// shareMemory has the kernel give free memory back to the host, where it is the
// host's anyway. The pod does not depend on it.
func (g *guest) shareMemory(ctx context.Context) {
	if g.boot.Cmdline.TEE.Hardware() {
		return
	}
	if err := boot.LoadMemoryModules(ctx); err != nil {
		g.log.WarnContext(ctx, "free memory is not given back to the host", "error", err)
	}
}

func (g *guest) run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if err := g.phases(ctx, boot.GuestPhases(&g.boot)); err != nil {
		return err
	}
	if g.boot.Cmdline.Debug {
		g.level.Set(slog.LevelDebug)
	}
	go func() { _ = g.reap.Run(ctx) }()
	// A hardware TEE is a driver, and must be found before a host is answered.
	if g.boot.Cmdline.TEE.Hardware() {
		if err := g.loadTEE(ctx); err != nil {
			return err
		}
	}
	disks := newDisks(g.log, g.reap, "/run/coffer")
	g.places = newPlaces("/run/coffer", disks)
	a, err := build(parts{
		log: g.log, cmdline: g.boot.Cmdline, bootID: g.boot.BootID, marks: g.allMarks, reaper: g.reap, places: g.places, disks: disks,
		dir: "/run/coffer", etc: "/etc", crun: "/usr/bin/crun", cgroup: "/coffer",
		ready: func(ctx context.Context) error {
			select {
			case <-g.drivers:
				return g.driversErr
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		end: func() { time.AfterFunc(goodbye, func() { end(agent.ErrShutdown) }) },
	})
	if err != nil {
		return err
	}
	g.mark("agent")
	transport, err := findTransport(ctx, g.loadTEE)
	if err != nil {
		return err
	}
	g.mark("ready")
	go func() {
		if err := g.loadDrivers(ctx); err != nil {
			end(err)
			return
		}
		g.shareMemory(ctx)
	}()
	err = a.Serve(ctx, transport)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, agent.ErrShutdown) {
		g.log.InfoContext(ctx, "the guest ends", "reason", err)
		return nil
	}
	return err
}
