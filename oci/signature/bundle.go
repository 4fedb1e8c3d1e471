package signature

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// Names of sigstore bundles (sigstore/protobuf-specs, sigstore_bundle.proto),
// of DSSE (secure-systems-lab/dsse, protocol.md), of in-toto statements
// (in-toto/attestation, spec/v1/statement.md) and of what cosign makes of them
// (sigstore/cosign v3.1.3, pkg/types/predicate.go, pkg/oci/remote/write.go).
const (
	mediaTypeBundle     = "application/vnd.dev.sigstore.bundle.v0.3+json"
	annotationPredicate = "dev.sigstore.bundle.predicateType"
	annotationContent   = "dev.sigstore.bundle.content"
	payloadTypeInToto   = "application/vnd.in-toto+json"
	statementType       = "https://in-toto.io/Statement/v1"
	predicateCosign     = "https://sigstore.dev/cosign/sign/v1"
)

// bundleTypes are the media types of the versions of the format.
var bundleTypes = []string{
	"application/vnd.dev.sigstore.bundle+json;version=0.1",
	"application/vnd.dev.sigstore.bundle+json;version=0.2",
	"application/vnd.dev.sigstore.bundle+json;version=0.3",
	mediaTypeBundle,
}

// Limits on bundles.
const (
	maxBundle       = 256 << 10
	maxCertificates = 8
	maxLogEntries   = 8
	maxSubjects     = 16
)

// number is a 64-bit integer, which JSON of protocol buffers has as a string.
type number int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(data []byte) error {
	text := string(data)
	if unquoted, err := strconv.Unquote(text); err == nil {
		text = unquoted
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 {
		return errors.New("expected a number from 0 to 2^63-1")
	}
	*n = number(v)
	return nil
}

type (
	bundleDocument struct {
		MediaType string `json:"mediaType"`
		Material  struct {
			PublicKey *struct {
				Hint string `json:"hint"`
			} `json:"publicKey"`
			Certificate *rawCertificate `json:"certificate"`
			Chain       *struct {
				Certificates []rawCertificate `json:"certificates"`
			} `json:"x509CertificateChain"`
			LogEntries []bundleEntry `json:"tlogEntries"`
			// Timestamps are not used: no policy names an authority for them.
			Timestamps *json.RawMessage `json:"timestampVerificationData"`
		} `json:"verificationMaterial"`
		Message  *messageSignature `json:"messageSignature"`
		Envelope *envelope         `json:"dsseEnvelope"`
	}
	rawCertificate struct {
		RawBytes []byte `json:"rawBytes"`
	}
	messageSignature struct {
		Digest struct {
			Algorithm string `json:"algorithm"`
			Digest    []byte `json:"digest"`
		} `json:"messageDigest"`
		Signature []byte `json:"signature"`
	}
	envelope struct {
		Payload     []byte              `json:"payload"`
		PayloadType string              `json:"payloadType"`
		Signatures  []envelopeSignature `json:"signatures"`
	}
	envelopeSignature struct {
		Signature []byte `json:"sig"`
		KeyID     string `json:"keyid,omitempty"`
	}
	bundleEntry struct {
		LogIndex number `json:"logIndex"`
		LogID    struct {
			KeyID []byte `json:"keyId"`
		} `json:"logId"`
		Kind struct {
			Kind    string `json:"kind"`
			Version string `json:"version"`
		} `json:"kindVersion"`
		IntegratedTime number `json:"integratedTime"`
		Promise        *struct {
			SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
		} `json:"inclusionPromise"`
		Proof *struct {
			LogIndex   number   `json:"logIndex"`
			RootHash   []byte   `json:"rootHash"`
			TreeSize   number   `json:"treeSize"`
			Hashes     [][]byte `json:"hashes"`
			Checkpoint struct {
				Envelope string `json:"envelope"`
			} `json:"checkpoint"`
		} `json:"inclusionProof"`
		Body []byte `json:"canonicalizedBody"`
	}
)

// parseBundle reads a sigstore bundle into a claim. Nothing of it is verified.
func parseBundle(data []byte) (*claim, error) {
	c, err := decodeBundle(data)
	if err != nil {
		return nil, fmt.Errorf("sigstore bundle: %w", err)
	}
	c.bundle = data
	return c, nil
}

func decodeBundle(data []byte) (*claim, error) {
	var b bundleDocument
	if err := strictjson.Decode(data, &b, strictjson.Limits{Bytes: maxBundle, Depth: 16}); err != nil {
		return nil, err
	}
	if !slices.Contains(bundleTypes, b.MediaType) {
		return nil, fmt.Errorf("mediaType: expected %s or an older version, got %q", mediaTypeBundle, clip(b.MediaType))
	}
	if (b.Message == nil) == (b.Envelope == nil) {
		return nil, errors.New("messageSignature, dsseEnvelope: expected one of them")
	}
	c := &claim{}
	if err := b.certificates(c); err != nil {
		return nil, fmt.Errorf("verificationMaterial.%w", err)
	}
	if len(b.Material.LogEntries) > maxLogEntries {
		return nil, fmt.Errorf("verificationMaterial.tlogEntries: %d of them, at most %d are allowed", len(b.Material.LogEntries), maxLogEntries)
	}
	for i := range b.Material.LogEntries {
		e, err := b.Material.LogEntries[i].entry()
		if err != nil {
			return nil, fmt.Errorf("verificationMaterial.tlogEntries[%d].%w", i, err)
		}
		c.entries = append(c.entries, *e)
	}
	if b.Message != nil {
		return c, b.Message.into(c)
	}
	return c, b.Envelope.into(c)
}

func (b *bundleDocument) certificates(c *claim) error {
	m := &b.Material
	kinds := 0
	for _, given := range []bool{m.PublicKey != nil, m.Certificate != nil, m.Chain != nil} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		return errors.New("publicKey, certificate, x509CertificateChain: expected one of them")
	}
	var list []rawCertificate
	switch {
	case m.Certificate != nil:
		list = []rawCertificate{*m.Certificate}
	case m.Chain != nil:
		list = m.Chain.Certificates
		if len(list) == 0 || len(list) > maxCertificates {
			return fmt.Errorf("x509CertificateChain.certificates: expected 1 to %d, got %d", maxCertificates, len(list))
		}
	}
	for _, raw := range list {
		c.certificates = append(c.certificates, raw.RawBytes)
	}
	return nil
}

