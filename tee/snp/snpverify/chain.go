package snpverify

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/snp"
)

// endorsement is who vouches for a report: a chip's certificate whose chain
// ends in root. The certificate is nil where none was found or none parses, the
// root where the chain is not accepted.
type endorsement struct {
	certificate *chipCertificate
	generation  snp.Generation
	root        *root
}

// endorse finds the certificate of the key that signed and checks its chain.
func (v *Verifier) endorse(ctx context.Context, l *checks.List, r *snp.Report, certs []snp.Certificate) endorsement {
	signer, g := r.Signer(), r.Generation()
	if signer != snp.SignerVCEK && signer != snp.SignerVLEK {
		l.Fail(tee.Failure{Check: "snp.signer", Field: "key_info", Expected: "a report signed with the VCEK or the VLEK", Got: signer.String()})
		return endorsement{}
	}
	if g == "" && r.Version >= 3 {
		l.Fail(tee.Failure{
			Check: "snp.generation", Field: "cpuid_fam_id, cpuid_mod_id", Expected: "a Milan, Genoa or Turin processor",
			Got:  fmt.Sprintf("family %#x, model %#x", *r.CPUIDFamily, *r.CPUIDModel),
			Help: "this processor generation is not known to the verifier",
		})
		return endorsement{}
	}
	der, ok := v.leaf(ctx, l, r, certs)
	if !ok {
		return endorsement{generation: g}
	}
	now := v.now()
	key := memo.KeyOf([]byte("chain"), v.roots[:], []byte{byte(signer)}, []byte(g), der)
	e, known := v.chains.Get(key, now)
	if !known {
		if e, ok = v.chain(l, der, signer, g, certs, now); !ok {
			return e
		}
		from, to := e.root.window(e.certificate.x509, signer)
		v.chains.Put(key, from, to, e)
	}
	v.checkIssuers(l, certs)
	return e
}

// leaf is the certificate of the key that signed: from the evidence, or else
// from the collateral.
func (v *Verifier) leaf(ctx context.Context, l *checks.List, r *snp.Report, certs []snp.Certificate) ([]byte, bool) {
	kind := snp.CertType(r.Signer().String())
	field := "cert_chain." + string(kind)
	var found [][]byte
	for _, c := range certs {
		if c.Type != kind {
			continue
		}
		ders, err := derOf(c.Data)
		if err != nil {
			l.Fail(tee.Failure{Check: "snp.certificate", Field: field, Expected: "a certificate, DER or PEM", Got: err.Error()})
			return nil, false
		}
		found = append(found, ders...)
	}
	switch len(found) {
	case 1:
		return found[0], true
	case 0:
		return v.fetchLeaf(ctx, l, r, field)
	}
	l.Fail(tee.Failure{Check: "snp.certificate", Field: field, Expected: "one certificate", Got: fmt.Sprint(len(found))})
	return nil, false
}

// derOf is a certificate as hosts put it into the table: DER by the
// specification, PEM in practice too.
func derOf(data []byte) ([][]byte, error) {
	if bytes.HasPrefix(data, []byte("-----BEGIN")) {
		return pemchain.Split(data)
	}
	return [][]byte{data}, nil
}

// fetchLeaf asks the collateral for the VCEK.
func (v *Verifier) fetchLeaf(ctx context.Context, l *checks.List, r *snp.Report, field string) ([]byte, bool) {
	missing := func(f tee.Failure, err error) ([]byte, bool) {
		f.Check, f.Field = "snp.chain", field
		l.Essential(f, err)
		return nil, false
	}
	signer := r.Signer().String()
	none := &tee.CollateralError{Item: signer + " certificate", Reason: tee.CollateralMissing}
	switch {
	case r.Signer() != snp.SignerVCEK:
		return missing(tee.Failure{Help: "AMD gives VLEK certificates to cloud providers only: have the host supply it with the report"}, none)
	case r.ChipID == [64]byte{}:
		return missing(tee.Failure{Help: "the report does not name the chip (MASK_CHIP_ID), so that nobody can be asked: have the host supply the certificate with the report"}, none)
	case v.options.Collateral == nil:
		return missing(tee.Failure{Help: "have the host supply it with the report, fetch it with `coffer collateral fetch`, or allow fetching"}, none)
	}
	var err error
	for _, g := range candidates(r) {
		id := r.ChipID[:]
		if g == snp.Turin {
			id = id[:8]
		}
		der, fetchErr := v.options.Collateral.VCEK(ctx, g, id, r.ReportedTCB)
		if fetchErr == nil {
			return der, true
		}
		if _, ok := errors.AsType[*tee.CollateralError](fetchErr); !ok {
			fetchErr = &tee.CollateralError{Item: vcekName(g, id, r.ReportedTCB), Reason: tee.CollateralUnreachable, Err: fetchErr}
		}
		// The chip may be of the next candidate only if this one does not exist.
		c, _ := errors.AsType[*tee.CollateralError](fetchErr)
		if err == nil || c.Reason != tee.CollateralUnknown {
			err = fetchErr
		}
		if c.Reason != tee.CollateralUnknown && c.Reason != tee.CollateralMissing {
			break
		}
	}
	return missing(tee.Failure{}, err)
}

