package trustee

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/internal/trustee/kek/pkcs11"
	"github.com/coffer-project/coffer/internal/trustee/kek/transit"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/directory"
	"github.com/coffer-project/coffer/internal/trustee/resource/hsm"
	"github.com/coffer-project/coffer/internal/trustee/resource/vault"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/token"
)

// What is outside the trustee and its database: security modules, Vault, other
// attestation services.

// outsideTimeout bounds one request to another party.
const outsideTimeout = 5 * time.Second

// httpClient verifies servers with the roots in a file; none: the system's.
func httpClient(rootsFile string) (*http.Client, error) {
	roots, err := certPool(rootsFile)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: outsideTimeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
	}}, nil
}

// trusted are the attestation services whose tokens are accepted.
func (t *Trustee) trusted() ([]*token.Trust, error) {
	var out []*token.Trust
	for _, c := range t.o.Config.Token.Trusted {
		client, err := httpClient("")
		if err != nil {
			return nil, err
		}
		o := token.TrustOptions{Issuer: c.Issuer, Audience: c.Audience, Tenants: []tenant.Name{tenant.Default}, Client: client, Now: t.o.Now}
		if c.Tenant != "" {
			o.Tenants = []tenant.Name{tenant.Name(c.Tenant)}
		}
		if c.JWKS != "" {
			o.JWKSets = []string{c.JWKS}
		}
		if o.Certificates, err = identity.ReadPEM(c.Certificates); err != nil {
			return nil, fmt.Errorf("token.trusted %s: certificates: %w", c.Issuer, err)
		}
		trust, err := token.NewTrust(o)
		if err != nil {
			return nil, err
		}
		out = append(out, trust)
	}
	return out, nil
}

// openToken logs into a token of a security module. Its close waits a bounded
// time.
func openToken(ctx context.Context, c config.PKCS11, write bool) (*cryptoki.Token, func() error, error) {
	module, err := cryptoki.Load(c.Module)
	if err != nil {
		return nil, nil, err
	}
	tok, err := module.Token(ctx, cryptoki.Options{Label: c.Token, PIN: cryptoki.PINFile(c.PINFile), Write: write})
	if err != nil {
		return nil, nil, errors.Join(err, module.Close())
	}
	return tok, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), outsideTimeout)
		defer cancel()
		return errors.Join(tok.Close(ctx), module.Close())
	}, nil
}

func openPKCS11(ctx context.Context, o Options, c config.PKCS11Key) (seal.KEK, func() error, error) {
	tok, closeToken, err := openToken(ctx, c.PKCS11, false)
	if err != nil {
		return nil, nil, fmt.Errorf("storage.kek.pkcs11: %w", err)
	}
	kek, err := pkcs11.Open(ctx, tok, pkcs11.Options{Key: c.KeyLabel, Rand: o.Rand})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("storage.kek.pkcs11: %w", err), closeToken())
	}
	return kek, closeToken, nil
}

// openVault is a client of a Vault or OpenBao, and the task that keeps its
// token alive.
func openVault(o Options, c config.Vault) (*bao.Client, error) {
	roots, err := identity.ReadPEM(c.Roots)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	bo := bao.Options{Address: c.Address, Namespace: c.Namespace, RootPEM: roots, TokenFile: c.TokenFile, Timeout: c.Timeout.D(), Now: o.Now}
	if c.RoleID != "" {
		bo.AppRole = &bao.AppRole{RoleID: c.RoleID, SecretIDFile: c.SecretIDFile}
	}
	return bao.New(bo)
}

// openTransit needs its client's token at the start and when data keys are
// loaded: it logs in anew then, and is not kept alive in between.
func openTransit(ctx context.Context, o Options, c config.Transit) (seal.KEK, error) {
	client, err := openVault(o, c.Vault)
	if err != nil {
		return nil, fmt.Errorf("storage.kek.transit: %w", err)
	}
	kek, err := transit.Open(ctx, client, transit.Options{Mount: c.Mount, Key: c.Key, Rand: o.Rand})
	if err != nil {
		return nil, fmt.Errorf("storage.kek.transit: %w", err)
	}
	return kek, nil
}

// backend is where resources are kept.
func (t *Trustee) backend(ctx context.Context) (resource.Backend, error) {
	c := &t.o.Config
	switch c.Resources.Backend {
	case "directory":
		return directory.New(directory.Options{Dir: c.Resources.Directory, Box: t.store.Box(), MaxContent: c.Limits.Resource, Now: t.o.Now})
	case "vault":
		v := c.Resources.Vault
		client, err := openVault(t.o, v.Vault)
		if err != nil {
			return nil, fmt.Errorf("resources.vault: %w", err)
		}
		t.background = append(t.background, func(ctx context.Context) error {
			return client.Run(ctx, func(ctx context.Context, err error) {
				t.o.Logger.ErrorContext(ctx, "the token of resources.vault was not renewed", "error", err)
			})
		})
		return vault.New(client, vault.Options{Mount: v.Mount, Prefix: v.Prefix, Field: v.Field, Encoding: vault.Encoding(v.Encoding), MaxContent: c.Limits.Resource})
	case "pkcs11":
		tok, closeToken, err := openToken(ctx, c.Resources.PKCS11, true)
		if err != nil {
			return nil, fmt.Errorf("resources.pkcs11: %w", err)
		}
		t.closers = append(t.closers, closeToken)
		return hsm.New(tok, hsm.Options{MaxContent: c.Limits.Resource, Now: t.o.Now})
	}
	return t.store.Resources(), nil
}
