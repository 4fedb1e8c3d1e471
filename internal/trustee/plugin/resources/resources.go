// Package resources is the plugin of stored secrets,
// /kbs/v0/resource/REPOSITORY/TYPE/TAG: guests read them here, out of any
// backend. Writing, deleting and listing are administration (package adminapi).
package resources

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
)

// Plugin reads resources. It is safe for concurrent use.
type Plugin struct{ backend resource.Backend }

var (
	_ plugin.Plugin  = Plugin{}
	_ plugin.Checker = Plugin{}
)

// New returns a plugin over a backend.
func New(backend resource.Backend) Plugin { return Plugin{backend} }

// Name implements [plugin.Plugin].
func (Plugin) Name() string { return kbs.PluginResource }

// Access implements [plugin.Plugin]: a guest reads one resource, everything
// else is an administrator's.
func (Plugin) Access(method string, path []string) plugin.Access {
	switch {
	case method == http.MethodGet && len(path) > 0:
		return plugin.Guest
	case method == http.MethodGet, method == http.MethodPost, method == http.MethodPut, method == http.MethodDelete:
		return plugin.Admin
	}
	return plugin.None
}

// Check implements [plugin.Checker].
func (Plugin) Check(r plugin.Request) *problem.Error {
	_, e := parse(r)
	return e
}

func parse(r plugin.Request) (resource.Path, *problem.Error) {
	p, err := resource.Parse(strings.Join(r.Path, "/"))
	if err != nil {
		return p, problem.New(http.StatusBadRequest, problem.InvalidPath, "%v", err)
	}
	return p, nil
}

// Handle implements [plugin.Plugin] with the newest version of a resource.
func (p Plugin) Handle(ctx context.Context, r plugin.Request) (*plugin.Response, *problem.Error) {
	path, e := parse(r)
	if e != nil {
		return nil, e
	}
	if r.Method != http.MethodGet {
		return nil, problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %s: expected GET", r.Method)
	}
	content, version, err := p.backend.Get(ctx, r.Tenant, path, 0)
	switch {
	case errors.Is(err, resource.ErrNotFound):
		return nil, problem.New(http.StatusNotFound, problem.ResourceNotFound, "resource %s does not exist; its owner may not have stored it yet", path)
	case errors.Is(err, resource.ErrUnavailable), errors.Is(err, store.ErrUnavailable):
		e := problem.Busy(problem.Storage, "what keeps the resource is not available")
		e.Cause = err
		return nil, e
	case err != nil:
		return nil, problem.Internal(problem.Storage, err)
	case content.Len() > kbs.MaxResourceBytes:
		content.Clear()
		return nil, problem.New(http.StatusInternalServerError, problem.Storage,
			"resource %s: expected at most %d bytes, got %d: its owner has to store a smaller one", path, kbs.MaxResourceBytes, content.Len())
	}
	return &plugin.Response{Body: content, Encrypt: true, Version: version}, nil
}
