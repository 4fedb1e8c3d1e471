package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/secret"
)

// Keeper keeps a secret under a name for every replica and every backup: the
// first to ask has it made, and all get the same.
type Keeper interface {
	Secret(ctx context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error)
}

// ShareAuthority has the TLS authority kept with the database, so that the
// certificates of all replicas, and of a trustee that was restored, end in the
// root that clients have pinned. The directory's files become those that are
// kept.
func (d Dir) ShareAuthority(ctx context.Context, k Keeper, a func() (*Authority, error)) error {
	return d.share(ctx, k, "tls-authority", []string{caCert, caKey}, func() error {
		_, err := a()
		return err
	})
}

// ShareAdminKey does the same for the administrator's first key.
func (d Dir) ShareAdminKey(ctx context.Context, k Keeper) error {
	return d.share(ctx, k, "admin-key", []string{adminKey}, func() error {
		_, err := d.AdminKey()
		return err
	})
}

// share keeps files together under one name: halves of two pairs would be of no use.
func (d Dir) share(ctx context.Context, k Keeper, name string, files []string, ensure func() error) error {
	kept, err := k.Secret(ctx, name, func() ([]byte, error) {
		if err := ensure(); err != nil {
			return nil, err
		}
		bundle := map[string][]byte{}
		for _, f := range files {
			text, err := ReadSecret(d.File(f))
			if err != nil {
				return nil, err
			}
			bundle[f] = text
		}
		return json.Marshal(bundle)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer kept.Clear()
	var bundle map[string][]byte
	if err := json.Unmarshal(kept.Expose(), &bundle); err != nil {
		return fmt.Errorf("%s: what the database keeps is malformed: %w", name, err)
	}
	for _, f := range files {
		text, ok := bundle[f]
		if !ok {
			return fmt.Errorf("%s: what the database keeps lacks %s", name, f)
		}
		if have, err := ReadSecret(d.File(f)); err == nil && bytes.Equal(have, text) {
			continue
		}
		if err := d.replace(f, text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// LegacyTokenKey is the PEM of the token key that earlier versions kept in the
// directory; nil where there is none.
func (d Dir) LegacyTokenKey() []byte {
	text, err := ReadSecret(d.File(tokenKey))
	if err != nil {
		return nil
	}
	return text
}
