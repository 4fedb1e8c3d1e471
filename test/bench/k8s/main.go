// K8s measures what a confidential pod costs beyond what any pod costs.
//
// Shims are driven as containerd 2.2 drives them: `start`, then the Task service
// over ttrpc, with FIFOs for output and a server that takes their events. What
// they are compared with is containerd's own shim and runc, on the same bundles,
// in the same namespaces and on the same kind of cgroup. Contenders take turns
// in changing order after a round for warmth.
//
// Everything runs in namespaces of its own, with which it ends. Run it through:
// make bench-k8s.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coffer-project/coffer/test/bench/report"
)

// config is what the command line says; paths are absolute.
type config struct {
	shim, agent, containerd, guest string
	out, only                      string
	rounds, pods, idle             int
}

type bench struct {
	config
	world  *world
	report report.Report
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == initArgument {
		os.Exit(beInit(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench k8s:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{report: report.Report{Command: "make bench-k8s"}}
	if err := b.parse(); err != nil {
		return err
	}
	if os.Getenv(insideVariable) == "" {
		return enter(ctx)
	}
	w, err := newWorld(ctx, b.agent)
	if err != nil {
		return err
	}
	b.world = w
	var failed error
	for _, s := range steps() {
		if b.only != "" && !strings.Contains(","+b.only+",", ","+s.name+",") {
			continue
		}
		progress("measuring %s", s.name)
		if err := s.run(b, ctx); err != nil {
			// What the other steps measure still counts.
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(failed, b.report.Table(os.Stdout), b.report.Write(b.out)); err != nil {
		return err
	}
	if missed := b.report.Missed(); len(missed) > 0 {
		progress("missed: %q", missed)
	}
	return nil
}

func (b *bench) parse() error {
	flag.StringVar(&b.shim, "shim", "bin/containerd-shim-coffer-v2", "the shim")
	flag.StringVar(&b.agent, "agent", "bin/coffer-agent", "the guest's agent")
	flag.StringVar(&b.guest, "guest", "build/guest", "the guest image")
	flag.StringVar(&b.containerd, "containerd", "build/k8s/containerd-2.2", "the directory of containerd-shim-runc-v2")
	flag.StringVar(&b.out, "out", "build/bench/k8s.json", "where the figures go")
	flag.StringVar(&b.only, "only", "", "some of "+strings.Join(stepNames(), ", ")+", with commas between; empty: all")
	flag.IntVar(&b.rounds, "rounds", 100, "containers of each shim whose calls are timed")
	flag.IntVar(&b.pods, "pods", 8, "the most pods that are started at once")
	flag.IntVar(&b.idle, "idle", 4, "machines that are idle at the same time, of which the memory of each is told")
	flag.Parse()
	if b.rounds < 5 || b.pods < 2 || b.idle < 2 {
		return errors.New("rounds: expected at least 5; pods, idle: at least 2")
	}
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for namespaces, mounts and containers")
	}
	for _, path := range []*string{&b.shim, &b.agent, &b.guest, &b.containerd, &b.out} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	return nil
}

type step struct {
	name string
	run  func(*bench, context.Context) error
}

func steps() []step {
	return []step{{"life", (*bench).life}, {"memory", (*bench).memory}, {"pods", (*bench).startMany}, {"ready", (*bench).ready}}
}

func stepNames() []string {
	var names []string
	for _, s := range steps() {
		names = append(names, s.name)
	}
	return names
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench k8s: "+format+"\n", args...)
}
