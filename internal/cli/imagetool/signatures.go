package imagetool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
)

// Found is a manifest that says something about an image, or holds its
// signatures. Nothing of it is verified.
type Found struct {
	// Kind is "cosign" for cosign's tag, or "referrer".
	Kind string `json:"kind"`
	// Subject is the manifest it is about.
	Subject oci.Digest `json:"subject"`
	Digest  oci.Digest `json:"digest"`
	// Entries is how many layers it has: in cosign's form, one per signature.
	Entries int `json:"entries"`
	// ArtifactType of a referrer, if it has one.
	ArtifactType string `json:"artifactType,omitempty"`

	descriptor oci.Descriptor
	data       []byte
	manifest   *oci.Manifest
}

// maxReferrers bounds how many referrers of one manifest are looked at.
const maxReferrers = 64

// FindSignatures lists what is stored with the manifest subject in cosign's
// forms, in the repository of ref.
func FindSignatures(ctx context.Context, f oci.Fetcher, ref oci.Reference, subject oci.Digest) ([]Found, error) {
	var all []Found
	d, err := f.Resolve(ctx, ref.WithTag(signature.Tag(subject)))
	switch {
	case errors.Is(err, oci.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		found, err := readFound(ctx, f, d, subject, "cosign")
		if err != nil {
			return nil, fmt.Errorf("signatures at tag %s: %w", signature.Tag(subject), err)
		}
		all = append(all, found)
	}
	list, err := referrers(ctx, f, ref, subject)
	if err != nil {
		return nil, fmt.Errorf("referrers of %s: %w", subject, err)
	}
	if len(list) > maxReferrers {
		return nil, fmt.Errorf("referrers of %s: expected at most %d, got %d", subject, maxReferrers, len(list))
	}
	for _, d := range list {
		if !oci.IsManifest(d.MediaType) {
			continue
		}
		found, err := readFound(ctx, f, d, subject, "referrer")
		if err != nil {
			return nil, fmt.Errorf("referrer %s: %w", d.Digest, err)
		}
		all = append(all, found)
	}
	return all, nil
}

func readFound(ctx context.Context, f oci.Fetcher, d oci.Descriptor, subject oci.Digest, kind string) (Found, error) {
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return Found{}, err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return Found{}, err
	}
	var kinds struct {
		ArtifactType string `json:"artifactType"`
	}
	if err := json.Unmarshal(data, &kinds); err != nil { // ParseManifest was stricter
		return Found{}, err
	}
	return Found{Kind: kind, Subject: subject, Digest: d.Digest, Entries: len(m.Layers), ArtifactType: kinds.ArtifactType, descriptor: d, data: data, manifest: m}, nil
}

// referrers lists what refers to subject: by the API, or where there is none by
// the tag that stands for it (OCI distribution specification v1.1, "Unavailable
// Referrers API").
func referrers(ctx context.Context, f oci.Fetcher, ref oci.Reference, subject oci.Digest) ([]oci.Descriptor, error) {
	if api, ok := f.(oci.Referrers); ok {
		list, err := api.Referrers(ctx, subject, "")
		if !errors.Is(err, oci.ErrNotFound) {
			return list, err
		}
	}
	x, err := referrersIndex(ctx, f, ref, subject)
	if err != nil || x == nil {
		return nil, err
	}
	return x.Manifests, nil
}

func referrersTag(d oci.Digest) string { return d.Algorithm() + "-" + d.Hex() }

func referrersIndex(ctx context.Context, f oci.Fetcher, ref oci.Reference, subject oci.Digest) (*oci.Index, error) {
	tag := referrersTag(subject)
	if oci.CheckTag(tag) != nil {
		return nil, nil //nolint:nilnil // a sha512 is too long for a tag
	}
	d, err := f.Resolve(ctx, ref.WithTag(tag))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil //nolint:nilnil // there are none
	}
	if err != nil {
		return nil, err
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	return oci.ParseIndex(data, d.MediaType)
}

// signatures copies what is stored with a manifest.
func (w *walk) signatures(ctx context.Context, subject oci.Digest) error {
	if w.to.single {
		return nil
	}
	list, err := FindSignatures(ctx, w.from, w.ref, subject)
	if err != nil {
		return err
	}
	for _, found := range list {
		for _, blob := range append(slices.Clone(found.manifest.Layers), found.manifest.Config) {
			if err := copyBlob(ctx, w.from, w.to.store, blob); err != nil {
				return fmt.Errorf("signatures of %s: %w", subject, err)
			}
		}
		if err := w.to.store.Push(ctx, found.descriptor, bytes.NewReader(found.data)); err != nil {
			return fmt.Errorf("signatures of %s: %w", subject, err)
		}
		if found.Kind == "cosign" {
			err = w.to.store.Tag(ctx, found.descriptor, signature.Tag(subject))
		} else {
			err = listReferrer(ctx, w.to.store, w.to.ref, subject, found)
		}
		if err != nil {
			return fmt.Errorf("signatures of %s: %w", subject, err)
		}
		w.result.Signatures++
	}
	return nil
}

// listReferrer sees to it that a referrer that was pushed is found.
func listReferrer(ctx context.Context, store signature.Store, ref oci.Reference, subject oci.Digest, found Found) error {
	list, err := referrers(ctx, store, ref, subject)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(d oci.Descriptor) bool { return d.Digest == found.Digest }) {
		return nil
	}
	entries := []json.RawMessage{}
	x, err := referrersIndex(ctx, store, ref, subject)
	if err != nil {
		return err
	}
	if x != nil {
		for _, d := range x.Manifests {
			old, err := readFound(ctx, store, d, subject, "referrer")
			if err != nil {
				return err
			}
			if entries, err = appendReferrer(entries, old); err != nil {
				return err
			}
		}
	}
	if entries, err = appendReferrer(entries, found); err != nil {
		return err
	}
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeIndex, "manifests": entries})
	if err != nil {
		return err
	}
	d, err := oci.PushBytes(ctx, store, oci.MediaTypeIndex, data)
	if err != nil {
		return err
	}
	return store.Tag(ctx, d, referrersTag(subject))
}

func appendReferrer(entries []json.RawMessage, f Found) ([]json.RawMessage, error) {
	entry, err := json.Marshal(struct {
		oci.Descriptor
		ArtifactType string `json:"artifactType,omitempty"`
	}{oci.Descriptor{MediaType: f.descriptor.MediaType, Digest: f.Digest, Size: f.descriptor.Size, Annotations: f.manifest.Annotations}, f.ArtifactType})
	return append(entries, entry), err
}
