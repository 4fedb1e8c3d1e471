// Package trustee is the relying party of confidential pods: it verifies and
// appraises their evidence, keeps resources, reference values and policies,
// and releases a resource to a guest that has proved what it is. It puts the
// packages below it together and serves them over HTTPS; it can run as a
// program or inside one.
package trustee

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/adminapi"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/broker"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/internal/trustee/verifiers"
	"github.com/coffer-project/coffer/tee"
)

// databaseFile is the database in the state directory.
const databaseFile = "trustee.db"

// Options of [New].
type Options struct {
	// Config is [config.Default] changed to taste, or a loaded file.
	Config config.Config
	// Verifiers by TEE; nil: those the configuration names.
	Verifiers map[tee.Name]tee.Verifier
	Logger    *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Rand is the source of nonces, session ids and content keys; nil:
	// crypto/rand. Long-lived keys always come from the system.
	Rand io.Reader
	// Build names the program in tokens; empty: "coffer-trustee devel".
	Build string
}

// Trustee is a relying party. It listens from [New] on and answers from
// [Trustee.Run] on. It is safe for concurrent use.
type Trustee struct {
	o        Options
	store    *store.Store
	tokens   *token.Authority
	broker   *broker.Broker
	admin    *adminapi.API
	adminKey ed25519.PrivateKey
	rootPEM  []byte
	listener net.Listener
	server   *http.Server
	close    func() error
}

// New opens the state, makes what keys are missing and begins to listen on
// Config.Listen. Relaxations in the configuration are logged as warnings.
func New(ctx context.Context, o Options) (_ *Trustee, err error) {
	c := &o.Config
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("trustee: configuration: %w", err)
	}
	if o.Logger == nil {
		return nil, errors.New("trustee: no logger")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	} else {
		o.Rand = &lockedReader{r: o.Rand}
	}
	if o.Build == "" {
		o.Build = "coffer-trustee devel"
	}
	if o.Verifiers == nil {
		if o.Verifiers, err = verifiers.New(c.TEE, o.Now); err != nil {
			return nil, fmt.Errorf("trustee: %w", err)
		}
	}
	t := &Trustee{o: o}
	t.close = sync.OnceValue(t.shut)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("trustee: %w", err), t.Close())
		}
	}()
	dir, err := identity.Open(c.StateDir)
	if err != nil {
		return nil, err
	}
	auth, err := t.keys(ctx, dir)
	if err != nil {
		return nil, err
	}
	t.assemble(auth)
	tlsConfig, err := t.tls(dir)
	if err != nil {
		return nil, err
	}
	if t.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen); err != nil {
		return nil, err
	}
	if tlsConfig != nil {
		t.listener = tls.NewListener(t.listener, tlsConfig)
	}
	t.server = t.newServer()
	for _, w := range c.Warnings() {
		o.Logger.WarnContext(ctx, "the configuration relaxes security", "warning", w)
	}
	o.Logger.InfoContext(ctx, "trustee listens", "address", t.Addr(), "state", c.StateDir)
	return t, nil
}

// keys loads the long-lived keys and opens the database.
func (t *Trustee) keys(ctx context.Context, dir identity.Dir) (adminapi.Auth, error) {
	c := &t.o.Config
	auth := adminapi.Auth{Issuer: c.Admin.Issuer, Audience: c.Admin.Audience, MaxLifetime: c.Admin.MaxTokenLifetime.D(), Now: t.o.Now}
	kek, err := dir.KEK(c.Storage.KEKFile, store.KEKSize)
	if err != nil {
		return auth, err
	}
	t.store, err = store.Open(ctx, store.Options{
		Path: dir.File(databaseFile), KEK: kek, Now: t.o.Now, Rand: t.o.Rand,
		MaxSessions: c.Session.Max, MaxVerdicts: c.Storage.MaxVerdicts,
	})
	if err != nil {
		return auth, err
	}
	signing, err := dir.TokenKeys(c.Token.KeyFiles)
	if err != nil {
		return auth, err
	}
	t.tokens, err = token.New(token.Options{
		Keys: signing, Issuer: c.Token.Issuer, Audience: c.Token.Audience, Lifetime: c.Token.Lifetime.D(), Now: t.o.Now,
	})
	if err != nil {
		return auth, err
	}
	if len(c.Admin.PublicKeys) > 0 {
		auth.Keys, err = identity.AdminPublicKeys(c.Admin.PublicKeys)
		return auth, err
	}
	if t.adminKey, err = dir.AdminKey(); err != nil {
		return auth, err
	}
	pub, _ := t.adminKey.Public().(ed25519.PublicKey)
	auth.Keys = []ed25519.PublicKey{pub}
	return auth, nil
}

