package adminapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/problem"
)

// maxSegments bounds a plugin's path.
const maxSegments = 16

// pluginMethods are what plugins know.
func pluginMethods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}
}

// plugin hands a request to the plugin that the path names.
func (a *API) plugin(c *call) (any, *problem.Error) {
	name, path, found := strings.Cut(c.rest, "/")
	call := PluginCall{Tenant: c.tenant, Method: c.r.Method, Plugin: name, Query: map[string]string{}}
	if found {
		call.Path = strings.Split(path, "/")
	}
	if !slices.Contains(pluginMethods(), c.r.Method) {
		c.w.Header().Set("Allow", strings.Join(pluginMethods(), ", "))
		return nil, problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %.16s: expected one of %s", c.r.Method, strings.Join(pluginMethods(), ", "))
	}
	if len(call.Path) > maxSegments {
		return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "path: expected at most %d segments, got %d", maxSegments, len(call.Path))
	}
	q, e := queryOf(c.r, keysOf(c.r)...)
	if e != nil {
		return nil, e
	}
	for k := range q {
		call.Query[k] = q.Get(k)
	}
	if call.Body, e = problem.Body(c.w, c.r, a.o.MaxBody); e != nil {
		return nil, e
	}
	c.record.Resource = clip("kbs+"+name+":///"+path, maxDetail)
	out, e := a.o.Plugin(c.r.Context(), call)
	if e != nil {
		return nil, e
	}
	c.record.Version, c.record.Detail = out.Version, clip(out.Detail, maxDetail)
	c.body = out.Body
	c.after = func() { sendPlugin(c, out) }
	return nil, nil
}

// sendPlugin sends what a plugin answered, once that is on record.
func sendPlugin(c *call, out *PluginAnswer) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if out.ContentType != "" {
		h.Set("Content-Type", out.ContentType)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// The header is out: a failure to write can only be the connection's.
	_, _ = c.w.Write(out.Body.Expose())
}

// keysOf are the names in a request's query, whatever they are.
func keysOf(r *http.Request) []string {
	var out []string
	for k := range r.URL.Query() {
		out = append(out, k)
	}
	return out
}
