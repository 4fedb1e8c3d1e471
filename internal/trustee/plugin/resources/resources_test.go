package resources_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/resources"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// backend has one resource of one tenant.
type backend struct {
	resource.Backend
	size int
	err  error
}

func (b backend) Get(_ context.Context, t tenant.Name, p resource.Path, version int64) (secret.Bytes, int64, error) {
	switch {
	case b.err != nil:
		return secret.Bytes{}, 0, b.err
	case t != "acme" || p.String() != "a/b/c" || version != 0:
		return secret.Bytes{}, 0, fmt.Errorf("resource: %w", resource.ErrNotFound)
	}
	return secret.New(make([]byte, b.size)), 7, nil
}

func TestHandle(t *testing.T) {
	t.Parallel()
	get := func(t tenant.Name, path string) plugin.Request {
		return plugin.Request{Tenant: t, Method: http.MethodGet, Path: strings.Split(path, "/")}
	}
	post := get("acme", "a/b/c")
	post.Method = http.MethodPost
	for name, tc := range map[string]struct {
		b      backend
		r      plugin.Request
		status int
	}{
		"found":            {backend{size: 3}, get("acme", "a/b/c"), 200},
		"largest":          {backend{size: kbs.MaxResourceBytes}, get("acme", "a/b/c"), 200},
		"too large":        {backend{size: kbs.MaxResourceBytes + 1}, get("acme", "a/b/c"), 500},
		"missing":          {backend{}, get("acme", "a/b/d"), 404},
		"another tenant's": {backend{}, get("other", "a/b/c"), 404},
		"segments":         {backend{}, get("acme", "a/b"), 400},
		"method":           {backend{}, post, 405},
		"backend is out":   {backend{err: fmt.Errorf("x: %w", resource.ErrUnavailable)}, get("acme", "a/b/c"), 503},
		"database is out":  {backend{err: fmt.Errorf("x: %w", store.ErrUnavailable)}, get("acme", "a/b/c"), 503},
		"too slow":         {backend{err: context.DeadlineExceeded}, get("acme", "a/b/c"), 503},
		"broken":           {backend{err: errors.New("/secret/path")}, get("acme", "a/b/c"), 500},
	} {
		p := resources.New(tc.b)
		resp, e := p.Handle(t.Context(), tc.r)
		switch {
		case tc.status == 200:
			if e != nil || !resp.Encrypt || resp.Version != 7 || resp.Body.Len() != tc.b.size {
				t.Errorf("%s: %+v, %v", name, resp, e)
			}
		case e == nil || resp != nil || e.Status != tc.status || strings.Contains(e.Info.Detail, "/secret"):
			t.Errorf("%s: %+v, %v", name, resp, e)
		}
		if e := p.Check(tc.r); (e != nil) != (tc.status == 400) {
			t.Errorf("%s: check: %v", name, e)
		}
	}
}

func TestAccess(t *testing.T) {
	t.Parallel()
	p := resources.New(nil)
	path := []string{"a", "b", "c"}
	for method, want := range map[string]plugin.Access{"GET": plugin.Guest, "POST": plugin.Admin, "PUT": plugin.Admin, "DELETE": plugin.Admin, "HEAD": plugin.None, "": plugin.None} {
		if got := p.Access(method, path); got != want {
			t.Errorf("%s: %d", method, got)
		}
	}
	if p.Access("GET", nil) != plugin.Admin || p.Name() != "resource" {
		t.Error("the list is an administrator's")
	}
}
