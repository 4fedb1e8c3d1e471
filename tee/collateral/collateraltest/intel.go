package collateraltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// intelAuthority is Intel: a root, two CAs and the signer of TCB info.
type intelAuthority struct {
	root, platform, processor, signer *x509.Certificate
	rootKey, caKey, signerKey         *ecdsa.PrivateKey
}

func newIntel(now time.Time) (*intelAuthority, error) {
	a := &intelAuthority{}
	var err error
	for _, key := range []**ecdsa.PrivateKey{&a.rootKey, &a.caKey, &a.signerKey} {
		if *key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	start := now.Add(-time.Hour).UTC().Truncate(time.Second)
	template := func(common string, ca bool) *x509.Certificate {
		c := &x509.Certificate{
			SignatureAlgorithm: x509.ECDSAWithSHA256, NotBefore: start.AddDate(-2, 0, 0), NotAfter: start.AddDate(20, 0, 0),
			Subject:  pkix.Name{CommonName: common, Organization: []string{"Intel Corporation"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"}, Country: []string{"US"}},
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, BasicConstraintsValid: true,
		}
		if ca {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
			c.CRLDistributionPoints = []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"}
		}
		return c
	}
	root := template("Intel SGX Root CA", true)
	root.MaxPathLen = 1
	if a.root, err = issue(root, root, &a.rootKey.PublicKey, a.rootKey); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		to   **x509.Certificate
		name string
		ca   bool
		key  *ecdsa.PrivateKey
	}{
		{&a.platform, "Intel SGX PCK Platform CA", true, a.caKey}, {&a.processor, "Intel SGX PCK Processor CA", true, a.caKey}, {&a.signer, "Intel SGX TCB Signing", false, a.signerKey},
	} {
		made := template(c.name, c.ca)
		made.MaxPathLenZero = c.ca
		if *c.to, err = issue(made, a.root, &c.key.PublicKey, a.rootKey); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// header is an issuer chain as Intel's service sends it.
func (a *intelAuthority) header(name string, leaf *x509.Certificate) http.Header {
	return http.Header{http.CanonicalHeaderKey(name): {strings.ReplaceAll(url.QueryEscape(string(certPEM(leaf))+string(certPEM(a.root))), "+", "%20")}}
}

func (s *Server) pcs(p []string, q url.Values, b Behaviour) ([]byte, http.Header, error) {
	a := s.intel
	if b.Lie == OtherRoot {
		a = s.other
	}
	d := s.dates(b)
	body, header, err := a.serve(strings.Join(p, "/"), q, d, b.Lie == OtherFMSPC)
	if b.Lie == NoChain {
		header = nil
	}
	return body, header, err
}

func (a *intelAuthority) serve(path string, q url.Values, d dates, otherFMSPC bool) ([]byte, http.Header, error) {
	tee, rest, _ := strings.Cut(path, "/certification/v4/")
	track := q.Get("update")
	if rest != "pckcrl" && rest != "rootcacrl" && path != "IntelSGXRootCA.der" && track != "standard" && track != "early" {
		return nil, nil, found(false)
	}
	switch {
	case rest == "tcb" && (tee == "tdx" || tee == "sgx"):
		fmspc := q.Get("fmspc")
		if len(fmspc) != 12 || fmspc != strings.ToUpper(fmspc) {
			return nil, nil, found(false)
		}
		if otherFMSPC {
			fmspc = "FFFFFFFFFFFF"
		}
		body, err := a.sign("tcbInfo", tcbInfo(tee, fmspc, d))
		return body, a.header("TCB-Info-Issuer-Chain", a.signer), err
	case rest == "qe/identity" && (tee == "tdx" || tee == "sgx"):
		body, err := a.sign("enclaveIdentity", identity(tee, d))
		return body, a.header("SGX-Enclave-Identity-Issuer-Chain", a.signer), err
	case path == "sgx/certification/v4/pckcrl" && q.Get("encoding") == "der":
		issuer := map[string]*x509.Certificate{"platform": a.platform, "processor": a.processor}[q.Get("ca")]
		if issuer == nil {
			return nil, nil, found(false)
		}
		body, err := a.list(issuer, a.caKey, d)
		return body, a.header("SGX-PCK-CRL-Issuer-Chain", issuer), err
	case path == "IntelSGXRootCA.der":
		body, err := a.list(a.root, a.rootKey, d)
		return body, nil, err
	case path == "sgx/certification/v4/rootcacrl":
		body, err := a.list(a.root, a.rootKey, d)
		return []byte(hex.EncodeToString(body)), nil, err
	}
	return nil, nil, found(false)
}

func (a *intelAuthority) list(issuer *x509.Certificate, key *ecdsa.PrivateKey, d dates) ([]byte, error) {
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(d.from.Unix()), ThisUpdate: d.from, NextUpdate: d.to}, issuer, key)
}

// component is an SVN of TCB info (Intel PCS API v4).
type component struct {
	SVN int `json:"svn"`
}

func components() []component { return make([]component, 16) }

type object = map[string]any

func tcbInfo(tee, fmspc string, d dates) object {
	tcb := object{"sgxtcbcomponents": components(), "pcesvn": 1}
	out := object{
		"id": strings.ToUpper(tee), "version": 3, "issueDate": d.from.Format(time.RFC3339), "nextUpdate": d.to.Format(time.RFC3339),
		"fmspc": fmspc, "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 17,
		"tcbLevels": []object{{"tcb": tcb, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}},
	}
	if tee == "tdx" {
		tcb["tdxtcbcomponents"] = components()
		zero := strings.Repeat("0", 96)
		out["tdxModule"] = object{"mrsigner": zero, "attributes": "0000000000000000", "attributesMask": "FFFFFFFFFFFFFFFF"}
	}
	return out
}

func identity(tee string, d dates) object {
	id := "QE"
	if tee == "tdx" {
		id = "TD_QE"
	}
	return object{
		"id": id, "version": 2, "issueDate": d.from.Format(time.RFC3339), "nextUpdate": d.to.Format(time.RFC3339), "tcbEvaluationDataNumber": 17,
		"miscselect": "00000000", "miscselectMask": "FFFFFFFF", "attributes": "11000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
		"mrsigner": strings.Repeat("AB", 32), "isvprodid": 2,
		"tcbLevels": []object{{"tcb": object{"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}},
	}
}

func (a *intelAuthority) sign(name string, inner object) ([]byte, error) {
	body, err := json.Marshal(inner)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	r, sig, err := ecdsa.Sign(rand.Reader, a.signerKey, sum[:])
	if err != nil {
		return nil, err
	}
	raw := append(r.FillBytes(make([]byte, 32)), sig.FillBytes(make([]byte, 32))...)
	return json.Marshal(map[string]any{name: json.RawMessage(body), "signature": hex.EncodeToString(raw)})
}

// issuers checks a chain up to this authority's root.
func (a *intelAuthority) issuers(chain []byte) (*x509.Certificate, error) {
	certs, err := pemchain.Parse(chain)
	if err != nil {
		return nil, err
	}
	if len(certs) != 2 || !certs[1].Equal(a.root) {
		return nil, errors.New("not this authority's chain")
	}
	return certs[0], certs[0].CheckSignatureFrom(a.root)
}

// checkDocument is the check of a verifier that trusts this authority.
func (a *intelAuthority) checkDocument(name string) func(body, chain []byte) (collateral.Document, error) {
	return func(body, chain []byte) (collateral.Document, error) {
		var outer map[string]json.RawMessage
		var inner struct {
			ID         string    `json:"id"`
			FMSPC      string    `json:"fmspc"`
			IssueDate  time.Time `json:"issueDate"`
			NextUpdate time.Time `json:"nextUpdate"`
		}
		var signature string
		if err := json.Unmarshal(body, &outer); err != nil {
			return collateral.Document{}, err
		}
		if err := errors.Join(json.Unmarshal(outer[name], &inner), json.Unmarshal(outer["signature"], &signature)); err != nil {
			return collateral.Document{}, err
		}
		leaf, err := a.issuers(chain)
		if err != nil {
			return collateral.Document{}, err
		}
		raw, err := hex.DecodeString(signature)
		key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
		sum := sha256.Sum256(outer[name])
		if err != nil || len(raw) != 64 || !ok || !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])) {
			return collateral.Document{}, fmt.Errorf("%s: the signature does not verify", name)
		}
		d := collateral.Document{ID: inner.ID, Issued: inner.IssueDate, NextUpdate: inner.NextUpdate}
		fmspc, err := hex.DecodeString(inner.FMSPC)
		copy(d.FMSPC[:], fmspc)
		return d, err
	}
}

func (a *intelAuthority) checkPCKCRL(der, chain []byte, ca string) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	leaf, err := a.issuers(chain)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(strings.ToLower(leaf.Subject.CommonName), ca) {
		return nil, fmt.Errorf("expected the %s CA, got %q", ca, leaf.Subject.CommonName)
	}
	return l, l.CheckSignatureFrom(leaf)
}

func (a *intelAuthority) checkRootCRL(der []byte) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	return l, l.CheckSignatureFrom(a.root)
}
