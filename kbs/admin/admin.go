package admin

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/internal/brokerhttp"
	"github.com/coffer-project/coffer/secret"
)

// Limits of the interface.
const (
	// MaxListBytes bounds the answer to a list.
	MaxListBytes = 32 << 20
	// MaxPolicyBytes bounds a Rego policy.
	MaxPolicyBytes = 1 << 20
	// maxNameBytes bounds a reference value's name.
	maxNameBytes = 256
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
	// RootPEM pins the certificates that may vouch for the trustee; empty:
	// the system's roots.
	RootPEM []byte
	// Key signs the administrator's tokens. Required.
	Key ed25519.PrivateKey
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

// Client administers a trustee. It is safe for concurrent use. Its methods
// return *kbs.StatusError where the trustee refuses.
type Client struct {
	http    *brokerhttp.Client
	key     ed25519.PrivateKey
	subject string
	now     func() time.Time
}

// New checks the options. It opens no connection.
func New(opts Options) (*Client, error) {
	if len(opts.Key) != ed25519.PrivateKeySize {
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
	if opts.UserAgent == "" {
		opts.UserAgent = "coffer/devel"
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
		Timeout:     requestTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("kbs admin: %w", err)
	}
	return &Client{http: hc, key: opts.Key, subject: opts.Subject, now: opts.Now}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.Close() }

// SetResource stores a secret, replacing an earlier one.
func (c *Client) SetResource(ctx context.Context, uri kbs.ResourceURI, value secret.Bytes) error {
	if value.Len() > kbs.MaxResourceBytes {
		return fmt.Errorf("kbs admin: resource %s has %d bytes, the limit is %d", uri, value.Len(), kbs.MaxResourceBytes)
	}
	path, err := resourcePath(uri)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path, "application/octet-stream", value.Expose(), 0)
	return err
}

// DeleteResource removes a secret.
func (c *Client) DeleteResource(ctx context.Context, uri kbs.ResourceURI) error {
	path, err := resourcePath(uri)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodDelete, path, "", nil, 0)
	return err
}

// resourcePath allows stored secrets only: a plugin's resources are made by
// the plugin.
func resourcePath(uri kbs.ResourceURI) (string, error) {
	if uri.Plugin() != kbs.PluginResource || uri.Query() != "" {
		return "", fmt.Errorf("kbs admin: %q: expected a stored secret, kbs:///repository/type/tag", uri.String())
	}
	return uri.RequestPath(), nil
}

// Resources lists the stored secrets' names.
func (c *Client) Resources(ctx context.Context) ([]kbs.ResourceURI, error) {
	paths, err := list[string](ctx, c, ResourcesPath)
	if err != nil {
		return nil, err
	}
	out := make([]kbs.ResourceURI, len(paths))
	for i, p := range paths {
		uri, err := kbs.ParseResourceURI("kbs:///" + p)
		if err != nil {
			return nil, fmt.Errorf("kbs admin: list of resources: entry %d: %w", i, err)
		}
		out[i] = uri
	}
	return out, nil
}

// SetResourcePolicy replaces the Rego policy that releases resources.
func (c *Client) SetResourcePolicy(ctx context.Context, rego string) error {
	policy, err := encodePolicy(rego)
	if err != nil {
		return err
	}
	return c.send(ctx, http.MethodPost, kbs.PathPrefix+"/resource-policy", map[string]string{"policy": policy})
}

// SetAttestationPolicy replaces the Rego policy with an id ("default_cpu")
// that appraises evidence.
func (c *Client) SetAttestationPolicy(ctx context.Context, id, rego string) error {
	if id == "" || len(id) > maxNameBytes {
		return fmt.Errorf("kbs admin: policy id: expected 1 to %d bytes, got %d", maxNameBytes, len(id))
	}
	policy, err := encodePolicy(rego)
	if err != nil {
		return err
	}
	return c.send(ctx, http.MethodPost, kbs.PathPrefix+"/attestation-policy",
		map[string]string{"type": "rego", "policy_id": id, "policy": policy})
}

// encodePolicy is how the protocol carries Rego: unpadded base64url.
func encodePolicy(rego string) (string, error) {
	if n := len(rego); n == 0 || n > MaxPolicyBytes {
		return "", fmt.Errorf("kbs admin: policy: expected 1 to %d bytes, got %d", MaxPolicyBytes, n)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(rego)), nil
}

// SetReferenceValue registers a reference value under its name, replacing an
// earlier one.
func (c *Client) SetReferenceValue(ctx context.Context, v ReferenceValue) error {
	path, err := referencePath(v.Name)
	if err != nil {
		return err
	}
	if len(v.Values) == 0 {
		return fmt.Errorf("kbs admin: reference value %q has no values: delete it instead", v.Name)
	}
	v.Name = ""
	return c.send(ctx, http.MethodPut, path, v)
}

// DeleteReferenceValue removes a reference value.
func (c *Client) DeleteReferenceValue(ctx context.Context, name string) error {
	path, err := referencePath(name)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodDelete, path, "", nil, 0)
	return err
}

