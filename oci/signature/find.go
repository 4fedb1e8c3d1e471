package signature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// claim is a signature that was found, not verified.
type claim struct {
	// where it was found.
	where string
	// message is what was signed. Where only its hash is known, sum is that,
	// and message nil.
	message []byte
	sum     []byte
	// signature of message.
	signature []byte
	// certificates that came with it, the signer's first, in DER.
	certificates [][]byte
	// entries of transparency logs that came with it.
	entries []logEntry
	// content says which image was signed.
	content content
	// bundle is its form as a sigstore bundle; nil if it has another one.
	bundle []byte
}

// content is what a signature says, read only after it has been verified.
type content interface {
	// check returns which of the subject's digests was signed. id is the
	// policy's demand, nil if it has none.
	check(s Subject, id *identity) (oci.Digest, error)
}

// finder collects the signatures of an image, each place once and only when it
// is needed. What is wrong with a place is noted, and matters only if no other
// signature is good enough.
type finder struct {
	fetcher oci.Fetcher
	subject Subject
	places  []place
}

// place is where signatures may be.
type place struct {
	name string
	find func(ctx context.Context, digest oci.Digest, out *findings) error
	// done says that found is complete.
	done  bool
	found findings
}

// findings are the signatures of a place, and what was wrong with others.
type findings struct {
	claims   []*claim
	problems []error
}

func newFinder(f oci.Fetcher, s Subject) *finder {
	n := &finder{fetcher: f, subject: s}
	n.places = []place{{name: "signature tag", find: n.byTag}, {name: "referrers", find: n.byReferrers}}
	return n
}

// at returns the signatures of place i.
func (n *finder) at(ctx context.Context, i int) (*findings, error) {
	p := &n.places[i]
	if p.done {
		return &p.found, nil
	}
	var found findings
	for _, digest := range n.subject.Digests {
		if err := p.find(ctx, digest, &found); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			found.problems = append(found.problems, fmt.Errorf("%s of %s: %w", p.name, digest, err))
		}
	}
	p.found, p.done = found, true
	return &p.found, nil
}

// byTag reads cosign's signature image.
func (n *finder) byTag(ctx context.Context, digest oci.Digest, out *findings) error {
	d, err := n.fetcher.Resolve(ctx, n.subject.Ref.WithTag(Tag(digest)))
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return n.readManifest(ctx, d, "tag "+Tag(digest), out)
}

// readManifest reads the signatures in a manifest's layers.
func (n *finder) readManifest(ctx context.Context, d oci.Descriptor, where string, out *findings) error {
	data, err := oci.ReadAll(ctx, n.fetcher, d, oci.MaxDocument)
	if err != nil {
		return err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return err
	}
	for i, l := range m.Layers {
		payload, bundle := l.MediaType == mediaTypePayload, isBundle(l.MediaType)
		if !payload && !bundle {
			continue // some other thing, which counts for nothing
		}
		if len(out.claims) >= maxSignatures {
			out.problems = append(out.problems, fmt.Errorf("%s: there are more signatures than the %d that are looked at", where, maxSignatures))
			return nil
		}
		where := fmt.Sprintf("%s, signature %d", where, i)
		c, err := n.readLayer(ctx, l, bundle)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			out.problems = append(out.problems, fmt.Errorf("%s: %w", where, err))
			continue
		}
		c.where = where
		out.claims = append(out.claims, c)
	}
	return nil
}

func (n *finder) readLayer(ctx context.Context, l oci.Descriptor, bundle bool) (*claim, error) {
	if bundle {
		data, err := oci.ReadAll(ctx, n.fetcher, l, maxBundle)
		if err != nil {
			return nil, err
		}
		return parseBundle(data)
	}
	data, err := oci.ReadAll(ctx, n.fetcher, l, maxPayload)
	if err != nil {
		return nil, err
	}
	return layerClaim(l, data)
}

// byReferrers reads the signatures that refer to the image: sigstore bundles,
// and cosign's signature images in that form.
func (n *finder) byReferrers(ctx context.Context, digest oci.Digest, out *findings) error {
	list, err := n.referrers(ctx, digest)
	if err != nil {
		return err
	}
	read := 0
	for _, d := range list {
		// Attestations (bills of materials, provenance) are bundles too, and
		// can be large. The registry can make us miss a signature here, as it
		// can by not listing it.
		if kind := d.Annotations[annotationPredicate]; kind != "" && kind != predicateCosign {
			continue
		}
		if !oci.IsManifest(d.MediaType) {
			continue
		}
		if read++; read > maxSignatures {
			out.problems = append(out.problems, fmt.Errorf("referrers of %s: there are more than the %d that are looked at", digest, maxSignatures))
			return nil
		}
		if err := n.readManifest(ctx, d, "referrer "+string(d.Digest), out); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			out.problems = append(out.problems, fmt.Errorf("referrer %s: %w", d.Digest, err))
		}
	}
	return nil
}

// referrers lists the manifests that refer to digest: by the registry's API,
// or, where it has none, by the tag that stands for it (OCI distribution
// specification v1.1, "Unavailable Referrers API").
func (n *finder) referrers(ctx context.Context, digest oci.Digest) ([]oci.Descriptor, error) {
	if api, ok := n.fetcher.(oci.Referrers); ok {
		list, err := api.Referrers(ctx, digest, "")
		if !errors.Is(err, oci.ErrNotFound) {
			return list, err
		}
	}
	x, _, err := readReferrersTag(ctx, n.fetcher, n.subject.Ref, digest)
	if err != nil || x == nil {
		return nil, err
	}
	return x.Manifests, nil
}

// referrersTag is the tag of an index of what refers to digest.
func referrersTag(digest oci.Digest) string { return digest.Algorithm() + "-" + digest.Hex() }

// readReferrersTag reads that index, nil if there is none, and its entries as
// they are written.
func readReferrersTag(ctx context.Context, f oci.Fetcher, ref oci.Reference, digest oci.Digest) (*oci.Index, []json.RawMessage, error) {
	tag := referrersTag(digest)
	if len(tag) > 128 {
		return nil, nil, nil // a sha512 is too long for a tag
	}
	d, err := f.Resolve(ctx, ref.WithTag(tag))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	data, err := oci.ReadAll(ctx, f, d, oci.MaxDocument)
	if err != nil {
		return nil, nil, err
	}
	x, err := oci.ParseIndex(data, d.MediaType)
	if err != nil {
		return nil, nil, fmt.Errorf("tag %s: %w", tag, err)
	}
	var raw struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &raw); err != nil { // ParseIndex was stricter
		return nil, nil, err
	}
	return x, raw.Manifests, nil
}

func isBundle(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.dev.sigstore.bundle")
}
