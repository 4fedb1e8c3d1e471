// Package registry reads and writes repositories of registries that speak the
// OCI distribution specification v1.1, for one image at a time.
//
// A [Client] has what is configured: credentials, certificates, mirrors,
// proxy. A [Repository] is one repository and the mirrors that stand in for
// it, tried in their order. A mirror changes where bytes come from, and nothing
// else: what is asked for, and judged, stays the reference of the user.
//
// Registries are not trusted. Over TLS 1.2 or later, or plain HTTP for hosts
// that are listed and never with credentials, they may send their readers
// elsewhere (storage, token servers), but from HTTPS to HTTPS only, without the
// credentials, and not to local addresses. What stands still is given up, what
// breaks off is resumed, what fails for a while is tried again a few times.
// Content is checked by whoever reads it; sizes and digests that registries
// state besides are held against what was asked for.
package registry

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registries"
)

// DefaultStallTimeout is how long a registry may send nothing.
const DefaultStallTimeout = 60 * time.Second

// Options configure a [Client]. The zero value reads public registries.
type Options struct {
	// Credentials may be nil.
	Credentials *Credentials
	// Registries are mirrors, insecure and blocked registries; may be nil.
	Registries *registries.Config
	// RootPEMs are certificates of authorities to trust besides the system's.
	RootPEMs []string
	// HostRootPEMs are the certificates for single registries, HOST[:PORT] as in
	// references. Nothing else is trusted for those.
	HostRootPEMs map[string]string
	// PlainHTTP lists more registries, HOST[:PORT], that are asked by plain
	// HTTP. Images from there are still checked by digest and signature, but
	// everyone on the way sees them.
	PlainHTTP []string
	// DialContext may be nil.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy may be nil, which means none; see [Proxy].
	Proxy func(*http.Request) (*url.URL, error)
	// UserAgent may be empty.
	UserAgent string
	// StallTimeout is how long a registry may send nothing; 0 means
	// DefaultStallTimeout.
	StallTimeout time.Duration
	// Now and Sleep may be nil, which means the machine's clock.
	Now   func() time.Time
	Sleep func(ctx context.Context, d time.Duration) error
}

// Client holds what repositories have in common. It may be used by several
// goroutines at once.
type Client struct {
	options Options
	noRoots bool
	// direct and wary are the transports to registries and to where registries
	// point; hosts are those of single hosts.
	direct, wary *http.Transport
	hosts        map[string][2]*http.Transport

	mu     sync.Mutex
	tokens map[tokenKey]*tokenEntry
}

// New makes a client. The caller closes it.
func New(o Options) (*Client, error) {
	o.StallTimeout = max(o.StallTimeout, 0)
	o.StallTimeout = cmp.Or(o.StallTimeout, DefaultStallTimeout)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
	pool, err := roots(o.RootPEMs)
	if err != nil {
		return nil, err
	}
	c := &Client{options: o, noRoots: pool.Equal(x509.NewCertPool()), hosts: map[string][2]*http.Transport{}, tokens: map[tokenKey]*tokenEntry{}}
	c.direct, c.wary = c.newTransport(pool, false), c.newTransport(pool, true)
	for host, text := range o.HostRootPEMs {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(text)) {
			return nil, fmt.Errorf("certificates of registry %q: expected PEM, found none", host)
		}
		c.hosts[hostPort("https", oci.Reference{Registry: host}.Host())] = [2]*http.Transport{c.newTransport(pool, false), c.newTransport(pool, true)}
	}
	return c, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close closes idle connections.
func (c *Client) Close() {
	c.direct.CloseIdleConnections()
	c.wary.CloseIdleConnections()
	for _, pair := range c.hosts {
		pair[0].CloseIdleConnections()
		pair[1].CloseIdleConnections()
	}
}

func (c *Client) transportFor(host string, wary bool) *http.Transport {
	pair, ok := c.hosts[hostPort("https", host)]
	switch {
	case ok && wary:
		return pair[1]
	case ok:
		return pair[0]
	case wary:
		return c.wary
	}
	return c.direct
}

func (c *Client) mayPlain(host string) bool { return slices.Contains(c.options.PlainHTTP, host) }

// Repository is one repository. It implements oci.Fetcher, oci.Referrers and
// oci.Pusher, and may be used by several goroutines at once.
type Repository struct {
	ref oci.Reference
	// sources are the mirrors and, last, the repository itself.
	sources []*endpoint
}

var (
	_ oci.Fetcher   = (*Repository)(nil)
	_ oci.Pusher    = (*Repository)(nil)
	_ oci.Referrers = (*Repository)(nil)
)

// endpoint is a place where a repository is served.
type endpoint struct {
	client    *Client
	transport *http.Transport
	// ref is the repository there.
	ref           oci.Reference
	plain, mirror bool
	tags, digests bool
	login         *login // nil without credentials

	isLocalAddr atomic.Bool
	// lied says that a mirror gave something else than was asked for.
	lied atomic.Bool

	mu        sync.Mutex
	challenge *challenge // nil until the registry has told how it wants to be asked
}

// Repository opens the repository of ref; its tag and digest do not matter.
// Nothing is sent yet.
func (c *Client) Repository(ref oci.Reference) (*Repository, error) {
	places, err := c.options.Registries.Sources(ref)
	if err != nil {
		return nil, err
	}
	r := &Repository{ref: ref}
	for _, p := range places {
		e := &endpoint{
			client: c, transport: c.transportFor(p.Ref.Host(), false), ref: p.Ref, mirror: p.Mirror, tags: p.Tags, digests: p.Digests,
			plain: p.Insecure || c.mayPlain(p.Ref.Host()),
		}
		if _, pinned := c.hosts[hostPort("https", p.Ref.Host())]; e.plain && pinned {
			return nil, fmt.Errorf("registry %s: there are certificates for it, but it is listed for plain HTTP: remove one of both", p.Ref.Registry)
		}
		e.login = c.options.Credentials.lookup(p.Ref)
		if e.plain && e.login != nil {
			return nil, fmt.Errorf("registry %s: there are credentials for it, but it is listed for plain HTTP: credentials are only sent over TLS", p.Ref.Registry)
		}
		r.sources = append(r.sources, e)
	}
	return r, nil
}

// Public says that nothing is read with credentials: anybody could read the
// same.
func (r *Repository) Public() bool {
	return !slices.ContainsFunc(r.sources, func(e *endpoint) bool { return e.login != nil })
}

// origin is the repository itself.
func (r *Repository) origin() *endpoint { return r.sources[len(r.sources)-1] }

func (e *endpoint) scheme() string {
	if e.plain {
		return "http"
	}
	return "https"
}

// url is that of a path below the repository.
func (e *endpoint) url(path string) *url.URL {
	return &url.URL{Scheme: e.scheme(), Host: e.ref.Host(), Path: "/v2/" + e.ref.Repository + path}
}

// String names the endpoint in messages.
func (e *endpoint) String() string {
	if e.mirror {
		return "mirror " + e.ref.Registry
	}
	return "registry " + e.ref.Registry
}
