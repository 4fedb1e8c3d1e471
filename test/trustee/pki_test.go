package tests

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
)

const pkiConfig = `plugins.pki.enabled = true
plugins.pki.trust_domain = "prod.example"
[plugins.pki.roles.web]
dns = ["web.example", "*.pods.example"]
usages = ["server", "client"]
lifetime = "1h"
`

type issued struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	PrivateKey  string `json:"private_key"`
}

func parseIssued(t *testing.T, doc []byte) (issued, *x509.Certificate) {
	t.Helper()
	var x issued
	if err := json.Unmarshal(doc, &x); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(x.Certificate))
	if block == nil {
		t.Fatalf("no certificate in %s", doc)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return x, cert
}

// TestPKI has attested pods fetch certificates and talk TLS with them.
func TestPKI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := launch(t, the.plain, dir, pkiConfig)
	a := s.populate("")
	web := "kbs+pki:///issue/web?dns=web.example,a.pods.example"

	// The pod is attested and bound to other resources: no certificate.
	_, err := s.good("").Resource(t.Context(), uri(t, web))
	refused(t, err, http.StatusForbidden, "initdata.registered")
	d, field := digest(t, document)
	s.must(a.Bind(t.Context(), admin.Binding{Resource: "+pki", InitData: d, Description: "web"}))

	// A key that the trustee made.
	guest := s.good("")
	v, err := guest.Resource(t.Context(), uri(t, web))
	s.must(err)
	server, leaf := parseIssued(t, v.Expose())
	// A key of the pod's own, that never leaves it.
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"b.pods.example"}}, private)
	if err != nil {
		t.Fatal(err)
	}
	v, err = guest.Resource(t.Context(), uri(t, "kbs+pki:///issue/web?csr="+base64.RawURLEncoding.EncodeToString(csr)))
	s.must(err)
	own, ownLeaf := parseIssued(t, v.Expose())
	if own.PrivateKey != "" || !private.PublicKey.Equal(ownLeaf.PublicKey) {
		t.Error("the certificate is not for the pod's key")
	}
	v, err = guest.Resource(t.Context(), uri(t, "kbs+pki:///ca"))
	s.must(err)
	ca := string(v.Expose())
	if ca != server.CA || ca != own.CA {
		t.Error("three different authorities")
	}

	// What others are to pin, an administrator gets.
	doc, err := a.Plugin(t.Context(), admin.PluginRequest{Plugin: "pki", Method: http.MethodGet, Path: "authority"})
	if err != nil || string(doc) != ca {
		t.Errorf("an administrator gets %q, %v", doc, err)
	}
	if x := s.do(s.http(), "GET", "/kbs/v0/pki/authority", guest.HeldToken(), ""); x.status != http.StatusUnauthorized {
		t.Errorf("a guest at /authority: %d %s", x.status, x.body)
	}

	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca)) {
		t.Fatalf("CA %q", ca)
	}
	for _, c := range []*x509.Certificate{leaf, ownLeaf} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.DNSNames[0], KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Error(err)
			}
		}
		want := "spiffe://prod.example/tenant/default/initdata/" + hexOf(field[:])
		if len(c.URIs) != 1 || c.URIs[0].String() != want || c.IsCA || len(c.Subject.OrganizationalUnit) != 1 || !strings.Contains(c.Subject.OrganizationalUnit[0], "simulated") {
			t.Errorf("URIs %v, subject %v; want %s", c.URIs, c.Subject, want)
		}
	}
	mutualTLS(t, roots, server, own, private)

	for query, want := range map[string]int{
		"issue/web?dns=other.example":    http.StatusForbidden,
		"issue/web?dns=*.pods.example":   http.StatusBadRequest,
		"issue/web?dns=a.b.pods.example": http.StatusForbidden,
		"issue/other":                    http.StatusNotFound,
	} {
		if x := s.do(s.http(), "GET", "/kbs/v0/pki/"+query, guest.HeldToken(), ""); x.status != want {
			t.Errorf("%s: %d %s; want %d", query, x.status, x.body, want)
		}
	}

	// Each one that was issued is on record, with its serial number and names.
	yes := true
	list, err := a.Audit(t.Context(), admin.AuditQuery{Kind: admin.KindResource, Resource: "kbs+pki:///issue/web", Granted: &yes})
	s.must(err)
	for _, c := range []*x509.Certificate{leaf, ownLeaf} {
		found := false
		for _, e := range list {
			r, err := e.Record()
			s.must(err)
			found = found || strings.Contains(r.Detail, hexOf(c.SerialNumber.Bytes())) && strings.Contains(r.Detail, c.DNSNames[0])
		}
		if !found {
			t.Errorf("serial %x is in no record of %+v", c.SerialNumber, list)
		}
	}
	if strings.Contains(s.log.String(), "PRIVATE KEY") {
		t.Error("a private key is in the log")
	}
	// The authority outlives the process.
	s.signal(os.Kill)
	s = launch(t, the.plain, dir, pkiConfig)
	v, err = s.good("").Resource(t.Context(), uri(t, "kbs+pki:///ca"))
	s.must(err)
	if string(v.Expose()) != ca {
		t.Error("another authority after a restart")
	}
}

// mutualTLS has one pod serve and another one call it.
func mutualTLS(t *testing.T, roots *x509.CertPool, server, client issued, clientKey *ecdsa.PrivateKey) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(server.Certificate), []byte(server.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].URIs[0].String())
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	defer srv.Close()
	block, _ := pem.Decode([]byte(client.Certificate))
	tr := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: "web.example", MinVersion: tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: clientKey}},
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.HasPrefix(string(body), "spiffe://prod.example/tenant/default/initdata/") {
		t.Errorf("%q, %v", body, err)
	}
}
