package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

// LoadOCI copies the image layout that is archived in file, all of its blobs
// and the entries of its index.json with their tags, to the layout. Every blob
// is checked against the digest that is its name. A gzip-compressed archive is
// unpacked to a spool first, as by [Load].
func LoadOCI(ctx context.Context, file string, to *layout.Layout, spool string) error {
	if err := loadOCI(ctx, file, to, spool); err != nil {
		return fmt.Errorf("image archive %s: %w", file, err)
	}
	return nil
}

func loadOCI(ctx context.Context, file string, to *layout.Layout, spool string) error {
	a, err := open(ctx, file, spool)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	data, err := a.read("oci-layout", oci.MaxDocument)
	if err != nil {
		if _, isDocker := a.members["/manifest.json"]; isDocker {
			err = fmt.Errorf("%w; it is an archive that docker save wrote", err)
		}
		return fmt.Errorf("%w: this is no archive of an OCI image layout", err)
	}
	if err := layout.CheckVersion(data); err != nil {
		return err
	}
	if data, err = a.read("index.json", oci.MaxDocument); err != nil {
		return err
	}
	index, err := layout.ParseIndex(data)
	if err != nil {
		return err
	}
	if err := a.copyBlobs(ctx, to); err != nil {
		return err
	}
	for i, d := range index.Manifests {
		if m, err := a.find(blobName(d.Digest)); err != nil {
			return fmt.Errorf("index.json: manifests[%d]: %w", i, err)
		} else if m.size != d.Size {
			return fmt.Errorf("index.json: manifests[%d].size: %d, but the manifest has %d bytes", i, d.Size, m.size)
		}
	}
	return to.List(index.Manifests)
}

func blobName(d oci.Digest) string { return path.Join("blobs", d.Algorithm(), d.Hex()) }

// copyBlobs copies what is in blobs/ALGORITHM, in the order of the archive.
func (a *indexed) copyBlobs(ctx context.Context, to *layout.Layout) error {
	type blob struct {
		name   string
		digest oci.Digest
		member
	}
	var blobs []blob
	for name := range a.members {
		rest, ok := strings.CutPrefix(name, "/blobs/")
		if !ok {
			continue
		}
		digest, err := oci.ParseDigest(strings.Replace(rest, "/", ":", 1))
		if err != nil {
			return fmt.Errorf("member %.128q: %w", name[1:], err)
		}
		m, err := a.find(name)
		if err != nil {
			return err
		}
		blobs = append(blobs, blob{name, digest, m})
	}
	slices.SortFunc(blobs, func(x, y blob) int {
		if c := cmp.Compare(x.offset, y.offset); c != 0 {
			return c
		}
		return strings.Compare(x.name, y.name)
	})
	for _, b := range blobs {
		err := to.Push(ctx, oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: b.digest, Size: b.size}, a.content(b.member))
		if _, ok := errors.AsType[*oci.MismatchError](err); ok {
			return fmt.Errorf("member %.128q is not what its name says: %w", b.name[1:], err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
