package admin

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
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
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Now is the clock of tokens and certificates; nil: time.Now.
	Now func() time.Time
}

// Client administers a trustee. It is safe for concurrent use.
type Client struct{}

var errNotYet = errors.New("not yet")

// New checks the options. It opens no connection.
func New(opts Options) (*Client, error) { return nil, errNotYet }

// SetResource stores a secret, replacing an earlier one.
func (c *Client) SetResource(ctx context.Context, uri kbs.ResourceURI, value secret.Bytes) error {
	return errNotYet
}

// DeleteResource removes a secret.
func (c *Client) DeleteResource(ctx context.Context, uri kbs.ResourceURI) error { return errNotYet }

// Resources lists the stored secrets' names.
func (c *Client) Resources(ctx context.Context) ([]kbs.ResourceURI, error) { return nil, errNotYet }

// SetResourcePolicy replaces the Rego policy that releases resources.
func (c *Client) SetResourcePolicy(ctx context.Context, rego string) error { return errNotYet }

// SetAttestationPolicy replaces the Rego policy with an id ("default_cpu")
// that appraises evidence.
func (c *Client) SetAttestationPolicy(ctx context.Context, id, rego string) error { return errNotYet }

// SetReferenceValue registers a reference value under its name.
func (c *Client) SetReferenceValue(ctx context.Context, v ReferenceValue) error { return errNotYet }

// DeleteReferenceValue removes a reference value.
func (c *Client) DeleteReferenceValue(ctx context.Context, name string) error { return errNotYet }

// ReferenceValues lists the reference values.
func (c *Client) ReferenceValues(ctx context.Context) ([]ReferenceValue, error) {
	return nil, errNotYet
}

// Bind registers initdata for a resource.
func (c *Client) Bind(ctx context.Context, b Binding) error { return errNotYet }

// Unbind removes a binding; its description is ignored.
func (c *Client) Unbind(ctx context.Context, b Binding) error { return errNotYet }

// Bindings lists the bindings.
func (c *Client) Bindings(ctx context.Context) ([]Binding, error) { return nil, errNotYet }

// Verdicts lists decisions, newest first.
func (c *Client) Verdicts(ctx context.Context, q VerdictQuery) ([]Verdict, error) {
	return nil, errNotYet
}

// Close closes idle connections.
func (c *Client) Close() {}

var _ json.RawMessage
