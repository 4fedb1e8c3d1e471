package main

import (
	"context"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// sample is one measurement of a server under load.
type sample struct {
	n            int
	wall         time.Duration
	user, system time.Duration
	client       time.Duration // CPU time of this program, the guests
	latencies    []time.Duration
}

func (r sample) rate() float64 { return float64(r.n) / r.wall.Seconds() }

// cpu is the server's CPU time per exchange.
func (r sample) cpu() time.Duration { return (r.user + r.system) / time.Duration(r.n) }

// load has clients do n exchanges in all and measures the server meanwhile.
// worker makes one client's exchange: its parameter counts exchanges over all.
func load(ctx context.Context, s *server, clients, n int, worker func(client int) func(ctx context.Context, i int) (time.Duration, error)) (sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := sample{n: n, latencies: make([]time.Duration, n)}
	user, system, err := s.cpu()
	if err != nil {
		return r, err
	}
	before := ownCPU()
	begun := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for client := range clients {
		wg.Go(func() {
			one := worker(client)
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if r.latencies[i], errs[client] = one(ctx, i); errs[client] != nil {
					cancel()
					return
				}
			}
		})
	}
	wg.Wait()
	r.wall, r.client = time.Since(begun), ownCPU()-before
	for _, err := range errs {
		if err != nil {
			return r, err
		}
	}
	u, k, err := s.cpu()
	r.user, r.system = u-user, k-system
	return r, err
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A machine that others use too slows single runs down, never up for long: the
// median of runs or of pairs' ratios stands for all.
func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	if n == 0 {
		return math.NaN()
	}
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

func each(runs []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(runs))
	for i, r := range runs {
		out[i] = f(r)
	}
	return out
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// pairs interleaves runs: a, b, a, b, …, one of each before for warmth. The
// order within pairs changes, so that neither always has the warmer machine.
func pairs(n int, a, b func() (sample, error)) (as, bs []sample, err error) {
	for i := range n + 1 {
		var ra, rb sample
		if i%2 == 0 {
			if ra, err = a(); err == nil {
				rb, err = b()
			}
		} else if rb, err = b(); err == nil {
			ra, err = a()
		}
		if err != nil {
			return nil, nil, err
		}
		if i > 0 {
			as, bs = append(as, ra), append(bs, rb)
		}
	}
	return as, bs, nil
}

// ratios of pairs, a over b.
func ratios(as, bs []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(as))
	for i := range as {
		out[i] = f(as[i]) / f(bs[i])
	}
	return out
}

// closing ends a client's connections.
func closing(c *http.Client) { c.CloseIdleConnections() }
