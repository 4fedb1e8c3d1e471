// Guest measures what the guest does for every pod: pulling images, decrypting
// them, deciding about requests, and being there.
//
// Pulls are compared with the programs that people use, each a process of its
// own, on the same image from the same registry on loopback, onto the same
// tmpfs. Contenders take turns, in changing order; what is reported is the
// median of the pairs' ratios, with CPU time beside it. Where the middle half of
// the ratios reaches over more than 15 % there is no ratio, and the row for the
// spread is missed.
//
// Run it through: make bench-guest.
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

const maxSpread = 15.0 // percent

type bench struct {
	pairs      int
	dir        string // on a tmpfs
	containerd string // where its programs are, or are built
	agent      string
	self       string
	report     report.Report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 && os.Args[1] == "pull" {
		err = runPull(ctx, os.Args[2:])
	} else {
		err = run(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench guest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	b := &bench{report: report.Report{Command: "make bench-guest"}}
	out := flag.String("out", "build/bench/guest.json", "where the figures go")
	flag.IntVar(&b.pairs, "pairs", 7, "pairs of runs of each comparison")
	tmpfs := flag.String("tmpfs", "/dev/shm", "a directory on a tmpfs with room for 4 GiB")
	flag.StringVar(&b.containerd, "containerd", "build/bench/bin", "where containerd and ctr are, or are built to")
	flag.StringVar(&b.agent, "agent", "bin/coffer-agent", "the guest's agent")
	only := flag.String("only", "", "some of "+strings.Join(stepNames(), ", ")+", with commas between; empty: all")
	flag.Parse()
	if b.pairs < 5 {
		return fmt.Errorf("pairs: expected at least 5, got %d", b.pairs)
	}
	if os.Geteuid() != 0 {
		return errors.New("root is needed: unpacking sets owners")
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*tmpfs, "coffer-bench-*"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	var failed error
	for _, s := range steps() {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring", s.name)
		if err := s.run(b, ctx); err != nil {
			// What the other steps measure still counts.
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(failed, b.report.Table(os.Stdout), b.report.Write(*out)); err != nil {
		return err
	}
	if missed := b.report.Missed(); len(missed) > 0 {
		fmt.Fprintln(os.Stderr, "missed:", missed)
	}
	return nil
}

type step struct {
	name string
	run  func(*bench, context.Context) error
}

func steps() []step {
	return []step{{"pull", (*bench).pulls}, {"umoci", (*bench).againstUmoci}, {"memory", (*bench).memory}, {"decrypt", (*bench).decrypt}, {"cache", (*bench).cache},
		{"policy", (*bench).policy}, {"agent", (*bench).agentMemory}}
}

func stepNames() []string {
	var names []string
	for _, s := range steps() {
		names = append(names, s.name)
	}
	return names
}

func (b *bench) path(names ...string) string {
	return filepath.Join(append([]string{b.dir}, names...)...)
}
