package adminapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
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
	if err := a.o.Store.SetResource(c.r.Context(), p, content); err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	c.log.InfoContext(c.r.Context(), "resource stored", "resource", p.String(), "bytes", content.Len())
	return nil, nil
}

func (a *API) deleteResource(c *call) (any, *problem.Error) {
	p, err := resource.Parse(c.rest)
	if err != nil {
		return nil, badRequest(problem.InvalidPath, err)
	}
	// Deleting what is not there succeeds, as in the reference implementation.
	deleted, err := a.o.Store.DeleteResource(c.r.Context(), p)
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	c.log.InfoContext(c.r.Context(), "resource deleted", "resource", p.String(), "existed", deleted)
	return nil, nil
}

func (a *API) listResources(c *call) (any, *problem.Error) {
	list, err := a.o.Store.Resources(c.r.Context())
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	out := []string{}
	for _, x := range list {
		out = append(out, x.Path)
	}
	return out, nil
}

func (a *API) setResourcePolicy(c *call) (any, *problem.Error) {
	var body struct {
		Policy string `json:"policy"`
	}
	if e := a.decode(c, &body); e != nil {
		return nil, e
	}
	text, e := policyText(body.Policy)
	if e != nil {
		return nil, e
	}
	if err := a.o.CheckResourcePolicy(c.r.Context(), text); err != nil {
		return nil, policyProblem(err)
	}
	return nil, a.setPolicy(c, store.ResourcePolicy, release.PolicyID, text)
}

func (a *API) setAttestationPolicy(c *call) (any, *problem.Error) {
	var body struct {
		Type   string `json:"type,omitempty"`
		ID     string `json:"policy_id"`
		Policy string `json:"policy"`
	}
	if e := a.decode(c, &body); e != nil {
		return nil, e
	}
	if body.Type != "" && body.Type != "rego" {
		return nil, problem.New(http.StatusBadRequest, problem.ParsePolicy, "type: expected \"rego\", got %q", body.Type)
	}
	if err := checkPolicyID(body.ID); err != nil {
		return nil, badRequest(problem.ParsePolicy, err)
	}
	text, e := policyText(body.Policy)
	if e != nil {
		return nil, e
	}
	if err := a.o.CheckAttestationPolicy(c.r.Context(), body.ID, text); err != nil {
		return nil, policyProblem(err)
	}
	return nil, a.setPolicy(c, store.AttestationPolicy, body.ID, text)
}

func (a *API) setPolicy(c *call, kind, id, text string) *problem.Error {
	p, err := a.o.Store.SetPolicy(c.r.Context(), kind, id, text)
	if err != nil {
		return problem.Internal(problem.Storage, err)
	}
	c.log.InfoContext(c.r.Context(), "policy stored", "kind", kind, "id", id, "version", p.Version)
	return nil
}

func (a *API) listResourcePolicies(c *call) (any, *problem.Error) {
	return a.policyIDs(c, store.ResourcePolicy, release.PolicyID)
}

func (a *API) listAttestationPolicies(c *call) (any, *problem.Error) {
	return a.policyIDs(c, store.AttestationPolicy, "default_cpu")
}

// policyIDs lists ids; the built-in policy is always in force under its own.
func (a *API) policyIDs(c *call, kind, builtIn string) (any, *problem.Error) {
	list, err := a.o.Store.Policies(c.r.Context(), kind)
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	out := []string{builtIn}
	for _, p := range list {
		if p.ID != builtIn {
			out = append(out, p.ID)
		}
	}
	return out, nil
}

func policyText(encoded string) (string, *problem.Error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(encoded, "="))
	if err != nil {
		return "", problem.New(http.StatusBadRequest, problem.ParsePolicy, "policy: expected base64url without padding")
	}
	return string(text), nil
}

// policyProblem tells the author what is wrong with a text.
func policyProblem(err error) *problem.Error {
	if _, ok := errors.AsType[*policy.CompileError](err); ok {
		return badRequest(problem.ParsePolicy, err)
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
