package adminapi

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
)

// Limits of the listings and texts.
const (
	maxVerdicts     = 1000
	defaultVerdicts = 100
	maxDescription  = 1 << 10
)

type bindingDocument struct {
	Resource    string `json:"resource"`
	InitData    string `json:"initdata"`
	Description string `json:"description,omitempty"`
}

func (a *API) bind(c *call) (any, *problem.Error) {
	var doc bindingDocument
	if e := a.decode(c, &doc); e != nil {
		return nil, e
	}
	if err := checkBinding(doc); err != nil {
		return nil, badRequest(problem.Serde, err)
	}
	if err := a.o.Store.Bind(c.r.Context(), store.Binding{Resource: doc.Resource, InitData: doc.InitData, Description: doc.Description}); err != nil {
		return nil, storeProblem(err)
	}
	c.log.InfoContext(c.r.Context(), "initdata bound", "resource", doc.Resource, "initdata", doc.InitData)
	return nil, nil
}

// checkBinding: the digest is whole, because it is fitted to whatever field an
// environment has, and it is not zero, because a field of zeros means "none".
func checkBinding(d bindingDocument) error {
	if _, err := resource.ParsePrefix(d.Resource); err != nil {
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

func checkDigest(s string) error {
	b, err := hex.DecodeString(s)
	if err != nil || hex.EncodeToString(b) != s || !slices.Contains([]int{32, 48, 64}, len(b)) {
		return fmt.Errorf("initdata: expected a whole SHA-256, SHA-384 or SHA-512 digest in lower-case hex (64, 96 or 128 characters), got %d characters", len(s))
	}
	// The first 32 bytes are what the smallest field keeps.
	if !slices.ContainsFunc(b[:32], func(x byte) bool { return x != 0 }) {
		return fmt.Errorf("initdata: the digest is zero, which stands for a pod without initdata")
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
	if _, err := resource.ParsePrefix(res); err != nil {
		return nil, badRequest(problem.Serde, fmt.Errorf("query parameter resource: %w", err))
	}
	if digest != "" {
		if err := checkDigest(digest); err != nil {
			return nil, badRequest(problem.Serde, fmt.Errorf("query parameter %w", err))
		}
	}
	n, err := a.o.Store.Unbind(c.r.Context(), res, digest)
	if err != nil {
		return nil, storeProblem(err)
	}
	if n == 0 {
		return nil, problem.New(http.StatusNotFound, problem.Serde, "no such binding of %s", res)
	}
	c.log.InfoContext(c.r.Context(), "initdata unbound", "resource", res, "initdata", digest, "bindings", n)
	return nil, nil
}

func (a *API) listBindings(c *call) (any, *problem.Error) {
	list, err := a.o.Store.Bindings(c.r.Context())
	if err != nil {
		return nil, storeProblem(err)
	}
	out := []bindingDocument{}
	for _, b := range list {
		out = append(out, bindingDocument{Resource: b.Resource, InitData: b.InitData, Description: b.Description})
	}
	return out, nil
}

func (a *API) verdicts(c *call) (any, *problem.Error) {
	q, e := queryOf(c.r, "limit", "session")
	if e != nil {
		return nil, e
	}
	limit, e := limitOf(q)
	if e != nil {
		return nil, e
	}
	list, err := a.o.Store.Verdicts(c.r.Context(), limit, q.Get("session"))
	if err != nil {
		return nil, storeProblem(err)
	}
	if list == nil {
		list = []store.Verdict{}
	}
	return list, nil
}

// queryOf reads the query, which may have each of the named parameters once
// and nothing else.
func queryOf(r *http.Request, names ...string) (url.Values, *problem.Error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "query: is malformed: expected name=value pairs joined by &")
	}
	for name, values := range q {
		if !slices.Contains(names, name) || len(values) != 1 {
			return nil, problem.New(http.StatusBadRequest, problem.Serde, "query parameter %.64q: expected at most one each of %s", name, strings.Join(names, ", "))
		}
	}
	return q, nil
}

func limitOf(q url.Values) (int, *problem.Error) {
	s := q.Get("limit")
	if s == "" {
		return defaultVerdicts, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxVerdicts {
		return 0, problem.New(http.StatusBadRequest, problem.Serde, "query parameter limit: expected 1 to %d, got %q", maxVerdicts, s)
	}
	return n, nil
}
