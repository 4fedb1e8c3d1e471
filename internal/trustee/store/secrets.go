package store

import (
	"context"
	"fmt"
	"strconv"

	"github.com/coffer-project/coffer/secret"
)

// Secrets are the trustee's own: signing keys, the key of session cookies,
// certificate authorities. There is one of each name for all replicas.

const (
	maxSecretName = 256
	// MaxSecret bounds one, in bytes.
	MaxSecret = 1 << 20
)

// Secret returns a secret. Where there is none it is made by create and kept;
// of several replicas that do so at once, all get the one that was kept.
func (s *Store) Secret(ctx context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error) {
	content, _, err := s.SecretWithVersion(ctx, name)
	if !isNotFound(err) {
		return content, err
	}
	made, err := create()
	if err != nil {
		return secret.Bytes{}, wrap("secret "+name, err)
	}
	defer clear(made)
	if err := s.SwapSecret(ctx, name, 0, made); err != nil && !isConflict(err) {
		return secret.Bytes{}, err
	}
	content, _, err = s.SecretWithVersion(ctx, name)
	return content, err
}

// SecretWithVersion returns a secret and how often it was set, or [ErrNotFound].
func (s *Store) SecretWithVersion(ctx context.Context, name string) (secret.Bytes, int64, error) {
	what := fmt.Sprintf("secret %.80q", name)
	var version int64
	var sealed []byte
	if err := s.get(ctx, what, "SELECT version, content FROM secrets WHERE name = ?", []any{clean(name)}, &version, &sealed); err != nil {
		return secret.Bytes{}, 0, err
	}
	content, err := s.open(ctx, secretName(name, version), sealed)
	return content, version, wrap(what, err)
}

// SecretVersion returns how often a secret was set, or [ErrNotFound].
func (s *Store) SecretVersion(ctx context.Context, name string) (version int64, err error) {
	err = s.get(ctx, fmt.Sprintf("secret %.80q", name), "SELECT version FROM secrets WHERE name = ?", []any{clean(name)}, &version)
	return version, err
}

// SetSecret sets a secret, whatever was there.
func (s *Store) SetSecret(ctx context.Context, name string, content []byte) error {
	return s.setSecret(ctx, name, content, func(int64) bool { return true })
}

// SwapSecret sets a secret whose version is still the given one, 0 for one
// that is not there. Otherwise it returns [ErrConflict]: read it again.
func (s *Store) SwapSecret(ctx context.Context, name string, version int64, content []byte) error {
	return s.setSecret(ctx, name, content, func(have int64) bool { return have == version })
}

func (s *Store) setSecret(ctx context.Context, name string, content []byte, may func(have int64) bool) error {
	what := fmt.Sprintf("set secret %.80q", name)
	if name == "" || len(name) > maxSecretName || clean(name) != name {
		return wrap(what, fmt.Errorf("name: expected 1 to %d bytes of text, got %d", maxSecretName, len(name)))
	}
	if len(content) > MaxSecret {
		return wrap(what, fmt.Errorf("expected at most %d bytes, got %d", MaxSecret, len(content)))
	}
	return s.tx(ctx, what, func(ctx context.Context, c conn) error {
		// A row of version 0 is there to be locked; it is replaced below, or
		// goes with the transaction.
		if _, err := c.exec(ctx, "INSERT INTO secrets (name, version, content, updated) VALUES (?, 0, ?, 0) ON CONFLICT (name) DO NOTHING",
			name, []byte{}); err != nil {
			return err
		}
		var have int64
		if err := c.row(ctx, "SELECT version FROM secrets WHERE name = ? "+forUpdate, []any{name}, &have); err != nil {
			return err
		}
		if !may(have) {
			return ErrConflict
		}
		sealed, err := s.seal(secretName(name, have+1), content)
		if err != nil {
			return err
		}
		_, err = c.exec(ctx, "UPDATE secrets SET version = ?, content = ?, updated = ? WHERE name = ?", have+1, sealed, millis(s.o.Now()), name)
		return err
	})
}

// secretName is what a secret is sealed under: an older version cannot be put
// back unnoticed under a newer one's number.
func secretName(name string, version int64) string {
	return "secret/" + name + "/" + strconv.FormatInt(version, 10)
}
