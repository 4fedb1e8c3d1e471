package collateral

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// AMD is the collateral of SEV-SNP: what snpverify asks for.
type AMD struct{ client *Client }

// AMD returns the client in the shape that snpverify wants.
func (c *Client) AMD() AMD { return AMD{c} }

// VCEK returns the DER certificate of the chip at that patch level. chipID is 64
// bytes (Turin: 8, or padded to 64).
func (a AMD) VCEK(ctx context.Context, g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error) {
	i, err := VCEKItem(g, chipID, tcb)
	return a.client.body(ctx, i, err, "AMD's certificate (VCEK)")
}

// CRL returns AMD's revocation list (DER) for chips of that generation and kind
// of key; it may be stale.
func (a AMD) CRL(ctx context.Context, g snp.Generation, s snp.Signer) ([]byte, error) {
	i, err := AMDItem(AMDCRL, g, s)
	return a.client.body(ctx, i, err, "AMD's revocation list")
}

// Chain returns AMD's intermediate and root certificate (PEM).
func (a AMD) Chain(ctx context.Context, g snp.Generation, s snp.Signer) ([]byte, error) {
	i, err := AMDItem(AMDChain, g, s)
	return a.client.body(ctx, i, err, "AMD's certificate chain")
}

// body is the body of an item; err is why there is no such item.
func (c *Client) body(ctx context.Context, i Item, err error, what string) ([]byte, error) {
	if err != nil {
		return nil, &tee.CollateralError{Item: what, Reason: tee.CollateralUnknown, Err: err}
	}
	e, err := c.Get(ctx, i)
	if err != nil {
		return nil, err
	}
	return e.Body, nil
}

// NVIDIA is the collateral of GPUs: what nvidiaverify asks for.
type NVIDIA struct{ client *Client }

// NVIDIA returns the client in the shape that nvidiaverify wants.
func (c *Client) NVIDIA() NVIDIA { return NVIDIA{c} }

// RIM returns the manifest of that identifier, for example
// NV_GPU_DRIVER_GH100_535.104.05.
func (n NVIDIA) RIM(ctx context.Context, id string) ([]byte, error) {
	i, err := RIMItem(id)
	return n.client.body(ctx, i, err, "NVIDIA's reference manifest (RIM)")
}

// OCSP returns the responder's answer (DER) about a certificate; it may be
// stale. It is kept until its nextUpdate.
func (n NVIDIA) OCSP(ctx context.Context, cert, issuer *x509.Certificate) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, &tee.CollateralError{Item: "status (OCSP) of an NVIDIA certificate", Reason: tee.CollateralUnknown, Err: err}
	}
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		return fail(fmt.Errorf("the certificate is not its issuer's: %w", err))
	}
	i, err := OCSPItem(cert, issuer)
	if err != nil {
		return fail(err)
	}
	// As NVIDIA's own verifier asks (NVIDIA/nvtrust, guest_tools/gpu_verifiers).
	request, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: crypto.SHA384})
	if err != nil || len(request) > maxOCSPRequest {
		return fail(fmt.Errorf("request of %d bytes: %w", len(request), errOr(err)))
	}
	url, err := n.client.endpoints.url(i)
	if err != nil {
		return fail(err)
	}
	e, err := n.client.get(ctx, query{item: i, url: url, post: request, chain: pemOf(cert, issuer)})
	if err != nil {
		return nil, err
	}
	return e.Body, nil
}

// Hygon is the collateral of CSV: what csvverify asks for.
type Hygon struct{ client *Client }

// Hygon returns the client in the shape that csvverify wants.
func (c *Client) Hygon() Hygon { return Hygon{c} }

// HSKCEK returns the certificates of a chip as Hygon's service has them: HSK and
// then CEK.
func (h Hygon) HSKCEK(ctx context.Context, chipSerial string) ([]byte, error) {
	i, err := HSKCEKItem(chipSerial)
	return h.client.body(ctx, i, err, "Hygon's certificates (HSK, CEK)")
}
