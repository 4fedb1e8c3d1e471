package signature

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// Names of the cosign signature format (sigstore/cosign, SIGNATURE_SPEC).
const (
	mediaTypePayload      = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationChain       = "dev.sigstore.cosign/chain"
	annotationLog         = "dev.sigstore.cosign/bundle"
	typeCosign            = "cosign container image signature"
	// typeAtomic is simple signing's (containers/image, docs/atomic-signature.md).
	typeAtomic = "atomic container signature"
)

// Limits on signatures.
const (
	// maxSignatures is how many signatures of one kind are looked at.
	maxSignatures = 64
	maxPayload    = 64 << 10
	maxSignature  = 16 << 10
	maxAnnotation = 64 << 10
)

// Tag is where the signatures of a manifest are found in its repository.
func Tag(digest oci.Digest) string { return digest.Algorithm() + "-" + digest.Hex() + ".sig" }

// payload is the simple-signing document
// (containers/image, docs/atomic-signature.md).
type payload struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// layerClaim is the signature in one layer of a signature image. A layer that
// is something else, or was spoiled, is no claim: anyone who may write there
// can add a broken one, which must not stand in the way of a good one.
func layerClaim(l oci.Descriptor, data []byte) (*claim, error) {
	encoded := l.Annotations[annotationSignature]
	if encoded == "" || len(encoded) > maxSignature {
		return nil, fmt.Errorf("annotation %s: expected 1 to %d bytes, got %d", annotationSignature, maxSignature, len(encoded))
	}
	sig, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(encoded, "\n", ""))
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationSignature, err)
	}
	c := &claim{message: data, signature: sig, content: payloadContent{data: data, kind: typeCosign}}
	for _, name := range []string{annotationCertificate, annotationChain} {
		text := l.Annotations[name]
		if text == "" || len(text) > maxAnnotation {
			continue
		}
		certificates, err := parseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", name, err)
		}
		c.certificates = append(c.certificates, certificates...)
	}
	if text := l.Annotations[annotationLog]; text != "" {
		entry, err := parseLogAnnotation(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotationLog, err)
		}
		c.entries = []logEntry{*entry}
	}
	return c, nil
}

// parseLogAnnotation reads what cosign stores of a transparency-log entry
// (sigstore/cosign, SIGNATURE_SPEC, "bundle").
func parseLogAnnotation(text string) (*logEntry, error) {
	var doc struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := strictjson.Decode([]byte(text), &doc, strictjson.Limits{Bytes: maxAnnotation, Depth: 4}); err != nil {
		return nil, err
	}
	id, err := parseLogID(doc.Payload.LogID)
	if err != nil {
		return nil, err
	}
	return &logEntry{
		body: doc.Payload.Body, integratedTime: doc.Payload.IntegratedTime, index: doc.Payload.LogIndex,
		logID: id, promise: doc.SignedEntryTimestamp,
	}, nil
}

// payloadContent is a simple-signing payload whose signature has been verified.
type payloadContent struct {
	data []byte
	kind string
}

func (c payloadContent) check(s Subject, id *identity) (oci.Digest, error) {
	var p payload
	if err := strictjson.Decode(c.data, &p, strictjson.Limits{Bytes: maxPayload, Depth: 16}); err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	if p.Critical.Type != c.kind {
		return "", fmt.Errorf("payload: critical.type: expected %q, got %q", c.kind, clip(p.Critical.Type))
	}
	digest, err := oci.ParseDigest(p.Critical.Image.DockerManifestDigest)
	if err != nil {
		return "", fmt.Errorf("payload: critical.image.docker-manifest-digest: %w", err)
	}
	if !slices.Contains(s.Digests, digest) {
		return "", otherImage(s, digest)
	}
	if c.kind == typeCosign {
		id = id.orCosignDefault(s.Ref)
	} else {
		id = id.orDefault()
	}
	if id != nil {
		if err := id.match(s.Ref, p.Critical.Identity.DockerReference); err != nil {
			return "", fmt.Errorf("signedIdentity %s: %w", id.Type, err)
		}
	}
	return digest, nil
}

func otherImage(s Subject, digest oci.Digest) error {
	return fmt.Errorf("the signature is good, but for another image: expected %s, it is for %s", s.Digests[len(s.Digests)-1], digest)
}

// newPayload is the payload that cosign would write for ref.
func newPayload(ref oci.Reference) ([]byte, error) {
	var p payload
	p.Critical.Identity.DockerReference = ref.Name()
	p.Critical.Image.DockerManifestDigest = string(ref.Digest)
	p.Critical.Type = typeCosign
	return json.Marshal(p)
}
