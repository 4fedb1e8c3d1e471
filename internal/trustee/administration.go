package trustee

import (
	"context"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/coffer-project/coffer/internal/trustee/adminapi"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/release/explain"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (t *Trustee) openAdmin(backend resource.Backend, appraiser *appraisal.Engine, decider *release.Engine, signer *audit.Signer) error {
	c := &t.o.Config
	auth, err := t.auth()
	if err != nil {
		return err
	}
	t.admin, err = adminapi.New(adminapi.Options{
		Store: records{t.store, t}, Resources: backend, Auth: auth,
		CheckResourcePolicy: func(ctx context.Context, _ tenant.Name, scope, text string) error {
			return decider.CheckPolicy(ctx, scope, text)
		},
		CheckAttestationPolicy: appraiser.CheckPolicy, CheckReference: appraiser.CheckReference,
		BuiltInPolicy: builtIn, PolicyText: decider.PolicyText, Explain: replay,
		Provenance: t.parseProvenance, Plugin: t.administerPlugin,
		AuditKeys: func(context.Context) (json.RawMessage, error) { return json.Marshal(signer.Keys()) },
		Checkpoint: func(ctx context.Context, n tenant.Name) (admin.Checkpoint, error) {
			p, jws, err := t.checkpointer.Checkpoint(ctx, n)
			if errors.Is(err, audit.ErrEmpty) {
				return admin.Checkpoint{}, problem.New(http.StatusConflict, problem.Storage, "the record is empty: there is nothing to sign yet")
			}
			return admin.Checkpoint{Seq: p.Seq, At: p.At, JWS: jws}, err
		},
		TokenKeys: t.listTokenKeys, RotateTokenKey: t.rotateTokenKey, Status: t.status,
		ClientAddr: listener.ClientText, MaxBody: c.Limits.Body, MaxResource: c.Limits.Resource,
		Lifetime: c.References.Lifetime.D(), Now: t.o.Now, Logger: t.o.Logger,
	})
	return err
}

// auth says who is an administrator.
func (t *Trustee) auth() (adminapi.Auth, error) {
	c := &t.o.Config.Admin
	out := adminapi.Auth{
		Issuer: c.Issuer, Audience: c.Audience, MaxLifetime: c.MaxTokenLifetime.D(), RequireClientCertificate: c.ClientCA != "", Now: t.o.Now,
	}
	keys, err := t.adminKeys()
	if err != nil {
		return out, err
	}
	for _, k := range keys {
		out.Keys = append(out.Keys, adminapi.Key{Public: k, Name: "administrator", Roles: []string{admin.RoleAdmin}, Tenant: tenant.All})
	}
	for _, k := range c.Keys {
		public, err := identity.AdminPublicKeys([]string{k.File})
		if err != nil {
			return out, err
		}
		out.Keys = append(out.Keys, adminapi.Key{Public: public[0], Name: k.Name, Roles: k.Roles, Tenant: tenant.Name(k.Tenant)})
	}
	for _, p := range c.OIDC {
		client, err := httpClient(p.Roots)
		if err != nil {
			return out, fmt.Errorf("admin.oidc %s: roots: %w", p.Issuer, err)
		}
		reach := tenant.Name(p.Tenant)
		if reach == "" {
			reach = tenant.All // narrowed by the claim
		}
		provider, err := adminapi.NewProvider(adminapi.ProviderOptions{
			Issuer: p.Issuer, Audience: p.Audience, JWKS: p.JWKS, RoleClaim: p.RoleClaim, RoleMap: p.Roles,
			Tenant: reach, TenantClaim: p.TenantClaim, HTTP: client, Now: t.o.Now,
		})
		if err != nil {
			return out, err
		}
		out.Providers = append(out.Providers, provider)
	}
	return out, nil
}

// builtIn is the text in force where none is stored.
func builtIn(kind, id string) (string, bool) {
	switch kind {
	case store.ResourcePolicy:
		return release.DefaultPolicy(), id == ""
	case store.AttestationPolicy:
		for _, class := range appraisal.Classes() {
			if id != appraisal.DefaultPolicy+"_"+string(class) {
				continue
			}
			text := "# The built-in policy of class " + string(class) + ": several files, of which those for the evidence's\n" +
				"# environment are evaluated together. One of your own is a single module.\n\n"
			for _, m := range appraisal.DefaultModules(class) {
				text += "# " + m.Name + "\n\n" + m.Text + "\n"
			}
			return text, true
		}
	}
	return "", false
}

// replay has the explanation in the form that the interface gives it.
func replay(ctx context.Context, in adminapi.Replay) (admin.Explanation, error) {
	report, err := explain.Explain(ctx, explain.Input{Label: in.Label, Text: in.Text, Claims: in.Claims, Data: in.Data})
	if err != nil {
		return admin.Explanation{}, err
	}
	// The two have the same members: one is for the policy's packages, the
	// other on the wire.
	doc, err := json.Marshal(report)
	if err != nil {
		return admin.Explanation{}, err
	}
	var out admin.Explanation
	err = json.Unmarshal(doc, &out)
	return out, err
}

// administerPlugin hands an administrator's request to a plugin.
func (t *Trustee) administerPlugin(ctx context.Context, c adminapi.PluginCall) (*adminapi.PluginAnswer, *problem.Error) {
	p, ok := t.plugins.Get(c.Plugin)
	if !ok {
		return nil, problem.New(http.StatusNotFound, problem.PluginNotFound, "no such plugin")
	}
	r := plugin.Request{Tenant: c.Tenant, Method: c.Method, Path: c.Path, Query: c.Query, Body: c.Body}
	if p.Access(c.Method, c.Path) != plugin.Admin {
		return nil, problem.New(http.StatusNotFound, problem.InvalidPath, "the plugin %s has no such administration", c.Plugin)
	}
	answer, e := p.Handle(ctx, r)
	if e != nil {
		return nil, e
	}
	return &adminapi.PluginAnswer{Body: answer.Body, ContentType: answer.ContentType, Version: answer.Version, Detail: answer.Detail}, nil
}

func (t *Trustee) listTokenKeys(ctx context.Context) ([]admin.TokenKey, error) {
	keys, _, err := t.tokenKeys.TokenKeys(ctx)
	if err != nil {
		return nil, err
	}
	var out []admin.TokenKey
	for _, k := range keys {
		x, err := tokenKey(k)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

func tokenKey(k token.Key) (admin.TokenKey, error) {
	id, err := token.KeyID(&k.Private.PublicKey)
	alg := "ES256"
	if k.Private.Curve == elliptic.P384() {
		alg = "ES384"
	}
	return admin.TokenKey{KeyID: id, Algorithm: alg, Created: k.Created, Retired: k.Retired}, err
}

func (t *Trustee) rotateTokenKey(ctx context.Context, alg string) (admin.TokenKey, error) {
	if alg != "" && alg != "ES256" && alg != "ES384" {
		return admin.TokenKey{}, problem.New(http.StatusBadRequest, problem.Serde, "alg: expected ES256 or ES384, got %.32q", alg)
	}
	key, err := t.tokenKeys.Rotate(ctx, alg)
	if err != nil {
		return admin.TokenKey{}, err
	}
	return tokenKey(key)
}

func (t *Trustee) status(ctx context.Context, n tenant.Name) (admin.Status, error) {
	seq, _, err := t.store.Head(ctx, n)
	if err != nil {
		return admin.Status{}, err
	}
	return admin.Status{
		Version: t.o.Build, Started: t.started.UTC(), UptimeSeconds: int64(t.o.Now().Sub(t.started).Seconds()),
		Database: t.store.Kind(), Schema: store.SchemaVersion, ResourceBackend: t.o.Config.Resources.Backend,
		Tenant: string(n), Counts: map[string]int64{"records": seq},
	}, nil
}
