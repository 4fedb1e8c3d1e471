// Package trustee is the relying party of confidential pods: it verifies and
// appraises their evidence, keeps resources, reference values and policies,
// and releases resources to a guest that has proved what it is. It puts the
// packages below it together and serves them over HTTPS; it can run as a
// program or inside one.
//
// Requests flow one way: http.go finds the tenant and hands guests to broker
// and administrators to adminapi; both reach evidence, policies and resources
// through evaluation, release and plugin, and keep state in store alone, so
// that any number of trustees on one database are one.
package trustee

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/adminapi"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/broker"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/metrics"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/ratelimit"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/internal/trustee/tracing"
	"github.com/coffer-project/coffer/internal/trustee/verifiers"
	"github.com/coffer-project/coffer/internal/trustee/webhook"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
)

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
	// Reload, where it is not nil, has the certificate files read again at once.
	Reload <-chan os.Signal
}

// defaults completes the options.
func (o *Options) defaults() error {
	if err := o.Config.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if o.Logger == nil {
		return errors.New("no logger")
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
	return nil
}

// Trustee is a relying party. It listens from [New] on and answers from
// [Trustee.Run] on. It is safe for concurrent use.
type Trustee struct {
	o        Options
	started  time.Time
	dir      identity.Dir
	store    *store.Store
	closeKEK func() error

	tokens       *token.Authority
	tokenKeys    tokenKeys
	plugins      *plugin.Registry
	broker       *broker.Broker
	admin        *adminapi.API
	checkpointer *audit.Checkpointer
	webhooks     *webhook.Notifier
	metrics      *metrics.Metrics
	tracing      *tracing.Tracing
	limiter      *ratelimit.Limiter
	signers      signers
	// background run beside the servers, closers when all is over.
	background []func(context.Context) error
	closers    []func() error

	adminKey ed25519.PrivateKey
	rootPEM  []byte
	tls      *listener.TLS
	listener net.Listener
	server   *http.Server
	// serviceListener and service are the attestation service's, nil where it is off.
	serviceListener net.Listener
	service         *http.Server
	draining        atomic.Bool
	// requests are those under way.
	requests  atomic.Int64
	readiness readiness
	close     func() error
}

// New opens the state, makes what keys are missing and begins to listen on
// Config.Listen. Relaxations in the configuration are logged as warnings.
func New(ctx context.Context, o Options) (_ *Trustee, err error) {
	if err := o.defaults(); err != nil {
		return nil, fmt.Errorf("trustee: %w", err)
	}
	t := &Trustee{o: o, started: o.Now()}
	t.metrics = metrics.New(metrics.Options{Version: o.Build, Plugins: []string{"keyless", "pki"}, Now: o.Now, Logger: o.Logger})
	t.close = sync.OnceValue(t.shut)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("trustee: %w", err), t.Close())
		}
	}()
	steps := []func(context.Context) error{t.openState, t.openVerifiers, t.observe, t.assemble, t.listen}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	for _, w := range o.Config.Warnings() {
		o.Logger.WarnContext(ctx, "the configuration relaxes security", "warning", w)
	}
	o.Logger.InfoContext(ctx, "trustee listens", "address", t.Addr(), "service", t.ServiceAddr(), "state", o.Config.StateDir, "database", t.store.Kind())
	return t, nil
}

// openVerifiers builds the verifiers of the configuration, with the collateral
// that they share.
func (t *Trustee) openVerifiers(ctx context.Context) error {
	if t.o.Verifiers != nil {
		return nil
	}
	c, err := verifiers.OpenCollateral(t.o.Config.Collateral, t.o.Config.StateDir, t.o.Now, t.o.Logger, func(e collateral.Event) {
		t.metrics.Collateral(e.Item.Kind.Vendor(), string(e.Type))
	})
	if err != nil {
		return err
	}
	t.closers = append(t.closers, c.Close)
	o := verifiers.Options{TEE: t.o.Config.TEE, Collateral: c, Now: t.o.Now}
	if o.TEE.SE.Enabled {
		o.Secret, err = t.store.Secret(ctx, challengeKeyName, func() ([]byte, error) { return random(verifiers.SecretSize) })
		if err != nil {
			return err
		}
	}
	t.o.Verifiers, err = verifiers.New(o)
	return err
}

