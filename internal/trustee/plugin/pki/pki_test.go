package pki_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/pki"
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
		if e != nil || !resp.Encrypt {
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

func TestAccess(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, nil)
	for _, tc := range []struct {
		method, path string
		want         plugin.Access
	}{
		{"GET", "ca", plugin.Guest}, {"GET", "issue/web", plugin.Guest}, {"POST", "issue/web", plugin.Guest}, {"GET", "issue/none", plugin.Guest},
		{"GET", "authority", plugin.Admin}, {"POST", "authority", plugin.None},
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
