package adminapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

func (a *API) setResource(c *call) (any, *problem.Error) {
	p, err := resource.Parse(c.rest)
	if err != nil {
		return nil, badRequest(problem.InvalidPath, err)
	}
	data, e := problem.Body(c.w, c.r, a.o.MaxResource)
	if e != nil {
		return nil, e
	}
	content := secret.New(data)
	defer content.Clear()
	c.record.Resource, c.record.Detail = scopeURI(p.String()), fmt.Sprintf("%d bytes", content.Len())
	c.record.Version, err = a.o.Resources.Put(c.r.Context(), c.tenant, p, content)
	if err != nil {
		return nil, storeProblem(err)
	}
	c.w.Header().Set(admin.HeaderResourceVersion, strconv.FormatInt(c.record.Version, 10))
	return nil, nil
}

func (a *API) deleteResource(c *call) (any, *problem.Error) {
	p, err := resource.Parse(c.rest)
	if err != nil {
		return nil, badRequest(problem.InvalidPath, err)
	}
	c.record.Resource = scopeURI(p.String())
	// Deleting what is not there succeeds, as in the reference implementation.
	deleted, err := a.o.Resources.Delete(c.r.Context(), c.tenant, p)
	if err != nil {
		return nil, storeProblem(err)
	}
	if !deleted {
		c.record.Detail = "there was none"
	}
	return nil, nil
}

// listResources lists names, or with details=true what there is to know of
// the newest versions. The whole list is sent as it is read: it may be longer
// than what should be in memory at once.
func (a *API) listResources(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "prefix", "details", "after", "limit")
	if e != nil {
		return nil, e
	}
	p, e := pageOf(q)
	if e != nil {
		return nil, e
	}
	prefix := q.Get("prefix")
	if q.Has("prefix") {
		if _, err := resource.ParsePrefix(prefix); err != nil {
			return nil, badRequest(problem.InvalidPath, fmt.Errorf("query parameter prefix: %w", err))
		}
	}
	details := q.Get("details") == "true"
	if s := q.Get("details"); q.Has("details") && s != "true" && s != "false" {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "query parameter details: expected true or false, got %.64q", s)
	}
	form := func(x resource.Info) any {
		if details {
			return admin.ResourceInfo(x)
		}
		return x.Path
	}
	size := p.limit
	if size == 0 {
		size = maxPage
	}
	list, err := a.o.Resources.List(c.r.Context(), c.tenant, prefix, p.after, size)
	if err != nil {
		return nil, storeProblem(err)
	}
	if p.limit > 0 || len(list) < size {
		out := make([]any, 0, len(list))
		for _, x := range list {
			out = append(out, form(x))
		}
		if len(list) == size {
			c.w.Header().Set(admin.HeaderNext, list[size-1].Path)
		}
		return out, nil
	}
	c.answered = true
	a.streamResources(c, prefix, list, form)
	return nil, nil
}

// streamResources sends a whole list whose first page is there. When the rest
// cannot be read, the connection is cut: half a list must not look like one.
func (a *API) streamResources(c *call, prefix string, list []resource.Info, form func(resource.Info) any) {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(c.w)
	enc.SetEscapeHTML(false)
	write := func(s string) error {
		_, err := c.w.Write([]byte(s))
		return err
	}
	err := write("[")
	for sep := ""; err == nil && len(list) > 0; {
		for _, x := range list {
			if err = errors.Join(write(sep), enc.Encode(form(x))); err != nil {
				break
			}
			sep = ","
		}
		if err == nil {
			list, err = a.o.Resources.List(c.r.Context(), c.tenant, prefix, list[len(list)-1].Path, maxPage)
		}
	}
	if err == nil {
		err = write("]\n")
	}
	if err != nil {
		a.cutOff(c, "list of resources", err)
	}
}

// cutOff ends an answer that is under way so that the client notices.
func (a *API) cutOff(c *call, what string, cause error) {
	a.o.Logger.ErrorContext(c.r.Context(), "an answer broke off", "answer", what, "cause", cause.Error())
	// What is buffered fails to be written, and with it the end of the body.
	_ = http.NewResponseController(c.w).SetWriteDeadline(time.Unix(1, 0))
}

func (a *API) resourceVersions(c *call) (any, *problem.Error) {
	p, err := resource.Parse(c.rest)
	if err != nil {
		return nil, badRequest(problem.InvalidPath, err)
	}
	list, err := a.o.Resources.Versions(c.r.Context(), c.tenant, p)
	if err != nil && !errors.Is(err, resource.ErrNotFound) {
		return nil, storeProblem(err)
	}
	if len(list) == 0 {
		return nil, problem.New(http.StatusNotFound, problem.ResourceNotFound, "there never was a resource %s", p)
	}
	out := make([]admin.ResourceInfo, len(list))
	for i, x := range list {
		out[i] = admin.ResourceInfo(x)
	}
	return out, nil
}
