package adminapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (a *API) listTenants(c *call) (any, *problem.Error) {
	list, err := a.o.Store.Tenants(c.r.Context())
	if err != nil {
		return nil, storeProblem(err)
	}
	out := make([]admin.Tenant, len(list))
	for i, t := range list {
		out[i] = admin.Tenant{Name: string(t.Name), Description: t.Description, Enabled: t.Enabled, Created: t.Created}
	}
	return out, nil
}

func (a *API) createTenant(c *call) (any, *problem.Error) {
	var doc admin.NewTenant
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	name, err := tenant.Parse(doc.Name)
	if err != nil {
		return nil, badRequest(problem.Serde, err)
	}
	if len(doc.Description) > maxDescription {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "description: expected at most %d bytes, got %d", maxDescription, len(doc.Description))
	}
	c.record.Resource, c.record.Detail = tenantURI+string(name), doc.Description
	err = a.o.Store.CreateTenant(c.r.Context(), name, doc.Description)
	switch {
	case errors.Is(err, store.ErrExists):
		return nil, problem.New(http.StatusConflict, problem.Serde, "tenant %s exists already", name)
	case err != nil:
		return nil, storeProblem(err)
	}
	return nil, nil
}

func (a *API) changeTenant(c *call) (any, *problem.Error) {
	var doc struct {
		// A document without it must not disable anything.
		Enabled *bool `json:"enabled"`
	}
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	name, err := tenant.Parse(c.rest)
	if err != nil {
		return nil, badRequest(problem.InvalidPath, err)
	}
	if doc.Enabled == nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "enabled: expected true or false")
	}
	c.record.Resource, c.record.Detail = tenantURI+string(name), "disabled"
	if *doc.Enabled {
		c.record.Detail = "enabled"
	} else if name == tenant.Default {
		return nil, problem.New(http.StatusConflict, problem.Serde, "the tenant %s cannot be disabled", name)
	}
	if err := a.o.Store.SetTenantEnabled(c.r.Context(), name, *doc.Enabled); err != nil {
		return nil, storeProblem(err)
	}
	return nil, nil
}

func (a *API) tokenKeys(c *call) (any, *problem.Error) {
	if a.o.TokenKeys == nil {
		return nil, absent("keys of tokens that it administers")
	}
	keys, err := a.o.TokenKeys(c.r.Context())
	if err != nil {
		return nil, injected(err)
	}
	return keys, nil
}

func (a *API) rotateTokenKey(c *call) (any, *problem.Error) {
	if a.o.RotateTokenKey == nil {
		return nil, absent("keys of tokens that it administers")
	}
	var doc admin.Rotation
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	switch doc.Algorithm {
	case "", "ES256", "ES384":
	default:
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "alg: expected ES256, ES384 or nothing, got %.64q", doc.Algorithm)
	}
	c.record.Resource = tokenKeyURI
	key, err := a.o.RotateTokenKey(c.r.Context(), doc.Algorithm)
	if err != nil {
		return nil, injected(err)
	}
	c.record.Resource += "/" + key.KeyID
	c.record.Detail = "a new " + key.Algorithm + " key signs"
	return key, nil
}

func (a *API) whoAmI(c *call) (any, *problem.Error) {
	out := admin.WhoAmI{Subject: c.who.Subject, Method: c.who.Method, KeyID: c.who.KeyID, Roles: c.who.Roles, Tenant: string(c.tenant), Permissions: []string{}}
	for _, t := range c.who.Tenants {
		out.Tenants = append(out.Tenants, string(t))
	}
	for _, p := range Permissions() {
		if c.who.May(p) && (!p.whole() || c.tenant == tenant.Default) {
			out.Permissions = append(out.Permissions, string(p))
		}
	}
	return out, nil
}

func (a *API) status(c *call) (any, *problem.Error) {
	if a.o.Status == nil {
		return nil, absent("status")
	}
	s, err := a.o.Status(c.r.Context(), c.tenant)
	if err != nil {
		return nil, injected(err)
	}
	s.Tenant = string(c.tenant)
	return s, nil
}

// Times of a backup, which lasts longer than other requests may.
const (
	backupTimeout = time.Hour
	// backupStall is how long a client may take none of it.
	backupStall = time.Minute
)

// backup sends a snapshot. It is on record before the first byte leaves: a
// backup is all there is, and what is readable in it can be taken away.
func (a *API) backup(c *call) (any, *problem.Error) {
	if err := a.append(c.r.Context(), c.tenant, c.who, c.cred, audit.Record{Action: string(Backup), Resource: backupURI, Granted: true, Status: http.StatusOK}); err != nil {
		return nil, storeProblem(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), backupTimeout)
	defer cancel()
	w := &backupWriter{c: c, control: http.NewResponseController(c.w)}
	err := a.o.Store.Backup(ctx, w)
	if err == nil && w.err == nil {
		c.answered = true
		return nil, nil
	}
	if !w.begun {
		return nil, storeProblem(err)
	}
	c.answered = true
	a.cutOff(c, "backup", errors.Join(err, w.err))
	return nil, nil
}

// backupWriter sends the header with the first byte, and gives the client time
// for every part.
type backupWriter struct {
	c       *call
	control *http.ResponseController
	begun   bool
	err     error
}

func (w *backupWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.begun = true
		h := w.c.w.Header()
		h.Set("Content-Type", "application/gzip")
		h.Set("Content-Disposition", `attachment; filename="coffer-trustee.backup.gz"`)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	// Without support for deadlines that of the server holds.
	if err := w.control.SetWriteDeadline(time.Now().Add(backupStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		w.err = err
		return 0, err
	}
	n, err := w.c.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}