func (e *bundleEntry) entry() (*logEntry, error) {
	if len(e.LogID.KeyID) != 32 {
		return nil, fmt.Errorf("logId.keyId: expected 32 bytes, got %d", len(e.LogID.KeyID))
	}
	out := &logEntry{body: e.Body, integratedTime: int64(e.IntegratedTime), index: int64(e.LogIndex), logID: e.LogID.KeyID}
	if e.Promise != nil {
		out.promise = e.Promise.SignedEntryTimestamp
	}
	if p := e.Proof; p != nil {
		if len(p.Hashes) > 63 {
			return nil, fmt.Errorf("inclusionProof.hashes: %d of them, at most 63 are allowed", len(p.Hashes))
		}
		out.proof = &inclusionProof{
			index: int64(p.LogIndex), size: int64(p.TreeSize), root: p.RootHash, hashes: p.Hashes, checkpoint: p.Checkpoint.Envelope,
		}
	}
	return out, nil
}

func (m *messageSignature) into(c *claim) error {
	if m.Digest.Algorithm != "SHA2_256" || len(m.Digest.Digest) != 32 {
		return fmt.Errorf("messageSignature.messageDigest: expected SHA2_256 of 32 bytes, got %q of %d", clip(m.Digest.Algorithm), len(m.Digest.Digest))
	}
	c.sum, c.signature = m.Digest.Digest, m.Signature
	c.content = digestContent(m.Digest.Digest)
	return nil
}

