package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs"
)

// Limits of a request.
const (
	maxNames = 32
	maxURI   = 512
	maxCSR   = 16 << 10
	// RSA keys of guests, in bits.
	minRSA, maxRSA = 2048, 8192
)

// wanted is what a guest asks for.
type wanted struct {
	dns, uris []string
	// public is the guest's key, nil where the trustee shall make one.
	public any
}

// parse reads the query (dns, uri: separated by commas; csr: unpadded base64url
// of DER) and the body. Names come from the query, or from the certificate
// request where the query has none; nothing else of the request is used.
func parse(r plugin.Request) (*wanted, *problem.Error) {
	w, err := parseRequest(r)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "pki: %v", err)
	}
	return w, nil
}

func parseRequest(r plugin.Request) (*wanted, error) {
	for name := range r.Query {
		if !slices.Contains([]string{"dns", "uri", "csr"}, name) {
			return nil, fmt.Errorf("query: expected dns, uri and csr, got %.80q", name)
		}
	}
	w := &wanted{dns: split(r.Query["dns"]), uris: split(r.Query["uri"])}
	der, err := requestDER(r)
	if err != nil {
		return nil, err
	}
	if der != nil {
		csr, err := parseCSR(der)
		if err != nil {
			return nil, fmt.Errorf("csr: %w", err)
		}
		w.public = csr.PublicKey
		if len(w.dns) == 0 && len(w.uris) == 0 {
			w.dns = csr.DNSNames
			for _, u := range csr.URIs {
				w.uris = append(w.uris, u.String())
			}
		}
	}
	for i, name := range w.dns {
		// One spelling per name: comparing needs no rules then.
		if w.dns[i] = strings.ToLower(name); checkDNS(w.dns[i]) != nil {
			return nil, fmt.Errorf("dns: %.80q: %w", name, checkDNS(w.dns[i]))
		}
	}
	w.dns = slices.Compact(slices.Sorted(slices.Values(w.dns)))
	w.uris = slices.Compact(slices.Sorted(slices.Values(w.uris)))
	if len(w.dns)+len(w.uris) > maxNames {
		return nil, fmt.Errorf("expected at most %d names, got %d", maxNames, len(w.dns)+len(w.uris))
	}
	return w, nil
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// requestDER finds the certificate request, nil where there is none.
func requestDER(r plugin.Request) ([]byte, error) {
	inQuery, ok := r.Query["csr"]
	switch {
	case r.Method != http.MethodPost && len(r.Body) > 0:
		return nil, errors.New("body: expected none with GET")
	case r.Method == http.MethodPost && ok:
		return nil, errors.New("csr: expected it in the query or in the body, got both")
	case r.Method == http.MethodPost && len(r.Body) > maxCSR, len(inQuery) > maxCSR:
		return nil, fmt.Errorf("csr: expected at most %d bytes", maxCSR)
	case r.Method == http.MethodPost:
		return bodyDER(r.Body)
	case !ok:
		return nil, nil
	}
	der, err := base64.RawURLEncoding.Strict().DecodeString(inQuery)
	if err != nil || len(der) == 0 {
		return nil, errors.New("csr: expected unpadded base64url of PKCS #10 DER")
	}
	return der, nil
}

func bodyDER(body []byte) ([]byte, error) {
	if !bytes.HasPrefix(body, []byte("-----BEGIN")) {
		if len(body) == 0 {
			return nil, errors.New("body: expected a certificate request (PKCS #10)")
		}
		return body, nil
	}
	block, rest := pem.Decode(body)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("body: expected one PEM block CERTIFICATE REQUEST")
	}
	return block.Bytes, nil
}

// parseCSR checks that whoever made the request holds the key, that the key
// is one we certify, and that it asks for no kind of name that would be lost.
func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("is no certificate request (PKCS #10)")
	}
	switch k := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
			return nil, errors.New("key: expected a curve of P-256, P-384 and P-521")
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("key: expected RSA of %d to %d bits, got %d", minRSA, maxRSA, n)
		}
	default:
		return nil, errors.New("key: expected ECDSA, Ed25519 or RSA")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the signature does not verify")
	}
	if len(csr.IPAddresses) > 0 || len(csr.EmailAddresses) > 0 {
		return nil, errors.New("names: expected DNS names and URIs only")
	}
	return csr, nil
}

// checkDNS accepts host names in lower case (RFC 1123 section 2.1), of at
// least one label, without a dot at the end.
func checkDNS(name string) error {
	bad := func(c rune) bool { return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') }
	err := errors.New("expected a host name of a-z 0-9 - and dots, of at most 253 characters")
	if name == "" || len(name) > 253 {
		return err
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, bad) {
			return err
		}
	}
	return nil
}

// allow compares what is asked for with what the role gives.
func (r Role) allow(w *wanted) *problem.Error {
	var reasons []kbs.Reason
	refuse := func(claim, name string, allowed []string) {
		reasons = append(reasons, kbs.Reason{
			Rule: "pki.name", Claim: claim, Expected: "one of " + strings.Join(allowed, ", "), Got: name,
			Help: "ask for a name that the role " + r.Name + " gives, or have the trustee's operator add it",
		})
	}
	for _, name := range w.dns {
		if !slices.ContainsFunc(r.DNS, func(pattern string) bool { return matches(pattern, name) }) {
			refuse("dns", name, r.DNS)
		}
	}
	for _, uri := range w.uris {
		if !slices.Contains(r.URIs, uri) {
			refuse("uri", uri, r.URIs)
		}
	}
	if len(reasons) > 0 {
		return problem.Denied(problem.PolicyDeny, "the role "+r.Name+" does not give these names", reasons...)
	}
	return nil
}

// matches compares a name with an exact one or with "*." and a suffix, for
// which exactly one more label is needed.
func matches(pattern, name string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*")
	if !wild {
		return pattern == name
	}
	label, ok := strings.CutSuffix(name, suffix)
	return ok && label != "" && !strings.Contains(label, ".")
}
