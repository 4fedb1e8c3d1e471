package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/containers/ocicrypt/blockcipher"

	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
)

// Targets: how many times faster than ocicrypt, and four layers than one.
const (
	over32K       = 1.5
	over4K        = 2.2
	fourLayers    = 1.8
	decryptBytes  = 256 << 20
	ocicryptLabel = "ocicrypt v1.3.2"
)

// sealedLayer is a layer in memory that both sides can decrypt.
type sealedLayer struct {
	ciphertext []byte
	layer      *crypt.Layer
	peer       []byte // the peer's ciphertext
	options    blockcipher.LayerBlockCipherOptions
}

func newSealedLayer(ctx context.Context) (*sealedLayer, error) {
	plain := make([]byte, decryptBytes)
	l, err := encrypt.NewLayer(bytes.NewReader(plain), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &sealedLayer{}
	if s.ciphertext, err = io.ReadAll(l); err != nil {
		return nil, err
	}
	annotations, err := l.Annotations(encrypt.Recipient{KID: kid, Key: benchKey()})
	if err != nil {
		return nil, err
	}
	if s.layer, err = crypt.Unwrap(ctx, annotations, keys{}); err != nil {
		return nil, err
	}
	// The peer's layer is its own: it has no way to be given ours by its
	// options alone. Same size, same content.
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, err
	}
	r, finish, err := handler.Encrypt(bytes.NewReader(plain), blockcipher.AES256CTR)
	if err != nil {
		return nil, err
	}
	theirs, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if s.options, err = finish(); err != nil {
		return nil, err
	}
	s.peer = theirs
	return s, nil
}

func discard(r io.Reader, block int) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, block))
	return err
}

func (s *sealedLayer) ours(block int) error {
	r, err := s.layer.OpenStaged(bytes.NewReader(s.ciphertext))
	if err != nil {
		return err
	}
	defer r.Close()
	return discard(r, block)
}

func (s *sealedLayer) theirs(block int) error {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return err
	}
	r, _, err := handler.Decrypt(bytes.NewReader(s.peer), s.options)
	if err != nil {
		return err
	}
	return discard(r, block)
}

// inProcess is a contender that runs here.
func inProcess(name string, run func() error) contender {
	return contender{name, func(context.Context) (cost, error) {
		runtime.GC() // so that nobody cleans up after another
		before, begun := ownCPU(), time.Now()
		err := run()
		return cost{wall: time.Since(begun).Seconds(), cpu: ownCPU() - before}, err
	}}
}

// ownCPU is this process's CPU time in seconds.
func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func (b *bench) decrypt(ctx context.Context) error {
	s, err := newSealedLayer(ctx)
	if err != nil {
		return err
	}
	for _, size := range []struct {
		name   string
		block  int
		target float64
	}{{"32k", 32 << 10, over32K}, {"4k", 4 << 10, over4K}} {
		costs, err := b.rounds(ctx, max(b.pairs, 15), []contender{
			inProcess("ours", func() error { return s.ours(size.block) }),
			inProcess("ocicrypt", func() error { return s.theirs(size.block) }),
		})
		if err != nil {
			return err
		}
		for i, name := range []string{"ours", "ocicrypt"} {
			b.report.Add(fmt.Sprintf("decrypt/%s/%s", size.name, name), decryptBytes/1e6/median(each(costs[i], wall)), "MB/s", "")
		}
		b.compare("decrypt/"+size.name+"/over-ocicrypt", size.target, ocicryptLabel, costs[1], costs[0])
	}
	return b.decryptLayers(ctx, s)
}

// decryptLayers compares four layers at once on two processors with one layer,
// on one processor and on two. One layer on two has its MAC computed beside the
// decryption already, so that four cannot be twice as fast as that.
func (b *bench) decryptLayers(ctx context.Context, s *sealedLayer) error {
	one := func() error { return s.ours(32 << 10) }
	four := func() error {
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() { errs[i] = one() })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	}
	on := func(n int, run func() error) func() error {
		return func() error {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
			return run()
		}
	}
	costs, err := b.rounds(ctx, max(b.pairs, 15), []contender{
		inProcess("one layer, one processor", on(1, one)),
		inProcess("one layer, two processors", on(2, one)),
		inProcess("four layers, two processors", on(2, four)),
	})
	if err != nil {
		return err
	}
	quarter := func(c cost) float64 { return c.wall / 4 }
	var each4 []cost
	for _, c := range costs[2] {
		each4 = append(each4, cost{wall: quarter(c), cpu: c.cpu / 4})
	}
	b.compare("decrypt/four-layers-over-one", fourLayers, "one layer on one processor", costs[0], each4)
	b.compare("decrypt/four-layers-over-one-on-two", 0, "one layer on two processors", costs[1], each4)
	return nil
}
