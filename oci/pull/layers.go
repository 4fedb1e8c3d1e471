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
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
)

const (
	chunk = 256 << 10
	// reportEvery is how many bytes are fetched between two reports.
	reportEvery = 1 << 20
)

// unpackAll fetches the layers, several at once, and unpacks them in order
// into root, which it makes. A layer that is not encrypted is unpacked while it
// is being fetched.
func (p *puller) unpackAll(ctx context.Context, layers []*planned, root string) (layer.Stats, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return layer.Stats{}, err
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return layer.Stats{}, err
	}
	dir, err := os.Open(root)
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
	// been unpacked, which bounds the spool, too.
	slots := make(chan struct{}, p.Limits.Concurrency)
	spools := make(chan *spool, len(layers))
	group.Go(func() error {
		defer close(spools)
		for _, l := range layers {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			s, err := newSpool(ctx, p.Spool)
			if err != nil {
				return l.wrap(err)
			}
			spools <- s
			// An error is not returned here but through the spool, so that
			// the layer's own error goes before those that follow from it.
			group.Go(func() error { s.finish(p.fetch(ctx, l, s)); return nil })
		}
		return nil
	})
	group.Go(func() error {
		budget := streamLimit(p.Limits.Unpacked)
		next := 0
		for s := range spools {
			l := layers[next]
			next++
			n, err := p.unpack(ctx, unpacker, l, s, budget)
			budget -= n
			s.close()
			if err != nil {
				return l.wrap(err)
			}
			<-slots
		}
		return nil
	})
	err = group.Wait()
	for s := range spools { // those that were not reached
		s.close()
	}
	return unpacker.Stats(), err
}

// streamLimit bounds the uncompressed tar streams of an image: their files and
// as much again for headers.
func streamLimit(l layer.Limits) int64 { return 2*l.Bytes + 64<<20 }

// fetch writes a layer to its spool and checks its digest and, if it is
// encrypted, its MAC.
func (p *puller) fetch(ctx context.Context, l *planned, s *spool) (*crypt.Verified, error) {
	rc, err := p.Fetcher.Fetch(ctx, l.Descriptor)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer func() { _ = rc.Close() }()
	digest, err := oci.NewVerifier(l.Descriptor)
	if err != nil {
		return nil, err
	}
	to := []io.Writer{digest, s}
	var mac *crypt.Authenticator
	if l.crypt != nil {
		mac = l.crypt.Authenticate()
		to = append(to, mac)
	}
	if err := p.copy(ctx, l, io.MultiWriter(to...), rc); err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if err := digest.Verify(); err != nil {
		return nil, err
	}
	if mac == nil {
		return nil, nil
	}
	return mac.Verify()
}

// copy copies and reports.
func (p *puller) copy(ctx context.Context, l *planned, w io.Writer, r io.Reader) error {
	buf := make([]byte, chunk)
	var unreported int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := io.ReadFull(r, buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		unreported += int64(n)
		last := rerr == io.EOF || rerr == io.ErrUnexpectedEOF
		if last || unreported >= reportEvery {
			p.fetched(l, unreported)
			unreported = 0
		}
		if last {
			return nil
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

// unpack unpacks the layer in the spool and checks its diff ID. It returns the
// length of its tar stream.
func (p *puller) unpack(ctx context.Context, u *layer.Unpacker, l *planned, s *spool, budget int64) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n, err := p.unpackStream(ctx, u, l, s, budget)
	if err != nil {
		// If what came from the registry is wrong, that is the reason for
		// everything else.
		if _, ferr := s.wait(); ferr != nil {
			return n, ferr
		}
		return n, err
	}
	// The stream ended; so has the fetch, and well, or the end would not have
	// been read. Ask all the same: this is what everything depends on.
	_, err = s.wait()
	return n, err
}

func (p *puller) unpackStream(ctx context.Context, u *layer.Unpacker, l *planned, s *spool, budget int64) (int64, error) {
	var source io.Reader = s
	if l.crypt != nil {
		verified, err := s.wait()
		if err != nil {
			return 0, err
		}
		if verified == nil {
			return 0, crypt.ErrMAC
		}
		if source, err = verified.Decrypt(s); err != nil {
			return 0, err
		}
	}
	p.report(Progress{Stage: StageUnpack, Layer: l.index, Layers: l.of, Done: p.progress(), Total: p.total})
	plain, closePlain, err := decompress(source, l.format.Compression)
	if err != nil {
		return 0, err
	}
	ahead := newAhead(ctx, plain)
	defer func() { ahead.close(); closePlain() }()
	counted := &hashingReader{r: ahead, hash: diffHash(l.diffID), left: budget}
	if err := u.Apply(ctx, counted); err != nil {
		return counted.n, err
	}
	// What is behind the end of the archive belongs to the diff ID.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, counted, make([]byte, chunk)); err != nil {
		return counted.n, err
	}
	got := l.diffID.Algorithm() + ":" + hex.EncodeToString(counted.hash.Sum(nil))
	if got != string(l.diffID) {
		return counted.n, fmt.Errorf("diff ID differs: expected %s as the image configuration says, the uncompressed layer has %s", l.diffID, got)
	}
	return counted.n, nil
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

// hashingReader hashes, counts and bounds an uncompressed layer.
type hashingReader struct {
	r    io.Reader
	hash hash.Hash
	n    int64
	left int64
}

// Read implements io.Reader.
func (h *hashingReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.n += int64(n)
	h.left -= int64(n)
	if h.left < 0 {
		return 0, fmt.Errorf("uncompressed layers: %w: the image unpacks to far more than files may have", layer.ErrLimit)
	}
	_, _ = h.hash.Write(p[:n])
	return n, err
}
