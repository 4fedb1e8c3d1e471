package kbs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// ClientOptions configure a [Client].
type ClientOptions struct {
	// URL is the broker's base, https only: "https://trustee.example:8080".
	URL string
	// RootPEM pins the certificates that may vouch for the broker: one or
	// more PEM certificates, authorities or the broker's own. Empty: the
	// system's roots.
	RootPEM []byte
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Attester makes the evidence. Required.
	Attester tee.Attester
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
	// Now is the clock that certificates are judged by; nil: time.Now.
	Now func() time.Time
}

// Client is a guest's side of the protocol. It attests when it must, once for
// all resources, and is safe for concurrent use.
type Client struct{}

// NewClient checks the options. It opens no connection.
func NewClient(opts ClientOptions) (*Client, error) { return nil, errors.New("not yet") }

// Attest runs a whole handshake and keeps the token and the key. Calls that
// come while a handshake is under way share its outcome.
func (c *Client) Attest(ctx context.Context) error { return errors.New("not yet") }

// Token is the token of the last handshake, "" before the first.
func (c *Client) Token() string { return "" }

// Resource fetches and decrypts a resource.
func (c *Client) Resource(ctx context.Context, uri ResourceURI) (secret.Bytes, error) {
	return secret.Bytes{}, errors.New("not yet")
}

// Close closes idle connections and forgets the token and the key.
func (c *Client) Close() {}
