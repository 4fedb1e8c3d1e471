package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
)

// parseScope reads what a policy or binding is for, as a URI or as the
// trustee writes it: kbs:///repository[/type[/tag]] or "repository/…",
// kbs+plugin:///path or "+plugin/path". Empty and kbs:/// are everything.
func parseScope(s string) (string, error) {
	scope := s
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		path, ok := strings.CutPrefix(rest, "/")
		if !ok {
			return "", fmt.Errorf("%.200q: expected three slashes after the scheme: kbs:///repository/type", s)
		}
		switch plugin, isPlugin := strings.CutPrefix(scheme, "kbs+"); {
		case scheme == "kbs":
			scope = path
		case isPlugin && plugin == kbs.PluginResource:
			scope = path
		case isPlugin && path == "":
			scope = "+" + plugin
		case isPlugin:
			scope = "+" + plugin + "/" + path
		default:
			return "", fmt.Errorf("%.200q: expected the scheme kbs or kbs+plugin", s)
		}
	}
	if scope = strings.TrimSuffix(scope, "/"); scope == "" {
		return "", nil
	}
	return scope, admin.CheckScope(scope)
}

// scopeURI is a scope as a URI; everything is kbs:///.
func scopeURI(scope string) string {
	plugin, ok := strings.CutPrefix(scope, "+")
	if !ok {
		return "kbs:///" + scope
	}
	name, path, _ := strings.Cut(plugin, "/")
	return "kbs+" + name + ":///" + path
}

// parseBinding reads the arguments of bind and unbind.
func parseBinding(resource, digest string) (admin.Binding, error) {
	b := admin.Binding{InitData: strings.TrimPrefix(strings.ToLower(digest), "sha256:")}
	var err error
	if b.Resource, err = parseScope(resource); err == nil && b.Resource == "" {
		err = errors.New("resource: expected one, or a repository: nothing is bound to everything")
	}
	if err == nil && digest != "" {
		err = b.Validate()
	}
	if err != nil {
		return b, usageError{hint.New(err, "for example kbs:///shop/db/password, kbs:///shop or kbs+pki:///issue/web, and the whole digest that `coffer initdata inspect` prints")}
	}
	return b, nil
}

const bindExample = `  coffer trustee bind kbs:///shop/db/password "$(coffer initdata inspect pod.toml --output json | jq -r .digest)"
  coffer trustee bind kbs:///shop b3c1… --description "shop, release 4"
  coffer trustee bind kbs+pki:///issue/web b3c1…`

func (t *trusteeGroup) bindCommand() *cobra.Command {
	var description string
	c := &cobra.Command{
		Use: "bind RESOURCE INITDATA-DIGEST", Short: "Let pods with this initdata have a resource (or all below a repository or type)",
		Example: bindExample, Args: args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := parseBinding(args[0], args[1])
			if err != nil {
				return err
			}
			b.Description = description
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.Bind(c.Context(), b); err != nil {
					return err
				}
				return t.done(b, "")
			})
		},
	}
	c.Flags().StringVar(&description, "description", "", "what it is for; guests that are refused may read it")
	return c
}

func (t *trusteeGroup) unbindCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "unbind RESOURCE [INITDATA-DIGEST]", Short: "Take a binding back, or all of a resource",
		Example: `  coffer trustee unbind kbs:///shop b3c1…
  coffer trustee unbind kbs:///shop --all`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			digest := ""
			if len(args) == 2 {
				digest = args[1]
			}
			if all == (len(args) == 2) {
				return usageError{hint.New(errors.New("expected either a digest or --all"), "usage: "+c.UseLine())}
			}
			b, err := parseBinding(args[0], digest)
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if all {
					err = cl.UnbindAll(c.Context(), b.Resource)
				} else {
					err = cl.Unbind(c.Context(), b)
				}
				if err != nil {
					return err
				}
				return t.done(struct {
					Resource string `json:"resource"`
					InitData string `json:"initdata,omitempty"`
					Unbound  bool   `json:"unbound"`
				}{b.Resource, b.InitData, true}, "")
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "take all bindings of the resource back")
	return c
}

func (t *trusteeGroup) bindingsCommand() *cobra.Command {
	return t.lists("bindings", "List bindings", func(c *cobra.Command, cl *admin.Client) error {
		bindings, err := cl.Bindings(c.Context())
		if err != nil {
			return err
		}
		return t.table(bindings, "RESOURCE\tINITDATA\tDESCRIPTION", func(w io.Writer) {
			for _, b := range bindings {
				row(w, b.Resource, b.InitData, b.Description)
			}
		})
	})
}
