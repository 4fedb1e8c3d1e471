package blobcache

import (
	"context"
	"io"

	"github.com/coffer-project/coffer/oci"
)

// offering hands out what comes from the registry and gives the cache a copy of
// it on the way. The cache may slow the read down as far as it bounds its own
// time, and cannot fail it.
func (f *Fetcher) offering(ctx context.Context, d oci.Descriptor, rc io.ReadCloser) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	o := &offer{ReadCloser: rc, to: w, left: d.Size, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		err := f.cache.Put(ctx, d, r)
		if err == nil {
			err = io.ErrClosedPipe
		}
		// Whatever is written from now on is not wanted.
		_ = r.CloseWithError(err)
	}()
	return o, nil
}

// offer is a blob from the registry that is being copied to the cache.
type offer struct {
	io.ReadCloser
	to     *io.PipeWriter
	left   int64 // bytes that the cache has not been given yet
	refuse bool
	cancel context.CancelFunc
	done   chan struct{}
}

// Read implements io.Reader.
func (o *offer) Read(p []byte) (int, error) {
	n, err := o.ReadCloser.Read(p)
	if o.refuse || n == 0 {
		return n, err
	}
	// More than the descriptor says is for the caller to refuse.
	if _, perr := o.to.Write(p[:min(int64(n), o.left)]); perr != nil {
		o.refuse = true
	}
	o.left -= min(int64(n), o.left)
	return n, err
}

// Close implements io.Closer. A blob that was read whole is in the cache when it
// returns, if the cache wants it; the copy of any other is given up.
func (o *offer) Close() error {
	err := o.ReadCloser.Close()
	if o.left > 0 {
		o.cancel()
		_ = o.to.CloseWithError(io.ErrUnexpectedEOF)
	}
	_ = o.to.Close()
	<-o.done
	o.cancel()
	return err
}
