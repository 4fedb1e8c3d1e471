package trustee

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/webhook"
	"github.com/coffer-project/coffer/secret"
)

// records is the store as those see it who write records: each one is counted,
// and the webhooks hear of it at once.
type records struct {
	*store.Store
	t *Trustee
}

func (r records) Finish(ctx context.Context, t tenant.Name, f store.Finished, x audit.Record) error {
	return r.noted(x, r.Store.Finish(ctx, t, f, x))
}

func (r records) Append(ctx context.Context, t tenant.Name, x audit.Record) (audit.Entry, error) {
	e, err := r.Store.Append(ctx, t, x)
	return e, r.noted(x, err)
}

// SaveCheckpoint notes when the last one was made.
func (r records) SaveCheckpoint(ctx context.Context, t tenant.Name, seq int64, jws string, at time.Time) error {
	err := r.Store.SaveCheckpoint(ctx, t, seq, jws, at)
	if err == nil {
		r.t.metrics.AuditCheckpoint(at)
	}
	return err
}

func (r records) noted(x audit.Record, err error) error {
	if err != nil {
		r.t.metrics.AuditFailure()
		return err
	}
	r.t.metrics.AuditRecord(x.Kind, x.Granted)
	if r.t.webhooks != nil {
		r.t.webhooks.Wake()
	}
	return nil
}

// openWebhooks returns nil where none is configured.
func (t *Trustee) openWebhooks() (*webhook.Notifier, error) {
	var endpoints []webhook.Endpoint
	for _, c := range t.o.Config.Webhooks {
		e, err := endpoint(c)
		if err != nil {
			return nil, fmt.Errorf("webhook %q: %w", c.Name, err)
		}
		endpoints = append(endpoints, e)
	}
	if endpoints == nil {
		return nil, nil
	}
	return webhook.New(webhook.Options{
		Endpoints: endpoints, Source: t.store, Cursors: t.store, Tenants: t.tenants, Now: t.o.Now, Observer: t.metrics, Logger: t.o.Logger,
	})
}

// endpoint reads what the configuration of a webhook names.
func endpoint(c config.Webhook) (webhook.Endpoint, error) {
	key, keyErr := identity.ReadSecret(c.SecretFile)
	if keyErr != nil {
		keyErr = fmt.Errorf("secret_file: %w", keyErr)
	}
	roots, err := certPool(c.Roots)
	if err != nil {
		err = fmt.Errorf("roots: %w", err)
	}
	return webhook.Endpoint{
		Name: c.Name, URL: c.URL, Secret: secret.New(bytes.TrimSpace(key)), Tenant: tenant.Name(c.Tenant), Events: c.Events, Roots: roots,
	}, errors.Join(keyErr, err)
}

// certPool reads a file of certificates; nil, the system's, for no file.
func certPool(file string) (*x509.CertPool, error) {
	text, err := identity.ReadPEM(file)
	if err != nil || text == nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text) // ReadPEM has made sure that there are some
	return pool, nil
}

// readHeaders reads "name: value" lines; empty lines and those that begin with
// # do not count.
func readHeaders(file string) (map[string]string, error) {
	if file == "" {
		return nil, nil
	}
	text, err := identity.ReadSecret(file)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s: expected lines of the form name: value", file)
		}
		out[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return out, nil
}

// systemRandom is where long-lived keys come from, whatever Options.Rand is.
func systemRandom() io.Reader { return rand.Reader }

func random(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := rand.Read(b)
	return b, err
}
