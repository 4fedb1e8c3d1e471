package trustee

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/verifiers"
)

// Check tries what a configuration names, and reports every problem at once:
// files are read, keys and certificates parsed, the key-encryption key and the
// database asked. It creates and changes nothing.
func Check(ctx context.Context, o Options) error {
	if err := o.defaults(); err != nil {
		return err
	}
	t := &Trustee{o: o}
	c := &o.Config
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	_, err := t.auth()
	note("admin", err)
	_, err = t.trusted()
	note("token.trusted", err)
	if o.Verifiers == nil {
		note("verifiers", verifiers.Check(c.TEE, c.Collateral, o.Now))
	}
	_, err = openSigners(c.References)
	note("reference_values", err)
	_, err = listener.ParsePrefixes(c.Proxy.Trusted)
	note("proxy.trusted", err)
	_, err = readHeaders(c.Tracing.HeadersFile)
	note("tracing.headers_file", err)
	for _, w := range c.Webhooks {
		endpoint, err := endpoint(w)
		if err != nil {
			err = fmt.Errorf("webhook %q: %w", w.Name, err)
		} else {
			err = endpoint.Check() // names it
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if c.TLS.Certificate != "" {
		_, err := listener.LoadTLS(listener.TLSOptions{CertFile: c.TLS.Certificate, KeyFile: c.TLS.PrivateKey, ClientCAFile: c.Admin.ClientCA, Now: o.Now, Logger: o.Logger})
		note("tls", err)
		_, err = identity.ReadPEM(c.TLS.Root)
		note("tls.root", err)
	}
	if c.Plugins.PKI.Enabled || c.Plugins.Keyless.Enabled {
		_, err := t.openPlugins(nil)
		note("plugins", err)
	}
	note("storage", checkState(ctx, o))
	return errors.Join(errs...)
}

// checkState asks the key-encryption key and the database where they exist.
// Before the first start of a trustee with files of its own there is nothing
// to ask.
func checkState(ctx context.Context, o Options) error {
	c := &o.Config
	own := c.Storage.KEK.Kind == "file" && c.Storage.KEK.File == ""
	_, err := os.Stat(filepath.Join(c.StateDir, "kek.hex"))
	if own && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if file := c.Storage.KEK.File; c.Storage.KEK.Kind == "file" && file != "" {
		if _, err := identity.ReadSecret(file); err != nil {
			return err
		}
	}
	if _, err := os.Stat(c.StateDir); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	so, closeKEK, err := StoreOptions(ctx, o)
	if err != nil {
		return err
	}
	defer func() { _ = closeKEK() }() // nothing was written with it
	if so.DatabaseURL == "" {
		if _, err := os.Stat(so.Path); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	return store.Probe(ctx, so)
}
