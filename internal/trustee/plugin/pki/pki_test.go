package pki_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/pki"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/secret"
)

var now = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

// secrets keeps what was created first, as the store does.
type secrets struct {
	mu  sync.Mutex
	m   map[string][]byte
	err error
}

func (s *secrets) Secret(_ context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return secret.Bytes{}, s.err
	}
	if _, ok := s.m[name]; !ok {
		b, err := create()
		if err != nil {
			return secret.Bytes{}, err
		}
		s.m[name] = b
	}
	return secret.New(bytes.Clone(s.m[name])), nil
}

func newPlugin(t testing.TB, s *secrets) *pki.Plugin {
	t.Helper()
	if s == nil {
		s = &secrets{m: map[string][]byte{}}
	}
	p, err := pki.New(pki.Options{
		Secrets: s, TrustDomain: "trustee.example", Now: func() time.Time { return now }, Rand: rand.Reader,
		Roles: []pki.Role{
			{Name: "web", DNS: []string{"web.example", "*.pods.example"}, URIs: []string{"https://web.example/"}, Usages: []pki.Usage{pki.Server, pki.Client}},
			{Name: "client", Usages: []pki.Usage{pki.Client}, Lifetime: 10 * time.Minute},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request(role string, query map[string]string) plugin.Request {
	return plugin.Request{Tenant: "acme", Method: http.MethodGet, Path: []string{"issue", role}, Query: query, InitData: strings.Repeat("ab", 32), Session: "s"}
}

type issued struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	PrivateKey  string `json:"private_key"`
}

func issue(t *testing.T, p *pki.Plugin, r plugin.Request) (*x509.Certificate, issued, *plugin.Response) {
	t.Helper()
	if e := p.Check(r); e != nil {
		t.Fatal(e)
	}
	resp, e := p.Handle(t.Context(), r)
	if e != nil {
		t.Fatal(e)
	}
	var out issued
	if err := json.Unmarshal(resp.Body.Expose(), &out); err != nil || !resp.Encrypt {
		t.Fatalf("%v, encrypted %t", err, resp.Encrypt)
	}
	return parse(t, out.Certificate), out, resp
}

func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || len(rest) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func verify(t *testing.T, c *x509.Certificate, ca string, name string, usage x509.ExtKeyUsage) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestIssue(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	c, out, resp := issue(t, p, request("web", map[string]string{"dns": "web.example,A.pods.example", "uri": "https://web.example/"}))
	for _, name := range []string{"web.example", "a.pods.example"} {
		if err := verify(t, c, out.CA, name, x509.ExtKeyUsageServerAuth); err != nil {
			t.Error(err)
		}
	}
	const id = "spiffe://trustee.example/tenant/acme/initdata/"
	if c.URIs[0].String() != id+strings.Repeat("ab", 32) || c.URIs[1].String() != "https://web.example/" || len(c.URIs) != 2 {
		t.Errorf("URIs %v", c.URIs)
	}
	if d := c.NotAfter.Sub(now); d != pki.DefaultLifetime || c.IsCA || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 127 {
		t.Errorf("%s, CA %t, serial %x", d, c.IsCA, c.SerialNumber)
	}
	block, _ := pem.Decode([]byte(out.PrivateKey))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil || !key.(*ecdsa.PrivateKey).PublicKey.Equal(c.PublicKey) {
		t.Errorf("the key is not the certificate's: %v", err)
	}
	if !strings.Contains(resp.Detail, fmt.Sprintf("%x", c.SerialNumber)) || !strings.Contains(resp.Detail, "web.example") || strings.Contains(resp.Detail, "PRIVATE") {
		t.Errorf("detail %q", resp.Detail)
	}
	again, _, _ := issue(t, p, request("web", nil))
	if again.SerialNumber.Cmp(c.SerialNumber) == 0 || len(again.DNSNames) != 0 {
		t.Errorf("%x %v", again.SerialNumber, again.DNSNames)
	}
	only, _, _ := issue(t, p, request("client", nil))
	if err := verify(t, only, out.CA, "", x509.ExtKeyUsageServerAuth); err == nil || only.NotAfter.Sub(now) != 10*time.Minute {
		t.Errorf("a client's certificate serves: %v, until %s", err, only.NotAfter)
	}
	r := request("web", nil)
	r.Simulated = true
	if c, _, _ := issue(t, p, r); len(c.Subject.OrganizationalUnit) != 1 || !strings.Contains(c.Subject.OrganizationalUnit[0], "simulated") {
		t.Errorf("subject %s", c.Subject)
	}
}

// TestAuthorities: every tenant has its own, all replicas the same.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	s := &secrets{m: map[string][]byte{}}
	get := func(p *pki.Plugin, r plugin.Request) string {
		r.Path = []string{"ca"}
		resp, e := p.Handle(t.Context(), r)
		if e != nil || resp.Encrypt {
			t.Fatal(e)
		}
		if c := parse(t, string(resp.Body.Expose())); !c.IsCA || !c.MaxPathLenZero {
			t.Errorf("%+v", c)
		}
		return string(resp.Body.Expose())
	}
	acme := request("", nil)
	other := acme
	other.Tenant = "other"
	a, b := newPlugin(t, s), newPlugin(t, s)
	if get(a, acme) != get(b, acme) || get(a, acme) == get(a, other) {
		t.Error("authorities are mixed up")
	}
	c, _, _ := issue(t, a, request("web", nil))
	if err := verify(t, c, get(a, other), "", x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("one tenant's certificate passes for another's")
	}
	for content, status := range map[string]int{"": 500, "x": 500, get(a, acme): 500} {
		broken := &secrets{m: map[string][]byte{"pki/acme/ca": []byte(content)}}
		if _, e := newPlugin(t, broken).Handle(t.Context(), acme); e == nil || e.Status != status {
			t.Errorf("%.20q: %v", content, e)
		}
	}
	down := &secrets{err: fmt.Errorf("x: %w", store.ErrUnavailable)}
	if _, e := newPlugin(t, down).Handle(t.Context(), request("web", nil)); e == nil || e.Status != http.StatusServiceUnavailable || !errors.Is(e, store.ErrUnavailable) {
		t.Errorf("%v", e)
	}
}

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

func TestAccess(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	for _, tc := range []struct {
		method, path string
		want         plugin.Access
	}{
		{"GET", "ca", plugin.Guest}, {"GET", "issue/web", plugin.Guest}, {"POST", "issue/web", plugin.Guest}, {"GET", "issue/none", plugin.Guest},
		{"POST", "ca", plugin.None}, {"DELETE", "issue/web", plugin.None}, {"GET", "issue", plugin.None}, {"GET", "issue/web/x", plugin.None}, {"GET", "x", plugin.None},
	} {
		if got := p.Access(tc.method, strings.Split(tc.path, "/")); got != tc.want {
			t.Errorf("%s %s: %d", tc.method, tc.path, got)
		}
	}
	if p.Access("GET", nil) != plugin.None || p.Name() != "pki" {
		t.Error("the plugin itself can be got")
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

func TestConcurrent(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	var wg sync.WaitGroup
	cas := make([]string, 8)
	for i := range cas {
		wg.Go(func() { _, out, _ := issue(t, p, request("web", nil)); cas[i] = out.CA })
	}
	wg.Wait()
	if len(slices.Compact(cas)) != 1 {
		t.Error("more than one authority")
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
