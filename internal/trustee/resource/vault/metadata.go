package vault

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// metadata is what the engine says about a secret (KV v2 API, "Read secret
// metadata").
type metadata struct {
	CurrentVersion int64              `json:"current_version"`
	Versions       map[string]version `json:"versions"`
}

type version struct {
	Version   int64     `json:"version"`
	Created   time.Time `json:"created_time"`
	Deletion  string    `json:"deletion_time"`
	Destroyed bool      `json:"destroyed"`
}

// gone: destroyed, or deleted by now: deletion times may lie in the future.
func (v version) gone() bool {
	if v.Destroyed || v.Deletion == "" {
		return v.Destroyed
	}
	at, err := time.Parse(time.RFC3339Nano, v.Deletion)
	return err != nil || !at.After(time.Now())
}

func (b *Backend) metadata(ctx context.Context, t tenant.Name, p resource.Path) (metadata, error) {
	path, err := b.path("metadata", t, p)
	if err != nil {
		return metadata{}, err
	}
	var m metadata
	if err := b.server.Do(ctx, bao.Request{Method: http.MethodGet, Path: path, Repeat: true}, &m); err != nil {
		return metadata{}, err
	}
	if m.CurrentVersion < 0 || len(m.Versions) > maxVersions {
		return metadata{}, fmt.Errorf("expected at most %d versions and a current one, got %d and %d", maxVersions, len(m.Versions), m.CurrentVersion)
	}
	return m, nil
}

// numbers returns the versions' numbers, newest first.
func (m metadata) numbers() ([]int64, error) {
	var out []int64
	for s := range m.Versions {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 1 || n > m.CurrentVersion {
			return nil, fmt.Errorf("expected versions of 1 to %d, got %.40q", m.CurrentVersion, s)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out, nil
}

func (m metadata) at(n int64) version { return m.Versions[strconv.FormatInt(n, 10)] }
