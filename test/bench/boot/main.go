// Boot measures how much of a guest's boot is ours: instructions from reset until
// the agent is ready, divided by those until the first statement of a ten-line C
// program that is /init of the same kernel on the same machine.
//
// The clock is QEMU's: with -icount shift=0,sleep=off the time stamp counter of the
// emulated CPU counts the instructions executed since reset, plus the idle time
// of timers the guest waited for. It does not depend on the machine's load. Both
// programs read it themselves.
//
// It prints a table and writes JSON; run it through: make bench-boot.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guestimage/compression"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/test/bench/report"
)

// Targets.
const (
	maxRatio  = 1.15
	maxInitrd = 16 << 20
	maxAgent  = 25 // MiB resident
	// maxSpread is how far runs may lie apart, in percent. The baseline repeats
	// almost to the instruction; an agent that talks to devices sees their answers, which
	// come from other threads of QEMU, a little earlier or later.
	maxSpread = 0.5
)

const runLimit = 10 * time.Minute

type bench struct {
	image    string
	manifest *manifest.Manifest
	work     string
	qemu     string
	extra    string
	runs     int
	report   report.Report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench boot:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	b := &bench{report: report.Report{Command: "make bench-boot"}}
	out := flag.String("out", "build/bench/boot.json", "where the figures go")
	formats := flag.Bool("formats", false, "also compare initrd formats (takes minutes)")
	flag.StringVar(&b.image, "image", "build/guest", "directory of the guest image")
	flag.StringVar(&b.extra, "append", "coffer.tee=none coffer.development", "what a launch adds to the image's kernel command line")
	flag.IntVar(&b.runs, "runs", 3, "runs of each case")
	flag.Parse()
	if b.manifest, err = manifest.Load(b.image); err != nil {
		return err
	}
	if err := b.manifest.Check(b.image); err != nil {
		return err
	}
	if b.manifest.Firmware == nil {
		return errors.New("the guest image has no firmware")
	}
	if b.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return fmt.Errorf("%w (install it: make deps)", err)
	}
	if b.work, err = os.MkdirTemp("", "coffer-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()

	if err := b.boot(ctx); err != nil {
		return err
	}
	if err := b.idle(ctx); err != nil {
		return err
	}
	if *formats {
		if err := b.formats(ctx); err != nil {
			return err
		}
	}
	if err := b.report.Table(os.Stdout); err != nil {
		return err
	}
	if err := b.report.Write(*out); err != nil {
		return err
	}
	if missed := b.report.Missed(); len(missed) > 0 {
		return fmt.Errorf("missed: %q", missed)
	}
	return nil
}

// boot compares the agent's boot with the baseline's.
func (b *bench) boot(ctx context.Context) error {
	program, err := compile(ctx, baselineSource)
	if err != nil {
		return err
	}
	initrd, err := archive("init", program)
	if err != nil {
		return err
	}
	base, err := b.repeat("baseline", func() (float64, error) { return b.baseline(ctx, initrd) })
	if err != nil {
		return err
	}
	var phases map[string]float64
	var order []string
	agent, err := b.repeat("agent", func() (float64, error) {
		var total float64
		phases, order, total, err = b.agent(ctx)
		return total, err
	})
	if err != nil {
		return err
	}
	const peer = "same kernel, C init"
	b.report.Add("boot/baseline", median(base), "instructions", "")
	b.report.Add("boot/agent-ready", median(agent), "instructions", "")
	b.report.AtMost("boot/ratio", median(agent)/median(base), "×", maxRatio, peer)
	b.report.AtMost("boot/baseline-spread", spread(base), "%", maxSpread, "")
	b.report.AtMost("boot/agent-spread", spread(agent), "%", maxSpread, "")
	at := median(base)
	for _, name := range order {
		b.report.Add("boot/phase/"+name, phases[name]-at, "instructions", "")
		at = phases[name]
	}
	b.report.AtMost("initrd/size", float64(b.manifest.Initrd.Size), "bytes", maxInitrd, "")
	return nil
}

// baseline boots the C program and returns its clock.
func (b *bench) baseline(ctx context.Context, initrd []byte) (float64, error) {
	return b.with(ctx, machine{counted: true}, initrd, func(_ context.Context, r *running) (float64, error) {
		if err := r.wait(); err != nil {
			return 0, err
		}
		return r.field("tsc=")
	})
}

// readyPhase is the one at whose end the agent answers. What follows it, drivers
// and hardening, runs beside the first calls.
const readyPhase = "ready"

