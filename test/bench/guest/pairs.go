package main

import (
	"context"
	"fmt"
	"os"
	"slices"
)

// contender is something that is compared: run does the work once.
type contender struct {
	name string
	run  func(context.Context) (cost, error)
}

// rounds runs the contenders in turns, in changing order, after one for warmth.
func (b *bench) rounds(ctx context.Context, n int, all []contender) ([][]cost, error) {
	costs := make([][]cost, len(all))
	for round := range n + 1 {
		for turn := range all {
			i := turn
			if round%2 == 1 {
				i = len(all) - 1 - turn
			}
			c, err := all[i].run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", all[i].name, err)
			}
			if round > 0 {
				costs[i] = append(costs[i], c)
			}
		}
		fmt.Fprintf(os.Stderr, "  round %d of %d\n", round, n)
	}
	return costs, nil
}

// ratio reports how many times faster one contender was than another: the
// median of the pairs' ratios, if they are near enough to each other for it to
// mean something.
func (b *bench) ratio(name string, target float64, peer string, theirs, ours []cost, of func(cost) float64) {
	var ratios []float64
	for i := range ours {
		ratios = append(ratios, of(theirs[i])/of(ours[i]))
	}
	s := spread(ratios)
	if s > maxSpread {
		b.report.AtMost(name+"/spread", s, "%", maxSpread, peer+"; no ratio: the pairs are too far from each other")
		return
	}
	if target > 0 {
		b.report.AtLeast(name, median(ratios), "×", target, peer)
	} else {
		b.report.Add(name, median(ratios), "×", peer)
	}
	b.report.Add(name+"/spread", s, "%", "")
}

// compare reports wall and CPU ratios.
func (b *bench) compare(name string, target float64, peer string, theirs, ours []cost) {
	b.ratio(name, target, peer, theirs, ours, wall)
	b.ratio(name+"/cpu", 0, peer, theirs, ours, cpu)
}

func (b *bench) absolute(name, peer string, costs []cost) {
	b.report.Add(name+"/wall", median(each(costs, wall)), "s", peer)
	b.report.Add(name+"/cpu", median(each(costs, cpu)), "s", peer)
	if most := slices.Max(each(costs, peak)); most > 0 {
		b.report.Add(name+"/peak", most, "MiB", peer)
	}
}

func wall(c cost) float64 { return c.wall }
func cpu(c cost) float64  { return c.cpu }
func peak(c cost) float64 { return c.peak }

func each(costs []cost, of func(cost) float64) []float64 {
	var out []float64
	for _, c := range costs {
		out = append(out, of(c))
	}
	return out
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
