package trustee

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"golang.org/x/net/netutil"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/broker"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/keyless"
	"github.com/coffer-project/coffer/internal/trustee/plugin/pki"
	"github.com/coffer-project/coffer/internal/trustee/plugin/resources"
	"github.com/coffer-project/coffer/internal/trustee/ratelimit"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/internal/trustee/tracing"
	"github.com/coffer-project/coffer/kbs"
	sigstore "github.com/coffer-project/coffer/oci/signature/keyless"
	"github.com/coffer-project/coffer/tee"
)

// openState opens the database and what is kept beside it.
func (t *Trustee) openState(ctx context.Context) (err error) {
	if t.dir, err = identity.Open(t.o.Config.StateDir); err != nil {
		return err
	}
	so, closeKEK, err := StoreOptions(ctx, t.o)
	if err != nil {
		return err
	}
	t.closeKEK = closeKEK
	so.Observer = observer{t.metrics}
	if t.store, err = store.Open(ctx, so); err != nil {
		return err
	}
	c := &t.o.Config
	if len(c.Admin.PublicKeys) == 0 && len(c.Admin.Keys) == 0 && len(c.Admin.OIDC) == 0 {
		if err := t.dir.ShareAdminKey(ctx, t.store); err != nil {
			return err
		}
		if t.adminKey, err = t.dir.AdminKey(); err != nil {
			return err
		}
	}
	t.tokenKeys = tokenKeys{
		store: t.store, algorithm: c.Token.Algorithm, legacy: t.dir.LegacyTokenKey(), now: t.o.Now, keep: 2 * c.Token.Lifetime.D(),
	}
	trusted, err := t.trusted()
	if err != nil {
		return err
	}
	t.tokens, err = token.New(ctx, token.Options{
		Keys: t.tokenKeys, Issuer: c.Token.Issuer, Audience: c.Token.Audience, Lifetime: c.Token.Lifetime.D(), Now: t.o.Now, Trusted: trusted,
	})
	return err
}

// observe prepares traces and limits.
func (t *Trustee) observe(ctx context.Context) (err error) {
	c := &t.o.Config
	headers, err := readHeaders(c.Tracing.HeadersFile)
	if err != nil {
		return fmt.Errorf("tracing.headers_file: %w", err)
	}
	t.tracing, err = tracing.New(ctx, tracing.Options{
		Endpoint: c.Tracing.Endpoint, Headers: headers, SampleRatio: c.Tracing.SampleRatio, Version: t.o.Build, Logger: t.o.Logger,
	})
	if err != nil {
		return err
	}
	t.limiter, err = ratelimit.New(ratelimit.Options{
		Rate: c.Limits.Rate, Burst: c.Limits.Burst, Concurrent: c.Limits.Concurrent, MaxClients: c.Limits.Clients, Now: t.o.Now,
	})
	if err == nil {
		t.metrics.RateLimitClients(t.limiter.Clients)
	}
	return err
}

// Where the store keeps the key that seals cookies, and the one that seals what
// IBM Secure Execution guests carry.
const (
	sessionKeyName   = "session-key"
	challengeKeyName = "se-challenge-key"
)

// challengers are the verifiers that make a challenge of their own.
func challengers(list map[tee.Name]tee.Verifier) map[tee.Name]func(context.Context) (string, error) {
	out := map[tee.Name]func(context.Context) (string, error){}
	for name, v := range list {
		if c, ok := v.(interface {
			Challenge(ctx context.Context) (string, error)
		}); ok {
			out[name] = c.Challenge
		}
	}
	return out
}

// brokerChallengers are the same for the broker.
func brokerChallengers(list map[tee.Name]tee.Verifier) map[tee.Name]broker.Challenger {
	out := map[tee.Name]broker.Challenger{}
	for name, c := range challengers(list) {
		out[name] = challenger(c)
	}
	return out
}

// challenger makes the same challenge for every tenant and every request.
type challenger func(ctx context.Context) (string, error)

func (c challenger) Challenge(ctx context.Context, _ tenant.Name, _ *kbs.Request) (string, error) {
	return c(ctx)
}

// assemble wires the parts that serve requests.
func (t *Trustee) assemble(ctx context.Context) error {
	c := &t.o.Config
	appraiser := appraisal.New(appraisal.Options{
		Policies: attestationPolicies{t.store}, References: references{t.store}, Now: t.o.Now,
		Verbose: c.Attestation.VerboseToken, Timeout: c.Policy.EvaluationTimeout.D(),
	})
	decider := release.New(release.Options{
		Policies: resourcePolicies{t.store}, Bindings: bindings{t.store},
		AllowSimulated: c.Policy.AllowSimulated, Timeout: c.Policy.EvaluationTimeout.D(),
	})
	evaluator := evaluation.New(evaluation.Options{
		Verifiers: t.o.Verifiers, Appraiser: appraiser, Tokens: t.tokens, MaxConcurrent: c.Attestation.MaxConcurrent, Build: t.o.Build,
	})
	backend, err := t.backend(ctx)
	if err != nil {
		return err
	}
	backend = counted{backend, t.metrics}
	if t.plugins, err = t.openPlugins(backend); err != nil {
		return err
	}
	key, err := t.store.Secret(ctx, sessionKeyName, func() ([]byte, error) { return random(session.KeySize) })
	if err != nil {
		return err
	}
	sessions, err := session.New(session.Options{Key: key, Now: t.o.Now, Rand: t.o.Rand})
	if err != nil {
		return err
	}
	signer, err := audit.NewSigner(ctx, t.store, systemRandom())
	if err != nil {
		return err
	}
	t.checkpointer = audit.NewCheckpointer(audit.CheckpointerOptions{
		Log: records{t.store, t}, Signer: signer, Tenants: t.tenants, Interval: c.Audit.Checkpoint.D(), Now: t.o.Now, Logger: t.o.Logger,
	})
	if t.webhooks, err = t.openWebhooks(); err != nil {
		return err
	}
	if t.signers, err = openSigners(c.References); err != nil {
		return err
	}
	t.broker, err = broker.New(broker.Options{
		Store: records{t.store, t}, Sessions: sessions, Evaluator: evaluator, Decider: decider, Tokens: t.tokens, Plugins: t.plugins,
		TEEs: slices.Sorted(maps.Keys(t.o.Verifiers)), Challengers: brokerChallengers(t.o.Verifiers), Selectors: c.Attestation.Selectors, SessionTimeout: c.Session.Timeout.D(),
		MaxBody: c.Limits.Body, AllowSimulated: c.Policy.AllowSimulated, PlainHTTP: c.TLS.InsecureHTTP, ClientAddr: listener.ClientText,
		Metrics: t.metrics, Logger: t.o.Logger, Now: t.o.Now, Rand: t.o.Rand,
	})
	if err != nil {
		return err
	}
	if err := t.openAdmin(backend, appraiser, decider, signer); err != nil {
		return err
	}
	return t.openService(evaluator, appraiser)
}

