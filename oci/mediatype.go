package oci

import (
	"fmt"
	"strings"
)

// Media types of the OCI image specification v1.1 and of Docker's image
// manifest version 2, schema 2.
const (
	MediaTypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeIndex          = "application/vnd.oci.image.index.v1+json"
	MediaTypeConfig         = "application/vnd.oci.image.config.v1+json"
	MediaTypeLayer          = "application/vnd.oci.image.layer.v1.tar"
	MediaTypeLayerGzip      = MediaTypeLayer + "+gzip"
	MediaTypeLayerZstd      = MediaTypeLayer + "+zstd"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"

	// Layers that registries need not have; they are read from there all the same.
	mediaTypeLayerNondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	mediaTypeDockerForeignLayer    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// encryptedSuffix marks an encrypted layer, after the compression's suffix.
const encryptedSuffix = "+encrypted"

// IsManifest says whether t is the media type of an image manifest.
func IsManifest(t string) bool { return t == MediaTypeManifest || t == MediaTypeDockerManifest }

// IsIndex says whether t is the media type of an index of manifests.
func IsIndex(t string) bool { return t == MediaTypeIndex || t == MediaTypeDockerIndex }

// Compression is how a layer's tar stream is compressed.
type Compression int

// The compressions a layer may have.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// String implements fmt.Stringer.
func (c Compression) String() string {
	switch c {
	case Uncompressed:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	default:
		return fmt.Sprintf("Compression(%d)", int(c))
	}
}

// LayerFormat is what a layer's media type says.
type LayerFormat struct {
	Compression Compression
	// Encrypted says that the compressed stream is encrypted (ocicrypt).
	Encrypted bool
}

// ParseLayerMediaType reads a layer's media type: OCI, OCI non-distributable
// and Docker layers, plain, gzip or zstd, each also encrypted. Unlike other
// guests, this one takes +zstd+encrypted and Docker's types +encrypted.
func ParseLayerMediaType(t string) (LayerFormat, error) {
	var f LayerFormat
	base, encrypted := strings.CutSuffix(t, encryptedSuffix)
	f.Encrypted = encrypted
	switch base {
	case MediaTypeLayer, mediaTypeLayerNondistributable, MediaTypeDockerLayer, mediaTypeDockerForeignLayer:
	case MediaTypeLayerGzip, mediaTypeLayerNondistributable + "+gzip", MediaTypeDockerLayer + ".gzip", mediaTypeDockerForeignLayer + ".gzip":
		f.Compression = Gzip
	case MediaTypeLayerZstd, mediaTypeLayerNondistributable + "+zstd", MediaTypeDockerLayer + ".zstd", mediaTypeDockerForeignLayer + ".zstd":
		f.Compression = Zstd
	default:
		return LayerFormat{}, fmt.Errorf("media type %q is not that of an image layer; expected %s or Docker's %s, optionally +gzip or +zstd, optionally +encrypted",
			clip(t), MediaTypeLayer, MediaTypeDockerLayer)
	}
	return f, nil
}

// MediaType is the OCI media type of a layer of this format.
func (f LayerFormat) MediaType() string {
	t := MediaTypeLayer
	switch f.Compression {
	case Gzip:
		t = MediaTypeLayerGzip
	case Zstd:
		t = MediaTypeLayerZstd
	}
	if f.Encrypted {
		t += encryptedSuffix
	}
	return t
}
