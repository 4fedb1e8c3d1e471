package imagetool

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
)

// Report is what an image is made of.
type Report struct {
	Reference string            `json:"reference"`
	Digest    oci.Digest        `json:"digest"`
	MediaType string            `json:"mediaType"`
	Size      int64             `json:"size"`
	Manifests []ManifestReport  `json:"manifests"`
	Found     []Found           `json:"signatures"`
	Notes     map[string]string `json:"annotations,omitempty"`
}

// ManifestReport is one manifest; that of an index, or the image itself.
type ManifestReport struct {
	Digest    oci.Digest `json:"digest"`
	MediaType string     `json:"mediaType"`
	// Platform is what the index says, or else the configuration.
	Platform string `json:"platform,omitempty"`
	// Artifact says why this is no container image; empty if it is one.
	Artifact    string            `json:"artifact,omitempty"`
	Layers      []LayerReport     `json:"layers"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Config      *oci.ImageConfig  `json:"config,omitempty"`
}

// LayerReport is one layer.
type LayerReport struct {
	Digest      oci.Digest `json:"digest"`
	Size        int64      `json:"size"`
	MediaType   string     `json:"mediaType"`
	Compression string     `json:"compression,omitempty"`
	DiffID      oci.Digest `json:"diffID,omitempty"`
	Encrypted   bool       `json:"encrypted"`
	// Keys are those that the layer's key is wrapped under.
	Keys []KeyReport `json:"keys,omitempty"`
}

// KeyReport is one wrapping of a layer's key.
type KeyReport struct {
	// Provider is what follows org.opencontainers.image.enc.keys.
	Provider  string `json:"provider"`
	KID       string `json:"kid,omitempty"`
	Algorithm string `json:"algorithm,omitempty"`
	// Problem says why a guest could not use it.
	Problem string `json:"problem,omitempty"`
}

// Inspect reads an image's documents, for one platform or for all, and looks
// for signatures. Digests of the documents are checked, and nothing else; no
// layer is fetched.
func Inspect(ctx context.Context, f oci.Fetcher, ref oci.Reference, platform *oci.Platform) (*Report, error) {
	top, err := f.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	data, err := oci.ReadAll(ctx, f, top, oci.MaxDocument)
	if err != nil {
		return nil, err
	}
	r := &Report{Reference: ref.String(), Digest: top.Digest, MediaType: top.MediaType, Size: int64(len(data)), Found: []Found{}}
	subjects := []oci.Digest{top.Digest}
	if !oci.IsIndex(top.MediaType) {
		m, err := inspectManifest(ctx, f, top, data)
		if err != nil {
			return nil, err
		}
		r.Manifests = []ManifestReport{m}
	} else {
		x, err := oci.ParseIndex(data, top.MediaType)
		if err != nil {
			return nil, err
		}
		r.Notes = x.Annotations
		list := x.Manifests
		if platform != nil {
			one, err := x.Select(*platform)
			if err != nil {
				return nil, err
			}
			list = []oci.Descriptor{one}
		}
		for _, d := range list {
			m, err := inspectChild(ctx, f, d)
			if err != nil {
				return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
			}
			r.Manifests = append(r.Manifests, m)
			subjects = append(subjects, d.Digest)
		}
	}
	for _, digest := range subjects {
		found, err := FindSignatures(ctx, f, ref, digest)
		if err != nil {
			return nil, err
		}
		r.Found = append(r.Found, found...)
	}
	return r, nil
}

func inspectChild(ctx context.Context, f oci.Fetcher, d oci.Descriptor) (ManifestReport, error) {
	if !oci.IsManifest(d.MediaType) {
		return ManifestReport{Digest: d.Digest, MediaType: d.MediaType, Artifact: "is no image manifest", Layers: []LayerReport{}}, nil
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return ManifestReport{}, err
	}
	m, err := inspectManifest(ctx, f, d, data)
	if d.Platform != nil {
		m.Platform = d.Platform.String()
	}
	return m, err
}

func inspectManifest(ctx context.Context, f oci.Fetcher, d oci.Descriptor, data []byte) (ManifestReport, error) {
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return ManifestReport{}, err
	}
	r := ManifestReport{Digest: d.Digest, MediaType: d.MediaType, Annotations: m.Annotations, Layers: []LayerReport{}}
	var diffIDs []oci.Digest
	if err := m.CheckImage(); err != nil {
		r.Artifact = err.Error()
	} else {
		raw, err := oci.ReadAll(ctx, f, m.Config, oci.MaxDocument)
		if err != nil {
			return r, fmt.Errorf("configuration: %w", err)
		}
		if r.Config, err = oci.ParseImageConfig(raw); err != nil {
			return r, fmt.Errorf("configuration: %w", err)
		}
		r.Platform = oci.Platform{Architecture: r.Config.Architecture, OS: r.Config.OS, Variant: r.Config.Variant}.String()
		diffIDs = r.Config.RootFS.DiffIDs
	}
	for i, l := range m.Layers {
		lr := LayerReport{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType}
		if format, err := oci.ParseLayerMediaType(l.MediaType); err == nil {
			lr.Compression, lr.Encrypted = format.Compression.String(), format.Encrypted
		}
		if i < len(diffIDs) {
			lr.DiffID = diffIDs[i]
		}
		lr.Keys = layerKeys(l.Annotations)
		r.Layers = append(r.Layers, lr)
	}
	return r, nil
}

// layerKeys lists the keys in the annotations of a layer, ours first.
func layerKeys(annotations map[string]string) []KeyReport {
	var keys []KeyReport
	ours := strings.TrimPrefix(crypt.AnnotationKeys, crypt.AnnotationKeysPrefix)
	if list, ok := annotations[crypt.AnnotationKeys]; ok {
		for part := range strings.SplitSeq(list, ",") {
			k := KeyReport{Provider: ours}
			raw, err := base64.StdEncoding.DecodeString(part)
			if err != nil {
				k.Problem = "is not base64"
			} else if p, err := crypt.ParsePacket(raw); err != nil {
				k.Problem = err.Error()
			} else {
				k.KID, k.Algorithm = p.KID, p.WrapType
			}
			keys = append(keys, k)
		}
	}
	var others []string
	for name := range annotations {
		if rest, ok := strings.CutPrefix(name, crypt.AnnotationKeysPrefix); ok && rest != ours {
			others = append(others, rest)
		}
	}
	slices.Sort(others)
	for _, name := range others {
		keys = append(keys, KeyReport{Provider: name, Problem: "a guest cannot open it"})
	}
	return keys
}
