// Package pki is a plugin that gives attested guests short-lived X.509
// certificates of their tenant's own authority:
//
//	GET  /kbs/v0/pki/ca              the authority's certificate, PEM, encrypted to the guest
//	GET  /kbs/v0/pki/authority       the same in the clear, for administrators: what others pin
//	GET  /kbs/v0/pki/issue/ROLE      certificate and private key, JSON, encrypted to the guest
//	GET  /kbs/v0/pki/issue/ROLE?csr= certificate for the guest's own key, JSON
//	POST /kbs/v0/pki/issue/ROLE      the same with the request (PKCS #10, DER or PEM) as body
//
// A role says what names its certificates may carry, for how long and for
// what; the resource policy says which workloads may use it, as for any
// resource: its path is kbs+pki:///issue/ROLE, bindings name "+pki/issue/ROLE".
//
// Every certificate names the workload it was issued to, by the initdata of
// the evidence: spiffe://TRUST-DOMAIN/tenant/TENANT/initdata/HEX. A guest
// without initdata gets none, because its certificate would say nothing.
package pki

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Name is the plugin's.
const Name = "pki"

// Lifetimes of certificates.
const (
	DefaultLifetime = time.Hour
	MaxLifetime     = 24 * time.Hour
)

// Usage is what a certificate is good for.
type Usage string

// Usages of TLS.
const (
	Server Usage = "server"
	Client Usage = "client"
)

// Role is a kind of certificate.
type Role struct {
	// Name is the path's last segment: 1 to 64 characters of a-z 0-9 "-".
	Name string
	// DNS are the names a guest may ask for: exact ones, and "*.example.org"
	// for any name of one more label. A pattern never becomes a name: no
	// certificate holds a wildcard.
	DNS []string
	// URIs are the URIs a guest may ask for, exact. The scheme spiffe is the
	// trustee's own.
	URIs []string
	// Usages are at least one of server and client.
	Usages []Usage
	// Lifetime is at most [MaxLifetime]; 0 is [DefaultLifetime].
	Lifetime time.Duration
}

// Secrets keeps the authorities' keys: one for all replicas. create makes what
// is kept where there is nothing yet.
type Secrets interface {
	Secret(ctx context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error)
}

// Options of [New]. All are required.
type Options struct {
	Secrets Secrets
	// TrustDomain is the host part of the workloads' names, for example
	// "trustee.example.org".
	TrustDomain string
	Roles       []Role
	Now         func() time.Time
	// Rand is the source of serial numbers. (Keys and signatures come out of
	// the standard library's own randomness.)
	Rand io.Reader
}

// Plugin issues certificates. It is safe for concurrent use.
type Plugin struct {
	o     Options
	roles map[string]Role

	// mu guards authorities, which are loaded once per tenant.
	mu          sync.Mutex
	authorities map[tenant.Name]*authority
}

var (
	_ plugin.Plugin  = (*Plugin)(nil)
	_ plugin.Checker = (*Plugin)(nil)
)

// New checks the options.
func New(o Options) (*Plugin, error) {
	if o.Secrets == nil || o.Now == nil || o.Rand == nil {
		return nil, errors.New("pki: secrets, clock and randomness are required")
	}
	if err := checkTrustDomain(o.TrustDomain); err != nil {
		return nil, fmt.Errorf("pki: trust domain: %w", err)
	}
	p := &Plugin{o: o, roles: map[string]Role{}, authorities: map[tenant.Name]*authority{}}
	for _, r := range o.Roles {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("pki: role %.80q: %w", r.Name, err)
		}
		if _, ok := p.roles[r.Name]; ok {
			return nil, fmt.Errorf("pki: role %q: is defined twice", r.Name)
		}
		if r.Lifetime == 0 {
			r.Lifetime = DefaultLifetime
		}
		p.roles[r.Name] = r
	}
	return p, nil
}

// Name implements [plugin.Plugin].
func (*Plugin) Name() string { return Name }

