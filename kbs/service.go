package kbs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/kbs/internal/brokerhttp"
	"github.com/coffer-project/coffer/tee"
)

// servicePath is where an attestation service takes evidence (Trustee,
// attestation service, REST).
const servicePath = "/attestation"

// ServiceOptions configure a [Service].
type ServiceOptions struct {
	// URL is the attestation service's base. Plain HTTP is allowed: what the
	// service signs is checked by those who rely on it, and nothing that it is
	// told is secret.
	URL string
	// RootPEM pins the certificates that may vouch for the service; empty: the
	// system's roots.
	RootPEM []byte
	// DialContext opens the connection; nil: TCP.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Attester makes the evidence. Required.
	Attester tee.Attester
	// UserAgent is "coffer-agent/devel" when empty.
	UserAgent string
	// RequestTimeout bounds one request; 0: one minute.
	RequestTimeout time.Duration
	// Now is the clock that certificates are judged by; nil: time.Now.
	Now func() time.Time
}

// Service asks an attestation service for tokens without a key broker: the
// kind that the guest components call coco_as. Such a token says what the
// guest is and no more. It is bound to no challenge, no key and no initdata, so
// whoever has seen one can show it, too: a [Client]'s token is the better one
// wherever it will do.
type Service struct {
	http     *brokerhttp.Client
	attester tee.Attester
}

// NewService checks the options. It opens no connection.
func NewService(opts ServiceOptions) (*Service, error) {
	if opts.Attester == nil {
		return nil, errors.New("kbs: attestation service: no attester")
	}
	var roots *x509.CertPool
	if len(opts.RootPEM) > 0 {
		var err error
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
	hc, err := brokerhttp.New(brokerhttp.Options{
		URL: opts.URL, PlainHTTP: true, Roots: roots, DialContext: opts.DialContext, Now: opts.Now,
		UserAgent: opts.UserAgent, Timeout: opts.RequestTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("kbs: attestation service: %w", err)
	}
	return &Service{http: hc, attester: opts.Attester}, nil
}

// Token has the service judge evidence over empty report data, and returns its
// token, a JWT. Errors are *StatusError where the service refused.
func (s *Service) Token(ctx context.Context) (string, error) {
	name := s.attester.TEE()
	evidence, err := s.attester.Evidence(ctx, nil)
	if err != nil {
		return "", fmt.Errorf("kbs: attestation service: %s evidence: %w", name, err)
	}
	type verification struct {
		TEE      tee.Name `json:"tee"`
		Evidence string   `json:"evidence"`
	}
	body, err := marshal(struct {
		Requests []verification `json:"verification_requests"`
		Policies []string       `json:"policy_ids"`
	}{[]verification{{name, b64.EncodeToString(evidence)}}, []string{}})
	if err != nil {
		return "", fmt.Errorf("kbs: attestation service: %w", err)
	}
	resp, err := s.http.Do(ctx, brokerhttp.Request{
		Method: http.MethodPost, Path: servicePath, Body: body, MaxBytes: MaxTokenBytes + 2,
		Header: http.Header{"Content-Type": {"application/json"}},
	})
	if err != nil {
		return "", fmt.Errorf("kbs: attestation service: %w", err)
	}
	if resp.Status != http.StatusOK {
		return "", NewStatusError(http.MethodPost+" "+servicePath, resp.Status, resp.Body)
	}
	token := strings.TrimSpace(string(resp.Body))
	if err := checkJWT("attestation service", token); err != nil {
		return "", err
	}
	return token, nil
}

// Close closes idle connections.
func (s *Service) Close() { s.http.Close() }

// CheckServiceURL tells whether s can be an attestation service's base URL:
// http or https, a host, and neither user, query nor fragment.
func CheckServiceURL(s string) error {
	if err := brokerhttp.CheckPlainURL(s); err != nil {
		return fmt.Errorf("kbs: %w", err)
	}
	return nil
}
