package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// Push implements oci.Pusher: to the repository itself, never to a mirror.
func (r *Repository) Push(ctx context.Context, d oci.Descriptor, content io.Reader) error {
	e := r.origin()
	if oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType) {
		data, err := io.ReadAll(io.LimitReader(content, oci.MaxDocument+1))
		if err == nil {
			err = verify(d, data)
		}
		if err != nil {
			return fmt.Errorf("push %s: %w", d.Digest, err)
		}
		return r.explain(e, e.putManifest(ctx, d, string(d.Digest), data))
	}
	return r.explain(e, e.pushBlob(ctx, d, content))
}

// Tag implements oci.Pusher.
func (r *Repository) Tag(ctx context.Context, d oci.Descriptor, tag string) error {
	if err := oci.CheckTag(tag); err != nil {
		return err
	}
	e := r.origin()
	data, err := e.manifest(ctx, d)
	if err != nil {
		return r.explain(e, err)
	}
	return r.explain(e, e.putManifest(ctx, d, tag, data))
}

func (e *endpoint) putManifest(ctx context.Context, d oci.Descriptor, name string, data []byte) error {
	resp, err := e.do(ctx, request{method: http.MethodPut, path: "/manifests/" + name, actions: actionPush, data: data, contentType: d.MediaType})
	if err != nil {
		return err
	}
	discard(resp.body)
	return stated(resp, d)
}

// stated checks which digest the registry says it has stored.
func stated(resp *response, d oci.Descriptor) error {
	got := resp.Header.Get("Docker-Content-Digest")
	if got != "" && strings.HasPrefix(got, d.Digest.Algorithm()+":") && got != string(d.Digest) {
		return fmt.Errorf("Docker-Content-Digest: %w", &oci.MismatchError{Expected: string(d.Digest), Got: clip(got)})
	}
	return nil
}

// pushBlob uploads a blob in one piece (distribution specification, end-4a and
// end-6), unless it is there.
func (e *endpoint) pushBlob(ctx context.Context, d oci.Descriptor, content io.Reader) error {
	checked, err := oci.VerifyReader(content, d)
	if err != nil {
		return err
	}
	resp, err := e.do(ctx, request{method: http.MethodHead, path: "/blobs/" + string(d.Digest), actions: actionPush})
	if err == nil {
		discard(resp.body)
		return nil
	}
	if !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	if resp, err = e.do(ctx, request{method: http.MethodPost, path: "/blobs/uploads/", actions: actionPush, data: []byte{}}); err != nil {
		return err
	}
	discard(resp.body)
	target, err := e.upload(resp, d)
	if err != nil {
		return err
	}
	resp, err = e.do(ctx, request{
		method: http.MethodPut, target: target, path: "/blobs/uploads/…", actions: actionPush,
		body: checked, size: d.Size, contentType: "application/octet-stream",
	})
	if err != nil {
		return err
	}
	discard(resp.body)
	return stated(resp, d)
}

// upload is where the content goes.
func (e *endpoint) upload(resp *response, d oci.Descriptor) (*url.URL, error) {
	base := e.url("/blobs/uploads/")
	target, err := base.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return nil, fmt.Errorf("upload: Location: expected a URL: %w", ErrRefused)
	}
	if err := e.checkURL(target, false); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	q := target.Query()
	q.Set("digest", string(d.Digest))
	target.RawQuery = q.Encode()
	return target, nil
}
