package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// errStalled is the cause of a request that was given up.
var errStalled = errors.New("the registry sent nothing")

// stallReader gives up a response whose body stands still.
type stallReader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
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
	}
	return n, err
}

// Close implements io.Closer.
func (r *stallReader) Close() error {
	r.timer.Stop()
	err := r.body.Close()
	r.cancel(nil)
	return err
}
