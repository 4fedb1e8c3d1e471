package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// SetReferenceValue registers a reference value under its name, replacing an
// earlier one.
func (c *Client) SetReferenceValue(ctx context.Context, v ReferenceValue) error {
	return c.sendReference(ctx, http.MethodPut, v)
}

// AddReferenceValue adds values to a list; equal ones are replaced with their
// description and expiry.
func (c *Client) AddReferenceValue(ctx context.Context, v ReferenceValue) error {
	return c.sendReference(ctx, http.MethodPost, v)
}

func (c *Client) sendReference(ctx context.Context, method string, v ReferenceValue) error {
	path, err := referencePath(v.Name)
	if err != nil {
		return err
	}
	switch {
	case len(v.Values) == 0:
		return fmt.Errorf("kbs admin: reference value %q has no values: delete it instead", v.Name)
	case v.Scalar && len(v.Values) != 1:
		return fmt.Errorf("kbs admin: reference value %q: a scalar has one value, got %d", v.Name, len(v.Values))
	}
	v.Name, v.Entries = "", nil
	return c.send(ctx, method, path, v)
}

// DeleteReferenceValue removes a reference value.
func (c *Client) DeleteReferenceValue(ctx context.Context, name string) error {
	path, err := referencePath(name)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: path})
	return err
}

// ReferenceValue gets one reference value.
func (c *Client) ReferenceValue(ctx context.Context, name string) (ReferenceValue, error) {
	path, err := referencePath(name)
	if err != nil {
		return ReferenceValue{}, err
	}
	return exchange[ReferenceValue](ctx, c, http.MethodGet, path, nil)
}

// ReferenceHistory lists what was registered under a name, newest first.
func (c *Client) ReferenceHistory(ctx context.Context, name string) ([]ReferenceVersion, error) {
	if err := checkReferenceName(name); err != nil {
		return nil, err
	}
	return array[ReferenceVersion](ctx, c, withQuery(ReferenceHistoryPath, url.Values{"name": {name}}))
}

// referencePath names a reference value in the path, or in the query where it
// has characters that a path could not carry unchanged (rvps:///a/b).
func referencePath(name string) (string, error) {
	if err := checkReferenceName(name); err != nil {
		return "", err
	}
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:", r)
	}
	if name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return !ok(r) }) {
		return withQuery(ReferenceValuesPath, url.Values{"name": {name}}), nil
	}
	return ReferenceValuesPath + "/" + name, nil
}

func checkReferenceName(name string) error {
	if name == "" || len(name) > maxNameBytes || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("kbs admin: reference value %.64q: expected a name of 1 to %d printable ASCII characters without spaces", name, maxNameBytes)
	}
	return nil
}

// ReferenceValues lists the reference values.
func (c *Client) ReferenceValues(ctx context.Context) ([]ReferenceValue, error) {
	return list[ReferenceValue](ctx, c, ReferenceValuesPath, nil)
}

// RegisterProvenance registers what a provenance message vouches for: an RVPS
// message {"version","type","payload"} as JSON. It returns the names of the
// reference values that it set.
func (c *Client) RegisterProvenance(ctx context.Context, message []byte) ([]string, error) {
	a, err := c.do(ctx, call{method: http.MethodPost, path: ProvenancePath, contentType: "application/json", body: message})
	if err != nil {
		return nil, err
	}
	var out Registered
	err = decode("POST "+ProvenancePath, a.body, &out, "JSON document")
	return out.Names, err
}
