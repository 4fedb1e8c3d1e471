// Package webhook tells other systems of failed attestations and whatever else
// the audit log records. It reads the log by a cursor that is kept in the
// database, so that nothing is lost at a restart, in an outage of the receiver,
// or by a replica that dies: every event is delivered at least once, in order.
// Receivers tell repetitions by an event's id.
//
// A delivery is a POST of a [Delivery] as JSON, signed as [SignatureHeader]
// says; any status 2xx accepts it. Redirects are not followed, and the answer's
// body is not read.
package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Source is the audit log.
type Source interface {
	Entries(ctx context.Context, t tenant.Name, q audit.Query) ([]audit.Entry, error)
}

// Cursors remember how far each webhook has come.
type Cursors interface {
	// Cursor is the sequence number of the last entry that the webhook is done
	// with; found is false where none was ever set.
	Cursor(ctx context.Context, t tenant.Name, webhook string) (seq int64, found bool, err error)
	// SetCursor moves the cursor forward; a lower number than the one that is
	// kept is ignored, because another replica was faster.
	SetCursor(ctx context.Context, t tenant.Name, webhook string, seq int64) error
}

// Observer counts deliveries. *metrics.Metrics is one.
type Observer interface {
	WebhookAttempt(delivered bool)
	WebhookEvents(n int, delivered bool)
	WebhookLag(oldest time.Time)
}

// Endpoint is one receiver.
type Endpoint struct {
	// Name tells its cursor from others': 1 to 64 characters of a-z 0-9 "-".
	Name string
	// URL is https, or http to a loopback address.
	URL string
	// Secret signs deliveries, at least [MinSecret] bytes.
	Secret secret.Bytes
	// Tenant is whose events are delivered; [tenant.All] means everybody's.
	Tenant tenant.Name
	// Events are the types to deliver. None: [AttestationFailed].
	Events []string
	// Roots verify the receiver's certificate. Default: the system's.
	Roots *x509.CertPool
}

// Options configure [New].
type Options struct {
	Endpoints []Endpoint
	Source    Source
	Cursors   Cursors
	// Tenants lists the tenants that exist.
	Tenants func(ctx context.Context) ([]tenant.Name, error)
	// Lease, where set, lets only one of several replicas deliver for a
	// webhook: it reports whether this replica may until ttl has passed.
	// Without it replicas deliver the same events, once each.
	Lease func(ctx context.Context, name string, ttl time.Duration) (bool, error)
	// Client makes the requests; its CheckRedirect and Timeout are replaced.
	// Default: one of its own for each endpoint.
	Client *http.Client
	// Poll is how often the log is looked at without [Notifier.Wake]. Default: 5 s.
	Poll time.Duration
	// Timeout bounds one request. Default: 10 s.
	Timeout time.Duration
	// MinDelay and MaxDelay bound the pause between attempts, which doubles and
	// is jittered. Default: 1 s and 5 min.
	MinDelay, MaxDelay time.Duration
	// GiveUpAfter is how long events are tried before they are left to the
	// audit log. Default: 72 h.
	GiveUpAfter time.Duration
	Now         func() time.Time
	// Jitter returns a number in [0, 1). Default: math/rand/v2.
	Jitter   func() float64
	Observer Observer
	Logger   *slog.Logger
}

// Notifier delivers events. It is safe for concurrent use.
type Notifier struct {
	o       Options
	workers []*worker
}

// New checks the options; it reports all that is wrong with the endpoints.
func New(o Options) (*Notifier, error) {
	if o.Source == nil || o.Cursors == nil || o.Tenants == nil {
		return nil, errors.New("webhook: expected a source, cursors and tenants")
	}
	setDefault(&o.Poll, 5*time.Second)
	setDefault(&o.Timeout, 10*time.Second)
	setDefault(&o.MinDelay, time.Second)
	setDefault(&o.MaxDelay, 5*time.Minute)
	setDefault(&o.GiveUpAfter, 72*time.Hour)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Jitter == nil {
		o.Jitter = rand.Float64
	}
	if o.Observer == nil {
		o.Observer = unobserved{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Notifier{o: o}
	seen := make(map[string]bool)
	var errs []error
	for _, e := range o.Endpoints {
		if err := e.Check(); err != nil {
			errs = append(errs, err)
			continue
		}
		if seen[e.Name] {
			errs = append(errs, fmt.Errorf("webhook %q: is configured twice", e.Name))
		}
		seen[e.Name] = true
		if len(e.Events) == 0 {
			e.Events = []string{AttestationFailed}
		}
		n.workers = append(n.workers, newWorker(&n.o, e))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return n, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Check refuses an endpoint that cannot work or would send events in the clear.
func (e Endpoint) Check() error {
	var errs []error
	bad := func(field, expected, got string) {
		errs = append(errs, fmt.Errorf("webhook %.64q: %s: expected %s, got %s", e.Name, field, expected, got))
	}
	if e.Name == "" || len(e.Name) > 64 || strings.Trim(e.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		bad("name", "1 to 64 characters of a-z 0-9 -", fmt.Sprintf("%.80q", e.Name))
	}
	if err := checkURL(e.URL); err != nil {
		errs = append(errs, fmt.Errorf("webhook %.64q: url: %w", e.Name, err))
	}
	if e.Secret.Len() < MinSecret {
		bad("secret", fmt.Sprintf("at least %d bytes", MinSecret), fmt.Sprintf("%d", e.Secret.Len()))
	}
	if e.Tenant != tenant.All {
		if _, err := tenant.Parse(string(e.Tenant)); err != nil {
			errs = append(errs, fmt.Errorf("webhook %.64q: %w, or %q", e.Name, err, tenant.All))
		}
	}
	for _, t := range e.Events {
		if !slices.Contains(Types(), t) {
			bad("events", "one of "+strings.Join(Types(), ", "), fmt.Sprintf("%.80q", t))
		}
	}
	return errors.Join(errs...)
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > 2048:
		return errors.New("expected https://host/path of at most 2048 bytes, got none")
	case u.User != nil:
		return errors.New("expected no user and password in it: the signature authenticates deliveries")
	case u.Host == "" || u.Fragment != "":
		return fmt.Errorf("expected https://host/path, got %.200q", u.Redacted())
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("expected https, or http to a loopback address, got %.200q", u.Redacted())
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

// Run delivers until ctx ends. A delivery that is cut off is repeated after the
// next start.
func (n *Notifier) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, w := range n.workers {
		wg.Go(func() { w.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Wake says that there may be something to deliver. It never blocks.
func (n *Notifier) Wake() {
	if n == nil {
		return
	}
	for _, w := range n.workers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// client makes requests that follow no redirect: it would send events, and
// their signature, to somebody else.
func client(o *Options, e Endpoint) *http.Client {
	c := &http.Client{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: e.Roots, Time: o.Now},
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        2,
		IdleConnTimeout:        time.Minute,
		TLSHandshakeTimeout:    o.Timeout,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	if o.Client != nil {
		copied := *o.Client
		c = &copied
	}
	c.Timeout = o.Timeout
	c.Jar = nil
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

type unobserved struct{}

func (unobserved) WebhookAttempt(bool)     {}
func (unobserved) WebhookEvents(int, bool) {}
func (unobserved) WebhookLag(time.Time)    {}
