// Package build makes images: from directory trees, and encrypted ones from
// plain ones. Only owners' programs use it, never the guest.
package build

import (
	"context"
	"errors"
	"io"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

// Options describe an image to build.
type Options struct {
	// Layers are directory trees, lowest first.
	Layers []Tree
	// Config is the image's configuration; RootFS and History are filled in,
	// OS and Architecture too if empty.
	Config oci.ImageConfig
	// Compression of the layers.
	Compression oci.Compression
	// Recipient encrypts the layers, if not nil.
	Recipient *Recipient
	// Spool is a directory for layers before they are pushed.
	Spool string
	// Rand is crypto/rand.Reader outside of tests.
	Rand io.Reader
}

// Tree is one layer.
type Tree struct {
	// Dir is the directory whose content is the layer.
	Dir string
}

// Recipient is whom layers are encrypted for.
type Recipient struct {
	// KID is the KBS resource URI of the key: kbs:///REPOSITORY/TYPE/TAG.
	KID string
	// Key is the key-encryption key, 32 bytes.
	Key secret.Bytes
}

// Build builds an image and pushes it; it returns the manifest's descriptor.
func Build(ctx context.Context, p oci.Pusher, o Options) (oci.Descriptor, error) {
	return oci.Descriptor{}, errors.New("not written yet")
}

// Encrypt copies the image src of f to p with its layers encrypted.
func Encrypt(ctx context.Context, f oci.Fetcher, src oci.Reference, p oci.Pusher, r Recipient, spool string, rand io.Reader) (oci.Descriptor, error) {
	return oci.Descriptor{}, errors.New("not written yet")
}

// Copy copies the image src, all platforms, with its signatures.
func Copy(ctx context.Context, f oci.Fetcher, src oci.Reference, p oci.Pusher) (oci.Descriptor, error) {
	return oci.Descriptor{}, errors.New("not written yet")
}
