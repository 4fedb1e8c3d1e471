// Package registry reads and writes repositories of registries that speak the
// OCI distribution specification v1.1, for one image at a time.
//
// The transport is strict: TLS 1.2 or later, plain HTTP only for hosts that are
// listed and never together with credentials, few redirects and none from
// HTTPS to HTTP, and no connection that stands still for long.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/coffer-project/coffer/oci"
)

// DefaultStallTimeout is how long a registry may send nothing.
const DefaultStallTimeout = 60 * time.Second

const maxRedirects = 5

// Options configure a [Client]. The zero value reads public registries.
type Options struct {
	// Credentials may be nil.
	Credentials *Credentials
	// RootPEMs are certificates of authorities to trust besides the system's.
	RootPEMs []string
	// PlainHTTP lists the registries, HOST[:PORT], that are asked by plain
	// HTTP. Images from there are still checked by digest and signature, but
	// everyone on the way sees them.
	PlainHTTP []string
	// DialContext may be nil.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy may be nil, which means none.
	Proxy func(*http.Request) (*url.URL, error)
	// UserAgent may be empty.
	UserAgent string
	// StallTimeout is how long a registry may send nothing; 0 means
	// DefaultStallTimeout.
	StallTimeout time.Duration
}

// Client holds what repositories have in common. It may be used by several
// goroutines at once.
type Client struct {
	options   Options
	transport *http.Transport
}

// New makes a client. The caller closes it.
func New(o Options) (*Client, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a guest has none of its own
	}
	for i, p := range o.RootPEMs {
		if !pool.AppendCertsFromPEM([]byte(p)) {
			return nil, fmt.Errorf("extra_root_certificates[%d]: expected a certificate in PEM form, found none", i)
		}
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	dial := o.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	return &Client{options: o, transport: &http.Transport{
		Proxy:                  o.Proxy,
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    20 * time.Second,
		ResponseHeaderTimeout:  o.StallTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		// Layers are compressed already, and digests are of what is sent.
		DisableCompression: true,
		WriteBufferSize:    64 << 10,
		ReadBufferSize:     64 << 10,
	}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Repository is one repository. It implements oci.Fetcher and oci.Pusher.
type Repository struct {
	remote *remote.Repository
	ref    oci.Reference
	stall  time.Duration
}

var (
	_ oci.Fetcher = (*Repository)(nil)
	_ oci.Pusher  = (*Repository)(nil)
)

// Repository opens the repository of ref; its tag and digest do not matter.
// Nothing is sent yet.
func (c *Client) Repository(ref oci.Reference) (*Repository, error) {
	plain := slices.Contains(c.options.PlainHTTP, ref.Host())
	user, password, known := c.options.Credentials.Lookup(ref)
	if plain && known {
		return nil, fmt.Errorf("registry %s: there are credentials for it, but it is listed for plain HTTP: credentials are only sent over TLS", ref.Registry)
	}
	client := &auth.Client{
		Client: &http.Client{
			Transport:     retry.NewTransport(&guard{base: c.transport, plain: c.options.PlainHTTP, secret: known}),
			CheckRedirect: checkRedirect,
		},
		Cache: auth.NewCache(),
		Credential: func(_ context.Context, host string) (auth.Credential, error) {
			if !known || host != ref.Host() {
				return auth.EmptyCredential, nil
			}
			return auth.Credential{Username: user, Password: string(password.Expose())}, nil
		},
	}
	if c.options.UserAgent != "" {
		client.SetUserAgent(c.options.UserAgent)
	}
	return &Repository{ref: ref, stall: c.options.StallTimeout, remote: &remote.Repository{
		Client:             client,
		Reference:          orasregistry.Reference{Registry: ref.Registry, Repository: ref.Repository},
		PlainHTTP:          plain,
		ManifestMediaTypes: []string{oci.MediaTypeIndex, oci.MediaTypeManifest, oci.MediaTypeDockerIndex, oci.MediaTypeDockerManifest},
		MaxMetadataBytes:   oci.MaxDocument,
		SkipReferrersGC:    true,
	}}, nil
}

// guard is the last to see a request before it leaves.
type guard struct {
	base   http.RoundTripper
	plain  []string
	secret bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	var refusal error
	switch {
	case req.URL.Scheme == "https":
		return g.base.RoundTrip(req)
	case req.URL.Scheme != "http":
		refusal = fmt.Errorf("%s: scheme %q is not supported", req.URL.Host, req.URL.Scheme)
	case !slices.Contains(g.plain, req.URL.Host):
		refusal = fmt.Errorf("%s: plain HTTP is refused: the host is not listed as insecure", req.URL.Host)
	case g.secret || req.Header.Get("Authorization") != "":
		refusal = fmt.Errorf("%s: credentials are only sent over TLS", req.URL.Host)
	default:
		return g.base.RoundTrip(req)
	}
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return nil, refusal
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https://%s to %s://%s is refused", via[0].URL.Host, req.URL.Scheme, req.URL.Host)
	}
	return nil
}

// Resolve implements oci.Fetcher.
func (r *Repository) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.stall)
	defer cancel()
	d, err := r.remote.Manifests().Resolve(ctx, ref.Target())
	if err != nil {
		return oci.Descriptor{}, r.explain(err)
	}
	parsed, err := oci.ParseDigest(d.Digest.String())
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("registry %s: %w", r.ref.Registry, err)
	}
	return oci.Descriptor{MediaType: d.MediaType, Digest: parsed, Size: d.Size}, nil
}