// candidates are the generations that a report can be of. Version 2 does not
// say; it tells Turin by its layout.
func candidates(r *snp.Report) []snp.Generation {
	if g := r.Generation(); g != "" {
		return []snp.Generation{g}
	}
	if r.ReportedTCB.FMC != nil {
		return []snp.Generation{snp.Turin}
	}
	return []snp.Generation{snp.Milan, snp.Genoa}
}

// chain checks der and its chain at a time.
func (v *Verifier) chain(l *checks.List, der []byte, signer snp.Signer, g snp.Generation, certs []snp.Certificate, now time.Time) (e endorsement, ok bool) {
	field := "cert_chain." + signer.String()
	c, err := parseChipCertificate(der, signer)
	if err != nil {
		l.Fail(tee.Failure{Check: "snp.certificate", Field: field, Expected: "a certificate as AMD issues them", Got: err.Error()})
		return endorsement{generation: g}, false
	}
	if g == "" { // version 2 does not name the processor
		if g = c.generation(); g == "" {
			l.Fail(tee.Failure{Check: "snp.generation", Field: field, Expected: "a Milan, Genoa or Turin processor", Got: fmt.Sprintf("product %.64q", c.product)})
			return endorsement{certificate: c}, false
		}
	}
	e = endorsement{certificate: c, generation: g}
	amd, err := v.amd[g]()
	if err != nil {
		l.Fail(tee.Failure{Check: "snp.chain", Field: "cert_chain", Expected: "AMD's embedded certificates as they are pinned", Got: err.Error()})
		return e, false
	}
	for _, r := range append([]*root{amd}, v.development...) {
		if r.issued(c.x509, signer) != nil {
			continue
		}
		if from, to := r.window(c.x509, signer); now.Before(from) || now.After(to) {
			l.Fail(tee.Failure{
				Check: "snp.chain", Field: "cert_chain", Expected: "a chain that is valid at " + now.UTC().Format(time.RFC3339),
				Got:  fmt.Sprintf("one to %s that is valid from %s to %s: expired or not yet valid", r.name, from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339)),
				Help: "check the verifier's clock; a certificate that has expired must be fetched anew from AMD's key service, or the software TEE's state made anew",
			})
			return e, false
		}
		e.root = r
		return e, true
	}
	l.Fail(v.chainFailure(c.x509, amd, certs))
	return e, false
}

// checkIssuers refuses intermediates and roots in the evidence that are nobody's
// known ones. They decide nothing, but evidence is genuine as a whole or not.
func (v *Verifier) checkIssuers(l *checks.List, certs []snp.Certificate) {
	for _, c := range certs {
		if c.Type != snp.CertASK && c.Type != snp.CertARK {
			continue
		}
		f := tee.Failure{
			Check: "snp.chain", Field: "cert_chain." + string(c.Type), Expected: "a certificate of AMD's, or of a development root",
			Help: "the host supplies a broken or a stranger's certificate with the report",
		}
		ders, err := derOf(c.Data)
		if err != nil {
			f.Got = err.Error()
			l.Fail(f)
			continue
		}
		for _, der := range ders {
			if digest := digestOf(der); !isAMDs(digest) && !v.isDevelopment(der) {
				f.Got = "sha256 " + digest
				l.Fail(f)
			}
		}
	}
}

func (v *Verifier) isDevelopment(der []byte) bool {
	for _, r := range v.development {
		for _, c := range []*x509.Certificate{r.ask, r.ark, r.asvk} {
			if c != nil && bytes.Equal(c.Raw, der) {
				return true
			}
		}
	}
	return false
}

// chainFailure explains why no root takes the leaf.
func (v *Verifier) chainFailure(leaf *x509.Certificate, amd *root, certs []snp.Certificate) tee.Failure {
	f := tee.Failure{Check: "snp.chain", Field: "cert_chain"}
	f.Expected = fmt.Sprintf("a chain to AMD's root (%s, sha256 %s)", quoteName(amd.ark.Subject), amd.fingerprint)
	if len(v.development) > 0 {
		names := make([]string, len(v.development))
		for i, r := range v.development {
			names[i] = fmt.Sprintf("%q (sha256 %s)", r.name, r.fingerprint)
		}
		f.Expected += " or to one of the development roots " + strings.Join(names, ", ")
	}
	f.Got = "a chain that ends in " + chainEnd(leaf, certs)
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
func chainEnd(leaf *x509.Certificate, certs []snp.Certificate) string {
	var issuers []*x509.Certificate
	for _, c := range certs {
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
