package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/coffer-project/coffer/oci"
)

// Get asks the registry of ref, and none of its mirrors, for a path of its API,
// such as /v2/, with the credentials for ref. The caller closes the body, which
// is not bounded. A status other than 2xx is an error, 404 one that wraps
// [oci.ErrNotFound].
func (c *Client) Get(ctx context.Context, ref oci.Reference, path string) (http.Header, io.ReadCloser, error) {
	r, err := c.Repository(ref)
	if err != nil {
		return nil, nil, err
	}
	e := r.origin()
	target := e.url("")
	target.Path = path
	resp, err := e.do(ctx, request{method: http.MethodGet, target: target, actions: actionPull})
	if err != nil {
		return nil, nil, r.explain(e, err)
	}
	return resp.Header, resp.body, nil
}

// HTTP is a client for what belongs to images and lies beside the registry,
// such as signatures. It has the roots, proxy and time-outs of c, sends no
// credentials, and follows redirects of the same host only.
func (c *Client) HTTP() *http.Client {
	return &http.Client{Transport: c.direct, Timeout: c.options.StallTimeout, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
			return fmt.Errorf("redirect to %s: expected one of %s itself: %w", safeURL(req.URL), first.Host, ErrRefused)
		}
		if len(via) > 5 {
			return fmt.Errorf("more than 5 redirects: %w", ErrRefused)
		}
		return nil
	}}
}
