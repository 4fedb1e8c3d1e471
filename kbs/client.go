package kbs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/kbs/internal/brokerhttp"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// ClientOptions configure a [Client].
type ClientOptions struct {
	// URL is the broker's base, https only: "https://trustee.example:8080". It
	// may end in a path, for example a tenant's: "https://trustee.example/tenants/acme".
	URL string
	// RootPEM pins the certificates that may vouch for the broker: one or
	// more PEM certificates, authorities or the broker's own. Empty: the
	// system's roots.
	RootPEM []byte
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Attester makes the evidence. Required.
	Attester tee.Attester
	// Devices make evidence of what is attached to the environment, at most
	// one attester for each kind of device; the primary evidence is bound to
	// theirs. One that returns nil without an error has nothing attached and
	// is left out. Nil: none.
	Devices []tee.Attester
	// KeyType is the kind of key that resources are encrypted to; "" is [KeyP256].
	KeyType KeyType
	// PolicySelector asks for one of the attestation policies that the broker
	// offers by name; "" leaves it to the broker.
	PolicySelector string
	// InitData is the raw initdata TOML that the environment was launched
	// with, nil for an unsealed pod.
	InitData []byte
	// UserAgent is "coffer-agent/devel" when empty.
	UserAgent string
	// RequestTimeout bounds one request; 0: one minute.
	RequestTimeout time.Duration
	// Logger is required.
	Logger *slog.Logger
	// Rand is the source of keys. Required: crypto/rand.Reader.
	Rand io.Reader
	// Now is the clock that certificates and tokens are judged by; nil: time.Now.
	Now func() time.Time
}

// Client is a guest's side of the protocol. It attests when it must, once for
// all resources, and is safe for concurrent use.
type Client struct {
	http     *brokerhttp.Client
	attester tee.Attester
	devices  []tee.Attester
	keyType  KeyType
	selector string
	initData *InitData
	log      *slog.Logger
	rand     io.Reader
	// wait sleeps for d or until ctx ends. Tests replace it.
	wait func(ctx context.Context, d time.Duration) error
	now  func() time.Time

	// mu guards what follows.
	mu      sync.Mutex
	current *session
	pause   time.Time // until when no renewal is tried
	flight  *flight
}

// session is the outcome of a handshake. It never changes.
type session struct {
	token string
	key   *TEEKey
	// The token's own words, zero where it says nothing.
	notBefore, expires time.Time
	// renew is when to get a new token, dead when this one is past use, both
	// by this machine's clock; zero when the token does not say.
	renew, dead time.Time
}

// flight is a handshake under way. Its fields but done are written before
// done is closed and read after.
type flight struct {
	done    chan struct{}
	session *session
	err     error
	// abandoned is true when the handshake failed because the context of the
	// call that ran it had ended.
	abandoned bool
}

