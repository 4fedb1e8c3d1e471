package resource

import (
	"context"
	"errors"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Errors of a [Backend]; test with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	// ErrReadOnly: the backend's contents are administered elsewhere.
	ErrReadOnly = errors.New("the backend is read-only: administer its contents where they are kept")
	// ErrUnavailable: what keeps the contents cannot be reached or does not
	// serve at the moment; the same call may succeed later.
	ErrUnavailable = errors.New("the resource backend is not available")
)

// Info describes one version of a resource without its content.
type Info struct {
	Path string `json:"path"`
	// Version counts from 1.
	Version int64 `json:"version"`
	// Size is in bytes, -1 where the backend does not tell.
	Size    int       `json:"size"`
	Created time.Time `json:"created"`
	// Deleted: the version marks a deletion; only listings of versions show it.
	Deleted bool `json:"deleted,omitempty"`
}

// Backend keeps resources. A write replaces the content in one step: readers
// see the old or the new one. Implementations are safe for concurrent use and
// bound their waits by ctx.
type Backend interface {
	// Put stores a new version and returns its number.
	Put(ctx context.Context, t tenant.Name, p Path, content secret.Bytes) (int64, error)
	// Get returns a version's content and number; version 0 is the newest.
	// What was never stored or is deleted is [ErrNotFound].
	Get(ctx context.Context, t tenant.Name, p Path, version int64) (secret.Bytes, int64, error)
	// Delete makes a resource unreadable in all its versions, and reports
	// whether there was one.
	Delete(ctx context.Context, t tenant.Name, p Path) (bool, error)
	// List returns the newest versions of what is not deleted, by path, after
	// the given path and below the prefix ("", "repo" or "repo/type").
	List(ctx context.Context, t tenant.Name, prefix, after string, limit int) ([]Info, error)
	// Versions lists all versions, newest first.
	Versions(ctx context.Context, t tenant.Name, p Path) ([]Info, error)
}