func (e *envelope) into(c *claim) error {
	if e.PayloadType != payloadTypeInToto {
		return fmt.Errorf("dsseEnvelope.payloadType: expected %s, got %q", payloadTypeInToto, clip(e.PayloadType))
	}
	// A bundle's envelope has one signature (sigstore_bundle.proto).
	if len(e.Signatures) != 1 {
		return fmt.Errorf("dsseEnvelope.signatures: expected one, got %d", len(e.Signatures))
	}
	c.message = preAuthEncoding(e.PayloadType, e.Payload)
	c.signature = e.Signatures[0].Signature
	c.content = statementContent(e.Payload)
	return nil
}

// preAuthEncoding is what is signed in a DSSE envelope (DSSE protocol v1.0.0,
// "PAE").
func preAuthEncoding(payloadType string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// digestContent is a signature of the manifest's bytes themselves.
type digestContent []byte

func (c digestContent) check(s Subject, id *identity) (oci.Digest, error) {
	return matchDigests(s, id, map[string]string{"sha256": hex.EncodeToString(c)})
}

// statementContent is an in-toto statement whose signature has been verified.
type statementContent []byte

type statement struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name        string            `json:"name,omitempty"`
		Digest      map[string]string `json:"digest"`
		Annotations map[string]any    `json:"annotations,omitempty"`
	} `json:"subject"`
	PredicateType string         `json:"predicateType"`
	Predicate     map[string]any `json:"predicate"`
}

func (c statementContent) check(s Subject, id *identity) (oci.Digest, error) {
	var st statement
	if err := strictjson.Decode(c, &st, strictjson.Limits{Bytes: maxPayload, Depth: 16}); err != nil {
		return "", fmt.Errorf("statement: %w", err)
	}
	if st.Type != statementType {
		return "", fmt.Errorf("statement: _type: expected %s, got %q", statementType, clip(st.Type))
	}
	// Anything else, such as a bill of materials, says something about the
	// image and not that it may run.
	if st.PredicateType != predicateCosign {
		return "", fmt.Errorf("statement: predicateType: expected %s, got %q", predicateCosign, clip(st.PredicateType))
	}
	if len(st.Subject) == 0 || len(st.Subject) > maxSubjects {
		return "", fmt.Errorf("statement: subject: expected 1 to %d, got %d", maxSubjects, len(st.Subject))
	}
	var problem error
	for _, sub := range st.Subject {
		digest, err := matchDigests(s, id, sub.Digest)
		if err == nil {
			return digest, nil
		}
		problem = err
	}
	return "", problem
}

// matchDigests finds the subject's digest among those that were signed, by
// algorithm. Bundles name no repository, so that they meet no demand for one:
// for an image that was named by tag, that is the default.
func matchDigests(s Subject, id *identity, signed map[string]string) (oci.Digest, error) {
	if id = id.orCosignDefault(s.Ref); id != nil {
		return "", fmt.Errorf("signedIdentity %s: a sigstore bundle names no repository; name the image by its digest and leave signedIdentity out, or sign in the older form (cosign sign --new-bundle-format=false)", id.Type)
	}
	for _, d := range s.Digests {
		if want, ok := signed[d.Algorithm()]; ok && want == d.Hex() {
			return d, nil
		}
	}
	return "", otherImage(s, oci.Digest("sha256:"+clip(signed["sha256"])))
}

// sumFor is the hash h of what was signed; nil if it is not known.
func (c *claim) sumFor(h crypto.Hash) []byte {
	switch {
	case c.message != nil:
		return sumOf(h, c.message)
	case h == crypto.SHA256:
		return c.sum
	default:
		return nil
	}
}

// signedBy says whether the signature verifies under k.
func (c *claim) signedBy(k *PublicKey) bool {
	if c.message == nil {
		return k.verifySum(crypto.SHA256, c.sum, c.signature)
	}
	return k.Verify(c.message, c.signature)
}

// signer says whether verifier, a key or a certificate in DER, is what c was
// signed with: the key k, or the certificate that came with it.
func (c *claim) signer(k *PublicKey, verifier []byte) bool {
	return bytes.Equal(verifier, k.der) || (len(c.certificates) > 0 && bytes.Equal(verifier, c.certificates[0]))
}
