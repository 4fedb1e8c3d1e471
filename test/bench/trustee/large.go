package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Runs of the large store.
const (
	getsEach = 3000
	starts   = 7
)

// large compares a trustee that keeps a million resources with one that keeps
// only those that are fetched. Those lie spread among the million.
func (b *bench) large(ctx context.Context) error {
	small, big := b.trustee("small"), b.trustee("large")
	for _, t := range []*trustee{small, big} {
		if err := t.run(ctx); err != nil {
			return err
		}
	}
	b.report.Add("start/empty", ms(small.start), "ms", "the first start of a new one, which makes keys and certificates")
	err := b.gets(ctx, small, big)
	if err == nil {
		err = b.restarts(ctx, big)
	}
	return errors.Join(err, small.stop(), big.stop())
}

func (b *bench) gets(ctx context.Context, small, big *trustee) error {
	for _, t := range []*trustee{small, big} {
		if err := t.populate(ctx, ownResources, 1); err != nil {
			return err
		}
	}
	if err := big.ballast(ctx, b.resources); err != nil {
		return err
	}
	as, bs, err := pairs(b.pairs,
		func() (sample, error) { return b.fetches(ctx, big) },
		func() (sample, error) { return b.fetches(ctx, small) })
	if err != nil {
		return err
	}
	p99 := func(r sample) float64 { return ms(quantile(r.latencies, 0.99)) }
	p50 := func(r sample) float64 { return ms(quantile(r.latencies, 0.5)) }
	list := ratios(as, bs, p99)
	b.report.AtMost("get/p99", median(list), "×", maxP99, "an empty store")
	b.report.Add("get/p99-spread", spread(list), "%", "")
	b.report.Add("get/p50", median(ratios(as, bs, p50)), "×", "an empty store")
	b.report.Add("get/cpu", median(ratios(as, bs, func(r sample) float64 { return float64(r.cpu()) })), "×", "an empty store, CPU time of the server")
	for _, side := range []struct {
		name string
		runs []sample
	}{{"large", as}, {"empty", bs}} {
		b.report.Add("get/"+side.name+"/p99", median(each(side.runs, p99)), "ms", "")
		b.report.Add("get/"+side.name+"/p50", median(each(side.runs, p50)), "ms", "")
		b.report.Add("get/"+side.name+"/cpu", median(each(side.runs, func(r sample) float64 { return ms(r.cpu()) })), "ms", "")
		b.report.Add("get/"+side.name+"/rate", median(each(side.runs, sample.rate)), "1/s", "")
	}
	// Memory is that of whole handshakes too, from new connections.
	if _, err := b.shakes(ctx, big.server, nil, false, ownResources); err != nil {
		return err
	}
	resident, err := big.resident()
	if err != nil {
		return err
	}
	b.report.AtMost("resident", resident, "MiB", maxResident, "most that it had (VmHWM), after the GETs and handshakes")
	return nil
}

// fetches has attested guests get resources at random.
func (b *bench) fetches(ctx context.Context, t *trustee) (sample, error) {
	guests := make([]*exchange, clients)
	cs := make([]func(), clients)
	do := make([]func(context.Context, string) error, clients)
	for i := range guests {
		c := t.client()
		x, err := shake(ctx, c, t.url, b.fleet.attester(ctx), nil, resourcePath(0))
		if err != nil {
			return sample{}, err
		}
		guests[i], cs[i] = x, func() { closing(c) }
		do[i] = func(ctx context.Context, path string) error { return x.fetch(ctx, c, t.url, path) }
	}
	defer func() {
		for _, f := range cs {
			f()
		}
	}()
	return load(ctx, t.server, clients, getsEach, func(client int) func(context.Context, int) (time.Duration, error) {
		return func(ctx context.Context, _ int) (time.Duration, error) {
			err := do[client](ctx, resourcePath(rand.IntN(ownResources)))
			return guests[client].latency, err
		}
	})
}

// restarts measures cold starts: of the process; the file system's cache is warm.
func (b *bench) restarts(ctx context.Context, t *trustee) error {
	var list []float64
	for range starts {
		if err := t.stop(); err != nil {
			return err
		}
		if err := t.run(ctx); err != nil {
			return err
		}
		list = append(list, ms(t.start))
	}
	b.report.AtMost("start/large", median(list), "ms", maxStart, "a start with a million resources, until /readyz is 200")
	b.report.Add("start/spread", spread(list), "%", "")
	return nil
}
