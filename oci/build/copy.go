package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/signature"
)

// Encrypt copies the image src of f to p with its layers encrypted, for the
// platform only, and returns the new manifest's descriptor. Layers that are
// encrypted already are an error. Signatures are not copied: they are of
// another image. spool may be empty; rand is crypto/rand.Reader outside of
// tests.
func Encrypt(ctx context.Context, f oci.Fetcher, src oci.Reference, platform oci.Platform, p oci.Pusher, recipients []encrypt.Recipient, spool string, rand io.Reader) (oci.Descriptor, error) {
	d, err := encryptImage(ctx, f, src, platform, p, recipients, spool, rand)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("encrypt %s: %w", src, err)
	}
	return d, nil
}

func encryptImage(ctx context.Context, f oci.Fetcher, src oci.Reference, platform oci.Platform, p oci.Pusher, recipients []encrypt.Recipient, spool string, rand io.Reader) (oci.Descriptor, error) {
	if len(recipients) == 0 {
		return oci.Descriptor{}, errors.New("expected at least one recipient")
	}
	if err := checkRecipients(recipients, rand); err != nil {
		return oci.Descriptor{}, err
	}
	m, err := readManifest(ctx, f, src, platform)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if err := copyBlob(ctx, f, p, m.Config); err != nil {
		return oci.Descriptor{}, err
	}
	for i, l := range m.Layers {
		if m.Layers[i], err = encryptLayer(ctx, f, l, p, recipients, spool, rand); err != nil {
			return oci.Descriptor{}, fmt.Errorf("layer %d (%s): %w", i, l.Digest, err)
		}
	}
	// Docker's manifest type has no encrypted layers.
	m.MediaType = oci.MediaTypeManifest
	if m.Config.MediaType == oci.MediaTypeDockerConfig {
		m.Config.MediaType = oci.MediaTypeConfig
	}
	return pushManifest(ctx, p, *m)
}

func encryptLayer(ctx context.Context, f oci.Fetcher, l oci.Descriptor, p oci.Pusher, recipients []encrypt.Recipient, spool string, rand io.Reader) (oci.Descriptor, error) {
	format, err := oci.ParseLayerMediaType(l.MediaType)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if format.Encrypted {
		return oci.Descriptor{}, errors.New("is encrypted already; decrypt the image first")
	}
	rc, err := f.Fetch(ctx, l)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer func() { _ = rc.Close() }()
	r, err := oci.VerifyReader(rc, l)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return pushStream(ctx, p, r, format, recipients, spool, rand)
}

// readManifest finds the manifest of an image for a platform.
func readManifest(ctx context.Context, f oci.Fetcher, src oci.Reference, platform oci.Platform) (*oci.Manifest, error) {
	_, m, err := Inspect(ctx, f, src, platform)
	return m, err
}

// Inspect finds an image's manifest for a platform, through an index if there
// is one, and returns it with its descriptor. Nothing but digests is checked.
func Inspect(ctx context.Context, f oci.Fetcher, src oci.Reference, platform oci.Platform) (oci.Descriptor, *oci.Manifest, error) {
	d, err := f.Resolve(ctx, src)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	if oci.IsIndex(d.MediaType) {
		x, err := oci.ParseIndex(data, d.MediaType)
		if err != nil {
			return oci.Descriptor{}, nil, err
		}
		if d, err = x.Select(platform); err != nil {
			return oci.Descriptor{}, nil, err
		}
		if data, err = oci.ReadAll(ctx, f, d, oci.MaxDocument); err != nil {
			return oci.Descriptor{}, nil, err
		}
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return oci.Descriptor{}, nil, err
	}
	return d, m, m.CheckImage()
}

// Config reads the configuration of the image whose manifest is m.
func Config(ctx context.Context, f oci.Fetcher, m *oci.Manifest) (*oci.ImageConfig, error) {
	data, err := oci.ReadAll(ctx, f, m.Config, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	return oci.ParseImageConfig(data)
}

// Copy copies the image src as it is, with all platforms if it is an index, and
// with its cosign signatures. It returns the descriptor, whose digest is that
// of the source; the caller tags it.
func Copy(ctx context.Context, f oci.Fetcher, src oci.Reference, p oci.Pusher) (oci.Descriptor, error) {
	d, err := f.Resolve(ctx, src)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("copy %s: %w", src, err)
	}
	if err := copyTree(ctx, f, src, p, d, true); err != nil {
		return oci.Descriptor{}, fmt.Errorf("copy %s: %w", src, err)
	}
	return d, nil
}

func copyTree(ctx context.Context, f oci.Fetcher, src oci.Reference, p oci.Pusher, d oci.Descriptor, indexes bool) error {
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return err
	}
	if oci.IsIndex(d.MediaType) {
		if !indexes {
			return fmt.Errorf("manifest %s is an index within an index; nested indexes are refused", d.Digest)
		}
		x, err := oci.ParseIndex(data, d.MediaType)
		if err != nil {
			return err
		}
		for _, child := range x.Manifests {
			if err := copyTree(ctx, f, src, p, child, false); err != nil {
				return err
			}
		}
	} else {
		m, err := oci.ParseManifest(data, d.MediaType)
		if err != nil {
			return err
		}
		for _, blob := range append(m.Layers, m.Config) {
			if err := copyBlob(ctx, f, p, blob); err != nil {
				return err
			}
		}
	}
	if err := p.Push(ctx, d, bytes.NewReader(data)); err != nil {
		return err
	}
	return copySignatures(ctx, f, src, p, d.Digest)
}

func copySignatures(ctx context.Context, f oci.Fetcher, src oci.Reference, p oci.Pusher, digest oci.Digest) error {
	tag := signature.Tag(digest)
	d, err := f.Resolve(ctx, src.WithTag(tag))
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return fmt.Errorf("signatures at tag %s: %w", tag, err)
	}
	for _, blob := range append(m.Layers, m.Config) {
		if err := copyBlob(ctx, f, p, blob); err != nil {
			return err
		}
	}
	if err := p.Push(ctx, d, bytes.NewReader(data)); err != nil {
		return err
	}
	return p.Tag(ctx, d, tag)
}

func copyBlob(ctx context.Context, f oci.Fetcher, p oci.Pusher, d oci.Descriptor) error {
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	r, err := oci.VerifyReader(rc, d)
	if err != nil {
		return err
	}
	if err := p.Push(ctx, d, r); err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return nil
}
