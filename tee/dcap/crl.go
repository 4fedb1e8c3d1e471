package dcap

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
)

// MaxCRL bounds a revocation list in bytes. Intel's have a few kB.
const MaxCRL = 4 << 20

// crl is a revocation list with its issuer.
type crl struct {
	list    *x509.RevocationList
	issuers []*x509.Certificate // chain of its signer, as served; empty for the root's own
	root    *Root
	ca      CA // empty for the root's
	revoked map[string]int
}

// ParsePCKCRL reads the revocation list of a PCK issuer and checks its
// signature and that its issuer is ca under one of r. Dates are not judged.
func ParsePCKCRL(s Signed, ca CA, r *RootSet) (*x509.RevocationList, error) {
	c, err := parsePCKCRL(s, ca, r)
	if err != nil {
		return nil, err
	}
	return c.list, nil
}

func parsePCKCRL(s Signed, ca CA, r *RootSet) (*crl, error) {
	certs, root, err := splitChain(s.IssuerChain, 2, r)
	if err != nil {
		return nil, fmt.Errorf("dcap: PCK CRL: issuer chain: %w", err)
	}
	got, err := pckIssuer(certs[0], root)
	if err != nil {
		return nil, fmt.Errorf("dcap: PCK CRL: issuer chain: %w", err)
	}
	if got != ca {
		return nil, fmt.Errorf("dcap: PCK CRL: expected the list of the %s CA, got that of the %s CA", ca, got)
	}
	list, err := parseCRL(s.Body, certs[0])
	if err != nil {
		return nil, fmt.Errorf("dcap: PCK CRL: %w", err)
	}
	return &crl{list: list, issuers: certs, root: root, ca: ca, revoked: revoked(list)}, nil
}

// ParseRootCRL reads the root's own revocation list and checks that one of r
// signed it. Dates are not judged.
func ParseRootCRL(der []byte, r *RootSet) (*x509.RevocationList, error) {
	c, err := parseRootCRL(der, r)
	if err != nil {
		return nil, err
	}
	return c.list, nil
}

func parseRootCRL(der []byte, r *RootSet) (*crl, error) {
	errs := []error{errors.New("dcap: root CRL: no root signed it")}
	for _, root := range r.roots {
		list, err := parseCRL(der, root.Certificate)
		if err == nil {
			return &crl{list: list, root: root, revoked: revoked(list)}, nil
		}
		errs = append(errs, fmt.Errorf("root %q: %w", root.Name, err))
	}
	return nil, errors.Join(errs...)
}

func parseCRL(der []byte, issuer *x509.Certificate) (*x509.RevocationList, error) {
	if len(der) > MaxCRL {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", MaxCRL, len(der))
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return nil, fmt.Errorf("expected the issuer %s, got %s", quoteName(issuer.Subject), quoteName(list.Issuer))
	}
	if list.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return nil, fmt.Errorf("expected a signature by ECDSA with SHA-256, got %s", list.SignatureAlgorithm)
	}
	for _, e := range list.Extensions {
		if e.Critical { // such as a delta list's indicator: Intel uses none
			return nil, fmt.Errorf("expected no critical extension, got %s", e.Id)
		}
	}
	if list.NextUpdate.IsZero() || list.Number == nil {
		return nil, errors.New("expected a next update and a number")
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return list, nil
}

func revoked(list *x509.RevocationList) map[string]int {
	out := make(map[string]int, len(list.RevokedCertificateEntries))
	for i, e := range list.RevokedCertificateEntries {
		out[string(e.SerialNumber.Bytes())] = i
	}
	return out
}

// entry is the list's entry for a serial number, or nil.
func (c *crl) entry(serial *big.Int) *x509.RevocationListEntry {
	if i, ok := c.revoked[string(serial.Bytes())]; ok {
		return &c.list.RevokedCertificateEntries[i]
	}
	return nil
}
