package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/oci"
)

const (
	// farRate is how fast the registry of the cache's figure answers, in bytes
	// a second: 200 Mbit/s. On loopback nothing is gained by fetching less.
	farRate    = 25e6
	warmOfCold = 0.5
)

// cache compares a pod's first pull with another pod's second one, through the
// host's blob cache, from a registry that is as far as registries are.
func (b *bench) cache(ctx context.Context) (err error) {
	s := shape{name: "gzip", layers: 3, files: imageFiles / 3, bytes: imageBytes / 3, format: oci.LayerFormat{Compression: oci.Gzip}}
	im, err := b.startImages(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopImages(im)) }()
	near := im.address
	for _, far := range []bool{true, false} {
		im.address = near
		name, target := "cache/loopback/warm-of-cold", 0.0
		if far {
			name, target = "cache/200-mbit/warm-of-cold", warmOfCold
			f, err := slow(ctx, near)
			if err != nil {
				return err
			}
			defer f.Close() //nolint:errcheck // a listener
			im.address = f.Addr().String()
		}
		if err := b.warmAndCold(ctx, im, s.name, name, target); err != nil {
			return err
		}
	}
	im.address = near
	return nil
}

func (b *bench) warmAndCold(ctx context.Context, im *images, image, name string, target float64) error {
	var cold, warm []cost
	for range b.pairs {
		costs, err := b.throughCache(ctx, im, image)
		if err != nil {
			return err
		}
		cold, warm = append(cold, costs[0]), append(warm, costs[1])
	}
	var ratios []float64
	for i := range warm {
		ratios = append(ratios, warm[i].wall/cold[i].wall)
	}
	b.report.Add(name+"/cold", median(each(cold, wall)), "s", "")
	b.report.Add(name+"/warm", median(each(warm, wall)), "s", "")
	switch s := spread(ratios); {
	case s > maxSpread:
		b.report.AtMost(name+"/spread", s, "%", maxSpread, "no ratio: the pairs are too far from each other")
	case target > 0:
		b.report.AtMost(name, median(ratios), "×", target, "the same pull with an empty cache")
	default:
		b.report.Add(name, median(ratios), "×", "the same pull with an empty cache")
	}
	return nil
}

// throughCache pulls twice through a cache that is empty at first.
func (b *bench) throughCache(ctx context.Context, im *images, name string) (costs [2]cost, err error) {
	dir := b.path("cache")
	store, err := blobcache.Open(dir, blobcache.Options{})
	if err != nil {
		return costs, err
	}
	defer func() { err = errors.Join(err, store.Close(), os.RemoveAll(dir)) }()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", b.path("cache.sock"))
	if err != nil {
		return costs, err
	}
	defer l.Close() //nolint:errcheck // a listener
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = store.Serve(ctx, conn) }()
		}
	}()
	for i := range costs {
		if costs[i], err = b.pull(ctx, im, name, "-cache", b.path("cache.sock")); err != nil {
			return costs, err
		}
	}
	if len(store.List()) == 0 {
		return costs, errors.New("nothing came into the cache")
	}
	return costs, nil
}

// slow is a front before a server on loopback that passes on farRate bytes a
// second, of all connections together, to the client.
func slow(ctx context.Context, to string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	limit := &pace{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go front(ctx, conn, to, limit)
		}
	}()
	return l, nil
}

func front(ctx context.Context, client net.Conn, to string, limit *pace) {
	defer client.Close() //nolint:errcheck // the end of a connection
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		fmt.Fprintln(os.Stderr, "front:", err)
		return
	}
	defer server.Close() //nolint:errcheck // the end of a connection
	go func() {
		_ = relay(ctx, server, client, nil)
		_ = server.Close()
	}()
	_ = relay(ctx, client, server, limit)
}

// pace lets farRate bytes a second pass.
type pace struct {
	mu   sync.Mutex
	next time.Time // when the line is free
}

func (p *pace) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / farRate * float64(time.Second)))
	until := p.next.Sub(now)
	p.mu.Unlock()
	const grain = 5 * time.Millisecond
	if until < grain {
		return nil
	}
	t := time.NewTimer(until)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func relay(ctx context.Context, to, from net.Conn, limit *pace) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if limit != nil && n > 0 {
			if err := limit.wait(ctx, n); err != nil {
				return err
			}
		}
		if _, werr := to.Write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
}
