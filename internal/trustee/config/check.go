package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/webhook"
)

// Validate reports every problem at once.
func (c *Config) Validate() error { return errors.Join(c.problems()...) }

func (c *Config) problems() []error {
	var p problems
	c.serverProblems(&p)
	c.adminProblems(&p)
	c.attestationProblems(&p)
	c.storageProblems(&p)
	c.operationProblems(&p)
	return p
}

func (c *Config) serverProblems(p *problems) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		p.add("listen", "a TCP address host:port", c.Listen)
	}
	p.notEmpty("state_dir", c.StateDir)
	p.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	if (c.TLS.Certificate == "") != (c.TLS.PrivateKey == "") {
		p.add("tls.certificate and tls.private_key", "both or neither", "one of them")
	}
	if c.TLS.Root != "" && c.TLS.Certificate == "" {
		p.add("tls.root", "tls.certificate beside it", "none")
	}
	if c.TLS.Certificate == "" && !c.TLS.InsecureHTTP && len(c.TLS.Names) == 0 {
		p.add("tls.names", "at least one DNS name or address", "none")
	}
	if ip := net.ParseIP(host); c.TLS.InsecureHTTP && (ip == nil || !ip.IsLoopback()) {
		p.add("tls.insecure_http", "false, or listen on a loopback address", "true with listen "+c.Listen)
	}
	for _, cidr := range c.Proxy.Trusted {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			p.add("proxy.trusted", "networks such as 10.0.0.0/8", fmt.Sprintf("%q", cidr))
		}
	}
	if c.Service.Listen != "" {
		host, port, err := net.SplitHostPort(c.Service.Listen)
		if err != nil || port == "" {
			p.add("attestation_service.listen", "a TCP address host:port, or nothing", c.Service.Listen)
		}
		if c.Service.Audience == "" || c.Service.Audience == c.Token.Audience {
			p.add("attestation_service.audience", "another one than token.audience", fmt.Sprintf("%q", c.Service.Audience))
		}
		if ip := net.ParseIP(host); c.TLS.InsecureHTTP && (ip == nil || !ip.IsLoopback()) {
			p.add("attestation_service.listen", "a loopback address with tls.insecure_http", c.Service.Listen)
		}
	}
	p.between("limits.body", c.Limits.Body, 64<<10, 64<<20)
	p.between("limits.header", c.Limits.Header, 16<<10, 8<<20)
	p.between("limits.resource", c.Limits.Resource, 1, 16<<20)
	p.positive("limits.request_timeout", c.Limits.RequestTimeout.D(), time.Hour)
	if !(c.Limits.Rate > 0 && c.Limits.Rate <= 1e6) { // also false for NaN
		p.add("limits.rate", "more than 0 and at most 1000000 requests per second", fmt.Sprint(c.Limits.Rate))
	}
	p.between("limits.burst", c.Limits.Burst, 1, 1_000_000)
	p.between("limits.concurrent", c.Limits.Concurrent, 1, 100_000)
	p.between("limits.clients", c.Limits.Clients, 100, 10_000_000)
	p.between("limits.connections", c.Limits.Connections, 16, 1_000_000)
	if d := c.Limits.DrainDelay.D(); d < 0 || d > 10*time.Minute {
		p.add("limits.drain_delay", "0 to 10m", d.String())
	}
	p.positive("limits.drain", c.Limits.Drain.D(), 10*time.Minute)
}

func (c *Config) adminProblems(p *problems) {
	p.notEmpty("admin.audience", c.Admin.Audience)
	p.positive("admin.max_token_lifetime", c.Admin.MaxTokenLifetime.D(), 10*365*24*time.Hour)
	if c.Admin.ClientCA != "" && c.TLS.InsecureHTTP {
		p.add("admin.client_ca", "TLS: tls.insecure_http = false", "true")
	}
	for i, k := range c.Admin.Keys {
		at := fmt.Sprintf("admin.key[%d].", i)
		p.notEmpty(at+"name", k.Name)
		p.notEmpty(at+"file", k.File)
		p.reach(at+"tenant", k.Tenant)
		if len(k.Roles) == 0 {
			p.add(at+"roles", "at least one of "+strings.Join(roles, ", "), "none")
		}
		for _, r := range k.Roles {
			p.oneOf(at+"roles", r, roles...)
		}
	}
	for i, o := range c.Admin.OIDC {
		at := fmt.Sprintf("admin.oidc[%d].", i)
		p.secureURL(at+"issuer", o.Issuer)
		p.notEmpty(at+"audience", o.Audience)
		p.notEmpty(at+"role_claim", o.RoleClaim)
		if (o.TenantClaim == "") == (o.Tenant == "") {
			p.add(at+"tenant_claim and "+at+"tenant", "one of them", "both or neither")
		}
		if o.Tenant != "" {
			p.reach(at+"tenant", o.Tenant)
		}
		if len(o.Roles) == 0 {
			p.add(at+"roles", "a table of values of the claim = roles of the trustee", "none")
		}
		for value, r := range o.Roles {
			p.oneOf(at+"roles."+value, r, roles...)
		}
	}
}

