// Package brokerhttp is the HTTP that clients of a key broker share: TLS 1.3
// with pinned roots, no redirects, no proxies, no compression, and answers of
// bounded size.
package brokerhttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Times and sizes that are the same for every client.
const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 30 * time.Second
	idleTimeout      = 30 * time.Second
	maxHeaderBytes   = 64 << 10
	maxErrorBytes    = 64 << 10
)

// Options configure a [Client].
type Options struct {
	// URL is the base: https, a host, perhaps a path.
	URL string
	// PlainHTTP allows http in URL, for what needs no confidence in the answer's
	// way.
	PlainHTTP bool
	// Roots vouch for the server; nil: the system's.
	Roots *x509.CertPool
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock for certificates; nil: time.Now.
	Now func() time.Time
	// UserAgent is sent with every request.
	UserAgent string
	// Timeout bounds a request with its answer's body.
	Timeout time.Duration
}

// Client sends requests to one server. It is safe for concurrent use.
type Client struct {
	base      string
	userAgent string
	timeout   time.Duration
	http      *http.Client
}

// New checks the options. It opens no connection.
func New(opts Options) (*Client, error) {
	base, err := parseBase(opts.URL, opts.PlainHTTP)
	if err != nil {
		return nil, err
	}
	dial := opts.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return &Client{
		base:      base,
		userAgent: opts.UserAgent,
		timeout:   opts.Timeout,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: dial,
				TLSClientConfig: &tls.Config{
					MinVersion: tls.VersionTLS13,
					RootCAs:    opts.Roots,
					Time:       opts.Now,
					NextProtos: []string{"http/1.1"},
					// A resumed session would not show the certificate again.
					SessionTicketsDisabled: true,
				},
				TLSHandshakeTimeout:    handshakeTimeout,
				IdleConnTimeout:        idleTimeout,
				MaxResponseHeaderBytes: maxHeaderBytes,
				// What unpacks on its own has no size before it is unpacked.
				DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// CheckURL tells whether s can be Options.URL.
func CheckURL(s string) error {
	_, err := parseBase(s, false)
	return err
}

// CheckPlainURL does so for a client with PlainHTTP.
func CheckPlainURL(s string) error {
	_, err := parseBase(s, true)
	return err
}

// parseBase returns the URL without a trailing slash.
func parseBase(s string, plain bool) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("URL %.256q is malformed", s)
	}
	switch {
	case u.Scheme == "http" && !plain:
		return "", fmt.Errorf("URL %.256q: expected https: the protocol encrypts resources to the guest, but without TLS anyone on the way could hand out their own", s)
	case u.Scheme != "https" && u.Scheme != "http":
		return "", fmt.Errorf("URL %.256q: expected https://host[:port]", s)
	case u.Hostname() == "" || u.Opaque != "":
		return "", fmt.Errorf("URL %.256q has no host", s)
	case u.User != nil:
		return "", errors.New("URL has a user name, which nothing would use")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", fmt.Errorf("URL %.256q: expected no query and no fragment", s)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// Request is a request. Path begins with a slash and may have a query; it is
// sent as it is.
type Request struct {
	Method string
	Path   string
	Header http.Header
	Body   []byte
	// MaxBytes bounds the answer's body.
	MaxBytes int
}

// Response is a complete answer, whatever its status.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends a request and reads the whole answer. A successful answer that is
// longer than the request allows, or shorter than it claims to be, is an
// error. The body of any other status is cut at maxErrorBytes, and what could
// be read of it is returned: the status counts.
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	errTimeout := fmt.Errorf("%s %q: no complete answer within %s: %w", r.Method, r.Path, c.timeout, context.DeadlineExceeded)
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer cancel()
	resp, err := c.do(ctx, r)
	if err != nil && context.Cause(ctx) == errTimeout {
		return nil, errTimeout
	}
	return resp, err
}

func (c *Client) do(ctx context.Context, r Request) (*Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, c.base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	if r.Header != nil {
		req.Header = r.Header.Clone()
	}
	req.Header.Set("User-Agent", c.userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	out := &Response{Status: resp.StatusCode, Header: resp.Header}
	if resp.StatusCode/100 != 2 {
		out.Body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
		return out, nil
	}
	if resp.ContentLength > int64(r.MaxBytes) {
		return nil, fmt.Errorf("%s %q: answer has %d bytes, the limit is %d", r.Method, r.Path, resp.ContentLength, r.MaxBytes)
	}
	out.Body, err = io.ReadAll(io.LimitReader(resp.Body, int64(r.MaxBytes)+1))
	if err != nil {
		return nil, fmt.Errorf("%s %q: read answer: %w", r.Method, r.Path, err)
	}
	if len(out.Body) > r.MaxBytes {
		return nil, fmt.Errorf("%s %q: answer has more than %d bytes", r.Method, r.Path, r.MaxBytes)
	}
	return out, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
