package pull

import (
	"context"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
)

// resolve finds the manifest, and has the policy decide about it.
func (p *puller) resolve(ctx context.Context) (*Image, *oci.Manifest, error) {
	d, err := p.Fetcher.Resolve(ctx, p.Ref)
	if err != nil {
		return nil, nil, err
	}
	if d.Digest != p.Ref.Digest {
		return nil, nil, &oci.MismatchError{Expected: string(p.Ref.Digest), Got: string(d.Digest)}
	}
	img := &Image{Ref: p.Ref}
	data, err := oci.ReadAll(ctx, p.Fetcher, d, oci.MaxDocument)
	if err != nil {
		return nil, nil, err
	}
	if oci.IsIndex(d.MediaType) {
		index, err := oci.ParseIndex(data, d.MediaType)
		if err != nil {
			return nil, nil, err
		}
		img.IndexDigest = d.Digest
		if d, err = index.Select(p.Platform); err != nil {
			return nil, nil, err
		}
		if data, err = oci.ReadAll(ctx, p.Fetcher, d, oci.MaxDocument); err != nil {
			return nil, nil, err
		}
	}
	img.ManifestDigest = d.Digest
	manifest, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return nil, nil, err
	}
	if err := manifest.CheckImage(); err != nil {
		return nil, nil, err
	}
	p.report(Progress{Stage: StageVerify, Layer: -1, Layers: len(manifest.Layers)})
	if img.Verdict, err = verify(ctx, p.Options, img); err != nil {
		return nil, nil, err
	}
	return img, manifest, nil
}

// planned is a layer that is to be pulled.
type planned struct {
	oci.Descriptor
	index  int
	of     int
	diffID oci.Digest
	format oci.LayerFormat
	// crypt is nil if the layer is not encrypted.
	crypt *crypt.Layer
}

func (l *planned) clear() {
	if l.crypt != nil {
		l.crypt.Clear()
	}
}

func (l *planned) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &LayerError{Index: l.index, Layers: l.of, Digest: l.Digest, Err: err}
}

// plan reads the configuration and gets the layers' keys, so that what can
// fail does so before anything large is fetched.
func (p *puller) plan(ctx context.Context, img *Image, m *oci.Manifest) ([]*planned, error) {
	var err error
	if img.RawConfig, err = oci.ReadAll(ctx, p.Fetcher, m.Config, oci.MaxDocument); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	img.ConfigDigest = m.Config.Digest
	if img.Config, err = oci.ParseImageConfig(img.RawConfig); err != nil {
		return nil, err
	}
	if err := img.Config.CheckImage(p.Platform, len(m.Layers)); err != nil {
		return nil, err
	}
	layers := make([]*planned, len(m.Layers))
	img.encrypted = make([]*oci.Descriptor, len(m.Layers))
	var tooLarge *planned // the first that does not fit
	for i, d := range m.Layers {
		l := &planned{Descriptor: d, index: i, of: len(m.Layers), diffID: img.Config.RootFS.DiffIDs[i]}
		if d.Size > p.Limits.Compressed-img.Bytes {
			return nil, l.wrap(fmt.Errorf("the image is too large: with this layer of %d bytes it goes beyond the limit of %d", d.Size, p.Limits.Compressed))
		}
		img.Bytes += d.Size
		if img.Bytes > p.space.bytes && tooLarge == nil {
			tooLarge = l
		}
		if l.format, err = oci.ParseLayerMediaType(d.MediaType); err != nil {
			return nil, l.wrap(err)
		}
		layers[i] = l
	}
	if tooLarge != nil { // files take no less room than the layer that they come from
		return nil, tooLarge.wrap(&SpaceError{Needed: img.Bytes, Available: p.space.bytes, Unit: "bytes"})
	}
	for _, l := range layers {
		if !l.format.Encrypted {
			if name, ok := encryptionAnnotation(l.Annotations); ok {
				return nil, l.wrap(fmt.Errorf("annotation %s: the layer has keys, but its media type %s says that it is not encrypted", name, l.MediaType))
			}
			continue
		}
		if l.crypt, err = crypt.Unwrap(ctx, l.Annotations, p.Keys); err != nil {
			for _, done := range layers {
				done.clear()
			}
			return nil, l.wrap(err)
		}
		img.EncryptedLayers++
		img.encrypted[l.index] = &l.Descriptor
	}
	img.Layers = len(layers)
	p.total = img.Bytes
	return layers, nil
}

func encryptionAnnotation(annotations map[string]string) (string, bool) {
	for name := range annotations {
		if name == crypt.AnnotationPubOpts || strings.HasPrefix(name, crypt.AnnotationKeysPrefix) {
			return name, true
		}
	}
	return "", false
}
