package adminapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/store"
)

// referenceDocument is a reference in PUT and POST: values that share
// description, inputs and expiry.
type referenceDocument struct {
	Name        string            `json:"name,omitempty"`
	Values      []json.RawMessage `json:"values"`
	Expires     *time.Time        `json:"expires,omitempty"`
	Inputs      json.RawMessage   `json:"inputs,omitempty"`
	Description string            `json:"description,omitempty"`
}

// listedReference is a reference in a listing: the shared members where all
// values agree (the earliest expiry in any case), and every value with its own.
type listedReference struct {
	referenceDocument
	Scalar  bool              `json:"scalar,omitempty"`
	Entries []refvalues.Entry `json:"entries"`
}

func (a *API) putReference(c *call) (any, *problem.Error) {
	r, e := a.readReference(c)
	if e != nil {
		return nil, e
	}
	if err := a.o.Store.SetReferences(c.r.Context(), r); err != nil {
		return nil, storeProblem(err)
	}
	c.log.InfoContext(c.r.Context(), "reference value stored", "name", r.Name, "values", len(r.Entries))
	return nil, nil
}

func (a *API) addReference(c *call) (any, *problem.Error) {
	r, e := a.readReference(c)
	if e != nil {
		return nil, e
	}
	if have, err := a.o.Store.Reference(c.r.Context(), r.Name); err == nil && have.Scalar {
		return nil, problem.New(http.StatusConflict, problem.ReferenceValue, "reference value %s is a scalar: replace it instead", r.Name)
	}
	if err := a.o.Store.AddReference(c.r.Context(), r); err != nil {
		return nil, storeProblem(err)
	}
	c.log.InfoContext(c.r.Context(), "reference value added to", "name", r.Name, "values", len(r.Entries))
	return nil, nil
}

func (a *API) readReference(c *call) (refvalues.Reference, *problem.Error) {
	var none refvalues.Reference
	var doc referenceDocument
	if e := a.decode(c, &doc); e != nil {
		return none, e
	}
	if doc.Name != "" && doc.Name != c.rest {
		return none, problem.New(http.StatusBadRequest, problem.ReferenceValue, "name: expected %q as in the path, got %q", c.rest, doc.Name)
	}
	r := refvalues.Reference{Name: c.rest}
	expires := a.expiry()
	if doc.Expires != nil {
		expires = *doc.Expires
	}
	if !expires.IsZero() && !a.o.Now().Before(expires) {
		return none, problem.New(http.StatusBadRequest, problem.ReferenceValue, "expires: %s is in the past", expires.Format(time.RFC3339))
	}
	for _, v := range doc.Values {
		r.Entries = append(r.Entries, refvalues.Entry{Value: v, Description: doc.Description, Inputs: doc.Inputs, Expires: expires})
	}
	if err := r.Validate(); err != nil {
		return none, badRequest(problem.ReferenceValue, err)
	}
	return r, nil
}

// expiry is that of values which name none.
func (a *API) expiry() time.Time {
	if a.o.Lifetime == 0 {
		return time.Time{}
	}
	return a.o.Now().Add(a.o.Lifetime)
}

func (a *API) deleteReference(c *call) (any, *problem.Error) {
	deleted, err := a.o.Store.DeleteReference(c.r.Context(), c.rest)
	if err != nil {
		return nil, storeProblem(err)
	}
	if !deleted {
		return nil, notRegistered(c.rest)
	}
	c.log.InfoContext(c.r.Context(), "reference value deleted", "name", c.rest)
	return nil, nil
}

func notRegistered(name string) *problem.Error {
	return problem.New(http.StatusNotFound, problem.ReferenceValue, "reference value %q is not registered", name)
}

func (a *API) listReferences(c *call) (any, *problem.Error) {
	refs, err := a.o.Store.References(c.r.Context())
	if err != nil {
		return nil, storeProblem(err)
	}
	out := []listedReference{}
	for _, r := range refs {
		first := r.Entries[0]
		l := listedReference{Scalar: r.Scalar, Entries: r.Entries}
		l.Name, l.Description, l.Inputs = r.Name, first.Description, first.Inputs
		for _, e := range r.Entries {
			l.Values = append(l.Values, e.Value)
			if e.Description != first.Description {
				l.Description = ""
			}
			if string(e.Inputs) != string(first.Inputs) {
				l.Inputs = nil
			}
			if !e.Expires.IsZero() && (l.Expires == nil || e.Expires.Before(*l.Expires)) {
				l.Expires = &e.Expires
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// registerReferences takes an RVPS message, as kbs-client sends it.
func (a *API) registerReferences(c *call) (any, *problem.Error) {
	data, e := problem.Body(c.w, c.r, a.o.MaxBody)
	if e != nil {
		return nil, e
	}
	refs, err := refvalues.ParseMessage(data)
	if err != nil {
		return nil, badRequest(problem.ReferenceValue, err)
	}
	expires := a.expiry()
	var names []string
	for _, r := range refs {
		names = append(names, r.Name)
		for i := range r.Entries {
			r.Entries[i].Expires = expires
		}
	}
	if err := a.o.Store.SetReferences(c.r.Context(), refs...); err != nil {
		return nil, storeProblem(err)
	}
	c.log.InfoContext(c.r.Context(), "reference values registered", "names", strings.Join(names, " "))
	return nil, nil
}

// referenceValue answers with the bare value that policies see.
func (a *API) referenceValue(c *call) (any, *problem.Error) {
	r, err := a.o.Store.Reference(c.r.Context(), c.rest)
	if errors.Is(err, store.ErrNotFound) {
		return nil, notRegistered(c.rest)
	}
	if err != nil {
		return nil, storeProblem(err)
	}
	return r.Current(a.o.Now()), nil
}

func storeProblem(err error) *problem.Error {
	if errors.Is(err, store.ErrFull) {
		return problem.New(http.StatusInsufficientStorage, problem.Limit, "%v", err)
	}
	return problem.Internal(problem.Storage, err)
}
