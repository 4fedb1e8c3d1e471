package pki_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/pki"
	"github.com/coffer-project/coffer/internal/trustee/problem"
)

func csr(t testing.TB, key any, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOwnKey(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	key := ecKey(t, elliptic.P256())
	der := csr(t, key, x509.CertificateRequest{DNSNames: []string{"web.example"}})
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	inQuery := request("web", map[string]string{"csr": base64.RawURLEncoding.EncodeToString(der)})
	named := request("web", map[string]string{"csr": base64.RawURLEncoding.EncodeToString(der), "dns": "x.pods.example"})
	post, postPEM := request("web", nil), request("web", nil)
	post.Method, post.Body = http.MethodPost, der
	postPEM.Method, postPEM.Body = http.MethodPost, asPEM
	for name, r := range map[string]plugin.Request{"query": inQuery, "query with names": named, "DER": post, "PEM": postPEM} {
		c, out, _ := issue(t, p, r)
		if !key.PublicKey.Equal(c.PublicKey) || out.PrivateKey != "" {
			t.Errorf("%s: another key", name)
		}
		if (c.DNSNames[0] == "web.example") == (name == "query with names") || len(c.DNSNames) != 1 {
			t.Errorf("%s: %v", name, c.DNSNames)
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	post.Body = csr(t, private, x509.CertificateRequest{})
	if c, _, _ := issue(t, p, post); !private.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
		t.Error("another key")
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	for dns, status := range map[string]int{
		"other.example": 403, "pods.example": 403, "a.b.pods.example": 403, "xpods.example": 403, "web.example,other.example": 403,
		"*.pods.example": 400, ".": 400, "web.example.": 400, ",": 400, "wéb.example": 400, "a..pods.example": 400, "-a.pods.example": 400,
		strings.Repeat("a", 64) + ".pods.example": 400, "x y": 400,
	} {
		e := handle(t, p, request("web", map[string]string{"dns": dns}))
		if e == nil || e.Status != status || status == 403 && e.Info.Reason.Rule != "pki.name" {
			t.Errorf("%q: %v", dns, e)
		}
	}
	many := make([]string, 33)
	for i := range many {
		many[i] = fmt.Sprintf("a%d.pods.example", i)
	}
	bare := request("web", nil)
	bare.InitData = ""
	get := request("web", nil)
	get.Body = []byte("x")
	for name, tc := range map[string]struct {
		r      plugin.Request
		status int
		text   string
	}{
		"many names":  {request("web", map[string]string{"dns": strings.Join(many, ",")}), 400, "at most 32"},
		"uri":         {request("web", map[string]string{"uri": "https://other/"}), 403, "pki.name"},
		"spiffe":      {request("web", map[string]string{"uri": "spiffe://trustee.example/tenant/acme/initdata/00"}), 403, "pki.name"},
		"parameter":   {request("web", map[string]string{"ip": "1.2.3.4"}), 400, "expected dns, uri and csr"},
		"role":        {request("none", nil), 404, "client, web"},
		"no initdata": {bare, 403, "pki.initdata"},
		"csr":         {request("web", map[string]string{"csr": "AA=="}), 400, "base64url"},
		"empty csr":   {request("web", map[string]string{"csr": ""}), 400, "base64url"},
		"no csr":      {request("web", map[string]string{"csr": "AAAA"}), 400, "PKCS #10"},
		"long csr":    {request("web", map[string]string{"csr": strings.Repeat("A", 20<<10)}), 400, "at most"},
		"body":        {get, 400, "none with GET"},
		"no body":     {posted(nil), 400, "PKCS #10"},
		"long body":   {posted(make([]byte, 20<<10)), 400, "at most"},
		"two blocks":  {posted([]byte("-----BEGIN X-----\n-----END X-----\n")), 400, "PEM block"},
	} {
		if e := handle(t, p, tc.r); e == nil || e.Status != tc.status || !strings.Contains(e.Info.Detail, tc.text) {
			t.Errorf("%s: %v", name, e)
		}
	}
}

func posted(body []byte) plugin.Request {
	r := request("web", nil)
	r.Method, r.Body = http.MethodPost, body
	return r
}

// handle does what the broker does.
func handle(t *testing.T, p *pki.Plugin, r plugin.Request) *problem.Error {
	t.Helper()
	if e := p.Check(r); e != nil {
		return e
	}
	resp, e := p.Handle(t.Context(), r)
	if (resp == nil) == (e == nil) {
		t.Fatalf("got %v, %v", resp, e)
	}
	return e
}

func TestCSRsRefused(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	key := ecKey(t, elliptic.P256())
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	forged := csr(t, key, x509.CertificateRequest{DNSNames: []string{"web.example"}})
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"signature": forged,
		"P-224":     csr(t, ecKey(t, elliptic.P224()), x509.CertificateRequest{}),
		"small RSA": csr(t, small, x509.CertificateRequest{}),
		"address":   csr(t, key, x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(1, 2, 3, 4)}}),
		"email":     csr(t, key, x509.CertificateRequest{EmailAddresses: []string{"a@web.example"}}),
		"wildcard":  csr(t, key, x509.CertificateRequest{DNSNames: []string{"*.pods.example"}}),
		"trailing":  append(csr(t, key, x509.CertificateRequest{}), 0),
	} {
		if e := handle(t, p, posted(der)); e == nil || e.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", name, e)
		}
	}
	uri, err := url.Parse("spiffe://trustee.example/tenant/other/initdata/00")
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"name": csr(t, key, x509.CertificateRequest{DNSNames: []string{"other.example"}}),
		"uri":  csr(t, key, x509.CertificateRequest{URIs: []*url.URL{uri}}),
	} {
		if e := handle(t, p, posted(der)); e == nil || e.Status != http.StatusForbidden {
			t.Errorf("%s: %v", name, e)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	role := pki.Role{Name: "web", DNS: []string{"web.example"}, Usages: []pki.Usage{pki.Server}}
	good := func() pki.Options {
		return pki.Options{Secrets: &secrets{}, TrustDomain: "t.example", Now: time.Now, Rand: rand.Reader, Roles: []pki.Role{role}}
	}
	if _, err := pki.New(good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(o *pki.Options, r *pki.Role){
		"secrets":        func(o *pki.Options, _ *pki.Role) { o.Secrets = nil },
		"trust domain":   func(o *pki.Options, _ *pki.Role) { o.TrustDomain = "A/b" },
		"no domain":      func(o *pki.Options, _ *pki.Role) { o.TrustDomain = "" },
		"twice":          func(o *pki.Options, _ *pki.Role) { o.Roles = []pki.Role{role, role} },
		"name":           func(_ *pki.Options, r *pki.Role) { r.Name = "Web" },
		"star":           func(_ *pki.Options, r *pki.Role) { r.DNS = []string{"*"} },
		"star inside":    func(_ *pki.Options, r *pki.Role) { r.DNS = []string{"a.*.example"} },
		"upper case":     func(_ *pki.Options, r *pki.Role) { r.DNS = []string{"Web.example"} },
		"uri":            func(_ *pki.Options, r *pki.Role) { r.URIs = []string{"web"} },
		"spiffe":         func(_ *pki.Options, r *pki.Role) { r.URIs = []string{"SPIFFE://x/y"} },
		"no usage":       func(_ *pki.Options, r *pki.Role) { r.Usages = nil },
		"usage":          func(_ *pki.Options, r *pki.Role) { r.Usages = []pki.Usage{"sign"} },
		"long lifetime":  func(_ *pki.Options, r *pki.Role) { r.Lifetime = 25 * time.Hour },
		"short lifetime": func(_ *pki.Options, r *pki.Role) { r.Lifetime = time.Second },
	} {
		o := good()
		r := role
		o.Roles = []pki.Role{r}
		change(&o, &r)
		if len(o.Roles) == 1 {
			o.Roles[0] = r
		}
		if _, err := pki.New(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzRequest(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	f.Add([]byte(nil), "web.example", "", "")
	f.Add(csr(f, key, x509.CertificateRequest{DNSNames: []string{"web.example"}}), "", "", "AA")
	p := newPlugin(f, nil)
	f.Fuzz(func(t *testing.T, body []byte, dns, uri, inQuery string) {
		r := posted(body)
		r.Query = map[string]string{"dns": dns, "uri": uri}
		if inQuery != "" {
			r.Query["csr"] = inQuery
			r.Method = http.MethodGet
		}
		if e := p.Check(r); e != nil {
			if e.Status != http.StatusBadRequest {
				t.Fatal(e)
			}
			return
		}
		resp, e := p.Handle(t.Context(), r)
		if e != nil {
			if e.Status >= 500 {
				t.Fatal(e)
			}
			return
		}
		var out issued
		if err := json.Unmarshal(resp.Body.Expose(), &out); err != nil {
			t.Fatal(err)
		}
		for _, name := range parse(t, out.Certificate).DNSNames {
			if name != "web.example" && !strings.HasSuffix(name, ".pods.example") {
				t.Fatalf("name %q", name)
			}
		}
	})
}
