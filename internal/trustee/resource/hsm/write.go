package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// maxVersion leaves room to count on; identifiers hold 63 bits.
const maxVersion = 1 << 60

// attempts is how often a writer that another process overtakes tries again.
const attempts = 20

// lock waits for the other writers of this process.
func (b *Backend) lock(ctx context.Context) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case b.writer <- struct{}{}:
		return func() { <-b.writer }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: other writers are at work: %w", resource.ErrUnavailable, ctx.Err())
	}
}

// Put implements [resource.Backend]. After an error by ctx the version may have
// been stored or not.
func (b *Backend) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (int64, error) {
	if err := check(t, p); err != nil {
		return 0, err
	}
	if content.Len() > b.o.MaxContent {
		return 0, fmt.Errorf("resource %s: expected at most %d bytes, got %d", p, b.o.MaxContent, content.Len())
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return 0, b.wrap("put", p.String(), err)
	}
	defer unlock()
	version, err := b.add(ctx, t, p, entry{size: content.Len()}, content)
	if err != nil {
		return 0, b.wrap("put", p.String(), err)
	}
	// The version is there: what cannot be tidied up now is tidied up next time.
	_ = b.prune(ctx, t, p)
	return version, nil
}

// Delete implements [resource.Backend].
func (b *Backend) Delete(ctx context.Context, t tenant.Name, p resource.Path) (bool, error) {
	if err := check(t, p); err != nil {
		return false, err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return false, b.wrap("delete", p.String(), err)
	}
	defer unlock()
	entries, err := look(ctx, b, func(s cryptoki.Session) ([]entry, error) { return find(s, t, p.String()) })
	if err != nil {
		return false, b.wrap("delete", p.String(), err)
	}
	was := len(order(entries).live) > 0
	if was {
		if _, err := b.add(ctx, t, p, entry{mark: true}, secret.Bytes{}); err != nil {
			return false, b.wrap("delete", p.String(), err)
		}
	}
	if err := b.prune(ctx, t, p); err != nil {
		return was, b.wrap("delete", p.String(), fmt.Errorf("it cannot be read any more, but its contents are still in the token; delete it again: %w", err))
	}
	return was, nil
}

// add creates the next version's object.
func (b *Backend) add(ctx context.Context, t tenant.Name, p resource.Path, e entry, content secret.Bytes) (int64, error) {
	e.created = b.o.Now()
	// The token may still read it after our caller has gone and cleared its own.
	value := bytes.Clone(content.Expose())
	for range attempts {
		// Its one change is the creation: this may be called twice.
		entries, err := look(ctx, b, func(s cryptoki.Session) ([]entry, error) { return find(s, t, p.String()) })
		if err != nil {
			return 0, err
		}
		if e.version = order(entries).newest + 1; e.version > maxVersion {
			return 0, fmt.Errorf("expected a version of at most %d: destroy the object of that number", int64(maxVersion))
		}
		m, err := do(ctx, b, func(ctx context.Context, s cryptoki.Session) (entry, error) {
			e := e
			if err := ctx.Err(); err != nil {
				return entry{}, err
			}
			var err error
			e.object, err = s.Create([]cryptoki.Attribute{
				{Type: cryptoki.AttrClass, Value: uint(cryptoki.ClassData)},
				{Type: cryptoki.AttrToken, Value: true},
				{Type: cryptoki.AttrPrivate, Value: true},
				{Type: cryptoki.AttrApplication, Value: []byte(application + string(t))},
				{Type: cryptoki.AttrLabel, Value: []byte(p.String())},
				{Type: cryptoki.AttrObjectID, Value: e.identifier()},
				{Type: cryptoki.AttrValue, Value: value},
			})
			return e, err
		})
		if err != nil {
			return 0, err
		}
		taken, err := look(ctx, b, func(s cryptoki.Session) (bool, error) {
			entries, err := find(s, t, p.String())
			if err != nil {
				return false, err
			}
			ours, same, newer := false, 0, false
			for _, other := range entries {
				newer = newer || other.version > m.version
				if other.version == m.version && !other.foreign {
					same++
					ours = ours || other.object == m.object
				}
			}
			switch {
			case ours && (same > 1 || newer):
				// With newer ones there, our number may have been another's that
				// is destroyed by now.
				return true, s.Destroy(m.object)
			case same != 1:
				return false, fmt.Errorf("expected the new object of version %d once in the token, found %d: look at it with pkcs11-tool", m.version, same)
			}
			return false, nil
		})
		if err != nil {
			return 0, err
		}
		if !taken {
			return m.version, nil
		}
	}
	return 0, fmt.Errorf("%w: another process took the number of this version %d times", resource.ErrUnavailable, attempts)
}

// prune destroys deleted and surplus versions, each in a call of its own.
func (b *Backend) prune(ctx context.Context, t tenant.Name, p resource.Path) error {
	entries, err := look(ctx, b, func(s cryptoki.Session) ([]entry, error) { return find(s, t, p.String()) })
	if err != nil {
		return err
	}
	h := order(entries)
	gone := h.stale
	if len(h.live) > b.o.Versions {
		gone = append(gone, h.live[b.o.Versions:]...)
	}
	for _, e := range gone {
		_, err := look(ctx, b, func(s cryptoki.Session) (struct{}, error) {
			// Handles are good for one session at most.
			again, err := find(s, t, p.String())
			if err != nil {
				return struct{}{}, err
			}
			for _, a := range again {
				if a.version == e.version && a.foreign == e.foreign {
					err := s.Destroy(a.object)
					if errors.Is(err, cryptoki.ObjectHandleInvalid) {
						err = nil
					}
					return struct{}{}, err
				}
			}
			return struct{}{}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