// NewClient checks the options. It opens no connection.
func NewClient(opts ClientOptions) (*Client, error) {
	switch {
	case opts.Attester == nil:
		return nil, errors.New("kbs: client: no attester")
	case opts.Logger == nil:
		return nil, errors.New("kbs: client: no logger")
	case opts.Rand == nil:
		return nil, errors.New("kbs: client: no source of randomness")
	case !utf8.Valid(opts.InitData):
		return nil, errors.New("kbs: client: initdata is not valid UTF-8")
	}
	if opts.KeyType == "" {
		opts.KeyType = KeyP256
	}
	if err := opts.KeyType.check(); err != nil {
		return nil, fmt.Errorf("kbs: client: key type: %w", err)
	}
	devices, err := sortDevices(opts.Devices)
	if err != nil {
		return nil, err
	}
	if len(opts.PolicySelector) > maxSelectorBytes || !utf8.ValidString(opts.PolicySelector) {
		return nil, fmt.Errorf("kbs: client: policy selector: expected at most %d bytes of valid UTF-8", maxSelectorBytes)
	}
	var roots *x509.CertPool
	if len(opts.RootPEM) > 0 {
		if roots, err = ParseRoots(opts.RootPEM); err != nil {
			return nil, err
		}
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "coffer-agent/devel"
	}
	if opts.RequestTimeout == 0 {
		opts.RequestTimeout = time.Minute
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	hc, err := brokerhttp.New(brokerhttp.Options{
		URL:         opts.URL,
		Roots:       roots,
		DialContext: opts.DialContext,
		Now:         opts.Now,
		UserAgent:   opts.UserAgent,
		Timeout:     opts.RequestTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("kbs: client: %w", err)
	}
	c := &Client{http: hc, attester: opts.Attester, devices: devices, keyType: opts.KeyType, selector: opts.PolicySelector, log: opts.Logger, rand: &lockedReader{r: opts.Rand}, wait: wait, now: opts.Now}
	if opts.InitData != nil {
		c.initData = &InitData{Format: "toml", Body: string(opts.InitData)}
	}
	return c, nil
}

// Attest runs a whole handshake and keeps its token and key. Calls that come
// while a handshake is under way share its outcome. Errors are *StatusError
// where the broker refused.
func (c *Client) Attest(ctx context.Context) error {
	_, err := c.attest(ctx, c.held())
	return err
}

// HeldToken is the token of the last handshake, "" before the first. It asks
// nobody; see [Client.Token].
func (c *Client) HeldToken() string {
	if s := c.held(); s != nil {
		return s.token
	}
	return ""
}

// Resource fetches a resource and decrypts it. It attests first if nothing
// did so before or the token is about to expire, and again, once, when the
// broker no longer knows the token. The URI's trustee is the caller's matter.
// Errors are *StatusError where the broker refused: 403 with a reason, 404
// for a resource that is not there.
func (c *Client) Resource(ctx context.Context, uri ResourceURI) (secret.Bytes, error) {
	return c.resource(ctx, http.MethodGet, uri, nil)
}

// Ask sends a body to a plugin (POST) and decrypts its answer, as
// [Client.Resource] does. What is asked may be asked more than once where an
// exchange breaks off, so it must change nothing at the broker's.
func (c *Client) Ask(ctx context.Context, uri ResourceURI, body []byte) (secret.Bytes, error) {
	return c.resource(ctx, http.MethodPost, uri, body)
}

func (c *Client) resource(ctx context.Context, method string, uri ResourceURI, body []byte) (secret.Bytes, error) {
	if uri.IsZero() {
		return secret.Bytes{}, errors.New("kbs: resource URI is empty")
	}
	s, err := c.fresh(ctx)
	if err != nil {
		return secret.Bytes{}, err
	}
	value, err := c.fetch(ctx, s, method, uri, body)
	if se, ok := errors.AsType[*StatusError](err); ok && se.Status == http.StatusUnauthorized {
		c.log.DebugContext(ctx, "token refused, attesting again", "resource", uri.String(), "detail", se.Info.Detail)
		if s, err = c.attest(ctx, s); err != nil {
			return secret.Bytes{}, err
		}
		value, err = c.fetch(ctx, s, method, uri, body)
	}
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("kbs: resource %s: %w", uri, err)
	}
	return value, nil
}

// Close forgets the token and the key and closes idle connections. A later
// call attests anew.
func (c *Client) Close() {
	c.mu.Lock()
	c.current = nil
	c.mu.Unlock()
	c.http.Close()
}

// held is the outcome of the last handshake.
func (c *Client) held() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// attest returns a session other than stale: the current one if another call
// has made one meanwhile, else that of a handshake which this call runs or
// joins.
func (c *Client) attest(ctx context.Context, stale *session) (*session, error) {
	for {
		c.mu.Lock()
		if c.current != nil && c.current != stale {
			defer c.mu.Unlock()
			return c.current, nil
		}
		f := c.flight
		if f == nil {
			f = &flight{done: make(chan struct{})}
			c.flight = f
			c.mu.Unlock()
			c.lead(ctx, f)
			return f.session, f.err
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("kbs: attestation: %w", context.Cause(ctx))
		case <-f.done:
		}
		if f.abandoned {
			continue
		}
		return f.session, f.err
	}
}

// lead runs the handshake of f and publishes its outcome, even if the
// attester panics.
func (c *Client) lead(ctx context.Context, f *flight) {
	f.err = errors.New("kbs: attestation did not finish")
	defer func() {
		c.mu.Lock()
		if f.err == nil {
			c.current = f.session
		}
		c.flight = nil
		c.mu.Unlock()
		close(f.done)
	}()
	f.session, f.err = c.handshakes(ctx)
	f.abandoned = f.err != nil && ctx.Err() != nil
}

// fetch gets a resource with a session's token and opens it with its key.
func (c *Client) fetch(ctx context.Context, s *session, method string, uri ResourceURI, ask []byte) (secret.Bytes, error) {
	header := http.Header{"Authorization": {"Bearer " + s.token}, "Accept": {"application/json"}}
	if ask != nil {
		header.Set("Content-Type", "application/json")
	}
	var value secret.Bytes
	err := c.retry(ctx, func() error {
		body, _, err := c.do(ctx, brokerhttp.Request{
			Method:   method,
			Path:     uri.RequestPath(),
			Header:   header,
			Body:     ask,
			MaxBytes: MaxResponseBytes,
		})
		if err != nil {
			return err
		}
		r, err := ParseResponse(body)
		if err != nil {
			return err
		}
		value, err = s.key.Decrypt(*r)
		return err
	})
	return value, err
}

// do sends a request and turns every answer but 200 into a *StatusError.
func (c *Client) do(ctx context.Context, r brokerhttp.Request) ([]byte, http.Header, error) {
	resp, err := c.http.Do(ctx, r)
	if err != nil {
		return nil, nil, fmt.Errorf("kbs: %w", err)
	}
	if resp.Status != http.StatusOK {
		e := NewStatusError(r.Method+" "+r.Path, resp.Status, resp.Body)
		e.RetryAfter = parseRetryAfter(resp.Header.Get("Retry-After"))
		return nil, nil, e
	}
	return resp.Body, resp.Header, nil
}

// lockedReader makes a source of randomness safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// CheckURL tells whether s can be a broker's base URL: https, a host, and
// neither user, query nor fragment.
func CheckURL(s string) error {
	if err := brokerhttp.CheckURL(s); err != nil {
		return fmt.Errorf("kbs: %w", err)
	}
	return nil
}
