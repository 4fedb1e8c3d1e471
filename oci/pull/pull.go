// Package pull brings an image into a directory: it resolves, verifies,
// fetches, decrypts and unpacks, and trusts the registry in nothing.
package pull

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
	"github.com/coffer-project/coffer/oci/signature"
)

// Options say what to pull, and how it is checked.
type Options struct {
	// Ref is the image. It must have a digest: of a manifest or of an index.
	Ref oci.Reference
	// Fetcher reads the image's repository.
	Fetcher oci.Fetcher
	// Platform is chosen from an index; zero means oci.GuestPlatform.
	Platform oci.Platform
	// Policy decides whether the image's signature suffices. It must be
	// given; signature.InsecureAcceptAnything() asks for none.
	Policy *signature.Policy
	// Keys finds the keys of encrypted layers, and public keys that the policy
	// names by URI. It may be nil if neither is needed.
	Keys crypt.KeySource
	// Dest becomes the root file system. It must not exist; its parent must.
	Dest string
	// Spool is a directory on a disk for layers that are fetched before their
	// turn; it must exist and be on storage that the host can neither read nor
	// change. Its files have no names. Empty means that no more of them is
	// fetched than Limits.Window holds.
	Spool string
	// Reserve is how many bytes are to stay free where Dest is.
	Reserve int64
	// Limits bound the image; zero fields mean defaults.
	Limits Limits
	// Progress, if not nil, is called from one goroutine at a time.
	Progress func(Progress)
}

// Defaults of [Limits].
const (
	DefaultCompressed  = 32 << 30
	DefaultConcurrency = 3
	DefaultWindow      = 12 << 20
	DefaultSpool       = 4 << 30
	DefaultRatio       = 1100
	maxConcurrency     = 8
	// ratioFree is how many bytes a layer may unpack to whatever its ratio.
	ratioFree = 1 << 30
)

// Limits bound an image. A zero or negative field means its default. How many
// layers there may be is oci.MaxLayers.
type Limits struct {
	// Compressed is the sum of the layers' sizes as stored, in bytes.
	Compressed int64
	// Unpacked bounds what the layers unpack to, all together. Where there is
	// less space, that is the bound for Unpacked.Bytes.
	Unpacked layer.Limits
	// Ratio is how many bytes the tar stream of a layer may have for one that
	// is stored, beyond the first GiB. (What gzip can do is 1032.)
	Ratio int64
	// Concurrency is how many layers are fetched at once, at most 8.
	Concurrency int
	// Window is how many bytes of layers are held in memory, of all together.
	// Layers are unpacked one after the other, so this is what those that wait
	// may have fetched; the pull takes some MiB more for its buffers, and what
	// a zstd frame demands, which may be 32 MiB, but not more for larger layers.
	Window int64
	// Spool is how many bytes the spools may have besides, all together.
	Spool int64
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.Compressed, DefaultCompressed)
	setDefault(&l.Ratio, DefaultRatio)
	setDefault(&l.Concurrency, DefaultConcurrency)
	setDefault(&l.Window, DefaultWindow)
	setDefault(&l.Spool, DefaultSpool)
	l.Concurrency = min(l.Concurrency, maxConcurrency)
	l.Unpacked = l.Unpacked.WithDefaults()
	return l
}

func setDefault[T int | int64](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Stage is what is being done.
type Stage string

// The stages of a pull, in order.
const (
	StageResolve Stage = "resolve"
	StageVerify  Stage = "verify"
	StageFetch   Stage = "fetch"
	StageUnpack  Stage = "unpack"
	StageDone    Stage = "done"
)

// Progress is a step of a pull.
type Progress struct {
	Stage Stage
	// Layer is the layer's index, -1 if the step is about the whole image.
	Layer, Layers int
	// Done and Total are in bytes, as stored in the registry, over all layers.
	Done, Total int64
}

// Image is an image that has been pulled.
type Image struct {
	Ref oci.Reference
	// IndexDigest is empty if the reference named a manifest.
	IndexDigest, ManifestDigest, ConfigDigest oci.Digest
	Config                                    *oci.ImageConfig
	// RawConfig is the configuration as it is signed.
	RawConfig []byte
	// Verdict says which signature was accepted.
	Verdict signature.Verdict
	// EncryptedLayers is how many of the layers were encrypted.
	Layers, EncryptedLayers int
	// Bytes is the size of the layers as stored; Unpacked that of the files.
	Bytes    int64
	Unpacked layer.Stats

	encrypted []*oci.Descriptor // by layer; nil if it is not
}

// LayerError is an error about one layer of an image.
type LayerError struct {
	// Index counts from 0, the lowest layer; Layers is their number.
	Index, Layers int
	Digest        oci.Digest
	Err           error
}

// Error implements error.
func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %d of %d (%s): %v", e.Index+1, e.Layers, e.Digest, e.Err)
}

