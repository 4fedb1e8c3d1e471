package trustee

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/adminapi"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/attestationservice"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/listener"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/provenance"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// openService makes the server of the attestation service, where it is on.
func (t *Trustee) openService(evaluator *evaluation.Engine, appraiser *appraisal.Engine) error {
	c := &t.o.Config
	if c.Service.Listen == "" {
		return nil
	}
	s, err := attestationservice.New(attestationservice.Options{
		Evaluator: judged{evaluator, t.metrics, t.o.Now}, Policies: servicePolicies{t, appraiser}, References: serviceReferences{references{t.store}, t, appraiser},
		Recorder: records{t.store, t}, JWKS: t.tokens.JWKS, Authorize: t.authorize, Enter: t.enter, Audience: c.Service.Audience, OpenReads: c.Service.OpenReads,
		AllowSimulated: c.Policy.AllowSimulated, ClientAddr: listener.ClientText, MaxBody: c.Limits.Body, Timeout: c.Limits.RequestTimeout.D(),
		Challengers: challengers(t.o.Verifiers), Logger: t.o.Logger, Now: t.o.Now, Rand: t.o.Rand,
	})
	if err != nil {
		return err
	}
	t.service = t.newServer(t.metrics.HTTP(t.limited(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.serveService(s, w, r) }))))
	t.service.Protocols = new(http.Protocols)
	t.service.Protocols.SetHTTP1(true)
	t.service.Protocols.SetHTTP2(true)
	t.service.Protocols.SetUnencryptedHTTP2(c.TLS.InsecureHTTP)
	t.service.RegisterOnShutdown(s.Shutdown)
	return nil
}

// serveService finds the tenant of a REST request; gRPC names it in metadata.
func (t *Trustee) serveService(s http.Handler, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), t.o.Config.Limits.RequestTimeout.D())
	defer cancel()
	name, path, err := tenant.FromPath(r.URL.Path)
	if err != nil {
		t.fail(w, r, noTenant())
		return
	}
	if name == tenant.Default && path == "/.well-known/openid-configuration" {
		t.get(w, r, t.discovery)
		return
	}
	if name != tenant.Default {
		if e := t.enter(ctx, name); e != nil {
			t.fail(w, r, e)
			return
		}
	}
	if attestationservice.IsGRPC(r) {
		ctx = r.Context() // the service bounds calls itself
	}
	inner := r.WithContext(tenant.With(ctx, name))
	u := *r.URL
	u.Path, u.RawPath = path, ""
	inner.URL = &u
	s.ServeHTTP(w, inner)
}

// authorize lets administrators' tokens into the attestation service. It asks
// for no client certificate: where administrators must show one, they use the
// administration interface.
func (t *Trustee) authorize(ctx context.Context, bearer string, n tenant.Name, permission string) (attestationservice.Admin, error) {
	who, e := t.admin.Authorize(ctx, adminapi.Credentials{Bearer: bearer}, n, adminapi.Permission(permission))
	if e != nil {
		return attestationservice.Admin{}, e
	}
	return attestationservice.Admin{Subject: who.Subject, Role: strings.Join(who.Roles, " ")}, nil
}

// servicePolicies are the attestation policies as the service sees them.
type servicePolicies struct {
	t         *Trustee
	appraiser *appraisal.Engine
}

func (p servicePolicies) SetPolicy(ctx context.Context, n tenant.Name, id, text, author string) error {
	if !ofClass(id) {
		return &policy.CompileError{Name: id, Err: fmt.Errorf("policy id: expected name_class, for example default_cpu; classes are %v", appraisal.Classes())}
	}
	if err := p.appraiser.CheckPolicy(ctx, n, id, text); err != nil {
		return err
	}
	_, err := p.t.store.SetPolicy(ctx, n, store.AttestationPolicy, id, text, author)
	return err
}

// ofClass insists on the class suffix: without it a policy has no effect.
func ofClass(id string) bool {
	return slices.ContainsFunc(appraisal.Classes(), func(c tee.Class) bool {
		name, ok := strings.CutSuffix(id, "_"+string(c))
		return ok && name != ""
	})
}

