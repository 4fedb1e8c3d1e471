// Package kms is what the data hub and its key management services say to each
// other. A service keeps secrets (for sealed secrets of type vault) or decrypts
// keys (for envelopes). Each has a package of its own below this one; which of
// them a guest has is decided where the guest is put together.
package kms

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// Provider is a key management service. Implementations are safe for
// concurrent use. Errors hold neither credentials nor secrets.
type Provider interface {
	// Secret returns the secret that the service keeps under Request.Name.
	Secret(ctx context.Context, r Request) (secret.Bytes, error)
	// Decrypt decrypts Request.Ciphertext with the key Request.Name.
	Decrypt(ctx context.Context, r Request) (secret.Bytes, error)
}

// Request is taken from a sealed secret whose signature is good.
type Request struct {
	// Name is what the service calls the secret, or the key.
	Name       string
	Ciphertext []byte
	// Settings and Annotations are the payload's, for the provider to decode.
	Settings, Annotations sealed.Object
	// Credential gets a credential of the pod's owner by its file name below
	// the guest components' directory, for example "aws/credential.json".
	Credential func(ctx context.Context, name string) (secret.Bytes, error)
}

const (
	// Timeout bounds an exchange with a service.
	Timeout = 30 * time.Second
	// maxAnswer bounds an answer: a secret of 64 KiB in base64, and more.
	maxAnswer = 256 << 10
)

// Do sends a request and returns the whole answer, whatever its status.
// See [Client] for the client.
func Do(ctx context.Context, client *http.Client, url string, header http.Header, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return 0, nil, fmt.Errorf("answer has more than %d bytes", maxAnswer)
	}
	return resp.StatusCode, answer, nil
}

// Client returns a client for [Do]: TLS as conf says, or by the system's roots
// where it is nil, no redirects (a signed request is for whom it was signed
// for), no proxies, no compression.
func Client(conf *tls.Config) *http.Client {
	if conf == nil {
		conf = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    Timeout,
			IdleConnTimeout:        Timeout,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
		},
	}
}