func (t *Trustee) openPlugins(backend resource.Backend) (*plugin.Registry, error) {
	all := []plugin.Plugin{resources.New(backend)}
	if c := t.o.Config.Plugins.PKI; c.Enabled {
		var roles []pki.Role
		for _, name := range slices.Sorted(maps.Keys(c.Roles)) {
			r := c.Roles[name]
			role := pki.Role{Name: name, DNS: r.DNS, Lifetime: r.Lifetime.D()}
			for _, u := range r.Usages {
				role.Usages = append(role.Usages, pki.Usage(u))
			}
			roles = append(roles, role)
		}
		p, err := pki.New(pki.Options{Secrets: t.store, TrustDomain: c.TrustDomain, Roles: roles, Now: t.o.Now, Rand: systemRandom()})
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if c := &t.o.Config.Plugins.Keyless; c.Enabled {
		p, err := openKeyless(c)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return plugin.New(all...)
}

func openKeyless(c *config.Keyless) (*keyless.Plugin, error) {
	o := keyless.Options{Verifier: sigstore.New()}
	for _, list := range []struct {
		key   string
		files []string
		to    *[][]byte
	}{{"authorities", c.Authorities, &o.Authorities}, {"logs", c.Logs, &o.Logs}} {
		for _, file := range list.files {
			text, err := identity.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("plugins.keyless.%s: %w", list.key, err)
			}
			*list.to = append(*list.to, text)
		}
	}
	return keyless.New(o)
}

// listen opens the listeners last: what answers is complete.
func (t *Trustee) listen(ctx context.Context) error {
	c := &t.o.Config
	config, err := t.tlsConfig(ctx)
	if err != nil {
		return err
	}
	trusted, err := listener.ParsePrefixes(c.Proxy.Trusted)
	if err != nil {
		return fmt.Errorf("proxy.trusted: %w", err)
	}
	open := func(address string) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		l = netutil.LimitListener(l, c.Limits.Connections)
		if len(trusted) > 0 {
			l = listener.Proxy{Trusted: trusted, Required: c.Proxy.Required}.Listener(l)
		}
		if config != nil {
			l = tls.NewListener(l, config)
		}
		return l, nil
	}
	if t.listener, err = open(c.Listen); err != nil {
		return err
	}
	t.server = t.newServer(t.Handler())
	if t.service == nil {
		return nil
	}
	t.serviceListener, err = open(c.Service.Listen)
	return err
}

// tlsConfig is the server's configuration, nil for plain HTTP.
func (t *Trustee) tlsConfig(ctx context.Context) (*tls.Config, error) {
	c := &t.o.Config
	if c.TLS.InsecureHTTP {
		return nil, nil
	}
	o := listener.TLSOptions{ClientCAFile: c.Admin.ClientCA, Now: t.o.Now, Logger: t.o.Logger}
	if c.TLS.Certificate != "" {
		root, err := identity.ReadPEM(c.TLS.Root)
		if err != nil {
			return nil, fmt.Errorf("tls.root: %w", err)
		}
		t.rootPEM, o.CertFile, o.KeyFile = root, c.TLS.Certificate, c.TLS.PrivateKey
	} else {
		make := func() (*identity.Authority, error) { return t.dir.Authority(c.TLS.Names, t.o.Now, t.o.Logger) }
		if err := t.dir.ShareAuthority(ctx, t.store, make); err != nil {
			return nil, err
		}
		authority, err := make()
		if err != nil {
			return nil, err
		}
		t.rootPEM, o.Certificate = authority.RootPEM(), authority.Certificate
	}
	var err error
	if t.tls, err = listener.LoadTLS(o); err != nil {
		return nil, err
	}
	return t.tls.Config(), nil
}

// adminKeys are the keys of the configuration that may do everything, and the
// trustee's own.
func (t *Trustee) adminKeys() ([]ed25519.PublicKey, error) {
	keys, err := identity.AdminPublicKeys(t.o.Config.Admin.PublicKeys)
	if err != nil {
		return nil, err
	}
	if t.adminKey != nil {
		pub, ok := t.adminKey.Public().(ed25519.PublicKey)
		if !ok {
			return nil, errors.New("administrator's key: is no Ed25519 key")
		}
		keys = append(keys, pub)
	}
	return keys, nil
}
