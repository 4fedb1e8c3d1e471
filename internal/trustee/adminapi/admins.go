package adminapi

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxAdminName bounds an administrator's name, in bytes.
const maxAdminName = 256

// listAdmins lists the keys that may administer the tenant, those of every
// tenant among them: an owner may know who can reach its secrets' policies.
func (a *API) listAdmins(c *call) (any, *problem.Error) {
	out := []admin.Administrator{}
	for _, k := range a.o.Auth.Keys {
		if k.Tenant != c.tenant && k.Tenant != tenant.All {
			continue
		}
		doc, err := administrator(store.Admin{ID: store.AdminID(k.Public), Tenant: k.Tenant, Name: k.Name, Roles: k.Roles, PublicKey: k.Public})
		if err != nil {
			return nil, problem.Internal(problem.Storage, err)
		}
		doc.Configured = true
		out = append(out, doc)
	}
	list, err := a.o.Store.Admins(c.r.Context(), c.tenant)
	if err != nil {
		return nil, storeProblem(err)
	}
	for _, x := range list {
		doc, err := administrator(x)
		if err != nil {
			return nil, problem.Internal(problem.Storage, err)
		}
		out = append(out, doc)
	}
	return out, nil
}

func administrator(x store.Admin) (admin.Administrator, error) {
	der, err := x509.MarshalPKIXPublicKey(x.PublicKey)
	if err != nil {
		return admin.Administrator{}, fmt.Errorf("administrator %s: %w", x.ID, err)
	}
	return admin.Administrator{
		ID: x.ID, Name: x.Name, Tenant: string(x.Tenant), Roles: x.Roles, Created: x.Created,
		PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	}, nil
}

func (a *API) addAdmin(c *call) (any, *problem.Error) {
	var doc admin.NewAdministrator
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	x := store.Admin{Name: doc.Name, Roles: doc.Roles, Tenant: c.tenant}
	if err := checkRoles(doc.Roles); err != nil {
		return nil, badRequest(problem.Serde, err)
	}
	if doc.Name == "" || len(doc.Name) > maxAdminName || !utf8.ValidString(doc.Name) {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "name: expected 1 to %d bytes of UTF-8", maxAdminName)
	}
	var err error
	if x.PublicKey, err = parsePublicKey(doc.PublicKey); err != nil {
		return nil, badRequest(problem.Serde, err)
	}
	id := store.AdminID(x.PublicKey)
	c.record.Resource, c.record.Detail = adminURI+id, "roles "+strings.Join(doc.Roles, ",")+", name "+doc.Name
	switch doc.Tenant {
	case "", string(c.tenant):
	case string(tenant.All):
		x.Tenant = tenant.All
		c.record.Detail += ", every tenant"
		if !c.who.Everywhere() {
			return nil, forbidden("tenant: a key for every tenant takes an administrator of every tenant, got one of %s", names(c.who.Tenants))
		}
	default:
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "tenant: expected nothing, the tenant of the URL (%s) or *, got %.80q", c.tenant, doc.Tenant)
	}
	exists := problem.New(http.StatusConflict, problem.Serde, "the key %s is an administrator's already", id)
	if slices.ContainsFunc(a.o.Auth.Keys, func(k Key) bool { return k.Public.Equal(x.PublicKey) }) {
		return nil, exists
	}
	have, err := a.o.Store.Admins(c.r.Context(), c.tenant)
	if err != nil {
		return nil, storeProblem(err)
	}
	if slices.ContainsFunc(have, func(y store.Admin) bool { return y.ID == id }) {
		return nil, exists
	}
	x, err = a.o.Store.AddAdmin(c.r.Context(), x)
	switch {
	case errors.Is(err, store.ErrExists):
		return nil, exists
	case err != nil:
		return nil, storeProblem(err)
	}
	out, err := administrator(x)
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	return out, nil
}

// parsePublicKey reads one Ed25519 key in PEM (RFC 8410, section 10.1).
func parsePublicKey(text string) (ed25519.PublicKey, error) {
	const expected = "public_key: expected one Ed25519 public key in PEM (BEGIN PUBLIC KEY)"
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New(expected)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf(expected+": %w", err)
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf(expected+", got %T", key)
	}
	return pub, nil
}

func (a *API) removeAdmin(c *call) (any, *problem.Error) {
	id := c.rest
	c.record.Resource = adminURI + clip(id, 128)
	if slices.ContainsFunc(a.o.Auth.Keys, func(k Key) bool {
		return store.AdminID(k.Public) == id && (k.Tenant == c.tenant || k.Tenant == tenant.All)
	}) {
		return nil, problem.New(http.StatusConflict, problem.Serde, "the key %s stands in the trustee's configuration: remove it there", id)
	}
	if c.who.KeyID == id {
		return nil, problem.New(http.StatusConflict, problem.Serde, "the key %s signed this request: remove it with another one, so that somebody is left", id)
	}
	list, err := a.o.Store.Admins(c.r.Context(), c.tenant)
	if err != nil {
		return nil, storeProblem(err)
	}
	missing := problem.New(http.StatusNotFound, problem.Serde, "no key %.80q is an administrator's of this tenant", id)
	// The tenant's own before one of every tenant.
	i := slices.IndexFunc(list, func(x store.Admin) bool { return x.ID == id && x.Tenant == c.tenant })
	if i < 0 {
		i = slices.IndexFunc(list, func(x store.Admin) bool { return x.ID == id })
	}
	if i < 0 {
		return nil, missing
	}
	x := list[i]
	c.record.Detail = "name " + x.Name
	if x.Tenant == tenant.All {
		c.record.Detail += ", every tenant"
		if !c.who.Everywhere() {
			return nil, forbidden("tenant: the key %s is for every tenant: removing it takes an administrator of every tenant, got one of %s", id, names(c.who.Tenants))
		}
	}
	was, err := a.o.Store.RemoveAdmin(c.r.Context(), x.Tenant, id)
	switch {
	case err != nil:
		return nil, storeProblem(err)
	case !was:
		return nil, missing
	}
	return nil, nil
}
