package adminapi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxDescription bounds a binding's description, in bytes.
const maxDescription = 1 << 10

func (a *API) bind(c *call) (any, *problem.Error) {
	var doc admin.Binding
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	if err := checkBinding(doc); err != nil {
		return nil, badRequest(problem.Serde, err)
	}
	c.record.Resource, c.record.InitData, c.record.Detail = scopeURI(doc.Resource), doc.InitData, doc.Description
	err := a.o.Store.Bind(c.r.Context(), c.tenant, store.Binding{Resource: doc.Resource, InitData: doc.InitData, Description: doc.Description})
	if err != nil {
		return nil, storeProblem(err)
	}
	return nil, nil
}

// checkBinding: the digest is whole, because it is fitted to whatever field an
// environment has, and it is not zero, because a field of zeros means "none".
func checkBinding(d admin.Binding) error {
	if err := checkBound(d.Resource); err != nil {
		return fmt.Errorf("resource: %w", err)
	}
	if err := checkDigest(d.InitData); err != nil {
		return err
	}
	if len(d.Description) > maxDescription || !utf8.ValidString(d.Description) {
		return fmt.Errorf("description: expected at most %d bytes of UTF-8", maxDescription)
	}
	return nil
}

// checkBound: initdata is bound to something; unlike a policy's, its scope
// cannot be everything.
func checkBound(scope string) error {
	if scope == "" {
		return errors.New("is empty, expected repository, repository/type, repository/type/tag or +plugin/segment")
	}
	_, err := release.ParseScope(scope)
	return err
}

func checkDigest(s string) error {
	b, err := hex.DecodeString(s)
	if err != nil || hex.EncodeToString(b) != s || !slices.Contains([]int{32, 48, 64}, len(b)) {
		return fmt.Errorf("initdata: expected a whole SHA-256, SHA-384 or SHA-512 digest in lower-case hex (64, 96 or 128 characters), got %d characters", len(s))
	}
	// The first 32 bytes are what the smallest field keeps.
	if !slices.ContainsFunc(b[:32], func(x byte) bool { return x != 0 }) {
		return errors.New("initdata: the digest is zero, which stands for a pod without initdata")
	}
	return nil
}

func (a *API) unbind(c *call) (any, *problem.Error) {
	// Without initdata all bindings go: a parameter that is misspelt or lost
	// in a malformed query must not come to mean that.
	q, e := queryOf(c.r, "resource", "initdata")
	if e != nil {
		return nil, e
	}
	res, digest := q.Get("resource"), q.Get("initdata")
	if q.Has("initdata") && digest == "" {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "query parameter initdata: is empty; leave it out to remove all bindings of the resource")
	}
	if err := checkBound(res); err != nil {
		return nil, badRequest(problem.Serde, fmt.Errorf("query parameter resource: %w", err))
	}
	if digest != "" {
		if err := checkDigest(digest); err != nil {
			return nil, badRequest(problem.Serde, fmt.Errorf("query parameter %w", err))
		}
	}
	c.record.Resource, c.record.InitData = scopeURI(res), digest
	n, err := a.o.Store.Unbind(c.r.Context(), c.tenant, res, digest)
	if err != nil {
		return nil, storeProblem(err)
	}
	if n == 0 {
		return nil, problem.New(http.StatusNotFound, problem.Serde, "no such binding of %s", res)
	}
	c.record.Detail = fmt.Sprintf("%d bindings", n)
	return nil, nil
}

// listBindings pages by "resource initdata": neither holds a space.
func (a *API) listBindings(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "after", "limit")
	if e != nil {
		return nil, e
	}
	p, e := pageOf(q)
	if e != nil {
		return nil, e
	}
	list, e := pages(c, p, func(after string, limit int) ([]store.Binding, error) {
		res, digest, _ := strings.Cut(after, " ")
		return a.o.Store.Bindings(c.r.Context(), c.tenant, store.Binding{Resource: res, InitData: digest}, limit)
	}, func(b store.Binding) string { return b.Resource + " " + b.InitData })
	if e != nil {
		return nil, e
	}
	out := make([]admin.Binding, len(list))
	for i, b := range list {
		out[i] = admin.Binding{Resource: b.Resource, InitData: b.InitData, Description: b.Description}
	}
	return out, nil
}
