package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// errStalled and errSlow are the causes of requests that were given up.
var (
	errStalled = errors.New("the registry sent nothing")
	errSlow    = errors.New("the registry took too long over a document")
)

// stallReader gives up a response whose body stands still.
type stallReader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	// total, when not nil, bounds all of the body, as it should for documents.
	total *time.Timer
}

func newStallReader(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration) *stallReader {
	r := &stallReader{ctx: ctx, cancel: cancel, body: body, limit: limit}
	r.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	r.timer.Stop()
	return r
}

// Read implements io.Reader. The time between reads does not count: the
// consumer may be slow.
func (r *stallReader) Read(p []byte) (int, error) {
	r.timer.Reset(r.limit)
	n, err := r.body.Read(p)
	r.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(r.ctx) == errStalled {
		err = fmt.Errorf("%w for %v", errStalled, r.limit)
	} else if err != nil && err != io.EOF && context.Cause(r.ctx) == errSlow {
		err = fmt.Errorf("%w: more than %v", errSlow, 2*r.limit)
	}
	return n, err
}

// hurry bounds the time until Close: a document is small.
func (r *stallReader) hurry() {
	r.total = time.AfterFunc(2*r.limit, func() { r.cancel(errSlow) })
}

// Close implements io.Closer.
func (r *stallReader) Close() error {
	r.timer.Stop()
	if r.total != nil {
		r.total.Stop()
	}
	err := r.body.Close()
	r.cancel(nil)
	return err
}
