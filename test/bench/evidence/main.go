// Evidence measures what it costs to judge evidence: verification against
// Google's libraries for SNP and TDX, a thousand attestations against a
// collateral service that gives one chip certificate in ten seconds, prediction
// of launch measurements against SHA-384 of what they are computed from, and
// what parsers allocate for their input.
//
// What is compared runs in turns in one process, in changing order, and what is
// reported is the median of the pairs' ratios of CPU time (all threads, the
// garbage collector's too), with wall time beside it. Where the middle half of
// the ratios reaches over more than 15 % the ratio says nothing, and the row
// for the spread is missed.
//
// Run it through: make bench-evidence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/test/bench/report"
)

// Targets.
const (
	maxCold       = 1.0  // of the peer's time
	maxWarmSNP    = 0.40 // likewise
	maxWarmTDX    = 0.30 // likewise
	maxPredict    = 1.2  // of SHA-384 over the input
	maxAllocation = 4.0  // of the input, in bytes
	maxLookup     = 1.0  // ms that collateral adds to a warm verification, p99
	maxSpread     = 15.0 // percent
)

type bench struct {
	pairs    int
	slice    time.Duration
	interval time.Duration
	report   report.Report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench evidence:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{report: report.Report{Command: "make bench-evidence"}}
	out := flag.String("out", "build/bench/evidence.json", "where the figures go")
	flag.IntVar(&b.pairs, "pairs", 15, "pairs of runs of each comparison")
	flag.DurationVar(&b.slice, "slice", 30*time.Millisecond, "how long one run lasts, about; six make one side of a pair")
	flag.DurationVar(&b.interval, "interval", 10*time.Second, "the least time between two chip certificates")
	only := flag.String("only", "", "one of verify, fleet, predict, parse, platforms; empty: all")
	flag.Parse()
	if b.pairs < 7 {
		return fmt.Errorf("pairs: expected at least 7, got %d", b.pairs)
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{{"verify", b.verify}, {"fleet", b.fleet}, {"predict", b.predict}, {"parse", b.parse}, {"platforms", b.platforms}} {
		if *only != "" && *only != step.name {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring", step.name)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	if err := errors.Join(b.report.Table(os.Stdout), b.report.Write(*out)); err != nil {
		return err
	}
	if missed := b.report.Missed(); len(missed) > 0 {
		fmt.Fprintln(os.Stderr, "missed:", missed)
	}
	return nil
}
