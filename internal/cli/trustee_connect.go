package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
)

// Limits of small input files.
const (
	maxKeyFile   = 64 << 10
	maxTokenFile = 64 << 10
)

// adminFlags say which trustee is administered, and as whom.
type adminFlags struct {
	url, tenant, ca, key, tokenFile, cert, certKey, role, state string
}

func (f *adminFlags) add(c *cobra.Command) { f.addTo(c, false) }

// addTo adds the flags to a command, or to all below it.
func (f *adminFlags) addTo(c *cobra.Command, below bool) {
	flags := c.Flags()
	if below {
		flags = c.PersistentFlags()
	}
	flags.StringVar(&f.url, "trustee", "", "the trustee's URL (default: the embedded one)")
	flags.StringVar(&f.tenant, "tenant", "", "the tenant to administer (default: that of the URL)")
	flags.StringVar(&f.ca, "trustee-ca", "", "PEM file with the certificates that vouch for the trustee")
	flags.StringVar(&f.key, "admin-key", "", "PEM file with the administrator's Ed25519 key (this or --token-file with --trustee)")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with an OpenID provider's token, read again for every request")
	flags.StringVar(&f.cert, "client-cert", "", "PEM file with a client certificate, where the trustee asks for one")
	flags.StringVar(&f.certKey, "client-key", "", "PEM file with the key of --client-cert")
	flags.StringVar(&f.role, "role", "", "role to claim with the key: "+strings.Join(adminRoles(), ", ")+" (default: admin)")
	flags.StringVar(&f.state, "state", run.DefaultState(), "state directory of the embedded trustee")
}

func adminRoles() []string {
	return []string{admin.RoleAdmin, admin.RolePolicyAuthor, admin.RoleSecretWriter, admin.RoleAuditor}
}

// remote are the flags that only another trustee than the embedded one has a
// use for.
func remoteFlags() []string {
	return []string{"trustee-ca", "admin-key", "token-file", "client-cert", "client-key"}
}

// connectionFlags are all of them.
func connectionFlags() []string {
	return append(remoteFlags(), "trustee", "tenant", "role", "state")
}

// offline refuses the flags that name a trustee: c asks none.
func offline(c *cobra.Command, what string) error {
	for _, name := range connectionFlags() {
		if c.Flags().Changed(name) {
			return usageError{hint.New(fmt.Errorf("--%s: %s asks no trustee", name, what), "leave --"+name+" out")}
		}
	}
	return nil
}

// check refuses flags that contradict each other or have no form.
func (f *adminFlags) check(c *cobra.Command) error {
	if f.role != "" && !slices.Contains(adminRoles(), f.role) {
		return usagef("--role: expected %s, got %q", strings.Join(adminRoles(), ", "), f.role)
	}
	if f.tenant != "" {
		if _, err := tenant.Parse(f.tenant); err != nil {
			return usagef("--tenant: %w", err)
		}
	}
	if f.url == "" {
		for _, name := range remoteFlags() {
			if c.Flags().Changed(name) {
				return usageError{hint.New(fmt.Errorf("--%s: the embedded trustee has no use for it", name), "name a trustee with --trustee URL, or leave --"+name+" out")}
			}
		}
		return nil
	}
	both := func(a, b string) error {
		return usageError{hint.New(fmt.Errorf("--%s and --%s: expected at most one of them", a, b), "see `"+c.CommandPath()+" --help`")}
	}
	switch {
	case c.Flags().Changed("state"):
		return both("trustee", "state")
	case f.key != "" && f.tokenFile != "":
		return both("admin-key", "token-file")
	case f.tokenFile != "" && f.role != "":
		return usageError{hint.New(errors.New("--role: an OpenID provider's token says its roles itself"), "leave --role out")}
	case f.key == "" && f.tokenFile == "":
		return usagef("--admin-key: expected the administrator's key file together with --trustee, or --token-file")
	case (f.cert == "") != (f.certKey == ""):
		return usagef("--client-cert and --client-key: expected both or none")
	}
	if u, err := url.Parse(f.url); err == nil && f.tenant != "" && strings.Contains(u.Path, "/tenants/") {
		return usageError{hint.New(fmt.Errorf("--tenant %s: the URL names a tenant already", f.tenant), "leave --tenant out, or /tenants/… in --trustee")}
	}
	return nil
}

// withAdmin calls f with a client of the trustee that the flags name; the
// embedded trustee runs for the time of the call.
func (a *app) withAdmin(c *cobra.Command, f adminFlags, call func(*admin.Client) error) error {
	if err := f.check(c); err != nil {
		return err
	}
	// Ended in order, so that no file is left half written.
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	c.SetContext(ctx)
	if f.url == "" {
		t, err := run.StartTrustee(ctx, run.TrusteeOptions{State: f.state, Tenant: f.tenant, Role: f.role, Logger: a.logger()})
		if err != nil {
			return err
		}
		defer func() { _ = t.Close() }()
		return advise(call(t.Admin))
	}
	o, err := f.options()
	if err != nil {
		return err
	}
	client, err := admin.New(o)
	if err != nil {
		return usagef("%w", err)
	}
	defer client.Close()
	return advise(call(client))
}

// options are those of a client of the trustee at f.url.
func (f *adminFlags) options() (admin.Options, error) {
	o := admin.Options{URL: f.url, Tenant: f.tenant, Role: f.role, UserAgent: "coffer/" + run.Version}
	var err error
	if f.key != "" {
		if o.Key, err = readEd25519(f.key); err != nil {
			return o, usagef("--admin-key %s: %w", f.key, err)
		}
	} else {
		if _, err := readToken(f.tokenFile); err != nil {
			return o, usagef("--token-file: %w", err)
		}
		file := f.tokenFile
		o.TokenSource = func(context.Context) (string, error) { return readToken(file) }
	}
	if f.ca != "" {
		if o.RootPEM, err = os.ReadFile(f.ca); err != nil {
			return o, usagef("--trustee-ca: %w", err)
		}
	}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.certKey)
		if err != nil {
			return o, usagef("--client-cert: %w", err)
		}
		o.Certificate = &pair
	}
	return o, nil
}

// readToken reads a token, which is not shown in errors.
func readToken(path string) (string, error) {
	data, err := readSmall(path, maxTokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("%s: expected one token", path)
	}
	return token, nil
}

func readEd25519(path string) (ed25519.PrivateKey, error) {
	data, err := readSmall(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("expected a PEM block, found none")
	}
	if block.Type == "PUBLIC KEY" {
		return nil, errors.New("expected a private key, got a public one")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("expected an Ed25519 key, got %T", parsed)
	}
	return key, nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, err
}

// advise adds to a trustee's refusal what can be done about it.
func advise(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*kbs.StatusError](err); ok {
		switch e.Status {
		case http.StatusUnauthorized:
			return hint.New(err, "the trustee knows no such administrator: is the key or the provider configured there, is it for this tenant, do the clocks agree?")
		case http.StatusForbidden:
			return hint.New(err, "`coffer trustee whoami` shows what you may do")
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			if e.RetryAfter > 0 {
				return hint.New(err, fmt.Sprintf("come again in %s", e.RetryAfter))
			}
		}
		return err
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return hint.New(err, "pin the trustee's own authority with --trustee-ca FILE (ca.pem in its state directory)")
	}
	return err
}
