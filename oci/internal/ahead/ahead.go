// Package ahead reads a stream in large blocks ahead of its consumer, so that
// making the bytes (decompressing, authenticating), hashing them and using them
// go on at the same time.
//
// A goroutine of its own costs more than a small stream is worth: the first
// bytes are read by the consumer itself, and only a stream that is longer gets
// goroutines. Memory is bounded by the number of blocks.
package ahead

import (
	"errors"
	"io"
	"sync"
)

// Sizes of a [Reader], in bytes but for blocks.
const (
	// Block is how much is read at once.
	Block = 128 << 10
	// Inline is how much is read before goroutines are started.
	Inline = 4 * Block
	blocks = 5
)

// ErrClosed is what reading gives after Close.
var ErrClosed = errors.New("the stream was closed")

// Reader reads ahead. It is for one goroutine, but for what it starts itself.
type Reader struct {
	src io.Reader
	tap func([]byte)

	rest []byte // what the consumer has not had yet
	cur  block  // what rest is part of
	n    int64  // how much was read inline
	err  error  // sticky, after rest

	started bool
	full    chan block  // from the last goroutine to the consumer
	free    chan []byte // back to the first
	quit    chan struct{}
	wg      sync.WaitGroup
}

type block struct {
	data []byte // with the capacity of a whole block
	err  error  // behind data
}

// New makes a reader of src. If tap is not nil it sees every block, in order
// and before the consumer does, on a goroutine of its own once there is one; it
// must not keep or change it.
func New(src io.Reader, tap func([]byte)) *Reader {
	return &Reader{src: src, tap: tap}
}

// Read implements io.Reader. Its error, which is src's, comes when there is
// nothing before it any more.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.advance()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// advance gets the next block.
func (r *Reader) advance() {
	if !r.started && r.n < Inline {
		if r.cur.data == nil {
			r.cur.data = make([]byte, 0, Block)
		}
		r.cur = fill(r.src, r.cur.data)
		if r.tap != nil {
			r.tap(r.cur.data)
		}
		r.n += int64(len(r.cur.data))
		r.rest, r.err = r.cur.data, r.cur.err
		return
	}
	if !r.started {
		r.start()
	} else {
		r.free <- r.cur.data // there is room for all blocks
	}
	select {
	case r.cur = <-r.full:
		r.rest, r.err = r.cur.data, r.cur.err
	case <-r.quit:
		r.rest, r.err = nil, ErrClosed
	}
}

// fill reads until buf is full or src ends.
func fill(src io.Reader, buf []byte) block {
	buf = buf[:cap(buf)]
	n, err := 0, error(nil)
	for n < len(buf) && err == nil {
		var k int
		k, err = src.Read(buf[n:])
		n += k
	}
	return block{buf[:n], err}
}

func (r *Reader) start() {
	r.started = true
	r.quit = make(chan struct{})
	r.full, r.free = make(chan block, blocks), make(chan []byte, blocks)
	r.free <- r.cur.data
	for range blocks - 1 {
		r.free <- make([]byte, 0, Block)
	}
	to := r.full
	if r.tap != nil {
		made := make(chan block, blocks)
		to = made
		r.wg.Go(func() { r.pass(made) })
	}
	r.wg.Go(func() { r.produce(to) })
}

func (r *Reader) produce(to chan<- block) {
	defer close(to)
	for {
		select {
		case buf := <-r.free:
			b := fill(r.src, buf)
			to <- b // there is room for all blocks
			if b.err != nil {
				return
			}
		case <-r.quit:
			return
		}
	}
}

// pass shows blocks to tap.
func (r *Reader) pass(made <-chan block) {
	for b := range made {
		r.tap(b.data)
		r.full <- b
	}
}

// Close ends the goroutines and waits for them, after which src and tap are
// not used any more. A read of src that has begun must end by itself.
func (r *Reader) Close() {
	if r.started && r.err != ErrClosed {
		close(r.quit)
		r.wg.Wait()
	}
	r.rest, r.err = nil, ErrClosed
}
