// Package archive reads archives of images and puts the images into an image
// layout: Docker archives, the files that "docker save" and "podman save"
// write ([Load]), and OCI archives, which are tars of an image layout
// ([LoadOCI]).
//
// Nothing is unpacked: the archive is indexed once (tar.go), and its members
// are read in place, so that no path in it means anything outside of it.
package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

// Limits on manifest.json.
const (
	maxImages = 256
	maxTags   = 1024 // of one image
)

// Image is an image that was found.
type Image struct {
	// Tags are the references that the archive has for it, such as
	// "docker.io/library/debian:12"; there may be none.
	Tags     []oci.Reference
	Manifest oci.Descriptor
}

// Load copies the images of the archive at file to the layout, untagged, and
// lists them. A gzip-compressed archive is unpacked to a spool first, in the
// directory spool or, if that is empty, the system's.
func Load(ctx context.Context, file string, to *layout.Layout, spool string) ([]Image, error) {
	images, err := load(ctx, file, to, spool)
	if err != nil {
		return nil, fmt.Errorf("image archive %s: %w", file, err)
	}
	return images, nil
}

func load(ctx context.Context, file string, to *layout.Layout, spool string) ([]Image, error) {
	a, err := open(ctx, file, spool)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }()
	return a.images(ctx, to)
}

// entry is an image in manifest.json (Docker image specification v1.2).
type entry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *indexed) images(ctx context.Context, to *layout.Layout) ([]Image, error) {
	data, err := a.read("manifest.json", oci.MaxDocument)
	if err != nil {
		if _, isOCI := a.members["/oci-layout"]; isOCI {
			err = fmt.Errorf("%w; it is an archive of an OCI image layout", err)
		}
		return nil, fmt.Errorf("%w: this is no archive of images that docker save wrote", err)
	}
	var raw []map[string]json.RawMessage
	limits := strictjson.Limits{Bytes: oci.MaxDocument, Depth: 16}
	if err := strictjson.Decode(data, &raw, limits); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(raw) == 0 || len(raw) > maxImages {
		return nil, fmt.Errorf("manifest.json: expected 1 to %d images, got %d", maxImages, len(raw))
	}
	images := make([]Image, len(raw))
	for i, fields := range raw {
		var e entry
		for name, to := range map[string]any{"Config": &e.Config, "RepoTags": &e.RepoTags, "Layers": &e.Layers} {
			value, ok := fields[name]
			if !ok || string(value) == "null" {
				continue
			}
			if err := strictjson.Decode(value, to, limits); err != nil {
				return nil, fmt.Errorf("manifest.json: [%d].%s: %w", i, name, err)
			}
		}
		if images[i], err = a.image(ctx, e, to); err != nil {
			return nil, fmt.Errorf("manifest.json: [%d]: %w", i, err)
		}
	}
	return images, nil
}

func (a *indexed) image(ctx context.Context, e entry, to *layout.Layout) (Image, error) {
	var img Image
	if len(e.RepoTags) > maxTags {
		return Image{}, fmt.Errorf("field RepoTags: %d of them, at most %d are allowed", len(e.RepoTags), maxTags)
	}
	for _, tag := range e.RepoTags {
		ref, err := oci.ParseReference(tag)
		if err != nil {
			return Image{}, fmt.Errorf("field RepoTags: %w", err)
		}
		img.Tags = append(img.Tags, ref)
	}
	data, err := a.read(e.Config, oci.MaxDocument)
	if err != nil {
		return Image{}, fmt.Errorf("field Config: %w", err)
	}
	config, err := oci.ParseImageConfig(data)
	if err != nil {
		return Image{}, fmt.Errorf("field Config: %w", err)
	}
	if len(e.Layers) == 0 || len(config.RootFS.DiffIDs) != len(e.Layers) {
		return Image{}, fmt.Errorf("field Layers: expected %d, one for each diff ID of the configuration and at least one, got %d", len(config.RootFS.DiffIDs), len(e.Layers))
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	if m.Config, err = oci.PushBytes(ctx, to, oci.MediaTypeConfig, data); err != nil {
		return Image{}, err
	}
	for i, name := range e.Layers {
		d, err := a.layer(ctx, name, config.RootFS.DiffIDs[i], to)
		if err != nil {
			return Image{}, fmt.Errorf("field Layers[%d]: %w", i, err)
		}
		m.Layers = append(m.Layers, d)
	}
	if data, err = json.Marshal(m); err != nil {
		return Image{}, err
	}
	img.Manifest, err = oci.PushBytes(ctx, to, oci.MediaTypeManifest, data)
	return img, err
}

// layer stores a layer as it is in the archive.
func (a *indexed) layer(ctx context.Context, name string, diffID oci.Digest, to *layout.Layout) (oci.Descriptor, error) {
	m, err := a.find(name)
	if err != nil {
		return oci.Descriptor{}, err
	}
	magic := make([]byte, 2)
	n, err := a.content(m).ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return oci.Descriptor{}, err
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: diffID, Size: m.size}
	if isGzip(magic[:n]) {
		d.MediaType = oci.MediaTypeLayerGzip
		if d.Digest, err = a.digest(ctx, m); err != nil {
			return oci.Descriptor{}, err
		}
	}
	if err := to.Push(ctx, d, a.content(m)); err != nil {
		if _, ok := errors.AsType[*oci.MismatchError](err); ok {
			return oci.Descriptor{}, fmt.Errorf("member %.128q is not the layer that the configuration names: %w", name, err)
		}
		return oci.Descriptor{}, err
	}
	return d, nil
}
