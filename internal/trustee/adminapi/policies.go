package adminapi

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// listAttestationPolicies describes the stored ones.
func (a *API) listAttestationPolicies(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "after", "limit")
	if e != nil {
		return nil, e
	}
	return a.listPolicies(c, store.AttestationPolicy, q)
}

// getResourcePolicy is the list of the stored ones where no scope is asked for.
func (a *API) getResourcePolicy(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "scope", "version", "after", "limit")
	if e != nil {
		return nil, e
	}
	if !q.Has("scope") {
		return a.listPolicies(c, store.ResourcePolicy, q)
	}
	scope := q.Get("scope")
	if err := checkScope(scope); err != nil {
		return nil, err
	}
	return a.policyText(c, store.ResourcePolicy, scope, q)
}

func (a *API) listPolicies(c *call, kind string, q map[string][]string) (any, *problem.Error) {
	p, e := pageOf(q)
	if e != nil {
		return nil, e
	}
	list, e := pages(c, p, func(after string, limit int) ([]store.Policy, error) {
		return a.o.Store.Policies(c.r.Context(), c.tenant, kind, after, limit)
	}, func(x store.Policy) string { return x.ID })
	if e != nil {
		return nil, e
	}
	return policyInfos(list), nil
}

func policyInfos(list []store.Policy) []admin.PolicyInfo {
	out := make([]admin.PolicyInfo, len(list))
	for i, p := range list {
		out[i] = admin.PolicyInfo{Kind: p.Kind, ID: p.ID, Version: p.Version, Author: p.Author, Created: p.Created, Deleted: p.Deleted}
	}
	return out
}

// attestationID splits "id" and "id/versions" below the path of attestation
// policies.
func attestationID(rest string) (id string, versions bool, e *problem.Error) {
	id, versions = strings.CutSuffix(rest, "/versions")
	if err := checkPolicyID(id); err != nil {
		return "", false, badRequest(problem.ParsePolicy, err)
	}
	return id, versions, nil
}

func (a *API) getAttestationPolicy(c *call) (any, *problem.Error) {
	id, versions, e := attestationID(c.rest)
	if e != nil {
		return nil, e
	}
	if versions {
		return a.policyVersions(c, store.AttestationPolicy, id)
	}
	q, e := queryOf(c.r, "version")
	if e != nil {
		return nil, e
	}
	return a.policyText(c, store.AttestationPolicy, id, q)
}

// policyText answers with the text, which is in force where no version is
// asked for.
func (a *API) policyText(c *call, kind, id string, q map[string][]string) (any, *problem.Error) {
	version, e := number(q, "version", 0, 0, math.MaxInt64)
	if e != nil {
		return nil, e
	}
	p, err := a.o.Store.Policy(c.r.Context(), c.tenant, kind, id, version)
	if errors.Is(err, store.ErrNotFound) && version == 0 && a.o.BuiltInPolicy != nil {
		if text, ok := a.o.BuiltInPolicy(kind, id); ok {
			p, err = store.Policy{Text: text}, nil
		}
	}
	switch {
	case errors.Is(err, store.ErrNotFound) && version != 0:
		return nil, problem.New(http.StatusNotFound, problem.ParsePolicy, "%s policy %q has no version %d that is not deleted", kind, id, version)
	case errors.Is(err, store.ErrNotFound):
		return nil, problem.New(http.StatusNotFound, problem.ParsePolicy, "no %s policy %q is stored: a less specific or the built-in one is in force", kind, id)
	case err != nil:
		return nil, storeProblem(err)
	}
	c.w.Header().Set(admin.HeaderPolicyVersion, strconv.FormatInt(p.Version, 10))
	c.text(p.Text)
	return nil, nil
}

// text answers with plain text.
func (c *call) text(s string) {
	c.answered = true
	h := c.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	// The header is out: a failure to write can only be the connection's.
	_, _ = c.w.Write([]byte(s))
}

func (a *API) resourcePolicyVersions(c *call) (any, *problem.Error) {
	scope, e := scopeOf(c)
	if e != nil {
		return nil, e
	}
	return a.policyVersions(c, store.ResourcePolicy, scope)
}

// scopeOf reads ?scope=, which may be empty but not absent: who forgets it
// means some scope.
func scopeOf(c *call) (string, *problem.Error) {
	q, e := queryOf(c.r, "scope")
	if e != nil {
		return "", e
	}
	if !q.Has("scope") {
		return "", problem.New(http.StatusBadRequest, problem.Serde, "query parameter scope: is required; empty is the policy of all resources")
	}
	return q.Get("scope"), checkScope(q.Get("scope"))
}

func checkScope(s string) *problem.Error {
	if _, err := release.ParseScope(s); err != nil {
		return problem.New(http.StatusBadRequest, problem.ParsePolicy, "scope: %v", err)
	}
	return nil
}

func (a *API) policyVersions(c *call, kind, id string) (any, *problem.Error) {
	list, err := a.o.Store.PolicyVersions(c.r.Context(), c.tenant, kind, id)
	if err != nil {
		return nil, storeProblem(err)
	}
	return policyInfos(list), nil
}

func (a *API) putAttestationPolicy(c *call) (any, *problem.Error) {
	id, versions, e := attestationID(c.rest)
	if e == nil && versions {
		e = problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "versions can only be read")
	}
	if e != nil {
		return nil, e
	}
	return a.putPolicy(c, store.AttestationPolicy, id)
}

func (a *API) putResourcePolicy(c *call) (any, *problem.Error) {
	scope, e := scopeOf(c)
	if e != nil {
		return nil, e
	}
	return a.putPolicy(c, store.ResourcePolicy, scope)
}

