package adminapi

import (
	"errors"
	"net/http"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs/admin"
)

// explain replays a recorded decision on a resource, with the policy that was
// in force or with one that could be.
func (a *API) explain(c *call) (any, *problem.Error) {
	if a.o.Explain == nil || a.o.PolicyText == nil {
		return nil, absent("explanations")
	}
	var doc admin.ExplainRequest
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	entry, e := a.findEntry(c, doc)
	if e != nil {
		return nil, e
	}
	r, e := decodeRecord(entry)
	if e != nil {
		return nil, e
	}
	if r.Kind != audit.KindResource || len(r.Data) == 0 || r.Policy == "" {
		return nil, problem.New(http.StatusConflict, problem.Serde, "record %d is not a decision of a resource policy: expected kind %q with its data, got kind %q, status %d",
			entry.Seq, audit.KindResource, r.Kind, r.Status)
	}
	attested, e := a.attestationOf(c, r.Session)
	if e != nil {
		return nil, e
	}
	if len(attested.Claims) == 0 {
		return nil, problem.New(http.StatusConflict, problem.Serde, "record %d: the handshake of session %s is not on record with its claims, without which nothing can be replayed", entry.Seq, r.Session)
	}
	in := Replay{Label: r.Policy, Text: doc.Text, Claims: attested.Claims, Data: r.Data}
	if doc.Text != "" {
		in.Label = "candidate"
		if len(doc.Text) > admin.MaxPolicyBytes || !utf8.ValidString(doc.Text) {
			return nil, policyProblem(errText)
		}
	} else if in.Text, e = a.recordedPolicy(c, r.Policy); e != nil {
		return nil, e
	}
	out, err := a.o.Explain(c.r.Context(), in)
	if _, ok := errors.AsType[*policy.CompileError](err); ok {
		return nil, badRequest(problem.ParsePolicy, err)
	}
	if err != nil {
		return nil, injected(err)
	}
	out.Seq, out.Recorded, out.Data = entry.Seq, r.Granted, r.Data
	return out, nil
}

func (a *API) recordedPolicy(c *call, label string) (string, *problem.Error) {
	text, err := a.o.PolicyText(c.r.Context(), c.tenant, label)
	if errors.Is(err, store.ErrNotFound) {
		return "", problem.New(http.StatusConflict, problem.ParsePolicy, "policy %s is not kept any more: try a text instead", label)
	}
	if err != nil {
		return "", injected(err)
	}
	return text, nil
}

// findEntry looks a record up by its number or its id.
func (a *API) findEntry(c *call, doc admin.ExplainRequest) (audit.Entry, *problem.Error) {
	var none audit.Entry
	if (doc.Seq == 0) == (doc.ID == "") || doc.Seq < 0 {
		return none, problem.New(http.StatusBadRequest, problem.Serde, "expected either seq, counting from 1, or id")
	}
	missing := problem.New(http.StatusNotFound, problem.Serde, "there is no such record")
	if doc.ID != "" {
		x, err := a.o.Store.EntryByID(c.r.Context(), c.tenant, doc.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return none, missing
		case err != nil:
			return none, storeProblem(err)
		}
		return x, nil
	}
	list, err := a.o.Store.Entries(c.r.Context(), c.tenant, audit.Query{Before: doc.Seq + 1, Limit: 1})
	switch {
	case err != nil:
		return none, storeProblem(err)
	case len(list) == 0 || list[0].Seq != doc.Seq:
		return none, missing
	}
	return list[0], nil
}

// injected is the failure of a part that another package does: what it says
// itself, or a failure of the trustee.
func injected(err error) *problem.Error {
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return e
	}
	return storeProblem(err)
}
