// Package imagetool copies images from one place to another, as they are, with
// their layers encrypted, or with them decrypted, and tells what images are made
// of. It is what `coffer image` does; the owner's programs use it, never the
// guest.
//
// A [Destination] is opened from its name, as run.OpenSource opens the source.
// [Copy], [Encrypt] and [Decrypt] walk through an image's index, manifests and
// layers, check each digest and, where a layer can be read, its diff ID, and
// push; the tag is set last, so that what is not right is never named.
package imagetool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/oci"
)

// Options say what is copied. The zero value means all platforms.
type Options struct {
	// Platform, if not nil, is the only one of an index.
	Platform *oci.Platform
	// Spool is a directory for layers on their way.
	Spool string
	// Status, if not nil, is told what is being done.
	Status func(format string, args ...any)
}

// Result is what was written.
type Result struct {
	// Reference is the image as the other commands take it.
	Reference string     `json:"reference"`
	Digest    oci.Digest `json:"digest"`
	// Source is the digest of what was read; the same as Digest of a copy.
	Source oci.Digest `json:"sourceDigest"`
	Images []Image    `json:"images"`
	// LeftOut are the manifests of an index that are no container images, such
	// as attestations: they were about manifests that are not written.
	LeftOut []oci.Digest `json:"leftOut,omitempty"`
	// Signatures is how many manifests with signatures were copied.
	Signatures int `json:"signatures"`
}

// Image is one platform's part of a Result.
type Image struct {
	Platform string     `json:"platform,omitempty"`
	Digest   oci.Digest `json:"digest"`
	Layers   int        `json:"layers"`
	// Encrypted is how many of them are encrypted now.
	Encrypted int `json:"encryptedLayers"`
}

// layerFunc pushes layer i of n, perhaps changed, and returns its descriptor.
// diffID is what the layer unpacks to.
type layerFunc func(ctx context.Context, i, n int, l oci.Descriptor, diffID oci.Digest) (oci.Descriptor, error)

// walk is one image on its way.
type walk struct {
	o    Options
	from oci.Fetcher
	ref  oci.Reference
	to   *Destination
	// layer does what is to be done with layers. changes says that this makes
	// other manifests of them.
	layer   layerFunc
	changes bool
	// opens says that no layer is encrypted afterwards.
	opens bool
	// before, if not nil, is asked before anything is tagged.
	before func() error
	result Result
}

// run walks through the image and tags what it has written.
func (w *walk) run(ctx context.Context) (*Result, error) {
	d, err := w.from.Resolve(ctx, w.ref)
	if err != nil {
		return nil, err
	}
	data, err := oci.ReadAll(ctx, w.from, d, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	if oci.IsIndex(d.MediaType) && w.o.Platform != nil {
		x, err := oci.ParseIndex(data, d.MediaType)
		if err != nil {
			return nil, err
		}
		if d, err = x.Select(*w.o.Platform); err != nil {
			return nil, err
		}
		d = oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		if data, err = oci.ReadAll(ctx, w.from, d, oci.MaxDocument); err != nil {
			return nil, err
		}
	}
	w.result.Source = d.Digest
	var written oci.Descriptor
	if oci.IsIndex(d.MediaType) {
		written, err = w.index(ctx, d, data)
	} else {
		written, _, err = w.manifest(ctx, d, data, true)
	}
	if err != nil {
		return nil, err
	}
	if w.before != nil {
		if err := w.before(); err != nil {
			return nil, err
		}
	}
	w.result.Digest = written.Digest
	if w.result.Reference, err = w.to.finish(ctx, written); err != nil {
		return nil, err
	}
	return &w.result, nil
}

func (w *walk) status(format string, args ...any) {
	if w.o.Status != nil {
		w.o.Status(format, args...)
	}
}

func (w *walk) index(ctx context.Context, d oci.Descriptor, data []byte) (oci.Descriptor, error) {
	x, err := oci.ParseIndex(data, d.MediaType)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if w.to.single {
		return oci.Descriptor{}, fmt.Errorf("the image is for %d platforms, and %s holds one: name it with --platform", len(x.Manifests), w.to.name)
	}
	var kept []oci.Descriptor
	for _, child := range x.Manifests {
		if !oci.IsManifest(child.MediaType) {
			return oci.Descriptor{}, fmt.Errorf("manifest %s: media type %q within an index is refused", child.Digest, child.MediaType)
		}
		data, err := oci.ReadAll(ctx, w.from, child, oci.MaxDocument)
		if err != nil {
			return oci.Descriptor{}, err
		}
		written, keep, err := w.manifest(ctx, child, data, false)
		if err != nil {
			return oci.Descriptor{}, fmt.Errorf("manifest %s: %w", child.Digest, err)
		}
		if !keep {
			w.result.LeftOut = append(w.result.LeftOut, child.Digest)
			continue
		}
		written.Platform, written.Annotations = child.Platform, child.Annotations
		kept = append(kept, written)
	}
	if !w.changes {
		if err := w.to.store.Push(ctx, d, bytes.NewReader(data)); err != nil {
			return oci.Descriptor{}, err
		}
		return d, w.signatures(ctx, d.Digest)
	}
	if len(kept) == 0 {
		return oci.Descriptor{}, errors.New("the index names no container image")
	}
	data, err = json.Marshal(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex, Manifests: kept, Annotations: x.Annotations})
	if err != nil {
		return oci.Descriptor{}, err
	}
	return oci.PushBytes(ctx, w.to.store, oci.MediaTypeIndex, data)
}

