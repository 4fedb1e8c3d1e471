package snpverify

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// maxChains bounds the cache of verified chains: one entry per chip and patch
// level seen.
const maxChains = 4096

// chains remembers which certificates chain to which root, so that a chip that
// attests again costs no RSA. It holds successes only.
type chains struct {
	mu    sync.Mutex
	known map[chainKey]chainEntry
}

type chainKey struct {
	leaf       [sha256.Size]byte
	signer     snp.Signer
	generation snp.Generation
}

type chainEntry struct {
	root     *root
	from, to time.Time
}

func (c *chains) get(k chainKey, now time.Time) (*root, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.known[k]
	if !ok || now.Before(e.from) || now.After(e.to) {
		return nil, false
	}
	return e.root, true
}

func (c *chains) put(k chainKey, e chainEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxChains {
		c.known = map[chainKey]chainEntry{}
	}
	c.known[k] = e
}

// findRoot returns the one root that the leaf chains to: AMD's of that
// generation, or else a configured development root.
func (v *verifier) findRoot(leaf *x509.Certificate, signer snp.Signer, g snp.Generation, e *snp.Evidence) (*root, []tee.Failure) {
	now := v.now()
	key := chainKey{sha256.Sum256(leaf.Raw), signer, g}
	if r, ok := v.chains.get(key, now); ok {
		return r, nil
	}
	amd := v.amd[g]
	err := amd.verify(leaf, signer, now)
	if err == nil {
		return v.remember(key, amd, leaf), nil
	}
	for _, r := range v.development {
		developmentErr := r.verify(leaf, signer, now)
		if developmentErr == nil {
			return v.remember(key, r, leaf), nil
		}
		// A chain that is right but for its dates is the better answer.
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](developmentErr); !unknown && r.intermediate(signer) != nil {
			err = developmentErr
		}
	}
	return nil, []tee.Failure{v.chainFailure(err, leaf, amd, e, now)}
}

func (v *verifier) remember(k chainKey, r *root, leaf *x509.Certificate) *root {
	from, to := r.window(leaf, k.signer)
	v.chains.put(k, chainEntry{r, from, to})
	return r
}

// chainFailure explains why no root takes the leaf.
func (v *verifier) chainFailure(err error, leaf *x509.Certificate, amd *root, e *snp.Evidence, now time.Time) tee.Failure {
	f := tee.Failure{Check: "snp.chain", Field: "cert_chain"}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		f.Expected = "a chain that is valid at " + now.UTC().Format(time.RFC3339)
		f.Got = invalid.Error()
		f.Help = "check the verifier's clock; a certificate that has expired must be fetched anew from AMD's key service, or the software TEE's state made anew"
		return f
	}
	f.Expected = fmt.Sprintf("a chain to AMD's root (%s, sha256 %s)", quoteName(amd.certs.ProductCerts.Ark.Subject), amd.fingerprint)
	if len(v.development) > 0 {
		names := make([]string, len(v.development))
		for i, r := range v.development {
			names[i] = fmt.Sprintf("%q (sha256 %s)", r.name, r.fingerprint)
		}
		f.Expected += " or to one of the development roots " + strings.Join(names, ", ")
	}
	f.Got = "a chain that ends in " + chainEnd(leaf, e)
	f.Help = "this root is neither AMD's nor a configured development root; a software TEE is accepted only where the trustee's configuration names its root in development_roots, and then its guests count as simulated"
	return f
}

// quoteName is a certificate's name for people; the certificate may be anybody's.
func quoteName(n pkix.Name) string {
	if n.CommonName != "" {
		return fmt.Sprintf("%.128q", n.CommonName)
	}
	return fmt.Sprintf("%.256q", n.String())
}

// Bounds on the strangers' certificates that an explanation looks at. AMD's
// keys have 4096 bits; a check against one of 100000 takes a second.
const (
	maxIssuers    = 4
	maxIssuerBits = 8192
)

// cheap reports whether signatures can be checked against the certificate's
// key at little cost.
func cheap(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	return ok && key.N.BitLen() <= maxIssuerBits
}

// chainEnd follows the certificates in the evidence upward from leaf. They
// decide nothing; they only tell an operator whose root this is.
func chainEnd(leaf *x509.Certificate, e *snp.Evidence) string {
	var issuers []*x509.Certificate
	for _, c := range e.CertChain {
		if c.Type != snp.CertASK && c.Type != snp.CertARK {
			continue
		}
		if len(issuers) == maxIssuers {
			break
		}
		if parsed, err := x509.ParseCertificate(c.Data); err == nil && cheap(parsed) {
			issuers = append(issuers, parsed)
		}
	}
	end := leaf
	for range issuers {
		next := end
		for _, c := range issuers {
			if !c.Equal(end) && bytes.Equal(c.RawSubject, end.RawIssuer) && end.CheckSignatureFrom(c) == nil {
				next = c
				break
			}
		}
		if next == end {
			break
		}
		end = next
	}
	if bytes.Equal(end.RawSubject, end.RawIssuer) {
		return fmt.Sprintf("%s, sha256 %s", quoteName(end.Subject), fingerprint(end))
	}
	return fmt.Sprintf("%s, sha256 %s, whose issuer %s is not in the evidence", quoteName(end.Subject), fingerprint(end), quoteName(end.Issuer))
}
