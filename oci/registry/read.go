package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// manifestTypes are those that Resolve accepts.
var manifestTypes = []string{oci.MediaTypeIndex, oci.MediaTypeManifest, oci.MediaTypeDockerIndex, oci.MediaTypeDockerManifest}

// each asks the sources one after the other until one has what is wanted. Only
// what the repository itself does not have is not found.
func (r *Repository) each(ctx context.Context, usable func(*endpoint) bool, ask func(*endpoint) error) error {
	var failed []string
	for _, e := range r.sources {
		last := e == r.origin()
		if !last && (e.lied.Load() || !usable(e)) {
			continue
		}
		err := ask(e)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isMismatch(err) && e.mirror:
			e.lied.Store(true)
		case last && len(failed) == 0:
			return r.explain(e, err)
		case last:
			return fmt.Errorf("%w (before: %s)", r.explain(e, err), strings.Join(failed, "; "))
		}
		failed = append(failed, r.explain(e, err).Error())
	}
	return errors.New("no source") // not reached: the origin is always asked
}

func isMismatch(err error) bool { _, ok := errors.AsType[*oci.MismatchError](err); return ok }

func byDigest(e *endpoint) bool { return e.digests }
func byTag(e *endpoint) bool    { return e.tags }

// Resolve implements oci.Fetcher.
func (r *Repository) Resolve(ctx context.Context, ref oci.Reference) (d oci.Descriptor, err error) {
	usable := byTag
	if ref.Digest != "" {
		usable = byDigest
	}
	err = r.each(ctx, usable, func(e *endpoint) error {
		d, err = e.resolve(ctx, ref)
		return err
	})
	return d, err
}

// resolve asks for a manifest's headers, or for all of it where they are not
// enough.
func (e *endpoint) resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	req := request{method: http.MethodHead, path: "/manifests/" + ref.Target(), accept: manifestTypes, actions: actionPull}
	resp, err := e.do(ctx, req)
	if status, ok := errors.AsType[*statusError](err); ok && status.code == http.StatusMethodNotAllowed {
		err = nil
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	if resp != nil {
		discard(resp.body)
		d, ok, err := described(resp, ref)
		if err != nil || ok {
			return d, err
		}
	}
	req.method = http.MethodGet
	if resp, err = e.do(ctx, req); err != nil {
		return oci.Descriptor{}, err
	}
	defer func() { _ = resp.body.Close() }()
	resp.body.hurry()
	data, err := io.ReadAll(io.LimitReader(resp.body, oci.MaxDocument+1))
	if err != nil {
		return oci.Descriptor{}, err
	}
	if len(data) > oci.MaxDocument {
		return oci.Descriptor{}, tooLarge()
	}
	d := oci.Describe(mediaType(resp), data)
	if ref.Digest != "" {
		if err := verify(oci.Descriptor{Digest: ref.Digest, Size: d.Size}, data); err != nil {
			return oci.Descriptor{}, err
		}
		d.Digest = ref.Digest
	}
	return d, nil
}

func tooLarge() error {
	return fmt.Errorf("manifest: expected at most %d bytes, got more: %w", oci.MaxDocument, ErrRefused)
}

func mediaType(resp *response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// described is the descriptor that the headers of a manifest make, if they do.
func described(resp *response, ref oci.Reference) (_ oci.Descriptor, ok bool, _ error) {
	digest := ref.Digest
	if header := resp.Header.Get("Docker-Content-Digest"); header != "" {
		stated, err := oci.ParseDigest(header)
		if err != nil {
			return oci.Descriptor{}, false, fmt.Errorf("Docker-Content-Digest: %w", err)
		}
		if digest != "" && stated != digest && stated.Algorithm() == digest.Algorithm() {
			return oci.Descriptor{}, false, fmt.Errorf("Docker-Content-Digest: %w", &oci.MismatchError{Expected: string(digest), Got: string(stated)})
		}
		if digest == "" {
			digest = stated
		}
	}
	if resp.ContentLength > oci.MaxDocument {
		return oci.Descriptor{}, false, tooLarge()
	}
	t := mediaType(resp)
	return oci.Descriptor{MediaType: t, Digest: digest, Size: resp.ContentLength}, digest != "" && t != "" && resp.ContentLength > 0, nil
}

func verify(d oci.Descriptor, data []byte) error {
	v, err := oci.NewVerifier(d)
	if err != nil {
		return err
	}
	if _, err := v.Write(data); err != nil {
		return err
	}
	return v.Verify()
}

// Fetch implements oci.Fetcher. Of manifests and indexes all is read, and
// checked, before it returns.
func (r *Repository) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if _, err := oci.NewVerifier(d); err != nil {
		return nil, err
	}
	if !oci.IsManifest(d.MediaType) && !oci.IsIndex(d.MediaType) {
		return r.blob(ctx, d)
	}
	if d.Size > oci.MaxDocument {
		return nil, tooLarge()
	}
	var data []byte
	err := r.each(ctx, byDigest, func(e *endpoint) (err error) {
		data, err = e.manifest(ctx, d)
		return err
	})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (e *endpoint) manifest(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	resp, err := e.do(ctx, request{method: http.MethodGet, path: "/manifests/" + string(d.Digest), accept: []string{d.MediaType}, actions: actionPull})
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.body.Close() }()
	if stated := resp.Header.Get("Docker-Content-Digest"); stated != "" && strings.HasPrefix(stated, d.Digest.Algorithm()+":") && stated != string(d.Digest) {
		return nil, fmt.Errorf("Docker-Content-Digest: %w", &oci.MismatchError{Expected: string(d.Digest), Got: clip(stated)})
	}
	if err := lengthAs(resp, d.Size); err != nil {
		return nil, err
	}
	resp.body.hurry()
	checked, err := oci.VerifyReader(resp.body, d)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(checked, oci.MaxDocument+1))
}

// lengthAs holds Content-Length, where there is one, against what is expected.
func lengthAs(resp *response, size int64) error {
	if resp.ContentLength >= 0 && resp.ContentLength != size {
		return fmt.Errorf("Content-Length: %w", &oci.MismatchError{Size: true, Expected: fmt.Sprint(size), Got: fmt.Sprint(resp.ContentLength)})
	}
	return nil
}

func (r *Repository) explain(e *endpoint, err error) error {
	if err == nil {
		return nil
	}
	if e.ref.Name() != r.ref.Name() {
		return fmt.Errorf("%s, repository %s (for %s): %w", e, e.ref.Repository, r.ref.Name(), err)
	}
	return fmt.Errorf("%s, repository %s: %w", e, e.ref.Repository, err)
}

// clip shortens text of the other side for an error message.
func clip(s string) string { return fmt.Sprintf("%.128s", s) }