// manifest writes one manifest with all that belongs to it. keep is false for
// what a changed index must not name.
func (w *walk) manifest(ctx context.Context, d oci.Descriptor, data []byte, top bool) (written oci.Descriptor, keep bool, err error) {
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return oci.Descriptor{}, false, err
	}
	if err := m.CheckImage(); err != nil {
		switch {
		case w.changes && !top:
			return oci.Descriptor{}, false, nil
		case w.changes || w.to.single:
			return oci.Descriptor{}, false, err
		}
		for _, blob := range append(m.Layers, m.Config) {
			if err := copyBlob(ctx, w.from, w.to.store, blob); err != nil {
				return oci.Descriptor{}, false, err
			}
		}
		return d, true, w.verbatim(ctx, d, data)
	}
	if err := w.image(ctx, m, d); err != nil {
		return oci.Descriptor{}, false, err
	}
	if !w.changes {
		return d, true, w.verbatim(ctx, d, data)
	}
	// Docker's manifests have no encrypted layers: what is changed is OCI's.
	m.SchemaVersion, m.MediaType = 2, oci.MediaTypeManifest
	if m.Config.MediaType == oci.MediaTypeDockerConfig {
		m.Config.MediaType = oci.MediaTypeConfig
	}
	if data, err = json.Marshal(m); err != nil {
		return oci.Descriptor{}, false, err
	}
	written, err = oci.PushBytes(ctx, w.to.store, oci.MediaTypeManifest, data)
	w.result.Images[len(w.result.Images)-1].Digest = written.Digest
	return written, true, err
}

// image pushes the configuration and the layers of a container image, and puts
// the descriptors of what it has pushed into m.
func (w *walk) image(ctx context.Context, m *oci.Manifest, d oci.Descriptor) error {
	raw, err := oci.ReadAll(ctx, w.from, m.Config, oci.MaxDocument)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	config, err := oci.ParseImageConfig(raw)
	if err != nil {
		return fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	platform := oci.Platform{Architecture: config.Architecture, OS: config.OS, Variant: config.Variant}
	if err := config.CheckImage(platform, len(m.Layers)); err != nil {
		return fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	if w.to.single && !w.opens {
		if n := countEncrypted(m.Layers); n > 0 {
			return &EncryptionLostError{Destination: w.to.name, Layers: n}
		}
	}
	if err := w.to.store.Push(ctx, m.Config, bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	for i, l := range m.Layers {
		w.status("%s: layer %d of %d", platform, i+1, len(m.Layers))
		if m.Layers[i], err = w.layer(ctx, i, len(m.Layers), l, config.RootFS.DiffIDs[i]); err != nil {
			return fmt.Errorf("layer %d (%s): %w", i, l.Digest, err)
		}
	}
	w.result.Images = append(w.result.Images, Image{Platform: platform.String(), Digest: d.Digest, Layers: len(m.Layers), Encrypted: countEncrypted(m.Layers)})
	return nil
}

func (w *walk) verbatim(ctx context.Context, d oci.Descriptor, data []byte) error {
	if err := w.to.store.Push(ctx, d, bytes.NewReader(data)); err != nil {
		return err
	}
	return w.signatures(ctx, d.Digest)
}

func countEncrypted(layers []oci.Descriptor) int {
	n := 0
	for _, l := range layers {
		if f, err := oci.ParseLayerMediaType(l.MediaType); err == nil && f.Encrypted {
			n++
		}
	}
	return n
}

// EncryptionLostError is an image with encrypted layers for a destination that
// has no such: it would arrive decrypted, or be of no use.
type EncryptionLostError struct {
	Destination string
	// Layers is how many layers are encrypted, 0 if that is not known.
	Layers int
}

// Error implements error.
func (e *EncryptionLostError) Error() string {
	which := ""
	if e.Layers > 0 {
		which = fmt.Sprintf(", of which the image has %d", e.Layers)
	}
	return fmt.Sprintf("%s cannot hold encrypted layers%s: take a registry, oci: or oci-archive:", e.Destination, which)
}
