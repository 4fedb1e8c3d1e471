package main

import (
	"context"
	"errors"
)

// growth compares a trustee that keeps one reference value and one resource
// with one that keeps many of either. What counts is the server's CPU time for
// a handshake and a resource: it is what the stored things cost.
func (b *bench) growth(ctx context.Context) (err error) {
	base := b.trustee("growth-one")
	if err := base.run(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.stop()) }()
	if err := base.populate(ctx, 1, 1); err != nil {
		return err
	}
	for _, x := range []struct {
		name                  string
		resources, references int
	}{{"references", 0, many}, {"resources", many, 1}} {
		if err := b.grown(ctx, base, x.name, x.resources, x.references); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) grown(ctx context.Context, base *trustee, name string, resources, references int) (err error) {
	t := b.trustee("growth-" + name)
	if err := t.run(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	if err := errors.Join(t.populate(ctx, 1, references), t.ballast(ctx, resources)); err != nil {
		return err
	}
	as, bs, err := pairs(b.pairs,
		func() (sample, error) { return b.shakes(ctx, t.server, nil, true, 1) },
		func() (sample, error) { return b.shakes(ctx, base.server, nil, true, 1) })
	if err != nil {
		return err
	}
	list := ratios(as, bs, func(r sample) float64 { return float64(r.cpu()) })
	b.report.AtMost("growth/"+name+"/cpu", median(list), "×", maxGrowth, "one of them instead of 10,000, CPU time of the server")
	b.report.Add("growth/"+name+"/cpu-spread", spread(list), "%", "")
	b.report.Add("growth/"+name+"/wall", 1/median(ratios(as, bs, sample.rate)), "×", "the same by wall time")
	return nil
}
