package adminapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// recordTimeout bounds the writing of a record. A client that goes away does
// not end it: what was changed must be on record.
const recordTimeout = 30 * time.Second

// maxDetail bounds what a record says in words, maxRequest what of it is a
// request's method and path; in bytes.
const (
	maxDetail  = 1 << 10
	maxRequest = 256
)

// changed records what came of a change. A change that cannot be recorded is
// an error, although it was made.
func (a *API) changed(c *call, action string, e *problem.Error) *problem.Error {
	r := c.record
	r.Action = action
	r.Granted, r.Status = e == nil, http.StatusOK
	if e != nil {
		// A malformed request is nobody's attempt at anything.
		if e.Status < http.StatusInternalServerError && e.Status != http.StatusForbidden && e.Status != http.StatusConflict {
			return e
		}
		r.Status = e.Status
		r.Detail = clip(strings.TrimPrefix(r.Detail+": "+e.Info.Detail, ": "), maxDetail)
	}
	err := a.append(c.r.Context(), c.tenant, c.who, c.cred, r)
	if err == nil || e != nil {
		return e
	}
	failed := storeProblem(err)
	out := problem.New(http.StatusInternalServerError, problem.Storage,
		"the change was made, but the audit record of it could not be written: repeat the request when the trustee's storage works again")
	out.Cause = failed
	return out
}

// refused records what a genuine token was not enough for. It is in the chain
// of the tenant whose URL was used, if the principal administers it, else in
// that of the principal's own tenant: nobody can fill the record of another's.
func (a *API) refused(ctx context.Context, who Principal, c Credentials, t tenant.Name, what string, e *problem.Error) {
	home, detail := t, e.Info.Detail
	if c.request != "" {
		detail = c.request + ": " + detail
	}
	if !who.Reaches(t) {
		home, detail = tenant.Default, "at the URL of tenant "+string(t)+": "+detail
		if len(who.Tenants) > 0 {
			home = who.Tenants[0]
		}
	}
	r := audit.Record{Action: what, Status: e.Status, Detail: clip(detail, maxDetail)}
	// Nothing was let in: the refusal stands whether it is on record or not.
	_ = a.append(ctx, home, who, c, r)
}

// append writes a record and the log's line about it.
func (a *API) append(ctx context.Context, t tenant.Name, who Principal, c Credentials, r audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	r.At, r.Tenant, r.Kind, r.Client = a.o.Now().UTC(), t, audit.KindAdmin, c.Client
	r.Subject, r.Role = who.Subject, strings.Join(who.Roles, ",")
	_, err := a.o.Store.Append(ctx, t, r)
	log := a.o.Logger.With("tenant", string(t), "admin", r.Subject, "method", who.Method, "key", who.KeyID, "role", r.Role,
		"action", r.Action, "resource", r.Resource, "version", r.Version, "status", r.Status, "detail", r.Detail)
	switch {
	case err != nil && errors.Is(err, store.ErrNoTenant):
		log.WarnContext(ctx, "administration is not on record: no such tenant")
	case err != nil:
		log.ErrorContext(ctx, "administration is not on record", "cause", err.Error())
	case r.Granted:
		log.InfoContext(ctx, "administration")
	default:
		log.WarnContext(ctx, "administration refused")
	}
	return err
}

// What records call the things that are no resources.
const (
	policyURI    = "coffer:///policies/"
	referenceURI = "coffer:///reference-values/"
	adminURI     = "coffer:///admins/"
	tenantURI    = "coffer:///tenants/"
	tokenKeyURI  = "coffer:///token-keys"
	backupURI    = "coffer:///backup"
)

// scopeURI is the URI of a scope: of a stored resource, of a plugin's, or of
// what begins with it.
func scopeURI(scope string) string {
	plugin, ok := strings.CutPrefix(scope, "+")
	if !ok {
		return "kbs:///" + scope
	}
	name, path, _ := strings.Cut(plugin, "/")
	return "kbs+" + name + ":///" + path
}

func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}
