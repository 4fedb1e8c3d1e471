package signature

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// Names of the cosign signature format (sigstore/cosign, SIGNATURE_SPEC).
const (
	mediaTypePayload    = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotationSignature = "dev.cosignproject.cosign/signature"
	payloadType         = "cosign container image signature"
)

// Limits on a signature image.
const (
	maxSignatures = 64
	maxPayload    = 64 << 10
	maxSignature  = 16 << 10
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

// claim is a layer of a signature image: bytes and a signature, not verified.
type claim struct {
	payload   []byte
	signature []byte
}

// fetchClaims collects the signatures of all the subject's digests. That there
// are none is not an error here.
func fetchClaims(ctx context.Context, f oci.Fetcher, s Subject) ([]claim, error) {
	claims := []claim{} // not nil: they have been fetched
	for _, digest := range s.Digests {
		d, err := f.Resolve(ctx, s.Ref.WithTag(Tag(digest)))
		if errors.Is(err, oci.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("signatures of %s: %w", digest, err)
		}
		found, err := readClaims(ctx, f, d)
		if err != nil {
			return nil, fmt.Errorf("signatures of %s: %w", digest, err)
		}
		claims = append(claims, found...)
	}
	return claims, nil
}

func readClaims(ctx context.Context, f oci.Fetcher, d oci.Descriptor) ([]claim, error) {
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > maxSignatures {
		return nil, fmt.Errorf("%d signatures, at most %d are allowed", len(m.Layers), maxSignatures)
	}
	var claims []claim
	for i, l := range m.Layers {
		encoded := l.Annotations[annotationSignature]
		if l.MediaType != mediaTypePayload || encoded == "" || len(encoded) > maxSignature || l.Size > maxPayload {
			continue // some other thing, which counts for nothing
		}
		// Anyone who may write the tag can add a broken one: it must not
		// stand in the way of a good one.
		sig, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(encoded, "\n", ""))
		if err != nil {
			continue
		}
		raw, err := oci.ReadAll(ctx, f, l, maxPayload)
		if err != nil {
			return nil, fmt.Errorf("payload %d: %w", i, err)
		}
		claims = append(claims, claim{payload: raw, signature: sig})
	}
	return claims, nil
}

// accept finds a signature of the key that covers the subject, and returns
// which of its digests. If there is none, the error says how far it got.
func (k *PublicKey) accept(claims []claim, s Subject, id *identity) (oci.Digest, error) {
	want := make([]string, len(s.Digests))
	for i, d := range s.Digests {
		want[i] = string(d)
	}
	if len(claims) == 0 {
		return "", fmt.Errorf("the image is not signed: expected a signature by key %s of %s at tag %s, found none",
			k.id[:16], strings.Join(want, " or "), Tag(s.Digests[len(s.Digests)-1]))
	}
	var problems []error
	for i, c := range claims {
		if !k.Verify(c.payload, c.signature) {
			continue
		}
		digest, err := checkPayload(c.payload, s, id)
		if err == nil {
			return digest, nil
		}
		problems = append(problems, fmt.Errorf("signature %d: %w", i, err))
	}
	if len(problems) == 0 {
		return "", fmt.Errorf("none of the image's %d signatures verifies under key %s: it was signed by another key, or changed", len(claims), k.id[:16])
	}
	return "", errors.Join(problems...)
}

// checkPayload reads a payload whose signature has been verified.
func checkPayload(data []byte, s Subject, id *identity) (oci.Digest, error) {
	var p payload
	if err := strictjson.Decode(data, &p, strictjson.Limits{Bytes: maxPayload, Depth: 16}); err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	if p.Critical.Type != payloadType {
		return "", fmt.Errorf("payload: critical.type: expected %q, got %q", payloadType, clip(p.Critical.Type))
	}
	digest, err := oci.ParseDigest(p.Critical.Image.DockerManifestDigest)
	if err != nil {
		return "", fmt.Errorf("payload: critical.image.docker-manifest-digest: %w", err)
	}
	if !slices.Contains(s.Digests, digest) {
		return "", fmt.Errorf("the signature is good, but for another image: expected %s, it is for %s", s.Digests[len(s.Digests)-1], digest)
	}
	if id != nil {
		if err := id.match(s.Ref, p.Critical.Identity.DockerReference); err != nil {
			return "", fmt.Errorf("signedIdentity %s: %w", id.Type, err)
		}
	}
	return digest, nil
}

// Store is a repository that signatures are read from and written to.
type Store interface {
	oci.Fetcher
	oci.Pusher
}

// Sign signs ref, which must have a digest, and adds the signature to those
// that are at its tag. The payload names ref's repository. rand is
// crypto/rand.Reader outside of tests.
func Sign(ctx context.Context, store Store, ref oci.Reference, signer crypto.Signer, rand io.Reader) (oci.Descriptor, error) {
	d, err := sign(ctx, store, ref, signer, rand)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("sign %s: %w", ref, err)
	}
	return d, nil
}

func sign(ctx context.Context, store Store, ref oci.Reference, signer crypto.Signer, rand io.Reader) (oci.Descriptor, error) {
	if ref.Digest == "" {
		return oci.Descriptor{}, errors.New("expected a reference with a digest")
	}
	var p payload
	p.Critical.Identity.DockerReference = ref.Name()
	p.Critical.Image.DockerManifestDigest = string(ref.Digest)
	p.Critical.Type = payloadType
	message, err := json.Marshal(p)
	if err != nil {
		return oci.Descriptor{}, err
	}
	sig, err := signMessage(rand, signer, message)
	if err != nil {
		return oci.Descriptor{}, err
	}
	layer := oci.Describe(mediaTypePayload, message)
	layer.Annotations = map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(sig)}
	if err := store.Push(ctx, layer, bytes.NewReader(message)); err != nil {
		return oci.Descriptor{}, err
	}
	layers, err := existingLayers(ctx, store, ref)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return pushSignatures(ctx, store, ref, append(layers, layer))
}

// existingLayers are the signatures that ref has already.
func existingLayers(ctx context.Context, f oci.Fetcher, ref oci.Reference) ([]oci.Descriptor, error) {
	d, err := f.Resolve(ctx, ref.WithTag(Tag(ref.Digest)))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return nil, err
	}
	return m.Layers, nil
}

// pushSignatures writes the signature image, in the form cosign gives it: with
// an image configuration whose diff IDs are the payloads'.
func pushSignatures(ctx context.Context, p oci.Pusher, ref oci.Reference, layers []oci.Descriptor) (oci.Descriptor, error) {
	if len(layers) > maxSignatures {
		return oci.Descriptor{}, fmt.Errorf("%d signatures, at most %d are allowed", len(layers), maxSignatures)
	}
	config := oci.ImageConfig{RootFS: oci.RootFS{Type: "layers"}}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return oci.Descriptor{}, err
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Layers: layers}
	if m.Config, err = oci.PushBytes(ctx, p, oci.MediaTypeConfig, data); err != nil {
		return oci.Descriptor{}, err
	}
	if data, err = json.Marshal(m); err != nil {
		return oci.Descriptor{}, err
	}
	d, err := oci.PushBytes(ctx, p, oci.MediaTypeManifest, data)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return d, p.Tag(ctx, d, Tag(ref.Digest))
}