// agent boots the image and returns the clock at the end of each phase until
// the agent is ready, and then.
func (b *bench) agent(ctx context.Context) (map[string]float64, []string, float64, error) {
	at := map[string]float64{}
	var order []string
	total, err := b.with(ctx, machine{counted: true, portName: channel.SerialPort}, nil, func(ctx context.Context, r *running) (float64, error) {
		resp, err := r.hello(ctx)
		if err != nil {
			return 0, err
		}
		for _, p := range resp.GetBootPhases() {
			order = append(order, p.GetName())
			at[p.GetName()] = float64(p.GetAtTsc())
			if p.GetName() == readyPhase {
				return at[readyPhase], nil
			}
		}
		return 0, fmt.Errorf("the agent reports the phases %q: expected %q among them", order, readyPhase)
	})
	return at, order, total, err
}

// idle measures the agent's memory after the first call, on a machine that runs
// at its own speed.
func (b *bench) idle(ctx context.Context) error {
	program, err := compile(ctx, idleSource)
	if err != nil {
		return err
	}
	extra, err := archive("bench-init", program)
	if err != nil {
		return err
	}
	initrd, err := b.manifest.Initrd.Read(b.image)
	if err != nil {
		return err
	}
	initrd = cpio.Join(initrd, extra)
	progress("agent memory")
	m := machine{portName: channel.SerialPort, cmdline: "rdinit=/bench-init"}
	rss, err := b.with(ctx, m, initrd, func(ctx context.Context, r *running) (float64, error) {
		if _, err := r.hello(ctx); err != nil {
			return 0, err
		}
		return r.status(ctx, "VmRSS:")
	})
	if err != nil {
		return err
	}
	b.report.AtMost("agent/resident", rss/1024, "MiB", maxAgent, "")
	return nil
}

// formats boots the baseline with the image's files behind it in every format
// worth considering: what differs is what unpacking costs.
func (b *bench) formats(ctx context.Context) error {
	program, err := compile(ctx, baselineSource)
	if err != nil {
		return err
	}
	own, err := archive("bench-init", program)
	if err != nil {
		return err
	}
	initrd, err := b.manifest.Initrd.Read(b.image)
	if err != nil {
		return err
	}
	if initrd, err = compression.Decompress(initrd, b.manifest.Initrd.Compression, manifest.MaxFileBytes); err != nil {
		return err
	}
	plain := cpio.Join(initrd, own)
	for _, format := range manifest.Compressions() {
		data, err := compression.Compress(plain, format)
		if err != nil {
			return err
		}
		at, err := b.repeat("initrd format "+format, func() (float64, error) {
			m := machine{counted: true, cmdline: "rdinit=/bench-init"}
			return b.with(ctx, m, data, func(_ context.Context, r *running) (float64, error) {
				if err := r.wait(); err != nil {
					return 0, err
				}
				return r.field("tsc=")
			})
		})
		if err != nil {
			return err
		}
		b.report.Add("initrd/"+format+"/boot", median(at), "instructions", "")
		b.report.Add("initrd/"+format+"/size", float64(len(data)), "bytes", "")
	}
	return nil
}

// with starts m with the image's kernel, firmware and command line, hands
// it to use and ends it. A nil initrd is the image's own.
func (b *bench) with(ctx context.Context, m machine, initrd []byte, use func(context.Context, *running) (float64, error)) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	dir, err := os.MkdirTemp(b.work, "run-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := func(name string) string { return filepath.Join(b.image, name) }
	m.qemu, m.firmware, m.kernel, m.initrd = b.qemu, path(b.manifest.Firmware.Name), path(b.manifest.Kernel.Name), path(b.manifest.Initrd.Name)
	m.cmdline = fmt.Sprintf("%s %s %s", b.manifest.Cmdline, b.extra, m.cmdline)
	if initrd != nil {
		m.initrd = filepath.Join(dir, "initrd")
		if err := os.WriteFile(m.initrd, initrd, 0o600); err != nil {
			return 0, err
		}
	}
	r, err := m.start(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer r.stop()
	return use(ctx, r)
}

func (b *bench) repeat(what string, once func() (float64, error)) ([]float64, error) {
	var all []float64
	for i := range b.runs {
		progress("%s, run %d of %d", what, i+1, b.runs)
		v, err := once()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		all = append(all, v)
	}
	return all, nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench boot: "+format+"\n", args...)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// spread is the distance between the extremes, in percent of the median.
func spread(v []float64) float64 { return 100 * (slices.Max(v) - slices.Min(v)) / median(v) }
