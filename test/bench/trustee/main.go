// Trustee measures what a trustee costs beyond what cannot be saved: full
// handshakes with the software TEE against a bare HTTP server that does the
// same exchanges and nothing else, with the same clients; appraisal beyond the
// checks of signatures; how cost grows with what is stored; memory and start.
//
// Each pair is interleaved in one run, and what is reported is the median of
// the pairs' ratios: machines are noisy and have two cores. Clients do in both
// cases what a guest does: a connection, a TEE key and signed evidence of
// their own. CPU time is the server process's, user and system.
//
// Run it through: make bench-trustee.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/coffer-project/coffer/test/bench/report"
)

// Targets.
const (
	minRate      = 0.70   // of the bare server's
	maxAppraisal = 0.3    // ms beyond signature checks
	maxGrowth    = 1.15   // from 1 to 10,000 reference values and resources
	maxP99       = 2.0    // of a GET, from an empty store to a million resources
	maxResident  = 128    // MiB
	maxStart     = 300    // ms
	many         = 10_000 // reference values and resources
	million      = 1_000_000
)

type bench struct {
	work, program string
	pairs, each   int
	resources     int
	fleet         *fleet
	report        report.Report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench trustee:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	b := &bench{report: report.Report{Command: "make bench-trustee"}}
	out := flag.String("out", "build/bench/trustee.json", "where the figures go")
	flag.StringVar(&b.program, "program", "bin/coffer-trustee", "the trustee")
	flag.IntVar(&b.pairs, "pairs", 7, "pairs of runs of each comparison")
	flag.IntVar(&b.each, "each", 400, "handshakes in a run")
	flag.IntVar(&b.resources, "resources", million, "resources in the large store")
	only := flag.String("only", "", "one of handshakes, appraisal, growth, large; empty: all")
	bare := flag.String("bare", "", "be the bare server, with the certificate in this directory")
	flag.Parse()
	if *bare != "" {
		return serveBare(ctx, *bare)
	}
	if b.program, err = filepath.Abs(b.program); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "bench-trustee-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	if b.fleet, err = newFleet(filepath.Join(b.work, "chip")); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{{"handshakes", b.handshakes}, {"appraisal", b.appraisal}, {"growth", b.growth}, {"large", b.large}} {
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
		return fmt.Errorf("missed: %v", missed)
	}
	return nil
}
