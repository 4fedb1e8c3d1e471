// Package crypt opens encrypted image layers: the side of ocicrypt that the
// guest needs. Sealing is in package encrypt below.
//
// An encrypted layer's descriptor carries annotations: a key packet, which
// wraps the layer's key under a key of the relying party, and the public
// options with a MAC. The layer itself is AES-256-CTR under a random key, with
// HMAC-SHA256 under the same key over the ciphertext. CTR is malleable:
// [Layer.Open] therefore reads the ciphertext twice, first to check it, then to
// decrypt. [Layer.OpenStaged] reads it once, for a consumer that uses nothing of
// what it has made before the end of the plaintext says that the MAC was right.
package crypt

import (
	"context"

	"github.com/coffer-project/coffer/secret"
)

// KeySource finds key-encryption keys. A kid is a KBS resource URI as it stands
// in a key packet, such as "kbs:///default/image-kek/1". Implementations may be
// used by several goroutines at once.
type KeySource interface {
	Key(ctx context.Context, kid string) (secret.Bytes, error)
}

// Annotations of an encrypted layer's descriptor (ocicrypt, spec/config and
// keywrap/keyprovider).
const (
	// AnnotationKeys holds a comma-separated list of base64 key packets.
	AnnotationKeys = AnnotationKeysPrefix + "provider.attestation-agent"
	// AnnotationKeysPrefix starts the names of all key annotations.
	AnnotationKeysPrefix = "org.opencontainers.image.enc.keys."
	// AnnotationPubOpts holds base64 JSON with the cipher's name and the MAC.
	AnnotationPubOpts = "org.opencontainers.image.enc.pubopts"
)

// Cipher is the only cipher of layers.
const Cipher = "AES_256_CTR_HMAC_SHA256"

// Sizes in bytes.
const (
	KeySize   = 32
	NonceSize = 16
	MACSize   = 32
)