// Access implements [plugin.Plugin]. Whether there is such a role is told to
// those whom the policy lets ask for it.
func (*Plugin) Access(method string, path []string) plugin.Access {
	switch {
	case len(path) == 1 && path[0] == "ca" && method == http.MethodGet:
		return plugin.Guest
	case len(path) == 1 && path[0] == "authority" && method == http.MethodGet:
		return plugin.Admin
	case len(path) == 2 && path[0] == "issue" && (method == http.MethodGet || method == http.MethodPost):
		return plugin.Guest
	}
	return plugin.None
}

// Check implements [plugin.Checker]: a request that cannot be read.
func (*Plugin) Check(r plugin.Request) *problem.Error {
	if r.Path[0] != "issue" {
		return nil
	}
	_, e := parse(r)
	return e
}

// Handle implements [plugin.Plugin].
func (p *Plugin) Handle(ctx context.Context, r plugin.Request) (*plugin.Response, *problem.Error) {
	a, err := p.authority(ctx, r.Tenant)
	if errors.Is(err, store.ErrUnavailable) {
		e := problem.Busy(problem.Storage, "the authority's key is not available")
		e.Cause = err
		return nil, e
	}
	if err != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	if r.Path[0] != "issue" {
		// No secret, but guests' clients decrypt whatever they get.
		return &plugin.Response{Body: secret.New([]byte(a.pem)), ContentType: "application/x-pem-file", Encrypt: r.Path[0] == "ca"}, nil
	}
	role, ok := p.roles[r.Path[1]]
	if !ok {
		return nil, problem.New(http.StatusNotFound, problem.ResourceNotFound, "pki: there is no role %q: expected one of %s",
			r.Path[1], strings.Join(slices.Sorted(maps.Keys(p.roles)), ", "))
	}
	want, e := parse(r)
	if e != nil {
		return nil, e
	}
	if e := role.allow(want); e != nil {
		return nil, e
	}
	if r.InitData == "" {
		return nil, problem.Denied(problem.PolicyDeny, "no certificate", kbs.Reason{
			Rule: "pki.initdata", Claim: "init_data", Expected: "the digest of initdata", Got: "none",
			Help: "a certificate names the workload by its initdata: start the pod with initdata",
		})
	}
	issued, err := a.issue(p, role, want, r)
	if err != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	return issued.response()
}

// certificate is what was issued.
type certificate struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
	PrivateKey  string `json:"private_key,omitempty"`
	detail      string
}

func (c *certificate) response() (*plugin.Response, *problem.Error) {
	doc, err := json.Marshal(c)
	if err != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	return &plugin.Response{Body: secret.New(doc), Encrypt: true, Detail: c.detail}, nil
}

// checkTrustDomain follows the SPIFFE ID specification, section 2.1.
func checkTrustDomain(s string) error {
	bad := func(c rune) bool {
		return c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z')
	}
	if s == "" || len(s) > 255 || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("expected 1 to 255 characters of a-z 0-9 . - _, got %.80q", s)
	}
	return nil
}

func (r Role) check() error {
	bad := func(c rune) bool { return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') }
	if r.Name == "" || len(r.Name) > 64 || strings.ContainsFunc(r.Name, bad) {
		return errors.New("name: expected 1 to 64 characters of a-z 0-9 -")
	}
	for _, pattern := range r.DNS {
		if err := checkDNS(strings.TrimPrefix(pattern, "*.")); err != nil {
			return fmt.Errorf("dns: %.80q: %w", pattern, err)
		}
	}
	for _, s := range r.URIs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme == "" || len(s) > maxURI {
			return fmt.Errorf("uri: %.80q: expected an absolute URI of at most %d bytes", s, maxURI)
		}
		if strings.EqualFold(u.Scheme, "spiffe") {
			return fmt.Errorf("uri: %.80q: the scheme spiffe is the trustee's own", s)
		}
	}
	if len(r.Usages) == 0 {
		return errors.New("usages: expected server, client or both")
	}
	for _, u := range r.Usages {
		if u != Server && u != Client {
			return fmt.Errorf("usages: expected server or client, got %.80q", string(u))
		}
	}
	if r.Lifetime < 0 || r.Lifetime > MaxLifetime || r.Lifetime != 0 && r.Lifetime < time.Minute {
		return fmt.Errorf("lifetime: expected 1m to %s, got %s", MaxLifetime, r.Lifetime)
	}
	return nil
}
