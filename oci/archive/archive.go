// Package archive reads Docker archives, the files that "docker save" and
// "podman save" write, and puts their images into an image layout.
//
// Nothing is unpacked: the archive is indexed once, and its members are read in
// place, so that no path in it means anything outside of it.
package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

// Limits on an archive.
const (
	maxMembers = 100_000
	maxImages  = 256
	maxLinks   = 8
	// maxBytes bounds what a compressed archive unpacks to.
	maxBytes = 256 << 30
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
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, 2)
	if n, err := f.ReadAt(magic, 0); err == nil && isGzip(magic[:n]) {
		plain, err := gunzip(f, spool)
		if err != nil {
			return nil, err
		}
		defer func() { _ = plain.Close() }()
		f = plain
	}
	a, err := index(ctx, f)
	if err != nil {
		return nil, err
	}
	return a.images(ctx, to)
}

func isGzip(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b}) }

func gunzip(r io.Reader, spool string) (*os.File, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	f, err := os.CreateTemp(spool, "coffer-archive-*")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		var n int64
		n, err = io.Copy(f, io.LimitReader(z, maxBytes+1))
		if err == nil && n > maxBytes {
			err = fmt.Errorf("gzip: unpacks to more than %d bytes", int64(maxBytes))
		}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// indexed is an archive whose members have been found.
type indexed struct {
	file    *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	// link is the member that this one stands for, a path in the archive.
	link string
}

// index lists the members. The tar reader reads no more than headers from a
// file that can be sought, so the offset of a member's content is where the
// file stands.
func index(ctx context.Context, f *os.File) (*indexed, error) {
	a := &indexed{file: f, members: map[string]member{}}
	tr := tar.NewReader(f)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if len(a.members) >= maxMembers {
			return nil, fmt.Errorf("more than %d members", maxMembers)
		}
		name := path.Clean("/" + hdr.Name)
		m := member{size: hdr.Size}
		switch hdr.Typeflag {
		case tar.TypeReg:
			if m.offset, err = f.Seek(0, io.SeekCurrent); err != nil {
				return nil, err
			}
		case tar.TypeSymlink: // old "docker save" stores a layer once
			m.link = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			m.link = path.Clean("/" + hdr.Linkname)
		default:
			continue
		}
		a.members[name] = m
	}
}

// open finds a member's content.
func (a *indexed) open(name string) (*io.SectionReader, error) {
	at := path.Clean("/" + name)
	for range maxLinks {
		m, ok := a.members[at]
		if !ok {
			return nil, fmt.Errorf("member %q: missing", name)
		}
		if m.link == "" {
			return io.NewSectionReader(a.file, m.offset, m.size), nil
		}
		at = m.link
	}
	return nil, fmt.Errorf("member %q: more than %d links in a row", name, maxLinks)
}

func (a *indexed) read(name string) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > oci.MaxDocument {
		return nil, fmt.Errorf("member %q: %d bytes, at most %d are allowed", name, r.Size(), oci.MaxDocument)
	}
	return io.ReadAll(r)
}

// entry is an image in manifest.json (Docker image specification v1.2).
type entry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *indexed) images(ctx context.Context, to *layout.Layout) ([]Image, error) {
	data, err := a.read("manifest.json")
	if err != nil {
		return nil, fmt.Errorf("%w: this is no archive of images", err)
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
	for _, tag := range e.RepoTags {
		ref, err := oci.ParseReference(tag)
		if err != nil {
			return Image{}, fmt.Errorf("field RepoTags: %w", err)
		}
		img.Tags = append(img.Tags, ref)
	}
	data, err := a.read(e.Config)
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
	r, err := a.open(name)
	if err != nil {
		return oci.Descriptor{}, err
	}
	magic := make([]byte, 2)
	n, err := r.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return oci.Descriptor{}, err
	}
	d := oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: diffID, Size: r.Size()}
	if isGzip(magic[:n]) {
		d.MediaType = oci.MediaTypeLayerGzip
		if d.Digest, err = digestOf(r); err != nil {
			return oci.Descriptor{}, err
		}
	}
	if err := to.Push(ctx, d, r); err != nil {
		if _, ok := errors.AsType[*oci.MismatchError](err); ok {
			return oci.Descriptor{}, fmt.Errorf("member %q is not the layer that the configuration names: %w", strings.TrimSpace(name), err)
		}
		return oci.Descriptor{}, err
	}
	return d, nil
}

func digestOf(r *io.SectionReader) (oci.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, r.Size())); err != nil {
		return "", err
	}
	return oci.FromHash(h), nil
}