// assemble wires the parts that serve requests.
func (t *Trustee) assemble(auth adminapi.Auth) {
	c := &t.o.Config
	appraiser := appraisal.New(appraisal.Options{
		Policies: policies{t.store, store.AttestationPolicy}, References: references{t.store}, Now: t.o.Now,
		Verbose: c.Attestation.VerboseToken, Timeout: c.Policy.EvaluationTimeout.D(),
	})
	decider := release.New(release.Options{
		Policies: policies{t.store, store.ResourcePolicy}, Bindings: bindings{t.store},
		AllowSimulated: c.Policy.AllowSimulated, Timeout: c.Policy.EvaluationTimeout.D(),
	})
	t.broker = broker.New(broker.Options{
		Store: t.store, Verifiers: t.o.Verifiers, Appraiser: appraiser, Decider: decider, Tokens: t.tokens,
		Selectors: c.Attestation.Selectors, SessionTimeout: c.Session.Timeout.D(), MaxBody: c.Limits.Body,
		MaxConcurrent: c.Attestation.MaxConcurrent, AllowSimulated: c.Policy.AllowSimulated, PlainHTTP: c.TLS.InsecureHTTP,
		Build: t.o.Build, Logger: t.o.Logger, Now: t.o.Now, Rand: t.o.Rand,
	})
	t.admin = adminapi.New(adminapi.Options{
		Store: t.store, Auth: auth, CheckResourcePolicy: decider.CheckPolicy, CheckAttestationPolicy: appraiser.CheckPolicy,
		MaxBody: c.Limits.Body, MaxResource: c.Limits.Resource, Lifetime: c.References.Lifetime.D(), Now: t.o.Now, Logger: t.o.Logger,
	})
}

// tls is the server's configuration, nil for plain HTTP. Session tickets are
// off: a resumed session would prove nothing new.
func (t *Trustee) tls(dir identity.Dir) (*tls.Config, error) {
	c := &t.o.Config
	out := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2", "http/1.1"}, Time: t.o.Now}
	switch {
	case c.TLS.InsecureHTTP:
		return nil, nil
	case c.TLS.Certificate != "":
		cert, err := identity.LoadCertificate(c.TLS.Certificate, c.TLS.PrivateKey)
		if err != nil {
			return nil, err
		}
		if t.rootPEM, err = identity.ReadPEM(c.TLS.Root); err != nil {
			return nil, fmt.Errorf("tls.root: %w", err)
		}
		out.Certificates = []tls.Certificate{*cert}
	default:
		authority, err := dir.Authority(c.TLS.Names, t.o.Now)
		if err != nil {
			return nil, err
		}
		t.rootPEM = authority.RootPEM()
		out.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return authority.Certificate() }
	}
	return out, nil
}

// Addr is the address it listens on, host:port.
func (t *Trustee) Addr() string { return t.listener.Addr().String() }

// URL is its base for clients on this machine.
func (t *Trustee) URL() string {
	if t.o.Config.TLS.InsecureHTTP {
		return "http://" + t.Addr()
	}
	return "https://" + t.Addr()
}

// RootPEM is what clients pin: the own authority's certificate or the
// configured tls.root; nil where there is none.
func (t *Trustee) RootPEM() []byte { return t.rootPEM }

// AdminKey is the administrator's private key that the trustee made itself,
// nil where the configuration names public keys.
func (t *Trustee) AdminKey() ed25519.PrivateKey { return t.adminKey }

// shutdownTimeout is how long requests under way may take after ctx has ended.
const shutdownTimeout = 10 * time.Second

// Run serves until ctx ends, lets requests under way finish, and closes the
// trustee. It returns nil after an orderly end.
func (t *Trustee) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- t.server.Serve(t.listener) }()
	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("trustee: %w", err), t.Close())
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := t.server.Shutdown(drain)
	if err != nil {
		err = fmt.Errorf("trustee: requests were cut off at shutdown: %w", err)
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("trustee: %w", served))
	}
	return errors.Join(err, t.Close())
}

// Close stops listening, cuts connections and closes the database. It may be
// called more than once.
func (t *Trustee) Close() error { return t.close() }

func (t *Trustee) shut() error {
	var errs []error
	if t.server != nil {
		errs = append(errs, t.server.Close())
	}
	if t.listener != nil {
		if err := t.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if t.store != nil {
		errs = append(errs, t.store.Close())
	}
	return errors.Join(errs...)
}

// lockedReader makes a source of randomness safe for concurrent use.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}
