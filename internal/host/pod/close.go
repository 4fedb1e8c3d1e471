package pod

import (
	"context"
	"errors"
	"slices"
)

// Close ends the pod: the guest in order if it can within the configured time and
// ctx, else at once; then network, disks, volumes and files are gone. It may be
// called again, and at any time; a later call waits for the first and returns
// what it returned.
func (p *Pod) Close(ctx context.Context) error {
	p.closeOnce.Do(func() {
		p.closeErr = p.close(ctx)
		close(p.closed)
	})
	<-p.closed
	return p.closeErr
}

func (p *Pod) close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	booting := p.booting
	m := p.machine
	running := m != nil && !p.created.IsZero()
	p.mu.Unlock()
	if running && m.End() == nil {
		ctx, cancel := context.WithTimeout(ctx, p.o.Config.ShutdownTimeout.D())
		if err := m.Shutdown(ctx); err != nil {
			p.log.WarnContext(ctx, "the guest did not end in order; it is stopped", "error", err)
		}
		cancel()
	}
	// A boot that is under way ends with this, and makes nothing any more.
	p.endLife(errClosed)
	if booting != nil {
		<-booting
	}
	p.mu.Lock()
	release, watched := slices.Clone(p.release), p.watched
	p.release = nil
	p.mu.Unlock()
	var errs []error
	for _, undo := range slices.Backward(release) {
		errs = append(errs, undo())
	}
	if watched != nil {
		<-watched
	}
	p.end(nil)
	return errors.Join(errs...)
}
