package cli

import (
	"errors"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

func (t *trusteeGroup) secretCommand() *cobra.Command {
	return group("secret", "Put, list and delete the secrets that pods may have",
		t.secretSetCommand(), t.secretListCommand(), t.secretVersionsCommand(), t.secretDeleteCommand())
}

// secretURI names a stored secret.
func secretURI(s string) (kbs.ResourceURI, error) {
	uri, err := kbs.ParseResourceURI(s)
	if err != nil {
		return uri, usageError{hint.New(err, "a secret is named kbs:///REPOSITORY/TYPE/TAG")}
	}
	if uri.Plugin() != kbs.PluginResource || uri.Query() != "" {
		return uri, usageError{hint.New(errors.New(s+": is made by a plugin, not stored"), "a secret is named kbs:///REPOSITORY/TYPE/TAG")}
	}
	return uri, nil
}

func (t *trusteeGroup) secretSetCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "set kbs:///REPOSITORY/TYPE/TAG [FILE]", Short: "Put a secret and print its version; - reads standard input",
		Long: `Put a secret, replacing an earlier one, and print the number of its version. The
content is that of FILE, byte for byte; - or no FILE reads standard input.`,
		Example: `  coffer trustee secret set kbs:///shop/db/password password.txt
  openssl rand 32 | coffer trustee secret set kbs:///shop/image/app`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			uri, err := secretURI(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if file != "" {
					return usageError{hint.New(errors.New("the content is named twice, as an argument and with --file"), "leave one of them out")}
				}
				file = args[1]
			}
			if file == "" {
				if term.IsTerminal(int(t.env.Stdin.Fd())) {
					return usageError{hint.New(errors.New("standard input is a terminal"), "name a file, or - to type the content")}
				}
				file = "-"
			}
			value, err := t.readLimited(file, kbs.MaxResourceBytes)
			if err != nil {
				return usageError{err}
			}
			content := secret.New(value)
			defer content.Clear()
			return t.ask(c, func(cl *admin.Client) error {
				version, err := cl.PutResource(c.Context(), uri, content)
				if err != nil {
					return err
				}
				return t.done(struct {
					Resource string `json:"resource"`
					Version  int64  `json:"version,omitempty"`
				}{uri.String(), version}, "%s: version %d", uri, version)
			})
		},
	}
	c.Flags().StringVar(&file, "file", "", "file with the content; - is standard input")
	return c
}

func (t *trusteeGroup) secretListCommand() *cobra.Command {
	var (
		prefix, versions string
		long             bool
	)
	c := &cobra.Command{
		Use: "list", Short: "List the secrets' names, or the versions of one",
		Example: `  coffer trustee secret list
  coffer trustee secret list --long --prefix kbs:///shop/db
  coffer trustee secret list --versions kbs:///shop/db/password`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if versions != "" {
				if prefix != "" || long {
					return usageError{hint.New(errors.New("--versions: lists one secret"), "leave --prefix and --long out")}
				}
				return t.listVersions(c, versions)
			}
			below, err := parseScope(prefix)
			if err != nil {
				return usagef("--prefix: %w", err)
			}
			return t.ask(c, func(cl *admin.Client) error {
				if !long && below == "" {
					uris, err := cl.Resources(c.Context())
					if err != nil {
						return err
					}
					names := make([]string, len(uris))
					for i, u := range uris {
						names[i] = u.String()
					}
					return t.printNames(names)
				}
				infos, err := cl.ResourceInfos(c.Context(), below)
				if err != nil {
					return err
				}
				if long {
					return t.printInfos(infos)
				}
				names := make([]string, len(infos))
				for i, x := range infos {
					names[i] = scopeURI(x.Path)
				}
				return t.printNames(names)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&prefix, "prefix", "", "only secrets below kbs:///REPOSITORY or kbs:///REPOSITORY/TYPE")
	f.StringVar(&versions, "versions", "", "list the versions of this secret instead")
	f.BoolVarP(&long, "long", "l", false, "with version, size and time")
	return c
}

func (t *trusteeGroup) printNames(names []string) error {
	return t.table(names, "RESOURCE", func(w io.Writer) {
		for _, n := range names {
			row(w, n)
		}
	})
}

func (t *trusteeGroup) printInfos(infos []admin.ResourceInfo) error {
	return t.table(infos, "RESOURCE\tVERSION\tBYTES\tCREATED", func(w io.Writer) {
		for _, x := range infos {
			var size any = x.Size
			switch {
			case x.Deleted:
				size = "deleted"
			case x.Size < 0:
				size = "-"
			}
			row(w, scopeURI(x.Path), x.Version, size, stamp(x.Created))
		}
	})
}

func (t *trusteeGroup) secretVersionsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "versions kbs:///REPOSITORY/TYPE/TAG", Short: "List a secret's versions, newest first",
		Example: `  coffer trustee secret versions kbs:///shop/db/password --output json`,
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, args []string) error { return t.listVersions(c, args[0]) },
	}
}

func (t *trusteeGroup) listVersions(c *cobra.Command, name string) error {
	uri, err := secretURI(name)
	if err != nil {
		return err
	}
	return t.ask(c, func(cl *admin.Client) error {
		infos, err := cl.ResourceVersions(c.Context(), uri)
		if err != nil {
			return err
		}
		return t.printInfos(infos)
	})
}

func (t *trusteeGroup) secretDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete kbs:///REPOSITORY/TYPE/TAG", Short: "Delete a secret in all its versions",
		Long:    "Delete a secret in all its versions. One that is not there is no error.",
		Example: `  coffer trustee secret delete kbs:///shop/db/password`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			uri, err := secretURI(args[0])
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.DeleteResource(c.Context(), uri); err != nil {
					return err
				}
				return t.done(struct {
					Resource string `json:"resource"`
					Deleted  bool   `json:"deleted"`
				}{uri.String(), true}, "")
			})
		},
	}
}
