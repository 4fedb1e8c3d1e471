// Package pull brings an image into a directory: it resolves, verifies,
// fetches, decrypts and unpacks, and trusts the registry in nothing.
package pull

import (
	"cmp"
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
	// Spool is a directory for layers on their way; it must exist and be on
	// storage that the host cannot change. Its files have no names. Empty
	// means Dest's parent.
	Spool string
	// Limits bound the image; zero fields mean defaults.
	Limits Limits
	// Progress, if not nil, is called from one goroutine at a time.
	Progress func(Progress)
}

// Defaults of [Limits].
const (
	DefaultCompressed  = 32 << 30
	DefaultConcurrency = 3
	maxConcurrency     = 8
)

// Limits bound an image. A zero or negative field means its default.
type Limits struct {
	// Compressed is the sum of the layers' sizes as stored, in bytes.
	Compressed int64
	// Unpacked bounds what the layers unpack to, all together.
	Unpacked layer.Limits
	// Concurrency is how many layers are fetched at once, at most 8. As many
	// layers are in the spool at most.
	Concurrency int
}

func (l Limits) withDefaults() Limits {
	if l.Compressed <= 0 {
		l.Compressed = DefaultCompressed
	}
	if l.Concurrency <= 0 {
		l.Concurrency = DefaultConcurrency
	}
	l.Concurrency = min(l.Concurrency, maxConcurrency)
	l.Unpacked = l.Unpacked.WithDefaults()
	return l
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
// policy has accepted the image, nothing of an encrypted layer is decrypted
// before its MAC has been checked, and Dest appears, as a whole, only after the
// last check. If Pull fails, Dest does not exist.
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
	o.Spool = cmp.Or(o.Spool, filepath.Dir(o.Dest))
	if o.Platform == (oci.Platform{}) {
		o.Platform = oci.GuestPlatform()
	}
	p := &puller{Options: o}
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
		return errors.New("there is no signature policy; use signature.InsecureAcceptAnything to ask for none")
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
