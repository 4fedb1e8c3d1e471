package collateral

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/snp"
)

// Document is what a signed document of Intel's says about itself.
type Document struct {
	// ID is "TDX" or "SGX" of TCB info, "TD_QE" or "QE" of an identity.
	ID string
	// FMSPC is the platform family; TCB info only.
	FMSPC              [6]byte
	Issued, NextUpdate time.Time
}

// Checks verify signatures up to the vendors' roots; dates are not judged.
// [DefaultChecks] has the verifiers' own. What has no check is never had:
// nothing unverified is kept or returned.
type Checks struct {
	// VCEK checks that der is AMD's certificate of exactly that chip at exactly
	// that patch level. chipID is 64 bytes (Turin: 8).
	VCEK func(der []byte, g snp.Generation, chipID []byte, tcb snp.TCB) error
	// AMDCRL checks that AMD's root of that generation signed the list.
	AMDCRL func(der []byte, g snp.Generation, s snp.Signer) (*x509.RevocationList, error)
	// AMDChain checks that the chain (PEM, intermediate first) is AMD's.
	AMDChain func(chain []byte, g snp.Generation, s snp.Signer) error
	// TCBInfo and QEIdentity check a document {"…":{…},"signature":"…"}. chain
	// is PEM, leaf first; it is empty where a file came without.
	TCBInfo    func(body, chain []byte) (Document, error)
	QEIdentity func(body, chain []byte) (Document, error)
	// PCKCRL checks a list of the CA "platform" or "processor".
	PCKCRL func(der, chain []byte, ca string) (*x509.RevocationList, error)
	// RootCRL checks that Intel's root signed the list.
	RootCRL func(der []byte) (*x509.RevocationList, error)
	// RIM checks the manifest's signature.
	RIM func(id string, body []byte) error
	// HSKCEK checks that Hygon signed the certificates.
	HSKCEK func(serial string, body []byte) error
}

var errNoCheck = errors.New("nothing here can check this kind of collateral")

