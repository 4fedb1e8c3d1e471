package snpverify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/snp"
)

// maxRootPEM bounds a configured development root; a real one has about 7 kB.
const maxRootPEM = 64 << 10

// root is one anchor: a root certificate with the intermediates under it.
type root struct {
	name        string // "AMD Milan", or the configured name
	development bool
	fingerprint string // SHA-256 of the root certificate, hex
	ark, ask    *x509.Certificate
	asvk        *x509.Certificate // nil: no VLEKs
}

//go:embed amd/*.pem
var amdCertificates embed.FS

// generations are those whose roots are embedded.
func generations() []snp.Generation { return []snp.Generation{snp.Milan, snp.Genoa, snp.Turin} }

// amdPins are the SHA-256 digests of ASK, ARK and ASVK in the order of the
// embedded files. The intermediates are pinned as the roots are, so that their
// signatures need no check at run time.
func amdPins(g snp.Generation) []string {
	switch g {
	case snp.Milan:
		return []string{
			"67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
			"69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
			"c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
		}
	case snp.Genoa:
		return []string{
			"5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
			"4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
			"197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
		}
	case snp.Turin:
		return []string{
			"5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
			"1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
			"104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
		}
	}
	return nil
}

// loadAMD parses the embedded certificates of a generation and holds each
// against its pin.
func loadAMD(g snp.Generation) (*root, error) {
	pins := amdPins(g)
	if pins == nil {
		return nil, fmt.Errorf("snpverify: generation: expected Milan, Genoa or Turin, got %q", g)
	}
	text, err := amdCertificates.ReadFile("amd/" + strings.ToLower(string(g)) + ".pem")
	if err != nil {
		return nil, fmt.Errorf("snpverify: AMD's certificates: %w", err)
	}
	certs, err := parsePEM(text)
	if err != nil {
		return nil, fmt.Errorf("snpverify: AMD's %s certificates: %w", g, err)
	}
	return pinned(g, certs, pins)
}

func pinned(g snp.Generation, certs []*x509.Certificate, pins []string) (*root, error) {
	if len(certs) != len(pins) {
		return nil, fmt.Errorf("snpverify: AMD's %s certificates: expected %d, got %d", g, len(pins), len(certs))
	}
	for i, c := range certs {
		if got := fingerprint(c); got != pins[i] {
			return nil, fmt.Errorf("snpverify: AMD's %s certificate %d: expected sha256 %s, got %s", g, i, pins[i], got)
		}
	}
	return &root{name: "AMD " + string(g), fingerprint: pins[1], ask: certs[0], ark: certs[1], asvk: certs[2]}, nil
}

// isAMDs says whether a certificate is AMD's root or intermediate of any
// generation, by its digest.
func isAMDs(digest string) bool {
	return slices.ContainsFunc(generations(), func(g snp.Generation) bool { return slices.Contains(amdPins(g), digest) })
}

func parsePEM(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxRootPEM {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", maxRootPEM, len(text))
	}
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return nil, errors.New("expected CERTIFICATE blocks in PEM and nothing else")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

func fingerprint(c *x509.Certificate) string { return digestOf(c.Raw) }

func digestOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// loadDevelopment parses a configured root.
func loadDevelopment(d DevelopmentRoot) (*root, error) {
	fail := func(format string, args ...any) (*root, error) {
		return nil, fmt.Errorf("snpverify: development root %q: "+format, append([]any{d.Name}, args...)...)
	}
	if d.Name == "" {
		return fail("name is empty; give each root a name that claims can show")
	}
	certs, err := parsePEM(d.PEM)
	if err != nil {
		return fail("%w", err)
	}
	if len(certs) != 2 && len(certs) != 3 {
		return fail("expected the intermediate, the root and perhaps the intermediate of VLEKs, got %d certificates", len(certs))
	}
	r := &root{name: d.Name, development: true, fingerprint: fingerprint(certs[1]), ask: certs[0], ark: certs[1]}
	if isAMDs(r.fingerprint) {
		return fail("this is AMD's root; evidence under it is not simulated, and it needs no configuration")
	}
	if err := r.ark.CheckSignatureFrom(r.ark); err != nil {
		return fail("the second certificate is not a self-signed root: %w", err)
	}
	if err := r.ask.CheckSignatureFrom(r.ark); err != nil {
		return fail("the first certificate is not issued by the second: %w", err)
	}
	if len(certs) == 3 {
		r.asvk = certs[2]
		if err := r.asvk.CheckSignatureFrom(r.ark); err != nil {
			return fail("the third certificate is not issued by the second: %w", err)
		}
	}
	return r, nil
}

// intermediate is the certificate that issues the keys of a signer, or nil.
func (r *root) intermediate(s snp.Signer) *x509.Certificate {
	switch s {
	case snp.SignerVCEK:
		return r.ask
	case snp.SignerVLEK:
		return r.asvk
	}
	return nil
}

// issued checks that the root's intermediate signed leaf. It does not look at
// dates.
func (r *root) issued(leaf *x509.Certificate, s snp.Signer) error {
	issuer := r.intermediate(s)
	if issuer == nil {
		return fmt.Errorf("%s has no intermediate for %s", r.name, s)
	}
	if !bytes.Equal(leaf.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("expected the issuer %s, got %s", quoteName(issuer.Subject), quoteName(leaf.Issuer))
	}
	return issuer.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature)
}

// window is the time in which the whole chain from leaf is valid.
func (r *root) window(leaf *x509.Certificate, s snp.Signer) (from, to time.Time) {
	from, to = leaf.NotBefore, leaf.NotAfter
	for _, c := range []*x509.Certificate{r.intermediate(s), r.ark} {
		if c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if c.NotAfter.Before(to) {
			to = c.NotAfter
		}
	}
	return from, to
}
