package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Log is the part of the store that a [Checkpointer] needs.
type Log interface {
	// Head is the last entry's place and hash; 0 and [Genesis] of an empty chain.
	Head(ctx context.Context, t tenant.Name) (seq int64, hash string, err error)
	// Entries lists entries, see [Query].
	Entries(ctx context.Context, t tenant.Name, q Query) ([]Entry, error)
	// SaveCheckpoint keeps a signed checkpoint. Another one for the same entry,
	// of another replica, is no error.
	SaveCheckpoint(ctx context.Context, t tenant.Name, seq int64, jws string, at time.Time) error
}

// DefaultInterval is how often chains are pinned where
// [CheckpointerOptions] say nothing.
const DefaultInterval = 5 * time.Minute

// stopTimeout bounds the last checkpoints, made while the trustee stops.
const stopTimeout = 10 * time.Second

// CheckpointerOptions of [NewCheckpointer].
type CheckpointerOptions struct {
	Log    Log
	Signer *Signer
	// Tenants lists whose chains are pinned.
	Tenants  func(ctx context.Context) ([]tenant.Name, error)
	Interval time.Duration
	Now      func() time.Time
	Logger   *slog.Logger
}

// Checkpointer signs the heads of all chains from time to time.
type Checkpointer struct {
	o CheckpointerOptions

	mu   sync.Mutex
	last map[tenant.Name]signed
}

type signed struct {
	Checkpoint
	jws string
}

// NewCheckpointer returns one that does nothing before [Checkpointer.Run].
func NewCheckpointer(o CheckpointerOptions) *Checkpointer {
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	return &Checkpointer{o: o, last: map[tenant.Name]signed{}}
}

// ErrEmpty means that the chain has no head to sign.
var ErrEmpty = errors.New("the audit log is empty")

// ErrRolledBack means that the chain is shorter than what this process has
// signed before, or differs from it. Somebody changed the database behind the trustee's back,
// or restored an old backup.
var ErrRolledBack = errors.New("the audit log was rolled back")

// Checkpoint signs a tenant's head now and keeps it. Where the head has not
// moved since the last time, that checkpoint is returned.
func (c *Checkpointer) Checkpoint(ctx context.Context, t tenant.Name) (Checkpoint, string, error) {
	c.mu.Lock()
	last, have := c.last[t]
	c.mu.Unlock()
	// The head is read after the last one was: it can only be further on.
	seq, hash, err := c.o.Log.Head(ctx, t)
	switch {
	case err != nil:
		return Checkpoint{}, "", fmt.Errorf("audit log of tenant %s: head: %w", t, err)
	case have && (seq < last.Seq || seq == last.Seq && hash != last.Hash):
		return Checkpoint{}, "", fmt.Errorf("audit log of tenant %s: %w: expected entry %d with hash %s or later ones, got %d with %s; no checkpoint is signed before the trustee is restarted",
			t, ErrRolledBack, last.Seq, last.Hash, seq, hash)
	case seq == 0:
		return Checkpoint{}, "", fmt.Errorf("audit log of tenant %s: %w", t, ErrEmpty)
	case have && seq == last.Seq:
		return last.Checkpoint, last.jws, nil
	case have:
		if err := c.continues(ctx, t, last.Checkpoint); err != nil {
			return Checkpoint{}, "", err
		}
	}
	p := Checkpoint{Tenant: t, Seq: seq, Hash: hash, At: c.o.Now().UTC().Truncate(time.Second)}
	jws, err := c.o.Signer.Sign(p)
	if err != nil {
		return Checkpoint{}, "", err
	}
	if err := c.o.Log.SaveCheckpoint(ctx, t, p.Seq, jws, p.At); err != nil {
		return Checkpoint{}, "", fmt.Errorf("audit log of tenant %s: save checkpoint: %w", t, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.last[t]; now.Seq < p.Seq {
		c.last[t] = signed{p, jws}
	}
	return p, jws, nil
}

// continues makes sure that the chain still holds what was signed last. Else
// who rewrites it need only wait for one more record to have the outcome signed.
func (c *Checkpointer) continues(ctx context.Context, t tenant.Name, last Checkpoint) error {
	q := Query{After: last.Seq - 1, Limit: 1}
	if q.After == 0 {
		q.After = FromStart
	}
	list, err := c.o.Log.Entries(ctx, t, q)
	if err == nil && len(list) > 0 && list[0].Seq == last.Seq {
		if list[0].Hash == last.Hash {
			return nil
		}
		return fmt.Errorf("audit log of tenant %s: %w: expected entry %d with hash %s, got %.80q; no checkpoint is signed before the trustee is restarted",
			t, ErrRolledBack, last.Seq, last.Hash, list[0].Hash)
	}
	// Retention may have removed it, and then all before it.
	var before []Entry
	if err == nil && last.Seq > 1 {
		before, err = c.o.Log.Entries(ctx, t, Query{Before: last.Seq, Limit: 1})
	}
	if err != nil {
		return fmt.Errorf("audit log of tenant %s: entry %d: %w", t, last.Seq, err)
	}
	if len(before) > 0 {
		return fmt.Errorf("audit log of tenant %s: %w: entry %d, which was signed, is missing between others; no checkpoint is signed before the trustee is restarted",
			t, ErrRolledBack, last.Seq)
	}
	return nil
}

// Run signs every head that has moved, each interval and once more when ctx
// ends. Failures are logged and tried again; it returns nil.
func (c *Checkpointer) Run(ctx context.Context) error {
	tick := time.NewTicker(c.o.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.all(ctx)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			c.all(ctx)
			return nil
		}
	}
}

func (c *Checkpointer) all(ctx context.Context) {
	tenants, err := c.o.Tenants(ctx)
	if err != nil {
		c.o.Logger.ErrorContext(ctx, "audit checkpoints are not made: tenants cannot be listed", "error", err)
		return
	}
	for _, t := range tenants {
		p, _, err := c.Checkpoint(ctx, t)
		switch {
		case errors.Is(err, ErrEmpty):
		case err != nil:
			c.o.Logger.ErrorContext(ctx, "audit checkpoint is not made", "tenant", t, "error", err)
		default:
			c.o.Logger.DebugContext(ctx, "audit log pinned", "tenant", t, "seq", p.Seq, "hash", p.Hash)
		}
	}
}