// referencePath refuses names that a path could not carry unchanged.
func referencePath(name string) (string, error) {
	ok := func(r rune) bool {
		return r < utf8.RuneSelf && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:", r))
	}
	if name == "" || name == "." || name == ".." || len(name) > maxNameBytes || strings.ContainsFunc(name, func(r rune) bool { return !ok(r) }) {
		return "", fmt.Errorf("kbs admin: reference value %q: expected a name of 1 to %d ASCII letters, digits, dots, colons, dashes and underscores", name, maxNameBytes)
	}
	return ReferenceValuesPath + "/" + name, nil
}

// ReferenceValues lists the reference values.
func (c *Client) ReferenceValues(ctx context.Context) ([]ReferenceValue, error) {
	return list[ReferenceValue](ctx, c, ReferenceValuesPath)
}

// Bind registers initdata for a resource.
func (c *Client) Bind(ctx context.Context, b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return c.send(ctx, http.MethodPut, BindingsPath, b)
}

// Unbind removes a binding; its description is ignored.
func (c *Client) Unbind(ctx context.Context, b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	query := url.Values{"resource": {b.Resource}, "initdata": {b.InitData}}
	_, err := c.do(ctx, http.MethodDelete, BindingsPath+"?"+query.Encode(), "", nil, 0)
	return err
}

// Bindings lists the bindings.
func (c *Client) Bindings(ctx context.Context) ([]Binding, error) {
	return list[Binding](ctx, c, BindingsPath)
}

// Verdicts lists decisions, newest first.
func (c *Client) Verdicts(ctx context.Context, q VerdictQuery) ([]Verdict, error) {
	query := url.Values{}
	if q.Limit < 0 {
		return nil, fmt.Errorf("kbs admin: verdicts: limit %d is negative", q.Limit)
	}
	if q.Limit > 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Session != "" {
		query.Set("session", q.Session)
	}
	path := VerdictsPath
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return list[Verdict](ctx, c, path)
}

// send sends a JSON document and expects no content.
func (c *Client) send(ctx context.Context, method, path string, doc any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("kbs admin: %s %s: %w", method, path, err)
	}
	_, err = c.do(ctx, method, path, "application/json", body, 0)
	return err
}

// list gets a JSON array. The trustee is trusted by its administrator, and so
// its document is decoded with the standard library's leniency; only its size
// is bounded.
func list[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	body, err := c.do(ctx, http.MethodGet, path, "", nil, MaxListBytes)
	if err != nil {
		return nil, err
	}
	var out []T
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, fmt.Errorf("kbs admin: GET %s: answer is not the expected JSON array: %w", path, err)
	}
	return out, nil
}

// do sends a request with a fresh token. Every answer but 2xx is a
// *kbs.StatusError.
func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte, maxBytes int) ([]byte, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	header := http.Header{"Authorization": {"Bearer " + token}}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(ctx, brokerhttp.Request{
		Method: method, Path: path, Header: header, Body: body,
		// Answers without content still may carry a few words.
		MaxBytes: max(maxBytes, 64<<10),
	})
	if err != nil {
		return nil, fmt.Errorf("kbs admin: %w", err)
	}
	if resp.Status/100 != 2 {
		return nil, kbs.NewStatusError(method+" "+path, resp.Status, resp.Body)
	}
	return resp.Body, nil
}

// token makes the bearer token of one request: a JWT signed with EdDSA (RFC
// 8037).
func (c *Client) token() (string, error) {
	now := c.now()
	claims, err := json.Marshal(struct {
		Issuer    string   `json:"iss"`
		Subject   string   `json:"sub"`
		Audience  []string `json:"aud"`
		Role      string   `json:"role"`
		IssuedAt  int64    `json:"iat"`
		ExpiresAt int64    `json:"exp"`
	}{TokenIssuer, c.subject, []string{TokenAudience}, TokenRole, now.Add(-clockSkew).Unix(), now.Add(tokenLifetime).Unix()})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT"}`)) + "." + b64.EncodeToString(claims)
	return signed + "." + b64.EncodeToString(ed25519.Sign(c.key, []byte(signed))), nil
}

// Validate checks a binding's form: a resource path of one to three segments
// and a digest of 32, 48 or 64 bytes in lower-case hexadecimal.
func (b Binding) Validate() error {
	// The parts that a shorter path leaves open are filled to reuse the
	// checks of a whole one.
	whole := b.Resource
	if n := strings.Count(b.Resource, "/"); n < 2 {
		whole += strings.Repeat("/x", 2-n)
	}
	if u, err := kbs.ParseResourceURI("kbs:///" + whole); err != nil || u.Path() != whole {
		return fmt.Errorf("kbs admin: binding: resource %q: expected repository, repository/type or repository/type/tag", b.Resource)
	}
	switch len(b.InitData) {
	case 64, 96, 128:
	default:
		return fmt.Errorf("kbs admin: binding: initdata %q: expected a whole digest of 64, 96 or 128 hexadecimal digits", b.InitData)
	}
	if strings.Trim(b.InitData, "0123456789abcdef") != "" {
		return errors.New("kbs admin: binding: initdata: expected lower-case hexadecimal digits")
	}
	return nil
}
