package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/secret"
)

// maxDataKeys bounds what is unwrapped at start.
const maxDataKeys = 1000

// loadKeys unwraps the data keys that the box lacks. Where the database has
// none it makes the first: of several replicas that do so at once, one's stays.
func (s *Store) loadKeys(ctx context.Context) error {
	s.keysMu.Lock()
	defer s.keysMu.Unlock()
	keys, err := s.dataKeys(ctx)
	if err == nil && len(keys) == 0 {
		if err = s.addKey(ctx, 1); err == nil {
			keys, err = s.dataKeys(ctx)
		}
	}
	if err != nil {
		return err
	}
	if len(keys) == 0 || len(keys) > maxDataKeys {
		return fmt.Errorf("store: data keys: expected 1 to %d, got %d", maxDataKeys, len(keys))
	}
	for _, k := range keys {
		if err := s.box.Add(ctx, s.o.KEK, k); err != nil {
			if errors.Is(err, seal.ErrWrongKEK) {
				return fmt.Errorf("store: the key-encryption key is not the one this database was made with: restore the key file: %w", err)
			}
			return fmt.Errorf("store: data key: %w", err)
		}
	}
	return nil
}

func (s *Store) addKey(ctx context.Context, id int64) error {
	k, err := seal.Generate(ctx, s.o.KEK, id, s.o.Rand, s.o.Now())
	if err != nil {
		return fmt.Errorf("store: new data key: %w", err)
	}
	_, err = s.exec(ctx, "new data key", insertKey, k.ID, k.KEK, k.Wrapped, millis(k.Created))
	return err
}

const insertKey = "INSERT INTO data_keys (id, kek, wrapped, created) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"

func (s *Store) dataKeys(ctx context.Context) ([]seal.DataKey, error) {
	return query(ctx, s, "data keys", "SELECT id, kek, wrapped, created FROM data_keys ORDER BY id LIMIT ?", []any{maxDataKeys + 1},
		func(scan func(...any) error) (k seal.DataKey, err error) {
			var created int64
			err = scan(&k.ID, &k.KEK, &k.Wrapped, &created)
			k.Created = fromMillis(created)
			return k, err
		})
}

// RotateDataKey makes a new data key, which seals from now on; what was sealed
// before stays readable. Other replicas learn of it when they first meet what
// it has sealed.
func (s *Store) RotateDataKey(ctx context.Context) error {
	if err := s.loadKeys(ctx); err != nil {
		return err
	}
	if err := s.addKey(ctx, s.box.Newest()+1); err != nil {
		return err
	}
	return s.loadKeys(ctx)
}

// RewrapDataKeys hands all data keys over from the key-encryption key that the
// store was opened with to another. The store goes on; the next [Open] needs
// the new one. Data keys that another replica makes meanwhile are not seen: do
// not rotate them at the same time.
func (s *Store) RewrapDataKeys(ctx context.Context, to seal.KEK) error {
	return s.tx(ctx, "rewrap data keys", func(ctx context.Context, c conn) error {
		keys, err := collect(ctx, c, "SELECT id, kek, wrapped FROM data_keys ORDER BY id "+forUpdate, nil,
			func(scan func(...any) error) (k seal.DataKey, err error) {
				err = scan(&k.ID, &k.KEK, &k.Wrapped)
				return k, err
			})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.KEK == to.ID() {
				continue
			}
			if k, err = seal.Rewrap(ctx, s.o.KEK, to, k); err != nil {
				return err
			}
			if _, err := c.exec(ctx, "UPDATE data_keys SET kek = ?, wrapped = ? WHERE id = ?", k.KEK, k.Wrapped, k.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// seal encrypts content under the newest data key. The name is authenticated:
// content cannot be moved between names.
func (s *Store) seal(name string, plain []byte) ([]byte, error) { return s.box.Seal(name, plain) }

// open decrypts. Where another replica has made a data key since, it loads that.
func (s *Store) open(ctx context.Context, name string, sealed []byte) (secret.Bytes, error) {
	plain, err := s.box.Open(name, sealed)
	if errors.Is(err, seal.ErrUnknownKey) {
		if err := s.loadKeys(ctx); err != nil {
			return secret.Bytes{}, err
		}
		plain, err = s.box.Open(name, sealed)
	}
	return plain, err
}

// Box is what the store seals with. Backends beside the database share it, so
// that there is one set of keys to keep.
func (s *Store) Box() *seal.Box { return s.box }
