package imagetool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
)

// Copy copies the image ref of f as it is, with cosign's signatures of it. The
// diff IDs of layers that are not encrypted are checked too.
func Copy(ctx context.Context, f oci.Fetcher, ref oci.Reference, to *Destination, o Options) (*Result, error) {
	w := &walk{o: o, from: f, ref: ref, to: to}
	w.layer = func(ctx context.Context, _, _ int, l oci.Descriptor, diffID oci.Digest) (oci.Descriptor, error) {
		return l, w.copyLayer(ctx, l, diffID)
	}
	return w.run(ctx)
}

func (w *walk) copyLayer(ctx context.Context, l oci.Descriptor, diffID oci.Digest) error {
	format, err := oci.ParseLayerMediaType(l.MediaType)
	if err != nil {
		return err
	}
	if format.Encrypted {
		return copyBlob(ctx, w.from, w.to.store, l)
	}
	r, check, err := openLayer(ctx, w.from, l, format.Compression, diffID)
	if err != nil {
		return err
	}
	return errors.Join(pushAll(ctx, w.to.store, l, r), check())
}

// Encryption says how layers are encrypted.
type Encryption struct {
	Recipients []encrypt.Recipient
	// Layers are the indices of those to encrypt, counted from 0, the lowest,
	// or from -1, the highest; none means all.
	Layers []int
	// Rand is crypto/rand.Reader outside of tests.
	Rand io.Reader
}

// Encrypt copies an image with layers encrypted. Their compression is kept;
// their media types become OCI's. Signatures are not copied: they are of another
// image.
func Encrypt(ctx context.Context, f oci.Fetcher, ref oci.Reference, to *Destination, e Encryption, o Options) (*Result, error) {
	if to.single {
		return nil, &EncryptionLostError{Destination: to.name}
	}
	if len(e.Recipients) == 0 {
		return nil, errors.New("expected at least one key to encrypt for")
	}
	for _, r := range e.Recipients {
		if err := r.Check(); err != nil {
			return nil, err
		}
	}
	w := &walk{o: o, from: f, ref: ref, to: to, changes: true}
	w.layer = func(ctx context.Context, i, n int, l oci.Descriptor, diffID oci.Digest) (oci.Descriptor, error) {
		chosen, err := e.chosen(i, n)
		if err != nil {
			return oci.Descriptor{}, err
		}
		format, err := oci.ParseLayerMediaType(l.MediaType)
		if err != nil {
			return oci.Descriptor{}, err
		}
		if !chosen {
			out := l
			out.MediaType = format.MediaType()
			return out, w.copyLayer(ctx, l, diffID)
		}
		if format.Encrypted {
			return oci.Descriptor{}, errors.New("is encrypted already; decrypt the image first")
		}
		return w.encryptLayer(ctx, l, format, diffID, e)
	}
	return w.run(ctx)
}

// chosen says whether layer i of n is to be encrypted.
func (e Encryption) chosen(i, n int) (bool, error) {
	yes := len(e.Layers) == 0
	for _, k := range e.Layers {
		if k >= n || k < -n {
			return false, fmt.Errorf("--layer %d: the image has the layers 0 to %d, which are also %d to -1", k, n-1, -n)
		}
		yes = yes || k == i || k+n == i
	}
	return yes, nil
}

func (w *walk) encryptLayer(ctx context.Context, l oci.Descriptor, format oci.LayerFormat, diffID oci.Digest, e Encryption) (out oci.Descriptor, err error) {
	r, check, err := openLayer(ctx, w.from, l, format.Compression, diffID)
	if err != nil {
		return out, err
	}
	sealed, err := encrypt.NewLayer(r, e.Rand)
	if err != nil {
		return out, errors.Join(err, check())
	}
	defer sealed.Clear()
	spool, err := spoolFile(w.o.Spool)
	if err != nil {
		return out, errors.Join(err, check())
	}
	defer func() { _ = spool.Close() }()
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(spool, sum), sealed, make([]byte, copyBytes))
	if err = errors.Join(err, check()); err != nil {
		return out, err
	}
	annotations, err := sealed.Annotations(e.Recipients...)
	if err != nil {
		return out, err
	}
	if l.Annotations != nil {
		kept := maps.Clone(l.Annotations)
		maps.Copy(kept, annotations)
		annotations = kept
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return out, err
	}
	format.Encrypted = true
	out = oci.Descriptor{MediaType: format.MediaType(), Digest: oci.FromHash(sum), Size: n, Annotations: annotations}
	return out, w.to.store.Push(ctx, out, spool)
}

// Decrypt copies an image with its encrypted layers decrypted. Each layer's MAC
// is checked before anything of it is written, and then its diff ID. An image
// without encrypted layers is an error. Signatures are not copied.
func Decrypt(ctx context.Context, f oci.Fetcher, ref oci.Reference, to *Destination, keys crypt.KeySource, o Options) (*Result, error) {
	w := &walk{o: o, from: f, ref: ref, to: to, changes: true, opens: true}
	found := 0
	w.layer = func(ctx context.Context, _, _ int, l oci.Descriptor, diffID oci.Digest) (oci.Descriptor, error) {
		format, err := oci.ParseLayerMediaType(l.MediaType)
		if err != nil {
			return oci.Descriptor{}, err
		}
		if !format.Encrypted {
			out := l
			out.MediaType = format.MediaType()
			return out, w.copyLayer(ctx, l, diffID)
		}
		found++
		return w.decryptLayer(ctx, l, format, diffID, keys)
	}
	w.before = func() error {
		if found == 0 {
			return errors.New("no layer is encrypted; `coffer image copy` copies it")
		}
		return nil
	}
	return w.run(ctx)
}

func (w *walk) decryptLayer(ctx context.Context, l oci.Descriptor, format oci.LayerFormat, diffID oci.Digest, keys crypt.KeySource) (out oci.Descriptor, err error) {
	opener, err := crypt.Unwrap(ctx, l.Annotations, keys)
	if err != nil {
		return out, err
	}
	defer opener.Clear()
	spool, err := spoolFile(w.o.Spool)
	if err != nil {
		return out, err
	}
	defer func() { _ = spool.Close() }()
	rc, err := w.from.Fetch(ctx, l)
	if err != nil {
		return out, err
	}
	defer func() { _ = rc.Close() }()
	verified, err := oci.VerifyReader(rc, l)
	if err != nil {
		return out, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{spool}, contextReader{ctx, verified}, make([]byte, copyBytes)); err != nil {
		return out, err
	}
	// Twice, so that the plaintext is nowhere but where it is meant to be: the
	// first time tells its digest.
	plain, err := opener.Open(spool)
	if err != nil {
		return out, err
	}
	sum := sha256.New()
	checked, check := checkDiffID(contextReader{ctx, plain}, format.Compression, diffID)
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, checked, make([]byte, copyBytes))
	if err = errors.Join(err, check()); err != nil {
		return out, err
	}
	if plain, err = opener.Open(spool); err != nil {
		return out, err
	}
	format.Encrypted = false
	out = oci.Descriptor{MediaType: format.MediaType(), Digest: oci.FromHash(sum), Size: n, Annotations: map[string]string{}}
	for name, value := range l.Annotations {
		if !strings.HasPrefix(name, "org.opencontainers.image.enc.") {
			out.Annotations[name] = value
		}
	}
	return out, w.to.store.Push(ctx, out, contextReader{ctx, plain})
}
