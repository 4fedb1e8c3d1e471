package pull

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/internal/ahead"
	"github.com/coffer-project/coffer/oci/layer"
)

// drainBytes is how much of a plain layer that could not be unpacked is still
// fetched to tell whether it is the layer that was meant, in bytes.
const drainBytes = 256 << 20

// unpackAll fetches the layers, several at once, and unpacks them in order
// into root, which it makes. Each is decrypted, decompressed and unpacked while
// it is being fetched; those whose turn has not come are fetched as far as their
// windows reach.
func (p *puller) unpackAll(ctx context.Context, layers []*planned, root string) (layer.Stats, error) {
	dir, err := makeRoot(root)
	if err != nil {
		return layer.Stats{}, err
	}
	defer func() { _ = dir.Close() }()
	unpacker, err := layer.NewUnpacker(dir, p.Limits.Unpacked)
	if err != nil {
		return layer.Stats{}, err
	}
	defer unpacker.Close()

	group, ctx := errgroup.WithContext(ctx)
	// A slot is taken when a layer's fetch starts and given back when it has
	// been unpacked, which bounds the windows.
	slots := make(chan struct{}, p.Limits.Concurrency)
	windows := make(chan *window, len(layers))
	group.Go(func() error { return p.fetchAll(ctx, group, layers, slots, windows) })
	group.Go(func() error {
		budget := streamLimit(p.Limits.Unpacked)
		next := 0
		for w := range windows {
			l := layers[next]
			next++
			n, err := p.unpack(ctx, unpacker, l, w, budget)
			budget -= n
			w.close()
			if err != nil {
				return l.wrap(p.explain(err, unpacker.Stats(), layers[next:]))
			}
			<-slots
		}
		return nil
	})
	err = group.Wait()
	for w := range windows { // those that were not reached
		w.close()
	}
	return unpacker.Stats(), err
}

func makeRoot(root string) (*os.File, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	return os.Open(root)
}

// fetchAll starts the layers' fetches and sends their windows, in order.
func (p *puller) fetchAll(ctx context.Context, group *errgroup.Group, layers []*planned, slots chan<- struct{}, windows chan<- *window) error {
	defer close(windows)
	chunks := int(p.Limits.Window / int64(p.Limits.Concurrency) / chunk)
	for _, l := range layers {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		w, err := newWindow(ctx, chunks, p.Spool, p.Limits.Spool/int64(p.Limits.Concurrency))
		if err != nil {
			return l.wrap(err)
		}
		windows <- w
		// An error is not returned here but through the window, so that the
		// layer's own error goes before those that follow from it.
		group.Go(func() error { w.finish(p.fetch(ctx, l, w)); return nil })
	}
	return nil
}

// streamLimit bounds the uncompressed tar streams of an image: their files and
// as much again for headers.
func streamLimit(l layer.Limits) int64 { return 2*l.Bytes + 64<<20 }

// unpack unpacks the layer that comes through the window and checks its diff
// ID. It returns the length of its tar stream.
func (p *puller) unpack(ctx context.Context, u *layer.Unpacker, l *planned, w *window, budget int64) (int64, error) {
	p.report(Progress{Stage: StageUnpack, Layer: l.index, Layers: l.of, Done: p.progress(), Total: p.total})
	var source io.Reader = w
	if l.crypt != nil {
		staged, err := l.crypt.OpenStaged(w)
		if err != nil {
			return 0, err
		}
		defer staged.Close()
		source = staged
	}
	n, err := p.unpackStream(ctx, u, l, source, budget)
	if err == nil || ctx.Err() != nil {
		return n, err
	}
	if verdict := drain(source, l, err); verdict != nil {
		return n, verdict
	}
	return n, err
}

// drain reads the rest of a layer that could not be unpacked: if what came from
// the registry is not what was asked for, that is the reason for everything
// else. Of an encrypted layer it reads all, whatever has happened: until its MAC
// is known to be right, neither an error nor when it comes may tell the registry
// something about a plaintext that the registry has changed.
func drain(source io.Reader, l *planned, err error) error {
	var rest int64 = drainBytes
	switch {
	case l.crypt != nil:
		rest = l.Size + 1 // and its end
	case isFull(err):
		return nil
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(source, rest), make([]byte, chunk))
	return err
}

func (p *puller) unpackStream(ctx context.Context, u *layer.Unpacker, l *planned, source io.Reader, budget int64) (int64, error) {
	plain, closePlain, err := decompress(source, l.format.Compression)
	if err != nil {
		return 0, err
	}
	defer closePlain()
	bounded := &boundedReader{r: plain, budget: budget, stored: l.Size, ratio: p.Limits.Ratio}
	diffID := diffHash(l.diffID)
	// Decompressing, hashing and unpacking go on at the same time.
	stream := ahead.New(bounded, func(b []byte) { _, _ = diffID.Write(b) })
	err = u.Apply(ctx, stream)
	stream.Close()
	if err != nil {
		return bounded.n, err
	}
	if got := l.diffID.Algorithm() + ":" + hex.EncodeToString(diffID.Sum(nil)); got != string(l.diffID) {
		return bounded.n, fmt.Errorf("diff ID differs: expected %s as the image configuration says, the uncompressed layer has %s", l.diffID, got)
	}
	return bounded.n, nil
}

func (p *puller) progress() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func diffHash(d oci.Digest) hash.Hash {
	if d.Algorithm() == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// boundedReader counts and bounds an uncompressed layer.
type boundedReader struct {
	r io.Reader
	n int64
	// budget is what may be read in all; stored and ratio bound it, too.
	budget, stored, ratio int64
}

// Read implements io.Reader.
func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.budget {
		return 0, fmt.Errorf("uncompressed layers: %w: the image unpacks to far more than files may have", layer.ErrLimit)
	}
	if free := int64(ratioFree); b.n > free && (b.n-free)/b.ratio > b.stored {
		return 0, fmt.Errorf("%w of %d bytes for each that is stored: %d bytes have become more than %d", layer.ErrLimit, b.ratio, b.stored, b.n)
	}
	return n, err
}
