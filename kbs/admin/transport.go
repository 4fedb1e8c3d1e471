package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/internal/brokerhttp"
)

// Times and sizes of connections.
const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 30 * time.Second
	idleTimeout      = 30 * time.Second
	maxHeaderBytes   = 64 << 10
	maxErrorBytes    = 64 << 10
	maxRetryAfter    = time.Hour
)

// transport is the HTTP of administrators: as strict as that of guests (TLS
// 1.3, pinned roots, no redirects, no proxies, no compression, bounded
// answers), and in addition with a certificate of its own and with answers
// too long to be held in memory.
type transport struct {
	base, userAgent string
	http            *http.Client
}

func newTransport(o Options, roots *x509.CertPool) (*transport, error) {
	if err := brokerhttp.CheckURL(o.URL); err != nil {
		return nil, err
	}
	base := strings.TrimRight(o.URL, "/")
	prefix, err := tenantPrefix(o.Tenant)
	if err != nil {
		return nil, err
	}
	base += prefix
	dial := o.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    roots,
		Time:       o.Now,
		NextProtos: []string{"http/1.1"},
		// A resumed session would not show the certificate again.
		SessionTicketsDisabled: true,
	}
	if o.Certificate != nil {
		conf.Certificates = []tls.Certificate{*o.Certificate}
	}
	return &transport{base: base, userAgent: o.UserAgent, http: &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    handshakeTimeout,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (t *transport) close() { t.http.CloseIdleConnections() }

// answer is a complete answer, whatever its status.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// refusal is the answer as an error.
func (a *answer) refusal(r call) error {
	path, _, _ := strings.Cut(r.path, "?")
	e := kbs.NewStatusError(r.method+" "+path, a.status, a.body)
	if s, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	return e
}

// do sends a request and reads the whole answer. A successful answer longer
// than the request allows is an error; of any other only the beginning of the
// body is read, since its status counts.
func (t *transport) do(ctx context.Context, r call, token string) (*answer, error) {
	timedOut := fmt.Errorf("%s %q: no complete answer within %s: %w", r.method, r.path, requestTimeout, context.DeadlineExceeded)
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, timedOut)
	defer cancel()
	a, err := t.read(ctx, r, token)
	if err != nil && context.Cause(ctx) == timedOut {
		return nil, timedOut
	}
	return a, err
}

func (t *transport) read(ctx context.Context, r call, token string) (_ *answer, err error) {
	resp, err := t.open(ctx, r, token)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	if a.status/100 != 2 {
		a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
		return a, nil
	}
	if resp.ContentLength > int64(r.maxBytes) {
		return nil, fmt.Errorf("%s %q: answer has %d bytes, the limit is %d", r.method, r.path, resp.ContentLength, r.maxBytes)
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, int64(r.maxBytes)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s %q: read answer: %w", r.method, r.path, err)
	case len(a.body) > r.maxBytes:
		return nil, fmt.Errorf("%s %q: answer has more than %d bytes", r.method, r.path, r.maxBytes)
	}
	return a, nil
}

// open sends a request; the caller reads and closes the answer's body.
func (t *transport) open(ctx context.Context, r call, token string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, t.base+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("User-Agent", t.userAgent)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	return t.http.Do(req)
}