// Addr is the address it listens on, host:port.
func (t *Trustee) Addr() string { return t.listener.Addr().String() }

// ServiceAddr is that of the attestation service, "" where it is off.
func (t *Trustee) ServiceAddr() string {
	if t.serviceListener == nil {
		return ""
	}
	return t.serviceListener.Addr().String()
}

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
// nil where the configuration names others.
func (t *Trustee) AdminKey() ed25519.PrivateKey { return t.adminKey }

// Run serves until ctx ends and limits.drain_delay has passed, lets requests
// under way finish, and closes the trustee. It returns nil after an orderly end.
func (t *Trustee) Run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	failed := make(chan error, 2)
	go func() { failed <- t.server.Serve(t.listener) }()
	servers := 1
	if t.service != nil {
		servers++
		go func() { failed <- t.service.Serve(t.serviceListener) }()
	}
	var tasks sync.WaitGroup
	for _, task := range t.tasks() {
		tasks.Go(func() {
			if err := task(background); err != nil && background.Err() == nil {
				t.o.Logger.ErrorContext(background, "a background task ended", "error", err)
			}
		})
	}
	var err error
	select {
	case err = <-failed:
		servers--
		err = fmt.Errorf("trustee: %w", err)
	case <-ctx.Done():
		if failure := t.linger(failed); failure != nil {
			servers--
			err = fmt.Errorf("trustee: %w", failure)
		}
	}
	err = errors.Join(err, t.drain(context.WithoutCancel(ctx)))
	for range servers {
		if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, fmt.Errorf("trustee: %w", served))
		}
	}
	// After the last request, so that the last checkpoint covers it.
	stop()
	tasks.Wait()
	return errors.Join(err, t.Close())
}

// linger serves on while /readyz tells load balancers to go elsewhere: what
// they have sent here by then must find somebody who listens. It returns early
// with a server's failure.
func (t *Trustee) linger(failed <-chan error) error {
	t.draining.Store(true)
	delay := time.NewTimer(t.o.Config.Limits.DrainDelay.D())
	defer delay.Stop()
	select {
	case <-delay.C:
		return nil
	case err := <-failed:
		return err
	}
}

// drain refuses new connections and lets requests under way finish.
func (t *Trustee) drain(ctx context.Context) error {
	t.draining.Store(true)
	ctx, cancel := context.WithTimeout(ctx, t.o.Config.Limits.Drain.D())
	defer cancel()
	var errs []error
	for _, s := range []*http.Server{t.server, t.service} {
		if s == nil {
			continue
		}
		// net/http waits for connections on which nothing was asked yet, too:
		// clients open some in advance. Nobody loses anything by their end.
		if err := s.Shutdown(ctx); err != nil && t.requests.Load() > 0 {
			errs = append(errs, fmt.Errorf("trustee: requests were cut off at shutdown: %w", err))
		}
	}
	return errors.Join(errs...)
}

// tasks run beside the servers until they are stopped.
func (t *Trustee) tasks() []func(context.Context) error {
	out := append([]func(context.Context) error{t.store.Run, t.checkpointer.Run}, t.background...)
	if t.tls != nil {
		out = append(out, func(ctx context.Context) error { return t.tls.Run(ctx, t.o.Reload) })
	}
	if t.webhooks != nil {
		out = append(out, t.webhooks.Run)
	}
	return out
}

// Close stops listening, cuts connections and closes the database. It may be
// called more than once.
func (t *Trustee) Close() error { return t.close() }

// closeTimeout bounds the export of the last traces.
const closeTimeout = 5 * time.Second

func (t *Trustee) shut() error {
	var errs []error
	for _, s := range []*http.Server{t.server, t.service} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	for _, l := range []net.Listener{t.listener, t.serviceListener} {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if t.tracing != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		if err := t.tracing.Shutdown(ctx); err != nil {
			t.o.Logger.WarnContext(ctx, "the last traces were not exported", "error", err)
		}
		cancel()
	}
	for _, f := range t.closers {
		errs = append(errs, f())
	}
	if t.store != nil {
		errs = append(errs, t.store.Close())
	}
	if t.closeKEK != nil {
		errs = append(errs, t.closeKEK())
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
