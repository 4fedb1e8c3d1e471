package signature

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/oci"
)

// keylessSignature puts a claim into the form that Keyless takes: a bundle, as
// it was found or made from a signature of the older form.
func (v *verifier) keylessSignature(c *claim, id *identity) (KeylessSignature, error) {
	if len(c.certificates) == 0 {
		return KeylessSignature{}, errors.New("the signature has no certificate: it was made with a key")
	}
	if c.bundle == nil {
		return c.olderBundle()
	}
	digest, err := c.content.check(v.subject, id)
	if err != nil {
		return KeylessSignature{}, err
	}
	if digest.Algorithm() != "sha256" {
		return KeylessSignature{}, fmt.Errorf("expected a sha256, got %s", digest)
	}
	return newKeylessSignature(c.bundle, digest)
}

func newKeylessSignature(bundle []byte, digest oci.Digest) (KeylessSignature, error) {
	sum, err := hex.DecodeString(digest.Hex())
	return KeylessSignature{Bundle: bundle, ArtifactSHA256: sum}, err
}

// olderBundle is a bundle (version 0.1) of a signature whose certificate and
// log entry were in annotations.
func (c *claim) olderBundle() (KeylessSignature, error) {
	if len(c.entries) != 1 {
		return KeylessSignature{}, errors.New("no entry of a transparency log came with the signature")
	}
	digest := oci.FromBytes(c.message)
	s, err := newKeylessSignature(nil, digest)
	if err != nil {
		return KeylessSignature{}, err
	}
	e := c.entries[0]
	var head entryHead
	if err := json.Unmarshal(e.body, &head); err != nil {
		return KeylessSignature{}, fmt.Errorf("log entry: %w", err)
	}
	type object = map[string]any
	var chain []rawCertificate
	for _, der := range c.certificates {
		chain = append(chain, rawCertificate{RawBytes: der})
	}
	s.Bundle, err = json.Marshal(object{
		"mediaType": bundleTypes[0],
		"verificationMaterial": object{
			"x509CertificateChain": object{"certificates": chain},
			"tlogEntries": []object{{
				"logIndex": e.index, "logId": object{"keyId": e.logID}, "kindVersion": object{"kind": head.Kind, "version": head.APIVersion},
				"integratedTime": e.integratedTime, "canonicalizedBody": e.body,
				"inclusionPromise": object{"signedEntryTimestamp": e.promise},
			}},
		},
		"messageSignature": object{
			"messageDigest": object{"algorithm": "SHA2_256", "digest": s.ArtifactSHA256},
			"signature":     c.signature,
		},
	})
	return s, err
}
