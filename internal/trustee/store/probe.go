package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/coffer-project/coffer/internal/trustee/seal"
)

// Probe reports whether the database that the options name can be used: it
// answers, its schema is not newer than this program, and the key-encryption
// key opens its data keys. It changes nothing, and an empty database is fine.
func Probe(ctx context.Context, o Options) (err error) {
	if err := o.defaults(); err != nil {
		return err
	}
	o.Logger = slog.New(slog.DiscardHandler)
	s := &Store{o: o, box: seal.NewBox(o.Rand)}
	if err := s.connect(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.disconnect()) }()
	have, err := s.schemaVersion(ctx, s.reader())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if have < SchemaVersion { // an older one is brought up to date at the next start
		return nil
	}
	keys, err := s.dataKeys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := s.box.Add(ctx, o.KEK, k); err != nil {
			return fmt.Errorf("store: data key %d: %w", k.ID, err)
		}
	}
	return nil
}
