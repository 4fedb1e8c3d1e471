package cli

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
)

// pluginRequest reads a method and a plugin's URI.
func pluginRequest(method, uri string) (admin.PluginRequest, error) {
	r := admin.PluginRequest{Method: strings.ToUpper(method)}
	if methods := []string{"GET", "POST", "PUT", "DELETE"}; !slices.Contains(methods, r.Method) {
		return r, usagef("%.40q: expected a method, one of %s", method, strings.Join(methods, ", "))
	}
	u, err := kbs.ParseResourceURI(uri)
	if err == nil && u.Plugin() == kbs.PluginResource {
		err = errors.New(uri + ": is a stored secret, not a plugin's")
	}
	if err == nil {
		r.Plugin, r.Path = u.Plugin(), u.Path()
		r.Query, err = url.ParseQuery(u.Query())
	}
	if err != nil {
		return r, usageError{hint.New(err, "a plugin's resource is named kbs+PLUGIN:///PATH")}
	}
	return r, nil
}

func (t *trusteeGroup) pluginCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "plugin METHOD kbs+PLUGIN:///PATH [FILE]", Short: "Ask a plugin's administration, and print its answer as it is",
		Long: `Send a request to a plugin's administration and print its answer as it is. FILE is
the request's body; - reads standard input. What there is to ask, the plugin
says; what it makes for guests, it gives to guests alone.`,
		Example: `  coffer trustee plugin POST 'kbs+provision:///devices?model=a1' device.json`,
		Args:    args(cobra.RangeArgs(2, 3)),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := pluginRequest(args[0], args[1])
			if err != nil {
				return err
			}
			if t.json() {
				return usageError{hint.New(errors.New("--output json: a plugin's answer is printed as it is"), "leave --output json out")}
			}
			if len(args) == 3 {
				if r.Body, err = t.readLimited(args[2], maxProvenance); err != nil {
					return usageError{err}
				}
			}
			return t.ask(c, func(cl *admin.Client) error {
				answer, err := cl.Plugin(c.Context(), r)
				if err != nil {
					return err
				}
				_, err = t.env.Stdout.Write(answer)
				return err
			})
		},
	}
	return c
}
