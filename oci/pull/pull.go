// Package pull brings an image into a directory: it resolves, verifies,
// fetches, decrypts and unpacks, and trusts the registry in nothing.
package pull

import (
	"context"
	"errors"
	"log/slog"

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
	// storage that the host cannot change. Its files have no names.
	Spool string
	// Limits bound the image; zero fields mean defaults.
	Limits Limits
	// Progress, if not nil, is called from one goroutine at a time.
	Progress func(Progress)
	// Logger must not be nil.
	Logger *slog.Logger
}

// Limits bound an image. A zero field means its default.
type Limits struct {
	// Compressed is the sum of the layers' sizes as stored, in bytes.
	Compressed int64
	// Unpacked bounds what the layers unpack to, all together.
	Unpacked layer.Limits
	// Concurrency is how many layers are fetched at once; at most 8.
	Concurrency int
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

// Pull pulls an image. If it fails, Dest does not exist.
func Pull(ctx context.Context, o Options) (*Image, error) {
	return nil, errors.New("pull: not written yet")
}
