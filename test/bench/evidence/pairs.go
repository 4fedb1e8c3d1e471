package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// turns is how often each contender runs for one pair: a machine that others use
// too is not the same from one tenth of a second to the next.
const turns = 6

// contender is something whose time is taken: run does it once.
type contender struct {
	name string
	run  func(context.Context) error
	// target is the most that its time may be of the peer's; 0: none.
	target float64
	n      int // operations in a run
}

// timing is the time of one operation.
type timing struct{ cpu, wall float64 } // µs

// time takes the time of n operations.
func (c *contender) time(ctx context.Context) (timing, error) {
	runtime.GC() // so that nobody cleans up after another
	cpu, err := ownCPU()
	if err != nil {
		return timing{}, err
	}
	begun := time.Now()
	for range c.n {
		if err := c.run(ctx); err != nil {
			return timing{}, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	wall := time.Since(begun)
	after, err := ownCPU()
	each := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) / float64(c.n) }
	return timing{each(after - cpu), each(wall)}, err
}

// ownCPU is this process's CPU time, user and system, of all threads.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// calibrate warms up and finds how many operations last for a slice.
func (c *contender) calibrate(ctx context.Context, slice time.Duration) error {
	for c.n = 1; ; c.n *= 2 {
		t, err := c.time(ctx)
		if err != nil {
			return err
		}
		if took := time.Duration(t.wall * float64(c.n) * float64(time.Microsecond)); took >= slice/2 {
			c.n = max(1, int(float64(c.n)*float64(slice)/float64(took)))
			return nil
		}
	}
}

// compare runs all contenders in turns and reports the ratios of the others'
// times to the first's, the peer's.
func (b *bench) compare(ctx context.Context, group string, all ...*contender) error {
	times := make([][]timing, len(all))
	for _, c := range all {
		if err := c.calibrate(ctx, b.slice); err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
	}
	for range b.pairs {
		sums := make([]timing, len(all))
		for turn := range turns * len(all) {
			i := turn % len(all)
			if turn/len(all)%2 == 1 {
				i = len(all) - 1 - i
			}
			t, err := all[i].time(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", group, err)
			}
			sums[i] = timing{sums[i].cpu + t.cpu/turns, sums[i].wall + t.wall/turns}
		}
		for i, sum := range sums {
			times[i] = append(times[i], sum)
		}
	}
	peer := all[0].name
	for i, c := range all[1:] {
		var cpu, wall []float64
		for round, t := range times[i+1] {
			cpu = append(cpu, t.cpu/times[0][round].cpu)
			wall = append(wall, t.wall/times[0][round].wall)
		}
		name, label := group+"/"+c.name, peer
		if spread(cpu) > maxSpread {
			label += "; too unsteady to count"
		}
		if c.target > 0 {
			b.report.AtMost(name, median(cpu), "×", c.target, label)
			b.report.AtMost(name+"/spread", spread(cpu), "%", maxSpread, "")
		} else {
			b.report.Add(name, median(cpu), "×", label)
			b.report.Add(name+"/spread", spread(cpu), "%", "")
		}
		b.report.Add(name+"/wall", median(wall), "×", peer)
	}
	for i, c := range all {
		b.absolute(group+"/"+c.name, times[i])
	}
	return nil
}

// absolute reports times as they are.
func (b *bench) absolute(name string, times []timing) {
	var cpu []float64
	for _, t := range times {
		cpu = append(cpu, t.cpu)
	}
	b.report.Add(name+"/time", median(cpu), "µs", "")
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// spread is how far the middle half of values reaches around their median, in
// percent.
func spread(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return 100 * (list[n-1-n/4] - list[n/4]) / median(list)
}

func quantile(list []time.Duration, q float64) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[min(len(list)-1, int(math.Ceil(q*float64(len(list))))-1)]
}