func (p servicePolicies) Policy(ctx context.Context, n tenant.Name, id string) (string, bool, error) {
	x, err := p.t.store.Policy(ctx, n, store.AttestationPolicy, id, 0)
	if errors.Is(err, store.ErrNotFound) {
		text, ok := builtIn(store.AttestationPolicy, id)
		return text, ok, nil
	}
	return x.Text, err == nil, err
}

func (p servicePolicies) PolicyIDs(ctx context.Context, n tenant.Name) ([]string, error) {
	var out []string
	for after := ""; ; {
		page, err := p.t.store.Policies(ctx, n, store.AttestationPolicy, after, 0)
		if err != nil || len(page) == 0 {
			return out, err
		}
		for _, x := range page {
			out = append(out, x.ID)
		}
		after = page[len(page)-1].ID
	}
}

// serviceReferences are the reference values as the service sees them.
type serviceReferences struct {
	references
	t         *Trustee
	appraiser *appraisal.Engine
}

func (s serviceReferences) Register(ctx context.Context, n tenant.Name, message []byte, _ string) error {
	refs, err := s.t.parseProvenance(ctx, n, message)
	if err != nil {
		return err
	}
	lifetime := s.t.o.Config.References.Lifetime.D()
	for _, r := range refs {
		if err := s.appraiser.CheckReference(ctx, n, r); err != nil {
			return problem.New(http.StatusBadRequest, problem.ReferenceValue, "%v", err)
		}
		for i := range r.Entries {
			if r.Entries[i].Expires.IsZero() && lifetime > 0 {
				r.Entries[i].Expires = s.t.o.Now().Add(lifetime)
			}
		}
	}
	return s.t.store.SetReferences(ctx, n, refs...)
}

func (s serviceReferences) ReferenceNames(ctx context.Context, n tenant.Name, after string, limit int) ([]string, error) {
	return s.t.store.ReferenceNames(ctx, n, after, limit)
}

// signers are those who may set a tenant's reference values.
type signers map[tenant.Name][]provenance.Signer

// openSigners reads their keys.
func openSigners(c config.References) (signers, error) {
	out := signers{}
	for _, s := range c.Signers {
		signer := provenance.Signer{
			Name: s.Name, Subjects: s.Subjects, AcceptExpired: s.AcceptExpired, Builders: s.Builders, Prefixes: s.Prefixes,
		}
		for from, to := range s.Rename {
			signer.Rename = append(signer.Rename, provenance.Rename{From: from, To: to})
		}
		for _, file := range append(slices.Clip(s.Keys), s.Roots) {
			if file == "" {
				continue
			}
			text, err := identity.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("reference_values.signer %s: %w", s.Name, err)
			}
			keys, roots, err := provenance.ParsePEM(text)
			if err != nil {
				return nil, fmt.Errorf("reference_values.signer %s: %s: %w", s.Name, file, err)
			}
			if file == s.Roots {
				signer.Roots = append(signer.Roots, roots...)
			} else {
				signer.Keys = append(signer.Keys, keys...)
			}
		}
		if err := signer.Check(); err != nil {
			return nil, err
		}
		out[tenant.Name(s.Tenant)] = append(out[tenant.Name(s.Tenant)], signer)
	}
	return out, nil
}

// parseProvenance reads an RVPS message for a tenant. What is wrong with it is
// a *problem.Error.
func (t *Trustee) parseProvenance(ctx context.Context, n tenant.Name, message []byte) ([]refvalues.Reference, error) {
	all := append(slices.Clip(t.signers[n]), t.signers[tenant.All]...)
	refs, err := provenance.Parse(ctx, provenance.Options{Signers: all, AllowUnsigned: t.o.Config.References.Unsigned, Now: t.o.Now}, message)
	switch {
	case err == nil:
		return refs, nil
	case ctx.Err() != nil:
		return nil, err
	case errors.Is(err, provenance.ErrUntrusted):
		return nil, problem.New(http.StatusForbidden, problem.ReferenceValue, "%v", err)
	}
	return nil, problem.New(http.StatusBadRequest, problem.ReferenceValue, "%v", err)
}