// check judges body and chain and returns the entry with the dates they have.
func (c *Checks) check(i Item, body, chain []byte) (*Entry, error) {
	if len(body) == 0 || len(body) > MaxBody {
		return nil, fmt.Errorf("expected 1 to %d bytes, got %d", MaxBody, len(body))
	}
	if len(chain) > MaxChain {
		return nil, fmt.Errorf("issuer chain: expected at most %d bytes, got %d", MaxChain, len(chain))
	}
	if looksLikeHTML(body) {
		return nil, errors.New("expected collateral, got a page for browsers (HTML)")
	}
	e := &Entry{Item: i, Body: body, Chain: chain}
	var err error
	switch i.Kind.Vendor() {
	case "amd":
		err = c.amd(e)
	case "intel":
		err = c.intel(e)
	case "nvidia":
		err = c.nvidia(e)
	default:
		if c.HSKCEK == nil {
			return nil, errNoCheck
		}
		err = c.HSKCEK(i.ID, body)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

func looksLikeHTML(body []byte) bool {
	head := strings.ToLower(string(bytes.TrimSpace(body[:min(len(body), 64)])))
	return strings.HasPrefix(head, "<!doctype html") || strings.HasPrefix(head, "<html")
}

func (c *Checks) amd(e *Entry) error {
	g, s := e.Item.amd()
	switch e.Item.Kind {
	case VCEK:
		g, chip, tcb, err := e.Item.vcek()
		if err != nil {
			return err
		}
		if c.VCEK == nil {
			return errNoCheck
		}
		if err := c.VCEK(e.Body, g, chip, tcb); err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(e.Body)
		if err != nil {
			return err
		}
		e.Issued, e.NextUpdate = cert.NotBefore, cert.NotAfter
	case AMDCRL:
		if c.AMDCRL == nil {
			return errNoCheck
		}
		return e.list(c.AMDCRL(e.Body, g, s))
	default:
		if c.AMDChain == nil {
			return errNoCheck
		}
		if err := c.AMDChain(e.Body, g, s); err != nil {
			return err
		}
		certs, err := pemchain.Parse(e.Body)
		if err != nil {
			return err
		}
		for _, cert := range certs {
			if e.Issued.Before(cert.NotBefore) {
				e.Issued = cert.NotBefore
			}
			if e.NextUpdate.IsZero() || cert.NotAfter.Before(e.NextUpdate) {
				e.NextUpdate = cert.NotAfter
			}
		}
	}
	return nil
}

// list takes the dates of a revocation list.
func (e *Entry) list(l *x509.RevocationList, err error) error {
	if err != nil {
		return err
	}
	if len(l.Raw) != len(e.Body) { // x509 does not look at what follows
		return fmt.Errorf("expected a revocation list of %d bytes and nothing behind it, got %d more", len(l.Raw), len(e.Body)-len(l.Raw))
	}
	if l.NextUpdate.IsZero() || l.NextUpdate.Before(l.ThisUpdate) {
		return fmt.Errorf("nextUpdate: expected a time after thisUpdate %s, got %s", l.ThisUpdate, l.NextUpdate)
	}
	e.Issued, e.NextUpdate = l.ThisUpdate, l.NextUpdate
	return nil
}

func (c *Checks) intel(e *Entry) error {
	var document func(body, chain []byte) (Document, error)
	want := Document{}
	parts := strings.Split(e.Item.ID, "/")
	switch e.Item.Kind {
	case TCBInfo:
		document, want.ID = c.TCBInfo, strings.ToUpper(parts[0])
	case QEIdentity:
		document, want.ID = c.QEIdentity, "QE"
		if parts[0] == "tdx" {
			want.ID = "TD_QE"
		}
	case PCKCRL:
		if c.PCKCRL == nil {
			return errNoCheck
		}
		return e.list(c.PCKCRL(e.Body, e.Chain, e.Item.ID))
	default:
		if c.RootCRL == nil {
			return errNoCheck
		}
		return e.list(c.RootCRL(e.Body))
	}
	if document == nil {
		return errNoCheck
	}
	d, err := document(e.Body, e.Chain)
	if err != nil {
		return err
	}
	if d.ID != want.ID {
		return fmt.Errorf("id: expected %s, got %.16q", want.ID, d.ID)
	}
	if e.Item.Kind == TCBInfo {
		if got := fmt.Sprintf("%x", d.FMSPC); got != parts[1] {
			return fmt.Errorf("fmspc: expected %s, got %s", parts[1], got)
		}
	}
	if d.NextUpdate.IsZero() || d.NextUpdate.Before(d.Issued) {
		return fmt.Errorf("nextUpdate: expected a time after issueDate %s, got %s", d.Issued, d.NextUpdate)
	}
	e.Issued, e.NextUpdate = d.Issued, d.NextUpdate
	return nil
}

func (c *Checks) nvidia(e *Entry) error {
	if e.Item.Kind == RIM {
		if c.RIM == nil {
			return errNoCheck
		}
		return c.RIM(e.Item.ID, e.Body)
	}
	certs, err := pemchain.Parse(e.Chain)
	if err != nil || len(certs) != 2 {
		return fmt.Errorf("expected the certificate in question and its issuer beside the response, got %d certificates: %w", len(certs), errOr(err))
	}
	if item, err := OCSPItem(certs[0], certs[1]); err != nil || item != e.Item {
		return fmt.Errorf("expected the response for %s, got one for %s: %w", e.Item.ID, item.ID, errOr(err))
	}
	response, err := parseOCSP(e.Body, certs[0], certs[1])
	if err != nil {
		return err
	}
	e.Issued, e.NextUpdate = response.ThisUpdate, response.NextUpdate
	return nil
}

var errMismatch = errors.New("they do not belong together")

func errOr(err error) error {
	if err == nil {
		return errMismatch
	}
	return err
}

// undatedOCSP is how long a response counts that does not say so; nvidiaverify
// thinks the same.
const undatedOCSP = 24 * time.Hour

// parseOCSP checks a response (RFC 6960, §3.2): signed by the issuer, or by a
// responder that the issuer certified for it.
func parseOCSP(der []byte, cert, issuer *x509.Certificate) (*ocsp.Response, error) {
	r, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, err
	}
	if r.SerialNumber.Cmp(cert.SerialNumber) != 0 {
		return nil, fmt.Errorf("serial number: expected %x, got %x", cert.SerialNumber, r.SerialNumber)
	}
	if r.NextUpdate.IsZero() { // a responder need not say (RFC 6960, §2.4)
		r.NextUpdate = r.ThisUpdate.Add(undatedOCSP)
	}
	if r.NextUpdate.Before(r.ThisUpdate) {
		return nil, fmt.Errorf("nextUpdate: expected a time after thisUpdate %s, got %s", r.ThisUpdate, r.NextUpdate)
	}
	if responder := r.Certificate; responder != nil && !responder.Equal(issuer) {
		for _, usage := range responder.ExtKeyUsage {
			if usage == x509.ExtKeyUsageOCSPSigning {
				return r, nil
			}
		}
		return nil, errors.New("the responder's certificate is not for signing OCSP responses")
	}
	return r, nil
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
