// Package signature makes and checks signatures of images: cosign's key-based
// form, and the policies (containers-policy.json) that demand them.
//
// A signature is a small image at the tag sha256-<hex>.sig beside the one it
// signs. Each of its layers is a simple-signing payload, which names a
// manifest digest, with the signature of those bytes in an annotation. Layers
// that do not verify under a key of the policy count for nothing, neither for
// nor against the image.
package signature

import (
	"context"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

// KeyGetter finds the public keys that a policy names by URI, such as
// "kbs:///default/cosign/key". It has the shape of crypt.KeySource, so that one
// implementation serves both.
type KeyGetter interface {
	Key(ctx context.Context, uri string) (secret.Bytes, error)
}

// Subject is an image whose signature is to be checked.
type Subject struct {
	// Ref is the image as the policy's owner named it.
	Ref oci.Reference
	// Digests are the digests that a signature may cover, all of the same
	// image: that of the index, if the image was named by one, and that of the
	// platform's manifest.
	Digests []oci.Digest
}

// Verdict says why an image was accepted.
type Verdict struct {
	// Scope is the policy's entry that decided: "default" or a scope such as
	// "registry.example/shop".
	Scope string `json:"scope"`
	// Requirement is the type of the entry's requirement(s), such as
	// "sigstoreSigned" or "insecureAcceptAnything".
	Requirement string `json:"requirement"`
	// KeyID is the sha256 of the DER public key that verified; empty if no
	// signature was demanded.
	KeyID string `json:"keyID,omitempty"`
	// Digest is what the signature covers.
	Digest oci.Digest `json:"digest,omitempty"`
}
