package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/coffer-project/coffer/kbs"
)

// Bind registers initdata for a resource.
func (c *Client) Bind(ctx context.Context, b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return c.send(ctx, http.MethodPut, BindingsPath, b)
}

// Unbind removes a binding; its description is ignored.
func (c *Client) Unbind(ctx context.Context, b Binding) error {
	if err := b.Validate(); err != nil {
		return err
	}
	return c.unbind(ctx, url.Values{"resource": {b.Resource}, "initdata": {b.InitData}})
}

// UnbindAll removes all bindings of a resource.
func (c *Client) UnbindAll(ctx context.Context, resource string) error {
	if err := CheckScope(resource); err != nil {
		return err
	}
	return c.unbind(ctx, url.Values{"resource": {resource}})
}

func (c *Client) unbind(ctx context.Context, q url.Values) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: withQuery(BindingsPath, q)})
	return err
}

// Bindings lists the bindings.
func (c *Client) Bindings(ctx context.Context) ([]Binding, error) {
	return list[Binding](ctx, c, BindingsPath, nil)
}

// Validate checks a binding's form: a scope (see [CheckScope]) and a digest of
// 32, 48 or 64 bytes in lower-case hexadecimal.
func (b Binding) Validate() error {
	if err := CheckScope(b.Resource); err != nil {
		return fmt.Errorf("kbs admin: binding: %w", err)
	}
	switch len(b.InitData) {
	case 64, 96, 128:
	default:
		return fmt.Errorf("kbs admin: binding: initdata %q: expected a whole digest of 64, 96 or 128 hexadecimal digits", b.InitData)
	}
	if strings.Trim(b.InitData, "0123456789abcdef") != "" {
		return errors.New("kbs admin: binding: initdata: expected lower-case hexadecimal digits")
	}
	return nil
}

// CheckScope checks what a binding or a resource policy may be for: one to
// three segments "repository[/type[/tag]]" of stored resources, or of a
// plugin's "+plugin[/segment…]".
func CheckScope(scope string) error {
	err := fmt.Errorf("resource %.80q: expected repository, repository/type, repository/type/tag or +plugin/segment", scope)
	if plugin, ok := strings.CutPrefix(scope, "+"); ok {
		name, path, found := strings.Cut(plugin, "/")
		if !found {
			path = "x"
		}
		if u, e := kbs.ParseResourceURI("kbs+" + name + ":///" + path); e != nil || name == kbs.PluginResource || u.Path() != path {
			return err
		}
		return nil
	}
	// The parts that a shorter path leaves open are filled to reuse the
	// checks of a whole one.
	whole := scope
	if n := strings.Count(scope, "/"); n < 2 {
		whole += strings.Repeat("/x", 2-n)
	}
	if u, e := kbs.ParseResourceURI("kbs:///" + whole); e != nil || u.Path() != whole {
		return err
	}
	return nil
}
