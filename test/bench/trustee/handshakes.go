package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// clients is how many guests attest at once.
const clients = 8

// handshakes compares a trustee with a bare server.
func (b *bench) handshakes(ctx context.Context) (err error) {
	t := b.trustee("handshakes")
	if err := t.run(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	if err := t.populate(ctx, 1, 1); err != nil {
		return err
	}
	bare, key, err := b.startBare(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	for _, form := range []struct {
		name  string
		keep  bool
		label string
	}{{"handshake", false, "a bare HTTPS server, same exchanges, own TLS connection each"}, {"handshake-keepalive", true, "the same over connections that stay"}} {
		ours := func() (sample, error) { return b.shakes(ctx, t.server, nil, form.keep, 1) }
		theirs := func() (sample, error) { return b.shakes(ctx, bare, key, form.keep, 1) }
		as, bs, err := pairs(b.pairs, ours, theirs)
		if err != nil {
			return err
		}
		list := ratios(as, bs, sample.rate)
		if ratio := median(list); form.keep {
			b.report.Add(form.name+"/ratio", ratio, "×", form.label)
		} else {
			b.report.AtLeast(form.name+"/ratio", ratio, "×", minRate, form.label)
		}
		b.report.Add(form.name+"/ratio-spread", spread(list), "%", "")
		for _, side := range []struct {
			name string
			runs []sample
		}{{"trustee", as}, {"bare", bs}} {
			name := form.name + "/" + side.name
			b.report.Add(name+"/rate", median(each(side.runs, sample.rate)), "1/s", "")
			b.report.Add(name+"/wall", median(each(side.runs, func(r sample) float64 { return ms(r.wall) / float64(r.n) })), "ms", "")
			b.report.Add(name+"/user", median(each(side.runs, func(r sample) float64 { return ms(r.user) / float64(r.n) })), "ms", "")
			b.report.Add(name+"/system", median(each(side.runs, func(r sample) float64 { return ms(r.system) / float64(r.n) })), "ms", "")
			b.report.Add(name+"/clients", median(each(side.runs, func(r sample) float64 { return ms(r.client) / float64(r.n) })), "ms", "")
		}
	}
	return nil
}

// startBare runs this program as the bare server that answers what t answers.
// Its resource opens with the key.
func (b *bench) startBare(ctx context.Context, t *trustee) (*server, *kbs.TEEKey, error) {
	c := t.client()
	defer closing(c)
	x, err := shake(ctx, c, t.url, b.fleet.attester(ctx), nil, resourcePath(0))
	if err != nil {
		return nil, nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	for name, content := range map[string][]byte{
		fileAddress: []byte(address), fileChallenge: x.challenge, fileCookie: []byte(x.cookie), fileToken: x.token, fileResource: x.resource,
	} {
		if err := os.WriteFile(filepath.Join(t.dir(), name), content, 0o600); err != nil {
			return nil, nil, err
		}
	}
	s, err := startServer(ctx, filepath.Join(b.work, "bare.log"), address, filepath.Join(t.dir(), "ca.pem"), "/readyz", self, "-bare", t.dir())
	return s, x.key, err
}

// shakes has guests run handshakes and fetch one of the first resources each.
func (b *bench) shakes(ctx context.Context, s *server, fixed *kbs.TEEKey, keep bool, resources int) (sample, error) {
	return load(ctx, s, clients, b.each, func(int) func(context.Context, int) (time.Duration, error) {
		a := b.fleet.attester(ctx)
		c := s.client()
		return func(ctx context.Context, i int) (time.Duration, error) {
			begun := time.Now()
			_, err := shake(ctx, c, s.url, a, fixed, resourcePath(i%resources))
			took := time.Since(begun)
			if !keep || i >= b.each-clients {
				closing(c)
			}
			return took, err
		}
	})
}
