package collateral

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	_ "embed"
	"errors"
	"slices"

	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// Bounds of the search for issuers: certificates, and attempts to check a document
// with one of them.
const (
	maxIssuers  = 64
	maxAttempts = 4096
)

//go:embed intel_tcb_signing_2018.pem
var signing2018 []byte

//go:embed intel_tcb_signing_2025.pem
var signing2025 []byte

//go:embed intel_pck_platform_ca.pem
var platformCA []byte

// knownIssuers are the certificates that Intel's service sends with TCB info, of
// 2018 and of 2025, and with the platform CA's list, with Intel's root: people
// keep the documents without the header that has them. They are trusted no more than others; the checks say
// whose signature counts.
func knownIssuers() []*x509.Certificate {
	var out []*x509.Certificate
	for _, text := range [][]byte{signing2025, signing2018, platformCA} {
		if certs, err := pemchain.Parse(text); err == nil {
			out = append(out, certs...)
		}
	}
	return out
}

// issuerSet are certificates that documents which came without may be signed
// under.
type issuerSet struct {
	certs []*x509.Certificate
	// chains are those that were looked for already, in PEM.
	chains   map[*x509.Certificate][]byte
	attempts int
}

// add keeps what can be an issuer of Intel's documents, which all have keys on
// P-256, each once. It reports false where there are too many.
func (s *issuerSet) add(certs []*x509.Certificate) bool {
	for _, c := range certs {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() || slices.ContainsFunc(s.certs, c.Equal) {
			continue
		}
		if len(s.certs) >= maxIssuers {
			return false
		}
		s.certs = append(s.certs, c)
	}
	return true
}

// chain is the chain of a leaf, in PEM.
func (s *issuerSet) chain(leaf *x509.Certificate) []byte {
	chain, ok := s.chains[leaf]
	if !ok {
		chain = pemOf(chainOf(leaf, s.certs)...)
		s.chains[leaf] = chain
	}
	return chain
}

// complete checks a candidate, with issuers where it came without.
func (s *issuerSet) complete(checks *Checks, c candidate) (*Entry, error) {
	e, err := checks.check(c.item, c.body, c.chain)
	if err == nil || len(c.chain) > 0 || c.item.Kind != TCBInfo && c.item.Kind != QEIdentity && c.item.Kind != PCKCRL {
		return e, err
	}
	var name []byte
	if l, err := x509.ParseRevocationList(c.body); err == nil {
		name = l.RawIssuer
	}
	var best *Entry
	for _, leaf := range s.certs {
		if c.item.Kind == PCKCRL && !bytes.Equal(leaf.RawSubject, name) || c.item.Kind != PCKCRL && leaf.IsCA {
			continue
		}
		if s.attempts++; s.attempts > maxAttempts {
			return nil, errors.New("it came without its issuers' certificates, and there are too many documents and certificates to find out which belong together: put fewer into one place")
		}
		e, why := checks.check(c.item, c.body, s.chain(leaf))
		if why != nil {
			err = why
			continue
		}
		if best == nil {
			best = e
		}
		if !e.Issued.Before(leaf.NotBefore) && !e.Issued.After(leaf.NotAfter) {
			return e, nil
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, errors.Join(errors.New("it came without its issuers' certificates, and none here fits: put the issuer chain (PEM) beside it"), err)
}

// chainOf follows issuers upward.
func chainOf(leaf *x509.Certificate, issuers []*x509.Certificate) []*x509.Certificate {
	const longest = 4
	out := []*x509.Certificate{leaf}
	for len(out) < longest && !bytes.Equal(leaf.RawSubject, leaf.RawIssuer) {
		i := slices.IndexFunc(issuers, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, leaf.RawIssuer) && leaf.CheckSignatureFrom(c) == nil
		})
		if i < 0 {
			break
		}
		leaf = issuers[i]
		out = append(out, leaf)
	}
	return out
}
