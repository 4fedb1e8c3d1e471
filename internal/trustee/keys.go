package trustee

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/secret"
)

// databaseFile is the SQLite database in the state directory.
const databaseFile = "trustee.db"

// kekSize is the length of a key-encryption key in a file, in bytes.
const kekSize = 32

// StoreOptions are what the configuration says about the database. close gives
// back what its key-encryption key holds, for example a session with a
// hardware security module.
func StoreOptions(ctx context.Context, o Options) (_ store.Options, closeKEK func() error, err error) {
	if err := o.defaults(); err != nil {
		return store.Options{}, nil, err
	}
	c := &o.Config
	out := store.Options{
		Now: o.Now, Rand: o.Rand, Logger: o.Logger, MaxConns: c.Storage.Database.MaxConnections,
		RetryFor: c.Storage.Database.RetryFor.D(), AuditRetention: c.Audit.Retention.D(),
	}
	dir, err := identity.Open(c.StateDir)
	if err != nil {
		return out, nil, err
	}
	if file := c.Storage.Database.URLFile; file != "" {
		text, err := identity.ReadSecret(file)
		if err != nil {
			return out, nil, fmt.Errorf("storage.database.url_file: %w", err)
		}
		out.DatabaseURL = strings.TrimSpace(string(text))
		if scheme, _, _ := strings.Cut(out.DatabaseURL, "://"); scheme != "postgres" && scheme != "postgresql" {
			// Not what it holds: that may well be a password.
			return out, nil, fmt.Errorf("storage.database.url_file: %s: expected a URL postgres://USER:PASSWORD@HOST/DATABASE", file)
		}
	} else {
		out.Path = dir.File(databaseFile)
	}
	out.KEK, out.LegacyKEK, closeKEK, err = openKEK(ctx, o, dir, c.Storage.KEK)
	return out, closeKEK, err
}

// tokenKeysName is where the store keeps the token keys.
const tokenKeysName = "token-keys"

// tokenKeys are the keys that sign tokens, the same on every replica.
type tokenKeys struct {
	store *store.Store
	// algorithm and legacy say how the first key comes about: a file of an
	// earlier version, else one that is made.
	algorithm string
	legacy    []byte
	now       func() time.Time
	// keep is how long a retired key verifies.
	keep time.Duration
}

// TokenKeys implements token.KeySource.
func (k tokenKeys) TokenKeys(ctx context.Context) ([]token.Key, int64, error) {
	bundle, version, err := k.load(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer bundle.Clear()
	keys, err := token.DecodeKeys(bundle.Expose())
	return keys, version, err
}

// TokenKeyVersion implements token.Versioner.
func (k tokenKeys) TokenKeyVersion(ctx context.Context) (int64, error) {
	return k.store.SecretVersion(ctx, tokenKeysName)
}

func (k tokenKeys) load(ctx context.Context) (secret.Bytes, int64, error) {
	first, err := k.store.Secret(ctx, tokenKeysName, func() ([]byte, error) {
		if k.legacy != nil {
			keys, err := token.DecodeKeys(k.legacy)
			if err != nil {
				return nil, fmt.Errorf("token-key.pem of an earlier version: %w", err)
			}
			return token.EncodeKeys(keys)
		}
		key, err := token.Generate(rand.Reader, k.algorithm, k.now())
		if err != nil {
			return nil, err
		}
		return token.EncodeKeys([]token.Key{key})
	})
	if err != nil {
		return secret.Bytes{}, 0, fmt.Errorf("token keys: %w", err)
	}
	first.Clear()
	return k.store.SecretWithVersion(ctx, tokenKeysName)
}

// Rotate makes a new signing key of an algorithm, "" being that of the key in
// force. The old one verifies until its last token has expired on the slowest
// replica's clock.
func (k tokenKeys) Rotate(ctx context.Context, algorithm string) (token.Key, error) {
	keys, version, err := k.TokenKeys(ctx)
	if err != nil {
		return token.Key{}, err
	}
	if algorithm == "" {
		algorithm = "ES256"
		if keys[0].Private.Curve == elliptic.P384() {
			algorithm = "ES384"
		}
	}
	if keys, err = token.Rotate(rand.Reader, keys, algorithm, k.now(), k.keep); err != nil {
		return token.Key{}, err
	}
	bundle, err := token.EncodeKeys(keys)
	if err != nil {
		return token.Key{}, err
	}
	defer clear(bundle)
	// Of two that rotate at once one is told to try again: neither's key is lost.
	return keys[0], k.store.SwapSecret(ctx, tokenKeysName, version, bundle)
}

// openKEK opens the configured key-encryption key.
func openKEK(ctx context.Context, o Options, dir identity.Dir, c config.KEK) (kek seal.KEK, legacy secret.Bytes, closeKEK func() error, err error) {
	none := func() error { return nil }
	switch c.Kind {
	case "pkcs11":
		kek, closeKEK, err = openPKCS11(ctx, o, c.PKCS11)
		return kek, secret.Bytes{}, closeKEK, err
	case "transit":
		kek, err = openTransit(ctx, o, c.Transit)
		return kek, secret.Bytes{}, none, err
	}
	raw, err := dir.KEK(c.File, kekSize)
	if err != nil {
		return nil, secret.Bytes{}, nil, err
	}
	kek, err = seal.File(raw)
	return kek, raw, none, err
}
