package admin

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/kbs"
)

// Limits of the interface.
const (
	// MaxListBytes bounds the answer to a list.
	MaxListBytes = 32 << 20
	// MaxPolicyBytes bounds a Rego policy.
	MaxPolicyBytes = 1 << 20
	// maxNameBytes bounds a reference value's name.
	maxNameBytes = 256
	// pageSize is how many entries of a list are asked for at once.
	pageSize = 1000
	// maxPages bounds a list whose end never comes.
	maxPages = 10_000
	// maxDepth is how deep an answer may nest: claims in a record do a lot.
	maxDepth = 64
	// smallAnswer bounds an answer that is no list.
	smallAnswer = 4 << 20
	// tokenLifetime is short because every request has its own token.
	tokenLifetime = 5 * time.Minute
	// clockSkew is how far the trustee's clock may be behind ours.
	clockSkew      = time.Minute
	requestTimeout = time.Minute
)

// Options configure a [Client].
type Options struct {
	// URL is the trustee's base, https only.
	URL string
	// Tenant is the tenant to administer; empty: the one of URL.
	Tenant string
	// RootPEM pins the certificates that may vouch for the trustee; empty:
	// the system's roots.
	RootPEM []byte
	// Key signs the administrator's tokens. It or TokenSource is required.
	Key ed25519.PrivateKey
	// Role is what tokens signed with Key claim; [RoleAdmin] when empty.
	Role string
	// TokenSource gives the bearer token of a request, for example of an
	// OpenID provider. It is called for every request and must be safe for
	// concurrent use.
	TokenSource func(ctx context.Context) (string, error)
	// Certificate is presented where the trustee asks for one; nil: none.
	Certificate *tls.Certificate
	// Subject names the administrator in the trustee's records; "admin" when
	// empty.
	Subject string
	// UserAgent is "coffer/devel" when empty.
	UserAgent string
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock of tokens and certificates; nil: time.Now.
	Now func() time.Time
}

// Client administers one tenant of a trustee. It is safe for concurrent use.
// Its methods return *kbs.StatusError where the trustee refuses.
type Client struct {
	http   *transport
	source func(ctx context.Context) (string, error)
	key    ed25519.PrivateKey
	// header is that of tokens: it names the key, to spare the trustee trying
	// all it knows.
	header  string
	subject string
	role    string
	now     func() time.Time
}

// New checks the options. It opens no connection.
func New(opts Options) (*Client, error) {
	switch {
	case opts.TokenSource != nil && opts.Key != nil:
		return nil, errors.New("kbs admin: both a key and a source of tokens: expected one of them")
	case opts.TokenSource == nil && len(opts.Key) != ed25519.PrivateKeySize:
		return nil, fmt.Errorf("kbs admin: key: expected an Ed25519 private key of %d bytes, got %d", ed25519.PrivateKeySize, len(opts.Key))
	}
	var roots *x509.CertPool
	if len(opts.RootPEM) > 0 {
		var err error
		if roots, err = kbs.ParseRoots(opts.RootPEM); err != nil {
			return nil, err
		}
	}
	if opts.Subject == "" {
		opts.Subject = "admin"
	}
	if opts.Role == "" {
		opts.Role = RoleAdmin
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "coffer/devel"
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	hc, err := newTransport(opts, roots)
	if err != nil {
		return nil, fmt.Errorf("kbs admin: %w", err)
	}
	c := &Client{http: hc, source: opts.TokenSource, key: opts.Key, subject: opts.Subject, role: opts.Role, now: opts.Now}
	if opts.TokenSource != nil {
		return c, nil
	}
	if pub, ok := opts.Key.Public().(ed25519.PublicKey); ok {
		c.header = `{"alg":"EdDSA","typ":"JWT","kid":"` + KeyID(pub) + `"}`
	}
	return c, nil
}

// KeyID is the id of an administrator's key: the first 16 bytes of its SHA-256
// in hexadecimal.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:16])
}

// Close closes idle connections.
func (c *Client) Close() { c.http.close() }

// send sends a JSON document and ignores what a success says.
func (c *Client) send(ctx context.Context, method, path string, doc any) error {
	_, err := c.sendFor(ctx, method, path, doc)
	return err
}

func (c *Client) sendFor(ctx context.Context, method, path string, doc any) (*answer, error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("kbs admin: %s %s: %w", method, path, err)
	}
	return c.do(ctx, call{method: method, path: path, contentType: "application/json", body: body})
}