// Fetch implements oci.Fetcher.
func (r *Repository) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var rc io.ReadCloser
	var err error
	if isManifest(d) {
		rc, err = r.remote.Manifests().Fetch(ctx, toORAS(d))
	} else {
		rc, err = r.remote.Blobs().Fetch(ctx, toORAS(d))
	}
	if err != nil {
		cancel(nil)
		return nil, r.explain(err)
	}
	return newStallReader(ctx, cancel, rc, r.stall), nil
}

// Push implements oci.Pusher.
func (r *Repository) Push(ctx context.Context, d oci.Descriptor, content io.Reader) error {
	if isManifest(d) {
		return r.explain(r.remote.Manifests().Push(ctx, toORAS(d), content))
	}
	exists, err := r.remote.Blobs().Exists(ctx, toORAS(d))
	if err != nil {
		return r.explain(err)
	}
	if exists {
		return nil
	}
	return r.explain(r.remote.Blobs().Push(ctx, toORAS(d), content))
}

// Tag implements oci.Pusher.
func (r *Repository) Tag(ctx context.Context, d oci.Descriptor, tag string) error {
	if err := oci.CheckTag(tag); err != nil {
		return err
	}
	return r.explain(r.remote.Tag(ctx, toORAS(d), tag))
}

func (r *Repository) explain(err error) error {
	if err == nil {
		return nil
	}
	notFound := errors.Is(err, errdef.ErrNotFound)
	err = redacted{err}
	if notFound {
		return fmt.Errorf("registry %s, repository %s: %w: %w", r.ref.Registry, r.ref.Repository, oci.ErrNotFound, err)
	}
	return fmt.Errorf("registry %s, repository %s: %w", r.ref.Registry, r.ref.Repository, err)
}

// redacted is an error whose text shows no query parts of URLs: those of the
// storage that registries redirect to are credentials.
type redacted struct{ err error }

var queryPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`) })

// Error implements error.
func (e redacted) Error() string { return queryPattern().ReplaceAllString(e.err.Error(), "$1?…") }

// Unwrap gives the cause.
func (e redacted) Unwrap() error { return e.err }

func isManifest(d oci.Descriptor) bool {
	return oci.IsManifest(d.MediaType) || oci.IsIndex(d.MediaType)
}

func toORAS(d oci.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size}
}
