// Package bao talks to an OpenBao or HashiCorp Vault server: it authenticates
// with a token from a file or by AppRole, keeps the token alive, and sends
// requests whose answers and waits are bounded. Nothing is taken from the
// environment, and no redirect is followed: a token goes to the one address
// that was configured.
package bao

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Errors; test with errors.Is.
var (
	// ErrUnavailable: the server cannot be reached, is sealed, a standby, or
	// overloaded; the same request may succeed later.
	ErrUnavailable = errors.New("the OpenBao or Vault server is not available")
	// ErrDenied: the server refuses the token, or its policies the request.
	ErrDenied = errors.New("the OpenBao or Vault server denies it")
	// ErrNotFound: nothing is at that path.
	ErrNotFound = errors.New("not found")
)

// Error is an answer that is none of the errors above.
type Error struct {
	Status   int
	Messages []string
}

// Error implements error.
func (e *Error) Error() string {
	if len(e.Messages) == 0 {
		return fmt.Sprintf("the server answers with status %d", e.Status)
	}
	return fmt.Sprintf("the server answers with status %d: %s", e.Status, strings.Join(e.Messages, "; "))
}

const (
	// DefaultTimeout bounds one request.
	DefaultTimeout = 10 * time.Second
	maxAnswer      = 32 << 20
	maxHeader      = 64 << 10
	maxMessages    = 5
	maxMessage     = 300
	// tries is how often a request without effects is sent.
	tries = 3
)

// Options of [New].
type Options struct {
	// Address is https://HOST:PORT; http is accepted for loopback addresses.
	Address string
	// Namespace is sent along where it is set (X-Vault-Namespace).
	Namespace string
	// RootPEM are the certificates that the server's is verified with; empty
	// for the system's.
	RootPEM []byte
	// TokenFile holds a token. It is read again when the server refuses the
	// token, as agents replace such files.
	TokenFile string
	// AppRole logs in instead.
	AppRole *AppRole
	// Timeout bounds one request, 0 for [DefaultTimeout].
	Timeout time.Duration
	// Transport replaces the one made from RootPEM.
	Transport http.RoundTripper
	Now       func() time.Time
}

// AppRole are the credentials of the approle method.
type AppRole struct {
	// Mount is where the method is, "" for "approle".
	Mount        string
	RoleID       string
	SecretIDFile string
}

// Client is safe for concurrent use.
type Client struct {
	o    Options
	base *url.URL
	http *http.Client
	turn chan struct{}
	auth auth
}

// New checks the options; it sends nothing.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.Address)
	if err != nil || base.Host == "" || base.RawQuery != "" || base.Fragment != "" || base.User != nil || strings.Trim(base.Path, "/") != "" {
		return nil, fmt.Errorf("OpenBao address: expected https://HOST:PORT, got %.200q", o.Address)
	}
	if base.Scheme != "https" && (base.Scheme != "http" || !loopback(base.Hostname())) {
		return nil, fmt.Errorf("OpenBao address: expected https (http for loopback addresses only: tokens and keys would travel in the clear), got %.200q", o.Address)
	}
	if (o.TokenFile == "") == (o.AppRole == nil) {
		return nil, errors.New("OpenBao: expected either a token file or AppRole credentials")
	}
	if a := o.AppRole; a != nil {
		a := *a
		if a.Mount == "" {
			a.Mount = "approle"
		}
		if err := CheckPath(a.Mount); err != nil {
			return nil, fmt.Errorf("AppRole mount: %w", err)
		}
		if a.RoleID == "" || a.SecretIDFile == "" {
			return nil, errors.New("AppRole: expected a role ID and a file with the secret ID")
		}
		o.AppRole = &a
	}
	if strings.ContainsFunc(o.Namespace, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("OpenBao namespace: expected printable ASCII, got %.200q", o.Namespace)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		if o.Transport, err = transport(o.RootPEM); err != nil {
			return nil, err
		}
	}
	c := &Client{o: o, base: base, turn: make(chan struct{}, 1)}
	c.http = &http.Client{
		Transport:     o.Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func transport(rootPEM []byte) (http.RoundTripper, error) {
	var roots *x509.CertPool
	if len(rootPEM) > 0 {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(rootPEM) {
			return nil, errors.New("OpenBao: expected certificates in PEM as roots, found none")
		}
	}
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
		ForceAttemptHTTP2:      true,
	}, nil
}

