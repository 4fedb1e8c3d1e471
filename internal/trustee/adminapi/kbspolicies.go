package adminapi

import (
	"net/http"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
)

// The protocol's own endpoints for policies. It has one resource policy, which
// is the one that covers everything.

func (a *API) kbsSetResourcePolicy(c *call) (any, *problem.Error) {
	var body struct {
		Policy string `json:"policy"`
	}
	if e := a.decode(c, &body); e != nil {
		return nil, e
	}
	text, e := kbsPolicy(body.Policy)
	if e != nil {
		return nil, e
	}
	_, e = a.setPolicy(c, store.ResourcePolicy, "", text)
	return nil, e
}

func (a *API) kbsSetAttestationPolicy(c *call) (any, *problem.Error) {
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
	text, e := kbsPolicy(body.Policy)
	if e != nil {
		return nil, e
	}
	_, e = a.setPolicy(c, store.AttestationPolicy, body.ID, text)
	return nil, e
}

// kbsResourcePolicies lists ids: of the policy that covers everything, and the
// scopes of the others.
func (a *API) kbsResourcePolicies(c *call) (any, *problem.Error) {
	return a.policyIDs(c, store.ResourcePolicy, release.PolicyID, func(id string) string {
		if id == "" {
			return release.PolicyID
		}
		return id
	})
}

func (a *API) kbsAttestationPolicies(c *call) (any, *problem.Error) {
	return a.policyIDs(c, store.AttestationPolicy, "default_cpu", func(id string) string { return id })
}

// policyIDs lists ids; the built-in policy is always in force under its own.
func (a *API) policyIDs(c *call, kind, builtIn string, shown func(string) string) (any, *problem.Error) {
	list, e := pages(c, page{}, func(after string, limit int) ([]store.Policy, error) {
		return a.o.Store.Policies(c.r.Context(), c.tenant, kind, after, limit)
	}, func(p store.Policy) string { return p.ID })
	if e != nil {
		return nil, e
	}
	out := []string{builtIn}
	for _, p := range list {
		if id := shown(p.ID); id != builtIn {
			out = append(out, id)
		}
	}
	return out, nil
}
