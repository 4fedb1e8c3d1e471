package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

const (
	maxReferrerPages = 8
	maxReferrers     = oci.MaxIndexEntries
	maxLink          = 2048
)

// Referrers implements oci.Referrers. A mirror without any does not say that
// there are none.
func (r *Repository) Referrers(ctx context.Context, subject oci.Digest, artifactType string) (found []oci.Descriptor, err error) {
	if _, err := oci.ParseDigest(string(subject)); err != nil {
		return nil, err
	}
	err = r.each(ctx, byDigest, func(e *endpoint) error {
		if found, err = e.referrers(ctx, subject, artifactType); err == nil && len(found) == 0 && e.mirror {
			return errors.New("it knows of no referrers")
		}
		return err
	})
	return found, err
}

func (e *endpoint) referrers(ctx context.Context, subject oci.Digest, artifactType string) ([]oci.Descriptor, error) {
	req := request{method: http.MethodGet, path: "/referrers/" + string(subject), accept: []string{oci.MediaTypeIndex}, actions: actionPull}
	if artifactType != "" {
		req.query = url.Values{"artifactType": {artifactType}}
	}
	var all []oci.Descriptor
	for range maxReferrerPages {
		resp, err := e.do(ctx, req)
		if err != nil {
			return nil, err
		}
		page, err := readReferrers(resp, artifactType)
		if err != nil {
			return nil, fmt.Errorf("referrers of %s: %w", subject, err)
		}
		if all = append(all, page...); len(all) > maxReferrers {
			return nil, fmt.Errorf("referrers of %s: expected at most %d, got more: %w", subject, maxReferrers, ErrRefused)
		}
		next, ok := nextPage(resp.Header.Get("Link"))
		if !ok {
			return all, nil
		}
		if req.target, err = e.url(req.path).Parse(next); err != nil || !e.sameHost(req.target) {
			return nil, fmt.Errorf("referrers of %s: Link: expected a page of the same registry: %w", subject, ErrRefused)
		}
	}
	return nil, fmt.Errorf("referrers of %s: expected at most %d pages, got more: %w", subject, maxReferrerPages, ErrRefused)
}

// readReferrers reads one page: an image index whose entries have a type each.
func readReferrers(resp *response, artifactType string) ([]oci.Descriptor, error) {
	defer func() { _ = resp.body.Close() }()
	// A registry that knows nothing of the API may have a page for it.
	if t := mediaType(resp); t != oci.MediaTypeIndex {
		return nil, fmt.Errorf("expected media type %s, got %.80q: %w", oci.MediaTypeIndex, t, oci.ErrNotFound)
	}
	resp.body.hurry()
	data, err := io.ReadAll(io.LimitReader(resp.body, oci.MaxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(data) > oci.MaxDocument {
		return nil, tooLarge()
	}
	index, err := oci.ParseIndex(data, oci.MediaTypeIndex)
	if err != nil {
		return nil, err
	}
	if artifactType == "" {
		return index.Manifests, nil
	}
	// Whether the registry has filtered is its own choice.
	var types struct {
		Manifests []struct {
			ArtifactType string `json:"artifactType"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(data, &types); err != nil || len(types.Manifests) != len(index.Manifests) {
		return nil, fmt.Errorf("manifests: artifactType: expected text: %w", ErrRefused)
	}
	var out []oci.Descriptor
	for i, d := range index.Manifests {
		if types.Manifests[i].ArtifactType == artifactType {
			out = append(out, d)
		}
	}
	return out, nil
}

// nextPage reads a Link header as the distribution specification writes it:
// <URL>; rel="next".
func nextPage(link string) (string, bool) {
	target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
	target, opened := strings.CutPrefix(target, "<")
	rel := strings.ReplaceAll(strings.ReplaceAll(params, " ", ""), `"`, "")
	return target, ok && opened && target != "" && len(target) <= maxLink && rel == ";rel=next"
}
