package pull

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/oci"
)

const (
	// reportEvery is how many bytes are fetched between two reports.
	reportEvery = 1 << 20
	// maxResumes is how often a layer's fetch is begun anew.
	maxResumes = 3
	// socketBytes is how much of what a peer sends may lie in socket buffers.
	socketBytes = 16 << 20
)

// fetch puts a layer into its window and checks its digest.
func (p *puller) fetch(ctx context.Context, l *planned, w *window) error {
	digest, err := oci.NewVerifier(l.Descriptor)
	if err != nil {
		return err
	}
	f := &fetch{p: p, layer: l, to: w, digest: digest, waitedAt: -socketBytes}
	for resumes := 0; ; resumes++ {
		err := f.run(ctx)
		if err == nil {
			return digest.Verify()
		}
		// A registry may give up a connection on which nothing was read
		// because the layer waited for its turn. That was our doing: what is
		// missing is fetched again, and the digest covers all of it.
		_, wrong := errors.AsType[*oci.MismatchError](err)
		if wrong || errors.Is(err, oci.ErrLied) || !f.hasWaited() || resumes == maxResumes || ctx.Err() != nil {
			return fmt.Errorf("fetch: %w", err)
		}
	}
}

// fetch is the fetch of one layer.
type fetch struct {
	p      *puller
	layer  *planned
	to     *window
	digest *oci.Verifier
	n      int64 // bytes that were put into the window
	// waitedAt is what n was when the window was last full.
	waitedAt int64
}

// hasWaited says whether what was read last may have been sent before the
// window was full.
func (f *fetch) hasWaited() bool { return f.n-f.waitedAt < socketBytes }

// run fetches what follows the first n bytes.
func (f *fetch) run(ctx context.Context) error {
	rc, err := f.p.Fetcher.Fetch(ctx, f.layer.Descriptor)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	if _, err := io.CopyN(struct{ io.Writer }{io.Discard}, rc, f.n); err != nil {
		return err
	}
	var unreported int64
	defer func() { f.p.fetched(f.layer, unreported) }()
	for {
		buf, err := f.to.buffer()
		if err != nil {
			return err
		}
		if f.to.hasWaited() {
			f.waitedAt = f.n
		}
		n, rerr := io.ReadFull(rc, buf)
		_, err = f.digest.Write(buf[:n])
		if perr := f.to.put(buf, n); err == nil {
			err = perr
		}
		if err != nil {
			return err
		}
		f.n += int64(n)
		if unreported += int64(n); unreported >= reportEvery {
			f.p.fetched(f.layer, unreported)
			unreported = 0
		}
		if end := rerr == io.EOF || rerr == io.ErrUnexpectedEOF; end && (f.n == f.layer.Size || !f.hasWaited()) {
			return nil // and if it is too short, the digest's verifier says so
		}
		if rerr != nil {
			return rerr
		}
	}
}

func (p *puller) fetched(l *planned, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.Progress != nil {
		p.Progress(Progress{Stage: StageFetch, Layer: l.index, Layers: l.of, Done: p.done, Total: p.total})
	}
}
