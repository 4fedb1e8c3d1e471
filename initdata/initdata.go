// Package initdata is the document with which a pod's owner fixes what the
// pod is: a small TOML file whose digest stands in the launch evidence (SNP
// HOST_DATA, TDX MRCONFIGID, vTPM PCR 8).
//
//	version = "0.1.0"
//	algorithm = "sha384"
//	[data]
//	"aa.toml" = '''…'''
//
// The digest is over the exact bytes, comments and white space included.
// Whoever relies on initdata compares its digest with the evidence first
// ([MatchesField]) and uses its content only then.
package initdata

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"

	"github.com/coffer-project/coffer/tee"
)

// Names of the entries Coffer knows. Parse keeps others, which mean something to
// other guests; a guest of Coffer refuses them.
const (
	// KeyAA is the attestation agent's configuration.
	KeyAA = "aa.toml"
	// KeyCDH is the confidential data hub's configuration.
	KeyCDH = "cdh.toml"
	// KeyPolicyRego is the policy of Kata's agent, which Coffer enforces only in
	// a guest that is built with the tag kata_policy.
	KeyPolicyRego = "policy.rego"
	// KeyPodPolicy is Coffer's pod policy.
	KeyPodPolicy = "pod-policy.json"
	// KeyCoffer is what Coffer's guest can be told beyond the guest components'
	// two files.
	KeyCoffer = "coffer.toml"
)

// Version is the document's only version.
const Version = "0.1.0"

// The digest algorithms.
const (
	SHA256 = "sha256"
	SHA384 = "sha384"
	SHA512 = "sha512"
)

// MaxBytes bounds a document.
const MaxBytes = 1 << 20

// Document is decoded initdata.
type Document struct {
	Version   string
	Algorithm string
	Data      map[string]string
}

// Digest returns a document's algorithm and its digest with it, over the
// exact bytes. The document must be valid.
func Digest(raw []byte) (alg string, digest []byte, err error) {
	d, err := Parse(raw)
	if err != nil {
		return "", nil, err
	}
	switch d.Algorithm {
	case SHA256:
		s := sha256.Sum256(raw)
		digest = s[:]
	case SHA384:
		s := sha512.Sum384(raw)
		digest = s[:]
	case SHA512:
		s := sha512.Sum512(raw)
		digest = s[:]
	}
	return d.Algorithm, digest, nil
}

// MatchesField tells whether digest is what an evidence field (HOST_DATA,
// MRCONFIGID, …) holds: the digest is padded with zeros or cut to the field's
// length, as every launcher does, and compared in constant time. A field of
// zeros, which is what a launch without initdata leaves, matches nothing; nor
// does a field or a digest shorter than 32 bytes, of which too little would be
// compared.
func MatchesField(digest, field []byte) bool {
	if len(digest) < sha256.Size || len(field) < sha256.Size {
		return false
	}
	zero := subtle.ConstantTimeCompare(field, make([]byte, len(field)))
	same := subtle.ConstantTimeCompare(tee.Fit(digest, len(field)), field)
	return same&^zero == 1
}
