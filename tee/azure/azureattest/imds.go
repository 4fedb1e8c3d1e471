package azureattest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/azure"
)

const (
	// DefaultIMDS is the instance metadata service: a link-local address that
	// the host answers.
	DefaultIMDS = "http://169.254.169.254"

	pathCertification = "/metadata/THIM/amd/certification"
	pathTDQuote       = "/acc/tdquote"

	maxAnswer = 256 << 10
)

// newClient is a client for a service that is at most one hop away: no proxy,
// no redirects.
func newClient() *http.Client {
	return &http.Client{
		Timeout:       20 * time.Second,
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// imds asks the instance metadata service. Its answers come from the host and
// are not trusted: a wrong one makes evidence that no verifier accepts.
type imds struct {
	client *http.Client
	base   string
}

func (s *imds) do(ctx context.Context, method, path string, body []byte, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(s.base, "/")+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("azureattest: metadata service: %w", err)
	}
	r.Header.Set("Metadata", "true")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := s.client.Do(r)
	if err != nil {
		return fmt.Errorf("azureattest: metadata service: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("azureattest: metadata service: %s: %w", path, err)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("azureattest: metadata service: %s: expected status 200, got %s: %.200q", path, response.Status, data)
	case len(data) > maxAnswer:
		return fmt.Errorf("azureattest: metadata service: %s: expected at most %d bytes", path, maxAnswer)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("azureattest: metadata service: %s: %w", path, err)
	}
	return nil
}

// vcek gets the chip's certificate, DER.
func (s *imds) vcek(ctx context.Context) ([]byte, error) {
	var answer struct {
		VCEK string `json:"vcekCert"`
	}
	if err := s.do(ctx, http.MethodGet, pathCertification, nil, &answer); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(answer.VCEK))
	if block == nil || block.Type != "CERTIFICATE" || len(block.Bytes) == 0 || len(block.Bytes) > azure.MaxCertificate {
		return nil, errors.New("azureattest: metadata service: vcekCert: expected a certificate in PEM")
	}
	return block.Bytes, nil
}

// tdQuote has the host's quoting enclave quote a TDX report.
func (s *imds) tdQuote(ctx context.Context, report []byte) ([]byte, error) {
	body, err := json.Marshal(map[string]string{"report": base64.RawURLEncoding.EncodeToString(report)})
	if err != nil {
		return nil, fmt.Errorf("azureattest: %w", err)
	}
	var answer struct {
		Quote string `json:"quote"`
	}
	if err := s.do(ctx, http.MethodPost, pathTDQuote, body, &answer); err != nil {
		return nil, err
	}
	quote, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(answer.Quote, "="))
	if err != nil {
		return nil, fmt.Errorf("azureattest: metadata service: quote: expected URL-safe base64: %w", err)
	}
	if len(quote) == 0 || len(quote) > azure.MaxTDQuote {
		return nil, fmt.Errorf("azureattest: metadata service: quote: expected 1 to %d bytes, got %d", azure.MaxTDQuote, len(quote))
	}
	return quote, nil
}