// putPolicy takes the text as it is.
func (a *API) putPolicy(c *call, kind, id string) (any, *problem.Error) {
	data, e := problem.Body(c.w, c.r, min(a.o.MaxBody, admin.MaxPolicyBytes))
	if e != nil {
		return nil, e
	}
	p, e := a.setPolicy(c, kind, id, string(data))
	if e != nil {
		return nil, e
	}
	return policyInfos([]store.Policy{p})[0], nil
}

// setPolicy checks and stores a text.
func (a *API) setPolicy(c *call, kind, id, text string) (store.Policy, *problem.Error) {
	ctx := c.r.Context()
	if err := a.compile(ctx, c.tenant, kind, id, text); err != nil {
		return store.Policy{}, policyProblem(err)
	}
	sum := sha256.Sum256([]byte(text))
	c.record.Resource, c.record.Detail = policyURI+kind+"/"+id, fmt.Sprintf("%d bytes, SHA-256 %s", len(text), hex.EncodeToString(sum[:]))
	p, err := a.o.Store.SetPolicy(ctx, c.tenant, kind, id, text, c.who.Subject)
	if err != nil {
		return p, storeProblem(err)
	}
	c.record.Version = p.Version
	return p, nil
}

// errText is a text that is no text.
var errText = fmt.Errorf("policy: expected 1 to %d bytes of UTF-8", admin.MaxPolicyBytes)

func (a *API) compile(ctx context.Context, t tenant.Name, kind, id, text string) error {
	if text == "" || len(text) > admin.MaxPolicyBytes || !utf8.ValidString(text) {
		return errText
	}
	if kind == store.ResourcePolicy {
		return a.o.CheckResourcePolicy(ctx, t, id, text)
	}
	return a.o.CheckAttestationPolicy(ctx, t, id, text)
}

func (a *API) deleteAttestationPolicy(c *call) (any, *problem.Error) {
	id, versions, e := attestationID(c.rest)
	if e == nil && versions {
		e = problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "versions can only be read")
	}
	if e != nil {
		return nil, e
	}
	return a.deletePolicy(c, store.AttestationPolicy, id)
}

func (a *API) deleteResourcePolicy(c *call) (any, *problem.Error) {
	scope, e := scopeOf(c)
	if e != nil {
		return nil, e
	}
	return a.deletePolicy(c, store.ResourcePolicy, scope)
}

func (a *API) deletePolicy(c *call, kind, id string) (any, *problem.Error) {
	c.record.Resource = policyURI + kind + "/" + id
	was, err := a.o.Store.DeletePolicy(c.r.Context(), c.tenant, kind, id, c.who.Subject)
	switch {
	case err != nil:
		return nil, storeProblem(err)
	case !was:
		return nil, problem.New(http.StatusNotFound, problem.ParsePolicy, "no %s policy %q is stored", kind, id)
	}
	return nil, nil
}

// checkPolicy tells whether a text could be stored; that it could not is a
// successful answer.
func (a *API) checkPolicy(c *call) (any, *problem.Error) {
	var doc admin.PolicyCheck
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	out := admin.PolicyProblems{Problems: []string{}}
	switch doc.Kind {
	case store.ResourcePolicy:
		if e := checkScope(doc.ID); e != nil {
			out.Problems = append(out.Problems, e.Info.Detail)
		}
	case store.AttestationPolicy:
		if err := checkPolicyID(doc.ID); err != nil {
			out.Problems = append(out.Problems, err.Error())
		}
	default:
		return nil, problem.New(http.StatusBadRequest, problem.ParsePolicy, "kind: expected %s or %s, got %.64q", store.AttestationPolicy, store.ResourcePolicy, doc.Kind)
	}
	if err := a.compile(c.r.Context(), c.tenant, doc.Kind, doc.ID, doc.Text); err != nil {
		e := policyProblem(err)
		if e.Status >= http.StatusInternalServerError {
			return nil, e
		}
		out.Problems = append(out.Problems, e.Info.Detail)
	}
	out.OK = len(out.Problems) == 0
	return out, nil
}

// policyProblem tells the author what is wrong with a text.
func policyProblem(err error) *problem.Error {
	if _, ok := errors.AsType[*policy.CompileError](err); ok || errors.Is(err, errText) {
		return badRequest(problem.ParsePolicy, err)
	}
	if errors.Is(err, store.ErrUnavailable) {
		return storeProblem(err)
	}
	return problem.Internal(problem.PolicyEngine, err)
}

// classes are the suffixes an attestation policy's id may have.
var classes = [...]string{"cpu", "gpu", "switch", "ppcie", "dcu", "nvidia-dpu"}

// checkPolicyID insists on the class suffix: in the reference implementation
// a policy stored as "default" silently has no effect.
func checkPolicyID(id string) error {
	const maxID = 128
	ok := id != "" && len(id) <= maxID && !strings.ContainsFunc(id, func(r rune) bool {
		return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if !ok {
		return fmt.Errorf("policy_id: expected 1 to %d characters of A-Z a-z 0-9 _ -", maxID)
	}
	for _, class := range classes {
		if name, found := strings.CutSuffix(id, "_"+class); found && name != "" {
			return nil
		}
	}
	return fmt.Errorf("policy_id %q: expected name_class, for example default_cpu; classes are %s", id, strings.Join(classes[:], ", "))
}

// kbsPolicy decodes what the protocol carries Rego as.
func kbsPolicy(encoded string) (string, *problem.Error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(encoded, "="))
	if err != nil {
		return "", problem.New(http.StatusBadRequest, problem.ParsePolicy, "policy: expected base64url without padding")
	}
	return string(text), nil
}