func (c *Config) attestationProblems(p *problems) {
	p.positive("session.timeout", c.Session.Timeout.D(), 24*time.Hour)
	p.positive("token.lifetime", c.Token.Lifetime.D(), 24*time.Hour)
	p.notEmpty("token.issuer", c.Token.Issuer)
	p.notEmpty("token.audience", c.Token.Audience)
	p.oneOf("token.algorithm", c.Token.Algorithm, "ES256", "ES384")
	for i, t := range c.Token.Trusted {
		at := fmt.Sprintf("token.trusted[%d].", i)
		p.notEmpty(at+"issuer", t.Issuer)
		if t.Issuer == c.Token.Issuer {
			p.add(at+"issuer", "another issuer than this trustee's own (token.issuer)", t.Issuer)
		}
		if (t.JWKS == "") == (t.Certificates == "") {
			p.add(at+"jwks and "+at+"certificates", "one of them", "both or neither")
		}
		if t.Tenant != "" {
			p.tenant(at+"tenant", t.Tenant)
		}
	}
	for name, id := range c.Attestation.Selectors {
		if name == "" || !policyID(id) {
			p.add("attestation.selectors."+name, "a policy id of letters, digits, - and _", id)
		}
	}
	p.between("attestation.max_concurrent", c.Attestation.MaxConcurrent, 1, 100_000)
	p.positive("policy.evaluation_timeout", c.Policy.EvaluationTimeout.D(), time.Minute)
	if c.References.Lifetime < 0 {
		p.add("reference_values.lifetime", "0 or more", c.References.Lifetime.D().String())
	}
	for i, s := range c.References.Signers {
		at := fmt.Sprintf("reference_values.signer[%d].", i)
		p.notEmpty(at+"name", s.Name)
		if len(s.Keys) == 0 && s.Roots == "" {
			p.add(at+"keys and "+at+"roots", "at least one of them", "neither")
		}
		p.reach(at+"tenant", s.Tenant)
		if len(s.Prefixes) == 0 {
			p.add(at+"prefixes", "the beginnings of names it may set (\"*\" for all)", "none")
		}
	}
	for _, f := range c.References.Unsigned {
		p.oneOf("reference_values.unsigned", f, "sample", "corim", "swid")
	}
	c.teeProblems(p)
	if pki := c.Plugins.PKI; pki.Enabled {
		p.notEmpty("plugins.pki.trust_domain", pki.TrustDomain)
		for name, r := range pki.Roles {
			at := "plugins.pki.roles." + name + "."
			if !policyID(name) {
				p.add("plugins.pki.roles", "names of letters, digits, - and _", name)
			}
			for _, u := range r.Usages {
				p.oneOf(at+"usages", u, "server", "client")
			}
			if len(r.Usages) == 0 {
				p.add(at+"usages", "server, client or both", "none")
			}
			if r.Lifetime != 0 {
				p.positive(at+"lifetime", r.Lifetime.D(), 24*time.Hour)
			}
		}
	}
}

func (c *Config) storageProblems(p *problems) {
	kek := c.Storage.KEK
	p.oneOf("storage.kek.kind", kek.Kind, "file", "pkcs11", "transit")
	switch kek.Kind {
	case "pkcs11":
		p.token("storage.kek.pkcs11.", kek.PKCS11.PKCS11)
		p.notEmpty("storage.kek.pkcs11.key_label", kek.PKCS11.KeyLabel)
	case "transit":
		p.vault("storage.kek.transit.", kek.Transit.Vault)
		p.notEmpty("storage.kek.transit.mount", kek.Transit.Mount)
		p.notEmpty("storage.kek.transit.key", kek.Transit.Key)
	}
	p.between("storage.database.max_connections", c.Storage.Database.MaxConnections, 2, 1000)
	p.positive("storage.database.retry_for", c.Storage.Database.RetryFor.D(), 10*time.Minute)
	p.oneOf("resources.backend", c.Resources.Backend, "database", "directory", "vault", "pkcs11")
	switch c.Resources.Backend {
	case "directory":
		p.notEmpty("resources.directory", c.Resources.Directory)
	case "vault":
		p.vault("resources.vault.", c.Resources.Vault.Vault)
		p.notEmpty("resources.vault.mount", c.Resources.Vault.Mount)
		p.notEmpty("resources.vault.field", c.Resources.Vault.Field)
		p.oneOf("resources.vault.encoding", c.Resources.Vault.Encoding, "base64", "text")
	case "pkcs11":
		p.token("resources.pkcs11.", c.Resources.PKCS11)
	}
}

