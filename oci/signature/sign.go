package signature

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/coffer-project/coffer/oci"
)

// Store is a repository that signatures are read from and written to.
type Store interface {
	oci.Fetcher
	oci.Pusher
}

// Sign signs ref, which must have a digest, and adds the signature to those
// that are at its tag (cosign's older form). The payload names ref's
// repository. rand is crypto/rand.Reader outside of tests.
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
	message, err := newPayload(ref)
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

// The manifest of a referrer (OCI image specification v1.1, "Guidelines for
// Artifact Usage").
type (
	referrerManifest struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        oci.Descriptor    `json:"config"`
		Layers        []oci.Descriptor  `json:"layers"`
		Subject       oci.Descriptor    `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}
	referrerDescriptor struct {
		oci.Descriptor
		ArtifactType string `json:"artifactType"`
	}
)

const mediaTypeEmpty = "application/vnd.oci.empty.v1+json"

// SignBundle signs ref, which must have a digest and exist in the store, and
// writes the signature as a sigstore bundle that refers to the image, as cosign
// 3 does by default. There is no entry of a transparency log in it. Where the
// store does not list referrers by itself, the referrers tag is brought up to
// date.
func SignBundle(ctx context.Context, store Store, ref oci.Reference, signer crypto.Signer, rand io.Reader) (oci.Descriptor, error) {
	d, err := signBundle(ctx, store, ref, signer, rand)
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("sign %s: %w", ref, err)
	}
	return d, nil
}

func signBundle(ctx context.Context, store Store, ref oci.Reference, signer crypto.Signer, rand io.Reader) (oci.Descriptor, error) {
	if ref.Digest == "" {
		return oci.Descriptor{}, errors.New("expected a reference with a digest")
	}
	subject, err := store.Resolve(ctx, ref)
	if err != nil {
		return oci.Descriptor{}, err
	}
	bundle, err := newBundle(ref.Digest, signer, rand)
	if err != nil {
		return oci.Descriptor{}, err
	}
	m := referrerManifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeManifest, ArtifactType: mediaTypeBundle,
		Subject:     oci.Descriptor{MediaType: subject.MediaType, Digest: ref.Digest, Size: subject.Size},
		Annotations: map[string]string{annotationContent: "dsse-envelope", annotationPredicate: predicateCosign},
	}
	if m.Config, err = oci.PushBytes(ctx, store, mediaTypeEmpty, []byte("{}")); err != nil {
		return oci.Descriptor{}, err
	}
	layer, err := oci.PushBytes(ctx, store, mediaTypeBundle, bundle)
	if err != nil {
		return oci.Descriptor{}, err
	}
	m.Layers = []oci.Descriptor{layer}
	data, err := json.Marshal(m)
	if err != nil {
		return oci.Descriptor{}, err
	}
	d, err := oci.PushBytes(ctx, store, oci.MediaTypeManifest, data)
	if err != nil {
		return oci.Descriptor{}, err
	}
	d.Annotations = m.Annotations
	return d, listReferrer(ctx, store, ref, referrerDescriptor{Descriptor: d, ArtifactType: m.ArtifactType})
}

// listReferrer sees to it that the referrer is found.
func listReferrer(ctx context.Context, store Store, ref oci.Reference, d referrerDescriptor) error {
	if api, ok := store.(oci.Referrers); ok {
		list, err := api.Referrers(ctx, ref.Digest, "")
		if err == nil && slices.ContainsFunc(list, func(have oci.Descriptor) bool { return have.Digest == d.Digest }) {
			return nil
		}
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	_, entries, err := readReferrersTag(ctx, store, ref, ref.Digest)
	if err != nil {
		return err
	}
	entry, err := json.Marshal(d)
	if err != nil {
		return err
	}
	data, err := json.Marshal(struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, oci.MediaTypeIndex, append(entries, entry)})
	if err != nil {
		return err
	}
	index, err := oci.PushBytes(ctx, store, oci.MediaTypeIndex, data)
	if err != nil {
		return err
	}
	return store.Tag(ctx, index, referrersTag(ref.Digest))
}

// newBundle is a bundle of the form that cosign 3 makes: a DSSE envelope with
// an in-toto statement about the digest.
func newBundle(digest oci.Digest, signer crypto.Signer, rand io.Reader) ([]byte, error) {
	type object = map[string]any
	payload, err := json.Marshal(object{
		"_type":         statementType,
		"subject":       []object{{"digest": map[string]string{digest.Algorithm(): digest.Hex()}}},
		"predicateType": predicateCosign,
		"predicate":     object{},
	})
	if err != nil {
		return nil, err
	}
	sig, err := signMessage(rand, signer, preAuthEncoding(payloadTypeInToto, payload))
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	hint := sha256.Sum256(der)
	return json.Marshal(object{
		"mediaType":            mediaTypeBundle,
		"verificationMaterial": object{"publicKey": object{"hint": base64.StdEncoding.EncodeToString(hint[:])}},
		"dsseEnvelope": envelope{
			Payload: payload, PayloadType: payloadTypeInToto, Signatures: []envelopeSignature{{Signature: sig}},
		},
	})
}
