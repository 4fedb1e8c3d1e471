package adminapi

import (
	"errors"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs/admin"
)

// register takes an RVPS message and answers with what it set.
func (a *API) register(c *call) (any, *problem.Error) {
	names, e := a.registerMessage(c)
	if e != nil {
		return nil, e
	}
	return admin.Registered{Names: names}, nil
}

// kbsRegister is the same as kbs-client sends and expects it.
func (a *API) kbsRegister(c *call) (any, *problem.Error) {
	_, e := a.registerMessage(c)
	return nil, e
}

func (a *API) registerMessage(c *call) ([]string, *problem.Error) {
	data, e := problem.Body(c.w, c.r, a.o.MaxBody)
	if e != nil {
		return nil, e
	}
	ctx := c.r.Context()
	refs, err := a.o.Provenance(ctx, c.tenant, data)
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return nil, e
	}
	if err != nil {
		return nil, badRequest(problem.ReferenceValue, err)
	}
	if len(refs) == 0 {
		return nil, badRequest(problem.ReferenceValue, errors.New("the message holds no reference value"))
	}
	names := make([]string, len(refs))
	for i := range refs {
		names[i] = refs[i].Name
		for j := range refs[i].Entries {
			// What the message says itself about its end counts.
			if refs[i].Entries[j].Expires.IsZero() {
				refs[i].Entries[j].Expires = a.expiry()
			}
		}
		if e := a.checkReference(c, refs[i]); e != nil {
			return nil, e
		}
	}
	recordReferences(c, refs...)
	if err := a.o.Store.SetReferences(ctx, c.tenant, refs...); err != nil {
		return nil, storeProblem(err)
	}
	return names, nil
}

// kbsReferenceValue answers with the bare value that policies see.
func (a *API) kbsReferenceValue(c *call) (any, *problem.Error) {
	r, e := a.reference(c, c.rest)
	if e != nil {
		return nil, e
	}
	return r.Current(a.o.Now()), nil
}
