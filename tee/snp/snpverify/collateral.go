package snpverify

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"golang.org/x/sync/singleflight"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// Limits on what AMD's key service sends, and on what is kept of it.
const (
	maxCollateral      = 1 << 20
	maxCachedResponses = 4096
	fetchTimeout       = 30 * time.Second
)

// Getter fetches collateral. Implementations are safe for concurrent use.
type Getter interface {
	// Get returns the body at an https URL of AMD's key service.
	Get(ctx context.Context, url string) ([]byte, error)
}

// NewHTTPGetter fetches over client, whose transport decides proxies and roots.
// Bodies are at most 1 MiB.
func NewHTTPGetter(client *http.Client) Getter { return httpGetter{client} }

type httpGetter struct{ client *http.Client }

func (g httpGetter) Get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := g.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: expected status 200, got %s", url, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxCollateral+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if len(body) > maxCollateral {
		return nil, fmt.Errorf("%s: expected at most %d bytes", url, maxCollateral)
	}
	return body, nil
}

// certificateURL is where AMD's key service (publication 57230) has the VCEK
// certificate of a report, or "" where the report does not tell.
func certificateURL(r *snp.Report, g snp.Generation) string {
	if g == "" || r.ChipID == [64]byte{} {
		return ""
	}
	id, fmc := r.ChipID[:], ""
	if r.ReportedTCB.FMC != nil {
		id, fmc = id[:8], fmt.Sprintf("fmcSPL=%02d&", *r.ReportedTCB.FMC)
	}
	t := r.ReportedTCB
	return fmt.Sprintf("https://kdsintf.amd.com/vcek/v1/%s/%s?%sblSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d",
		g, hex.EncodeToString(id), fmc, t.Bootloader, t.TEE, t.SNP, t.Microcode)
}

// collateral fetches from AMD's key service, which allows few requests: what
// was fetched is kept, and concurrent requests for one URL become one.
type collateral struct {
	get    Getter
	now    func() time.Time
	flight singleflight.Group

	mu    sync.Mutex
	certs map[string][]byte
	crls  map[string]*x509.RevocationList
}

// certificate returns the certificate at url. Certificates never change.
func (c *collateral) certificate(ctx context.Context, url string) ([]byte, error) {
	c.mu.Lock()
	der, ok := c.certs[url]
	c.mu.Unlock()
	if ok {
		return der, nil
	}
	der, err := c.fetch(ctx, url)
	if err != nil {
		return nil, err
	}
	// What is no certificate is not kept: the next try may get one.
	if _, err := x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.certs == nil || len(c.certs) >= maxCachedResponses {
		c.certs = map[string][]byte{}
	}
	c.certs[url] = der
	return der, nil
}

// fetch gets url once for all that ask at the same time. One who gives up does
// not end the request for the others.
func (c *collateral) fetch(ctx context.Context, url string) ([]byte, error) {
	result := c.flight.DoChan(url, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		return c.get.Get(ctx, url)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		body, ok := r.Val.([]byte)
		if !ok || len(body) > maxCollateral {
			return nil, fmt.Errorf("%s: expected at most %d bytes", url, maxCollateral)
		}
		return body, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// revocations returns the list at url that the root signed and that is current.
func (c *collateral) revocations(ctx context.Context, url string, root *x509.Certificate) (*x509.RevocationList, error) {
	c.mu.Lock()
	list := c.crls[url]
	c.mu.Unlock()
	if list != nil && c.now().Before(list.NextUpdate) {
		return list, nil
	}
	body, err := c.fetch(ctx, url)
	if err != nil {
		return nil, err
	}
	list, err = x509.ParseRevocationList(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if err := list.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if now := c.now(); now.Before(list.ThisUpdate) || !now.Before(list.NextUpdate) {
		return nil, errors.New(url + ": the revocation list is not valid at this time: check the clock")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crls == nil {
		c.crls = map[string]*x509.RevocationList{}
	}
	c.crls[url] = list
	return list, nil
}

// checkRevocation refuses an intermediate that AMD has revoked. AMD does not
// revoke single chips: patch levels supersede them.
func (v *verifier) checkRevocation(ctx context.Context, r *root, s snp.Signer, g snp.Generation) ([]tee.Failure, error) {
	list, err := v.collateral.revocations(ctx, kds.CrlLinkByKey(string(g), abi.ReportSigner(s)), r.certs.ProductCerts.Ark)
	if err != nil {
		return nil, fmt.Errorf("snpverify: fetching AMD's revocation list: %w", err)
	}
	intermediate := r.intermediate(s)
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(intermediate.SerialNumber) == 0 {
			return []tee.Failure{{
				Check: "snp.revocation", Field: "cert_chain", Expected: "an intermediate that is not revoked",
				Got: fmt.Sprintf("%s, revoked at %s", quoteName(intermediate.Subject), entry.RevocationTime.Format(time.RFC3339)),
			}}, nil
		}
	}
	return nil, nil
}
