// Package signature makes and checks signatures of images, and decides by the
// policies (containers-policy.json) that demand them.
//
// Three forms of signatures are known. Cosign's older one is a small image at
// the tag sha256-<hex>.sig beside the image: each of its layers is a
// simple-signing payload, which names a manifest digest, with the signature of
// those bytes in an annotation. Cosign's newer one is a sigstore bundle that
// refers to the image (OCI 1.1 referrers). Simple signing is an OpenPGP message
// in a lookaside store; package openpgp verifies it and package lookaside
// finds it.
//
// [ParsePolicy] reads a policy and refuses what it cannot enforce;
// [Policy.Verify] finds the entry for an image, collects signatures until the
// entry is satisfied, and says which one it was. Signatures that do not verify
// under a key of the policy count for nothing, neither for nor against the
// image, and signatures are counted and measured before they are read.
package signature

import (
	"context"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

// KeyGetter finds the keys, keyrings and certificates that a policy names by
// URI, such as "kbs:///default/cosign/key". It has the shape of
// crypt.KeySource, so that one implementation serves both.
type KeyGetter interface {
	Key(ctx context.Context, uri string) (secret.Bytes, error)
}

// Lookaside finds the simple-signing signatures of an image. Package lookaside
// has implementations.
type Lookaside interface {
	// Signatures returns the OpenPGP messages that are stored for the manifest
	// digest of ref's repository, none if there are none. What it returns is
	// not trusted. Implementations bound number and size.
	Signatures(ctx context.Context, ref oci.Reference, digest oci.Digest) ([][]byte, error)
}

// Keyless verifies signatures by certificates that a certificate authority
// (Fulcio) gave for minutes to somebody who logged in, and that a transparency
// log (Rekor) has seen in that time. Package keyless has the implementation.
type Keyless interface {
	// Verify returns the public key of the certificate that made the
	// signature, in DER (PKIX), or says why it does not count. The caller
	// checks what it was that was signed.
	Verify(ctx context.Context, s KeylessSignature, t KeylessTrust) (publicKey []byte, err error)
}

// KeylessSignature is a signature with a certificate; all of it is untrusted.
type KeylessSignature struct {
	// Bundle is a sigstore bundle in JSON.
	Bundle []byte
	// ArtifactSHA256 is what the bundle is said to be about: the manifest's
	// sha256, or, in a bundle made from a signature of the older form, that of
	// the payload.
	ArtifactSHA256 []byte
}

// KeylessTrust is what a policy pins for keyless signatures.
type KeylessTrust struct {
	// CACertificates are the certificate authority's, in PEM: roots (issued by
	// themselves) and intermediates.
	CACertificates []byte
	// OIDCIssuer and SubjectEmail say who must have signed.
	OIDCIssuer, SubjectEmail string
	// LogKeys are the transparency logs' public keys in PEM; the signature
	// must be in one of them.
	LogKeys [][]byte
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
	// Requirement is the type of the entry's last requirement that demands a
	// signature, such as "sigstoreSigned"; otherwise "insecureAcceptAnything".
	Requirement string `json:"requirement"`
	// KeyID says which key verified: the sha256 of the DER public key in
	// hexadecimal, or the OpenPGP fingerprint of the signing key; empty if no
	// signature was demanded.
	KeyID string `json:"keyID,omitempty"`
	// Digest is what the signature covers.
	Digest oci.Digest `json:"digest,omitempty"`
	// Found is where the signature was, such as "tag sha256-….sig, signature 0".
	Found string `json:"found,omitempty"`
}
