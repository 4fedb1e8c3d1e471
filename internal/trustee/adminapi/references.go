package adminapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs/admin"
)

// referenceDocument is a reference in PUT and POST: values that share
// description, inputs and expiry.
type referenceDocument struct {
	Name        string            `json:"name,omitempty"`
	Scalar      bool              `json:"scalar,omitempty"`
	Values      []json.RawMessage `json:"values"`
	Expires     *time.Time        `json:"expires,omitempty"`
	Inputs      json.RawMessage   `json:"inputs,omitempty"`
	Description string            `json:"description,omitempty"`
}

// listedReference is a reference in an answer: the shared members where all
// values agree (the earliest expiry in any case), and every value with its own.
type listedReference struct {
	referenceDocument
	Entries []refvalues.Entry `json:"entries"`
}

// maxListed bounds the values in which a record spells references out.
const maxListed = 16

// referenceName is that of the path, or of ?name= for names that a path could
// not carry unchanged, such as rvps:///a/b.
func referenceName(c *call) (string, *problem.Error) {
	if c.rest != "" {
		if c.r.URL.RawQuery != "" {
			if _, e := queryOf(c.r); e != nil {
				return "", e
			}
		}
		return c.rest, nil
	}
	q, e := queryOf(c.r, "name")
	if e != nil {
		return "", e
	}
	if !q.Has("name") {
		return "", problem.New(http.StatusBadRequest, problem.Serde, "query parameter name: is required")
	}
	return q.Get("name"), nil
}

func (a *API) putReference(c *call) (any, *problem.Error) {
	r, e := a.readReference(c)
	if e != nil {
		return nil, e
	}
	if e := a.checkReference(c, r); e != nil {
		return nil, e
	}
	recordReferences(c, r)
	if err := a.o.Store.SetReferences(c.r.Context(), c.tenant, r); err != nil {
		return nil, storeProblem(err)
	}
	return nil, nil
}

func (a *API) addReference(c *call) (any, *problem.Error) {
	r, e := a.readReference(c)
	if e != nil {
		return nil, e
	}
	scalar := problem.New(http.StatusConflict, problem.ReferenceValue, "reference value %s is a scalar: replace it instead", r.Name)
	if r.Scalar {
		return nil, scalar
	}
	if have, err := a.o.Store.Reference(c.r.Context(), c.tenant, r.Name); err == nil && have.Scalar {
		return nil, scalar
	}
	if e := a.checkReference(c, r); e != nil {
		return nil, e
	}
	recordReferences(c, r)
	err := a.o.Store.AddReference(c.r.Context(), c.tenant, r)
	switch {
	case errors.Is(err, store.ErrConflict):
		return nil, scalar
	case err != nil:
		return nil, storeProblem(err)
	}
	return nil, nil
}

// checkReference asks whether the policies in force could use the value.
func (a *API) checkReference(c *call, r refvalues.Reference) *problem.Error {
	if a.o.CheckReference == nil {
		return nil
	}
	err := a.o.CheckReference(c.r.Context(), c.tenant, r)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*policy.CompileError](err); ok {
		return problem.New(http.StatusConflict, problem.ReferenceValue, "reference value %s does not fit a policy in force: %v", r.Name, err)
	}
	return policyProblem(err)
}

// recordReferences says what is registered: not the values themselves, which
// the history has, but what finds them there.
func recordReferences(c *call, refs ...refvalues.Reference) {
	words := make([]string, 0, len(refs))
	for i, r := range refs {
		if i == maxListed {
			words = append(words, fmt.Sprintf("and %d more", len(refs)-i))
			break
		}
		words = append(words, fmt.Sprintf("%s: %d values", r.Name, len(r.Entries)))
	}
	c.record.Resource = referenceURI
	if len(refs) == 1 {
		c.record.Resource += refs[0].Name
	}
	c.record.Detail = clip(strings.Join(words, ", "), maxDetail)
}

func (a *API) readReference(c *call) (refvalues.Reference, *problem.Error) {
	var none refvalues.Reference
	name, e := referenceName(c)
	if e != nil {
		return none, e
	}
	var doc referenceDocument
	if e := a.decode(c, &doc); e != nil {
		return none, e
	}
	if doc.Name != "" && doc.Name != name {
		return none, problem.New(http.StatusBadRequest, problem.ReferenceValue, "name: expected %q as in the path, got %q", name, doc.Name)
	}
	r := refvalues.Reference{Name: name, Scalar: doc.Scalar}
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
	name, e := referenceName(c)
	if e != nil {
		return nil, e
	}
	if refvalues.CheckName(name) != nil {
		return nil, notRegistered(name)
	}
	c.record.Resource = referenceURI + name
	deleted, err := a.o.Store.DeleteReference(c.r.Context(), c.tenant, name)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	if err != nil {
		return nil, storeProblem(err)
	}
	if !deleted {
		return nil, notRegistered(name)
	}
	return nil, nil
}

