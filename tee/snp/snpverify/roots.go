package snpverify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-project/coffer/tee/snp"
)

// maxRootPEM bounds a configured development root; a real one has about 5 kB.
const maxRootPEM = 64 << 10

// root is one anchor: a root certificate with the intermediates under it.
type root struct {
	name        string // "AMD Milan", or the configured name
	development bool
	fingerprint string // SHA-256 of the root certificate, hex
	certs       *trust.AMDRootCerts
}

// amdRoot describes the certificates of one generation that go-sev-guest
// embeds, and the SHA-256 of the root among them. The digest pins the root
// independently of the library: an update that swaps it is refused.
type amdRoot struct {
	generation snp.Generation
	vcek, vlek []byte
	ark        string
}

func amdRoots() []amdRoot {
	return []amdRoot{
		{snp.Milan, trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes, "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"},
		{snp.Genoa, trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes, "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"},
		{snp.Turin, trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes, "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"},
	}
}

// load parses the embedded certificates and holds the root against its pin.
func (a amdRoot) load() (*root, error) {
	ask, ark, err := parseBundle(a.vcek)
	if err != nil {
		return nil, fmt.Errorf("snpverify: AMD's embedded %s certificates: %w", a.generation, err)
	}
	asvk, ark2, err := parseBundle(a.vlek)
	if err != nil {
		return nil, fmt.Errorf("snpverify: AMD's embedded %s certificates for VLEK: %w", a.generation, err)
	}
	for _, c := range []*x509.Certificate{ark, ark2} {
		if got := fingerprint(c); got != a.ark {
			return nil, fmt.Errorf("snpverify: AMD's embedded %s root: expected sha256 %s, got %s", a.generation, a.ark, got)
		}
	}
	return &root{
		name: "AMD " + string(a.generation), fingerprint: a.ark,
		certs: &trust.AMDRootCerts{ProductCerts: &trust.ProductCerts{Ask: ask, Asvk: asvk, Ark: ark}},
	}, nil
}

// parseBundle reads an intermediate and its root from PEM: the form of AMD's
// cert_chain.
func parseBundle(data []byte) (intermediate, ark *x509.Certificate, err error) {
	if len(data) > maxRootPEM {
		return nil, nil, fmt.Errorf("expected at most %d bytes, got %d", maxRootPEM, len(data))
	}
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return nil, nil, errors.New("expected CERTIFICATE blocks in PEM and nothing else")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) != 2 {
		return nil, nil, fmt.Errorf("expected two certificates, the intermediate and then the root, got %d", len(certs))
	}
	intermediate, ark = certs[0], certs[1]
	if err := ark.CheckSignatureFrom(ark); err != nil {
		return nil, nil, fmt.Errorf("the second certificate is not a self-signed root: %w", err)
	}
	if err := intermediate.CheckSignatureFrom(ark); err != nil {
		return nil, nil, fmt.Errorf("the first certificate is not issued by the second: %w", err)
	}
	return intermediate, ark, nil
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
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
	ask, ark, err := parseBundle(d.PEM)
	if err != nil {
		return fail("%w", err)
	}
	for _, a := range amdRoots() {
		if fingerprint(ark) == a.ark {
			return fail("this is AMD's %s root; evidence under it is not simulated, and it needs no configuration", a.generation)
		}
	}
	return &root{
		name: d.Name, development: true, fingerprint: fingerprint(ark),
		certs: &trust.AMDRootCerts{ProductCerts: &trust.ProductCerts{Ask: ask, Ark: ark}},
	}, nil
}

// intermediate is the certificate that issues the keys of a signer.
func (r *root) intermediate(s snp.Signer) *x509.Certificate {
	switch s {
	case snp.SignerVCEK:
		return r.certs.ProductCerts.Ask
	case snp.SignerVLEK:
		return r.certs.ProductCerts.Asvk
	}
	return nil
}

// verify checks the chain from leaf to r at a time.
func (r *root) verify(leaf *x509.Certificate, s snp.Signer, now time.Time) error {
	if r.intermediate(s) == nil {
		return fmt.Errorf("%s has no intermediate for %s", r.name, s)
	}
	options := r.certs.X509Options(now, abi.ReportSigner(s))
	if options == nil {
		return fmt.Errorf("%s has no chain for %s", r.name, s)
	}
	_, err := leaf.Verify(*options)
	return err
}

// window is the time in which the whole chain from leaf is valid.
func (r *root) window(leaf *x509.Certificate, s snp.Signer) (from, to time.Time) {
	from, to = leaf.NotBefore, leaf.NotAfter
	for _, c := range []*x509.Certificate{r.intermediate(s), r.certs.ProductCerts.Ark} {
		if c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if c.NotAfter.Before(to) {
			to = c.NotAfter
		}
	}
	return from, to
}
