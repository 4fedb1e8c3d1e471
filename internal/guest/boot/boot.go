// Package boot brings a guest from its first instruction in user space to the
// point where an agent can run, and ends it again.
//
// A boot is a list of named phases, run one after the other; every phase that
// ends leaves a [Mark] with two clocks, so that a slow or hanging boot names
// the phase. Nothing in it sleeps or polls. A guest that cannot finish a
// phase ends: [Run] returns the error and its caller powers the machine off.
package boot

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// Phase is one step of the boot.
type Phase struct {
	// Name is short and stable: it is reported to the host.
	Name string
	// Run does the step. It must return when ctx ends.
	Run func(ctx context.Context) error
}

// Mark is the end of a phase.
type Mark struct {
	Name string
	// At is CLOCK_BOOTTIME: time since the kernel started.
	At time.Duration
	// TSC is the time stamp counter (amd64: ticks since reset), 0 elsewhere.
	TSC uint64
}

// NewMark takes both clocks now.
func NewMark(name string) Mark {
	return Mark{Name: name, At: sinceBoot(), TSC: tsc()}
}

// sinceBoot reads CLOCK_BOOTTIME, which runs from the kernel's start. The
// call cannot fail with a known clock; a zero would only spoil telemetry.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Run runs phases in order and stops at the first error, which names the
// phase. The marks of the phases that ended are returned in either case.
func Run(ctx context.Context, log *slog.Logger, phases []Phase) ([]Mark, error) {
	marks := make([]Mark, 0, len(phases)+2)
	for _, p := range phases {
		if err := p.Run(ctx); err != nil {
			return marks, fmt.Errorf("boot phase %s: %w", p.Name, err)
		}
		m := NewMark(p.Name)
		marks = append(marks, m)
		log.DebugContext(ctx, "boot phase done", "phase", m.Name, "at", m.At)
	}
	return marks, nil
}
