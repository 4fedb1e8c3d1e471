// Package build makes images: from directory trees, and encrypted ones from
// plain ones. Only owners' programs use it, never the guest.
package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
)

// Options describe an image to build. The same options and trees give the same
// image, byte for byte, unless it is encrypted.
type Options struct {
	// Layers are directory trees, lowest first.
	Layers []Tree
	// Config is the image's configuration; RootFS and History are filled in,
	// OS and Architecture too if they are empty.
	Config oci.ImageConfig
	// Compression of the layers.
	Compression oci.Compression
	// Recipients, if any, are whom the layers are encrypted for.
	Recipients []encrypt.Recipient
	// Annotations of the manifest.
	Annotations map[string]string
	// Spool is a directory for layers before they are pushed; empty means the
	// system's.
	Spool string
	// Rand is crypto/rand.Reader outside of tests; it is needed only if there
	// are recipients.
	Rand io.Reader
}

// Tree is one layer.
type Tree struct {
	// Dir is the directory whose content is the layer.
	Dir string
	// KeepOwners keeps the owners of files; otherwise all are root's.
	KeepOwners bool
	// ModTime, if not zero, replaces the times of all files, so that the image
	// does not depend on when they were made.
	ModTime time.Time
}

// Build builds an image and pushes it; it returns the manifest's descriptor.
// The caller tags it.
func Build(ctx context.Context, p oci.Pusher, o Options) (oci.Descriptor, error) {
	d, err := build(ctx, p, o)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("build image: %w", err)
	}
	return d, nil
}

func build(ctx context.Context, p oci.Pusher, o Options) (oci.Descriptor, error) {
	if len(o.Layers) == 0 || len(o.Layers) > oci.MaxLayers {
		return oci.Descriptor{}, fmt.Errorf("expected 1 to %d layers, got %d", oci.MaxLayers, len(o.Layers))
	}
	if err := checkRecipients(o.Recipients, o.Rand); err != nil {
		return oci.Descriptor{}, err
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Annotations: o.Annotations}
	config := o.Config
	config.RootFS, config.History = oci.RootFS{Type: "layers"}, nil
	if config.OS == "" {
		config.OS = oci.GuestPlatform().OS
	}
	if config.Architecture == "" {
		config.Architecture = oci.GuestPlatform().Architecture
	}
	for i, tree := range o.Layers {
		l, diffID, err := tree.push(ctx, p, o)
		if err != nil {
			return oci.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, l)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, oci.History{CreatedBy: "coffer: layer from a directory"})
	}
	return pushImage(ctx, p, m, config)
}

func checkRecipients(recipients []encrypt.Recipient, rand io.Reader) error {
	if len(recipients) > 0 && rand == nil {
		return errors.New("no source of random bytes was given, but the image is to be encrypted")
	}
	for _, r := range recipients {
		if err := r.Check(); err != nil {
			return err
		}
	}
	return nil
}

func pushImage(ctx context.Context, p oci.Pusher, m oci.Manifest, config oci.ImageConfig) (oci.Descriptor, error) {
	data, err := json.Marshal(config)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if m.Config, err = oci.PushBytes(ctx, p, oci.MediaTypeConfig, data); err != nil {
		return oci.Descriptor{}, err
	}
	return pushManifest(ctx, p, m)
}

func pushManifest(ctx context.Context, p oci.Pusher, m oci.Manifest) (oci.Descriptor, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return oci.PushBytes(ctx, p, oci.MediaTypeManifest, data)
}