// exchange sends a document (nil: none) and decodes the answer's.
func exchange[T any](ctx context.Context, c *Client, method, path string, doc any) (T, error) {
	var out T
	var a *answer
	var err error
	if doc == nil {
		a, err = c.do(ctx, call{method: method, path: path})
	} else {
		a, err = c.sendFor(ctx, method, path, doc)
	}
	if err != nil {
		return out, err
	}
	err = decode(method+" "+path, a.body, &out, "JSON document")
	return out, err
}

// decode is strict: a member that this version does not know may be one that
// changes what the others mean.
func decode(op string, body []byte, v any, what string) error {
	if err := strictjson.Decode(body, v, strictjson.Limits{Bytes: MaxListBytes, Depth: maxDepth}); err != nil {
		return fmt.Errorf("kbs admin: %s: answer is not the expected %s: %w", op, what, err)
	}
	return nil
}

// list gets a whole list, page by page.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	out := []T{}
	after := ""
	for range maxPages {
		page, next, err := listPage[T](ctx, c, path, query, after, pageSize)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if next == "" {
			return out, nil
		}
		if next == after {
			return nil, fmt.Errorf("kbs admin: GET %s: the list does not advance after %q", path, next)
		}
		after = next
	}
	return nil, fmt.Errorf("kbs admin: GET %s: expected at most %d pages", path, maxPages)
}

// listPage gets one page and what the next begins after, "" at the end.
func listPage[T any](ctx context.Context, c *Client, path string, query url.Values, after string, limit int) ([]T, string, error) {
	q := url.Values{}
	for k, v := range query {
		q[k] = v
	}
	if after != "" {
		q.Set("after", after)
	}
	q.Set("limit", strconv.Itoa(limit))
	a, err := c.do(ctx, call{method: http.MethodGet, path: withQuery(path, q), maxBytes: MaxListBytes})
	if err != nil {
		return nil, "", err
	}
	var page []T
	if err := decode("GET "+path, a.body, &page, "JSON array"); err != nil {
		return nil, "", err
	}
	return page, a.header.Get(HeaderNext), nil
}

// array gets a list that is never long.
func array[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	a, err := c.do(ctx, call{method: http.MethodGet, path: path, maxBytes: MaxListBytes})
	if err != nil {
		return nil, err
	}
	var out []T
	err = decode("GET "+path, a.body, &out, "JSON array")
	return out, err
}

func withQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// call is one request.
type call struct {
	method, path, contentType string
	body                      []byte
	// maxBytes bounds the answer; 0 means smallAnswer.
	maxBytes int
}

// do sends a request with a fresh token. Every answer but 2xx is a
// *kbs.StatusError.
func (c *Client) do(ctx context.Context, r call) (*answer, error) {
	token, err := c.token(ctx)
	if err != nil {
		return nil, err
	}
	if r.maxBytes == 0 {
		r.maxBytes = smallAnswer
	}
	a, err := c.http.do(ctx, r, token)
	if err != nil {
		return nil, fmt.Errorf("kbs admin: %w", err)
	}
	if a.status/100 != 2 {
		return nil, a.refusal(r)
	}
	return a, nil
}

// token makes the bearer token of one request: a JWT signed with EdDSA (RFC
// 8037), or what the source gives.
func (c *Client) token(ctx context.Context) (string, error) {
	if c.source != nil {
		token, err := c.source(ctx)
		if err != nil {
			return "", fmt.Errorf("kbs admin: get a token: %w", err)
		}
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return "", errors.New("kbs admin: the source of tokens gave none that a header could carry")
		}
		return token, nil
	}
	now := c.now()
	claims, err := json.Marshal(struct {
		Issuer    string   `json:"iss"`
		Subject   string   `json:"sub"`
		Audience  []string `json:"aud"`
		Role      string   `json:"role"`
		IssuedAt  int64    `json:"iat"`
		ExpiresAt int64    `json:"exp"`
	}{TokenIssuer, c.subject, []string{TokenAudience}, c.role, now.Add(-clockSkew).Unix(), now.Add(tokenLifetime).Unix()})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(c.header)) + "." + b64.EncodeToString(claims)
	return signed + "." + b64.EncodeToString(ed25519.Sign(c.key, []byte(signed))), nil
}