// Unwrap gives the cause.
func (e *LayerError) Unwrap() error { return e.Err }

// Pull pulls an image. Nothing of a layer is fetched before the signature
// policy has accepted the image and it is known to fit as far as that can be
// known. Layers are unpacked while they are fetched, beside Dest in a directory
// that nobody else may enter, and Dest appears, as a whole, only after the last
// check of digests, MACs and diff IDs. If Pull fails, Dest does not exist, and
// nothing is left of what was unpacked.
//
// Its memory is bounded whatever the size of the layers; see [Limits].
func Pull(ctx context.Context, o Options) (*Image, error) {
	img, err := pull(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", o.Ref, err)
	}
	return img, nil
}

func pull(ctx context.Context, o Options) (*Image, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Limits = o.Limits.withDefaults()
	if o.Platform == (oci.Platform{}) {
		o.Platform = oci.GuestPlatform()
	}
	p := &puller{Options: o}
	var err error
	if p.space, err = freeSpace(filepath.Dir(o.Dest)); err != nil {
		return nil, err
	}
	p.space.bytes = max(0, p.space.bytes-o.Reserve)
	p.Limits.Unpacked.Bytes = min(p.Limits.Unpacked.Bytes, max(1, p.space.bytes))
	p.report(Progress{Stage: StageResolve, Layer: -1})
	img, manifest, err := p.resolve(ctx)
	if err != nil {
		return nil, err
	}
	layers, err := p.plan(ctx, img, manifest)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, l := range layers {
			l.clear()
		}
	}()
	if img.Unpacked, err = p.install(ctx, layers); err != nil {
		return nil, err
	}
	p.report(Progress{Stage: StageDone, Layer: -1, Layers: len(layers), Done: p.total, Total: p.total})
	return img, nil
}

func (o *Options) check() error {
	switch {
	case o.Ref.Digest == "":
		return errors.New("expected a reference with a digest: a tag can mean another image at any time")
	case o.Fetcher == nil:
		return errors.New("no Fetcher was given")
	case o.Policy == nil:
		return errNoPolicy
	case o.Dest == "":
		return errors.New("no Dest was given")
	}
	if _, err := os.Lstat(o.Dest); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists already", o.Dest)
	}
	return nil
}

// puller is one pull.
type puller struct {
	Options
	space space // when the pull began

	mu    sync.Mutex // guards what follows and calls of Progress
	total int64
	done  int64
}

func (p *puller) report(step Progress) {
	if p.Progress == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Progress(step)
}

// install unpacks the layers beside Dest and then gives them its name.
func (p *puller) install(ctx context.Context, layers []*planned) (layer.Stats, error) {
	// The staging directory is closed to everyone else: what is in it has not
	// been checked.
	staging, err := os.MkdirTemp(filepath.Dir(p.Dest), ".pull-*")
	if err != nil {
		return layer.Stats{}, err
	}
	stats, err := p.unpackAll(ctx, layers, filepath.Join(staging, "rootfs"))
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, filepath.Join(staging, "rootfs"), unix.AT_FDCWD, p.Dest, unix.RENAME_NOREPLACE)
		if err != nil {
			err = fmt.Errorf("move the unpacked image to %s: %w", p.Dest, err)
		}
	}
	if rerr := os.RemoveAll(staging); rerr != nil {
		err = errors.Join(err, fmt.Errorf("remove what was unpacked: %w", rerr))
	}
	return stats, err
}