// CheckPath checks a mount's or a key's name: segments of A-Z a-z 0-9 . _ -
// that do not begin with a dot, separated by slashes.
func CheckPath(path string) error {
	if len(path) > 512 {
		return fmt.Errorf("expected at most 512 bytes, got %d", len(path))
	}
	for s := range strings.SplitSeq(path, "/") {
		if s == "" || s[0] == '.' || strings.ContainsFunc(s, func(r rune) bool {
			return r != '.' && r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return fmt.Errorf("expected segments of A-Z a-z 0-9 . _ - that do not begin with a dot, got %.200q", path)
		}
	}
	return nil
}

// Request is one request below /v1.
type Request struct {
	Method string
	// Path is made of segments that [CheckPath] accepts.
	Path  string
	Query url.Values
	Body  any
	// Repeat: the request has no effect but its answer, and is sent again when
	// it fails.
	Repeat bool
}

// Do sends a request and decodes the member "data" of the answer into out,
// where that is not nil. A 404 with data is decoded, too, and is [ErrNotFound].
func (c *Client) Do(ctx context.Context, r Request, out any) error {
	n := 1
	if r.Repeat {
		n = tries
	}
	var err error
	for i := range n {
		if i > 0 {
			pause := time.NewTimer(time.Duration(i) * (50*time.Millisecond + rand.N(100*time.Millisecond)))
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return fmt.Errorf("%w; %w", err, ctx.Err())
			}
		}
		if err = c.authorized(ctx, r, out); !errors.Is(err, ErrUnavailable) {
			break
		}
	}
	return err
}

// authorized sends a request with the token, and once more with a new one when
// the server refuses it.
func (c *Client) authorized(ctx context.Context, r Request, out any) error {
	token, err := c.token(ctx, "")
	if err != nil {
		return err
	}
	var a answer
	err = c.send(ctx, r, token, &a)
	if errors.Is(err, ErrDenied) {
		next, e := c.token(ctx, token)
		if e != nil || next == token {
			return errors.Join(err, e)
		}
		err = c.send(ctx, r, next, &a)
	}
	if err != nil && !errors.Is(err, ErrNotFound) || out == nil {
		return err
	}
	if len(a.Data) == 0 {
		if err == nil {
			err = fmt.Errorf("%s %s: expected an answer with data, got none", r.Method, r.Path)
		}
		return err
	}
	if e := json.Unmarshal(a.Data, out); e != nil && err == nil {
		// The text of the error may quote the answer: leave it out.
		return fmt.Errorf("%s %s: the answer's data are not as expected", r.Method, r.Path)
	}
	return err
}

// answer is the envelope of all answers.
type answer struct {
	Data   json.RawMessage `json:"data"`
	Errors []string        `json:"errors"`
	Auth   *struct {
		ClientToken   string `json:"client_token"`
		LeaseDuration int64  `json:"lease_duration"`
		Renewable     bool   `json:"renewable"`
	} `json:"auth"`
}

func (c *Client) send(ctx context.Context, r Request, token string, a *answer) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	var body io.Reader
	if r.Body != nil {
		data, err := json.Marshal(r.Body)
		if err != nil {
			return fmt.Errorf("%s %s: encode the request: %w", r.Method, r.Path, err)
		}
		body = bytes.NewReader(data)
	}
	u := *c.base
	u.Path = "/v1/" + r.Path
	u.RawQuery = r.Query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", r.Method, r.Path, err)
	}
	req.Header.Set("X-Vault-Request", "true")
	if c.o.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", c.o.Namespace)
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unavailable(outer, r, err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.unavailable(outer, r, err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("%s %s: expected an answer of at most %d bytes", r.Method, r.Path, maxAnswer)
	}
	*a = answer{}
	decodeErr := json.Unmarshal(data, a)
	return judge(r, resp.StatusCode, len(data), decodeErr, a)
}

// judge turns a status into an error.
func judge(r Request, status, length int, decodeErr error, a *answer) error {
	fail := func(err error) error { return fmt.Errorf("%s %s: %w", r.Method, r.Path, err) }
	detail := &Error{Status: status, Messages: clip(a.Errors)}
	switch {
	case status == http.StatusNoContent:
		return nil
	case status == http.StatusOK:
		if decodeErr != nil && length > 0 {
			return fail(errors.New("the answer is no JSON object: is this an OpenBao or Vault server?"))
		}
		return nil
	case status == http.StatusNotFound:
		return fail(ErrNotFound)
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return fail(fmt.Errorf("%w: %w: check the token and that its policies allow this path", ErrDenied, detail))
	case status >= 300 && status < 400:
		return fail(fmt.Errorf("%w: %w: it redirects, as a standby does that does not forward requests; configure the address of the active server or of the load balancer", ErrUnavailable, detail))
	// 412, 472 and 473 come from replicas that are not up to date or stand by
	// (Vault HTTP API, "HTTP status codes" and /sys/health).
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusPreconditionFailed, status == 472, status == 473:
		return fail(fmt.Errorf("%w: %w", ErrUnavailable, detail))
	}
	return fail(detail)
}

// clip keeps the server's words short and printable.
func clip(messages []string) []string {
	var out []string
	for _, m := range messages[:min(len(messages), maxMessages)] {
		out = append(out, fmt.Sprintf("%.*q", maxMessage, m))
	}
	return out
}

// unavailable keeps the caller's own end apart from the server's slowness.
func (c *Client) unavailable(outer context.Context, r Request, err error) error {
	if outer.Err() != nil {
		return fmt.Errorf("%s %s: %w: no answer yet: %w", r.Method, r.Path, ErrUnavailable, outer.Err())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s %s: %w: no answer within %v", r.Method, r.Path, ErrUnavailable, c.o.Timeout)
	}
	return fmt.Errorf("%s %s: %w: %w", r.Method, r.Path, ErrUnavailable, err)
}