func notRegistered(name string) *problem.Error {
	return problem.New(http.StatusNotFound, problem.ReferenceValue, "reference value %.256q is not registered", name)
}

// listReferences lists all, or has the one of ?name=.
func (a *API) listReferences(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "name", "after", "limit")
	if e != nil {
		return nil, e
	}
	if q.Has("name") {
		return a.oneReference(c, q.Get("name"))
	}
	p, e := pageOf(q)
	if e != nil {
		return nil, e
	}
	refs, e := a.referencePage(c, p)
	if e != nil {
		return nil, e
	}
	out := make([]listedReference, len(refs))
	for i, r := range refs {
		out[i] = listed(r)
	}
	return out, nil
}

// maxListedBytes bounds an answer's references, in bytes of their values and what
// describes them.
const maxListedBytes = 16 << 20

// referencePage reads one page of references, or all of them where all fit into
// an answer. Of large ones a page has fewer than were asked for.
func (a *API) referencePage(c *call, p page) ([]refvalues.Reference, *problem.Error) {
	out, size, after := []refvalues.Reference{}, 0, p.after
	for {
		// One more than is wanted, to know whether there are more.
		want := maxPage
		if p.limit > 0 {
			want = min(maxPage, p.limit-len(out)+1)
		}
		list, err := a.o.Store.References(c.r.Context(), c.tenant, after, want)
		if err != nil {
			return nil, storeProblem(err)
		}
		if len(list) == 0 {
			return out, nil
		}
		for _, r := range list {
			size += sizeOf(r)
			switch full := size > maxListedBytes && len(out) > 0; {
			case full && p.limit == 0:
				return nil, problem.New(http.StatusInsufficientStorage, problem.ReferenceValue,
					"the reference values have more than %d bytes together: list them in pages, with ?limit=", maxListedBytes)
			case full, p.limit > 0 && len(out) == p.limit:
				c.w.Header().Set(admin.HeaderNext, after)
				return out, nil
			}
			out, after = append(out, r), r.Name
		}
	}
}

func sizeOf(r refvalues.Reference) int {
	n := len(r.Name)
	for _, e := range r.Entries {
		n += len(e.Value) + len(e.Inputs) + len(e.Description) + len(e.Source)
	}
	return n
}

func (a *API) getReference(c *call) (any, *problem.Error) {
	name, e := referenceName(c)
	if e != nil {
		return nil, e
	}
	return a.oneReference(c, name)
}

func (a *API) oneReference(c *call, name string) (any, *problem.Error) {
	r, e := a.reference(c, name)
	if e != nil {
		return nil, e
	}
	return listed(r), nil
}

func (a *API) reference(c *call, name string) (refvalues.Reference, *problem.Error) {
	// No database has to bear what can be no name.
	if refvalues.CheckName(name) != nil {
		return refvalues.Reference{}, notRegistered(name)
	}
	r, err := a.o.Store.Reference(c.r.Context(), c.tenant, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return r, notRegistered(name)
	case err != nil:
		return r, storeProblem(err)
	}
	return r, nil
}

func listed(r refvalues.Reference) listedReference {
	l := listedReference{Entries: r.Entries}
	l.Name, l.Scalar = r.Name, r.Scalar
	for i, e := range r.Entries {
		if i == 0 {
			l.Description, l.Inputs = e.Description, e.Inputs
		}
		l.Values = append(l.Values, e.Value)
		if e.Description != r.Entries[0].Description {
			l.Description = ""
		}
		if string(e.Inputs) != string(r.Entries[0].Inputs) {
			l.Inputs = nil
		}
		if !e.Expires.IsZero() && (l.Expires == nil || e.Expires.Before(*l.Expires)) {
			l.Expires = &e.Expires
		}
	}
	return l
}

// referenceVersion is a version in a history.
type referenceVersion struct {
	Version int64             `json:"version"`
	Created time.Time         `json:"created"`
	Deleted bool              `json:"deleted,omitempty"`
	Scalar  bool              `json:"scalar,omitempty"`
	Entries []refvalues.Entry `json:"entries,omitempty"`
}

func (a *API) referenceHistory(c *call) (any, *problem.Error) {
	name, e := referenceName(c)
	if e != nil {
		return nil, e
	}
	list, err := a.o.Store.ReferenceHistory(c.r.Context(), c.tenant, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, storeProblem(err)
	}
	if len(list) == 0 {
		return nil, notRegistered(name)
	}
	out := make([]referenceVersion, len(list))
	for i, v := range list {
		out[i] = referenceVersion{Version: v.Version, Created: v.Created, Deleted: v.Deleted, Scalar: v.Reference.Scalar, Entries: v.Reference.Entries}
	}
	return out, nil
}