func (c *Config) operationProblems(p *problems) {
	if c.Audit.Retention < 0 {
		p.add("audit.retention", "0 or more", c.Audit.Retention.D().String())
	}
	p.positive("audit.checkpoint_interval", c.Audit.Checkpoint.D(), 24*time.Hour)
	names := map[string]bool{}
	for i, w := range c.Webhooks {
		at := fmt.Sprintf("webhook[%d].", i)
		if !policyID(w.Name) || names[w.Name] {
			p.add(at+"name", "a name of its own of letters, digits and -", fmt.Sprintf("%q", w.Name))
		}
		names[w.Name] = true
		p.secureURL(at+"url", w.URL)
		p.notEmpty(at+"secret_file", w.SecretFile)
		p.reach(at+"tenant", w.Tenant)
		for _, e := range w.Events {
			p.oneOf(at+"events", e, webhook.Types()...)
		}
	}
	if c.Tracing.Endpoint != "" {
		p.secureURL("tracing.endpoint", c.Tracing.Endpoint)
	}
	if !(c.Tracing.SampleRatio >= 0 && c.Tracing.SampleRatio <= 1) {
		p.add("tracing.sample_ratio", "0 to 1", fmt.Sprint(c.Tracing.SampleRatio))
	}
}

// Warnings says in plain words what the configuration relaxes.
func (c *Config) Warnings() []string {
	var w []string
	if c.Policy.AllowSimulated {
		w = append(w, "policy.allow_simulated: the built-in resource policy releases secrets to software TEEs, which protect nothing from their host; for development only")
	}
	w = append(w, c.teeWarnings()...)
	if extra := slices.DeleteFunc(slices.Clone(c.References.Unsigned), func(f string) bool { return f == "sample" }); len(extra) > 0 {
		w = append(w, fmt.Sprintf("reference_values.unsigned: %s documents are believed without a signature", strings.Join(extra, " and ")))
	}
	if c.TLS.InsecureHTTP {
		w = append(w, "tls.insecure_http: administrators' tokens and resources they upload travel in the clear")
	}
	return w
}

func policyID(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

type problems []error

func (p *problems) add(key, expected, got string) {
	*p = append(*p, fmt.Errorf("%s: expected %s, got %s", key, expected, got))
}

func (p *problems) notEmpty(key, v string) {
	if v == "" {
		p.add(key, "a value", "an empty string")
	}
}

func (p *problems) oneOf(key, v string, options ...string) {
	if !slices.Contains(options, v) {
		p.add(key, "one of "+strings.Join(options, ", "), fmt.Sprintf("%q", v))
	}
}

func (p *problems) between(key string, v, lo, hi int) {
	if v < lo || v > hi {
		p.add(key, fmt.Sprintf("%d to %d", lo, hi), fmt.Sprint(v))
	}
}

func (p *problems) positive(key string, v, hi time.Duration) {
	if v <= 0 || v > hi {
		p.add(key, fmt.Sprintf("more than 0 and at most %v", hi), v.String())
	}
}

// tenant checks the name of one tenant; reach also takes "*".
func (p *problems) tenant(key, v string) {
	if _, err := tenant.Parse(v); err != nil {
		p.add(key, "a tenant's name", fmt.Sprintf("%q", v))
	}
}

func (p *problems) reach(key, v string) {
	if v != string(tenant.All) {
		p.tenant(key, v)
	}
}

// secureURL checks for https, or http to a loopback address.
// url takes plain http too: for what is signed anyway.
func (p *problems) url(key, v string) {
	if u, err := url.Parse(v); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		p.add(key, "an http or https URL", v)
	}
}

func (p *problems) secureURL(key, v string) {
	u, err := url.Parse(v)
	if err == nil && u.Host != "" && u.User == nil {
		ip := net.ParseIP(u.Hostname())
		if u.Scheme == "https" || u.Scheme == "http" && ip != nil && ip.IsLoopback() {
			return
		}
	}
	p.add(key, "an https URL without credentials (http to a loopback address only)", fmt.Sprintf("%q", v))
}

func (p *problems) token(at string, t PKCS11) {
	p.notEmpty(at+"module", t.Module)
	p.notEmpty(at+"token", t.Token)
	p.notEmpty(at+"pin_file", t.PINFile)
}

func (p *problems) vault(at string, v Vault) {
	p.secureURL(at+"address", v.Address)
	if (v.RoleID == "") != (v.SecretIDFile == "") || (v.TokenFile == "") == (v.RoleID == "") {
		p.add(at+"token_file, "+at+"role_id and "+at+"secret_id_file", "the first, or the other two", "another combination")
	}
	p.positive(at+"timeout", v.Timeout.D(), time.Minute)
}
