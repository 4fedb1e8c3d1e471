package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (t *trusteeGroup) trusteePolicyCommand() *cobra.Command {
	c := group("policy", "Write, check, test and explain the trustee's policies (Rego)",
		t.policyListCommand(), t.policyGetCommand(), t.policySetCommand(), t.policyDeleteCommand(), t.policyVersionsCommand(),
		t.policyCheckCommand(), t.policyTestCommand(), t.policyExplainCommand())
	c.Long = `Write, check, test and explain the trustee's policies (Rego).

An attestation policy judges evidence; its ID is name_class, for example
default_cpu. A resource policy releases resources; it is for a --scope, and the
most specific one decides. Where none is stored, the built-in one is in force.`
	c.Example = `  coffer trustee policy test shop.rego shop-cases.toml
  coffer trustee policy set shop.rego --scope kbs:///shop
  coffer trustee policy explain 4711`
	return c
}

// policyName says which policy is meant: an attestation policy's id, or the
// scope of a resource policy.
type policyName struct {
	scope string
}

func (p *policyName) add(c *cobra.Command) {
	c.Flags().StringVar(&p.scope, "scope", "", "a resource policy's: kbs:///REPOSITORY[/TYPE[/TAG]], kbs+PLUGIN:///PATH, or kbs:/// for all resources")
}

// resolve returns kind and id. Without an id it is the resource policy of the
// scope; needed: there has to be one of both.
func (p *policyName) resolve(c *cobra.Command, id string, needed bool) (string, string, error) {
	given := c.Flags().Changed("scope")
	switch {
	case id != "" && given:
		return "", "", usageError{hint.New(fmt.Errorf("%s and --scope: expected one of them", id), "an id is an attestation policy's, a scope a resource policy's")}
	case id != "":
		return admin.PolicyAttestation, id, nil
	case needed && !given:
		return "", "", usageError{hint.New(errors.New("expected an attestation policy's ID or --scope"), "--scope kbs:/// is the policy of all resources")}
	}
	scope, err := parseScope(p.scope)
	if err != nil {
		return "", "", usagef("--scope: %w", err)
	}
	return admin.PolicyResource, scope, nil
}

// policyTitle names a policy for people.
func policyTitle(kind, id string) string {
	if kind == admin.PolicyResource {
		return scopeURI(id)
	}
	return id
}

func (t *trusteeGroup) printPolicies(list []admin.PolicyInfo) error {
	return t.table(list, "KIND\tPOLICY\tVERSION\tCREATED\tAUTHOR", func(w io.Writer) {
		for _, p := range list {
			version := fmt.Sprint(p.Version)
			if p.Deleted {
				version += " (deleted)"
			}
			row(w, p.Kind, policyTitle(p.Kind, p.ID), version, stamp(p.Created), p.Author)
		}
	})
}

func (t *trusteeGroup) policyListCommand() *cobra.Command {
	kind := ""
	c := t.lists("list", "List the stored policies", func(c *cobra.Command, cl *admin.Client) error {
		all := []admin.PolicyInfo{}
		for _, k := range []string{admin.PolicyAttestation, admin.PolicyResource} {
			if kind != "" && kind != k {
				continue
			}
			list, err := cl.Policies(c.Context(), k)
			if err != nil {
				return err
			}
			all = append(all, list...)
		}
		return t.printPolicies(all)
	})
	c.Example = `  coffer trustee policy list --kind resource`
	c.PreRunE = func(*cobra.Command, []string) error {
		switch kind {
		case "", admin.PolicyAttestation, admin.PolicyResource:
			return nil
		}
		return usagef("--kind: expected %s or %s, got %q", admin.PolicyAttestation, admin.PolicyResource, kind)
	}
	c.Flags().StringVar(&kind, "kind", "", "attestation or resource (default: both)")
	return c
}

func (t *trusteeGroup) policyGetCommand() *cobra.Command {
	var name policyName
	var version int64
	c := &cobra.Command{
		Use: "get [ID]", Short: "Print a policy's text: what is in force, or a version",
		Long: `Print a policy's text: what is in force, which can be the built-in policy, or
an earlier version. Without ID and --scope it is the policy of all resources.`,
		Example: `  coffer trustee policy get default_cpu
  coffer trustee policy get --scope kbs:///shop --version 2`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			kind, id, err := name.resolve(c, first(args), false)
			if err != nil {
				return err
			}
			if version < 0 {
				return usagef("--version: expected a number from 1, got %d", version)
			}
			return t.ask(c, func(cl *admin.Client) error {
				p, err := cl.Policy(c.Context(), kind, id, version)
				if err != nil {
					return err
				}
				if t.json() {
					return t.printJSON(struct {
						admin.PolicyInfo
						Text string `json:"text"`
					}{p.PolicyInfo, p.Text})
				}
				_, err = io.WriteString(t.env.Stdout, p.Text)
				return err
			})
		},
	}
	name.add(c)
	c.Flags().Int64Var(&version, "version", 0, "this version instead of the one in force")
	return c
}

// first is the first argument, "" for none.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// readPolicy reads a policy's text.
func (t *trusteeGroup) readPolicy(file string) (string, error) {
	text, err := t.readLimited(file, admin.MaxPolicyBytes)
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s: is empty", file)
	}
	if err != nil {
		return "", usageError{err}
	}
	return string(text), nil
}

func (t *trusteeGroup) policySetCommand() *cobra.Command {
	var name policyName
	c := &cobra.Command{
		Use: "set [ID] FILE", Short: "Store a new version of a policy, in force from the next request on",
		Long: `Store a new version of a policy, in force from the next request on, and print
its number. With ID it is an attestation policy, else the resource policy of
--scope. A text that does not compile, or does not fit the registered reference
values, is refused and changes nothing. - reads standard input.`,
		Example: `  coffer trustee policy set default_cpu cpu.rego
  coffer trustee policy set shop.rego --scope kbs:///shop
  coffer trustee policy set certificates.rego --scope kbs+pki:///issue/web`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			kind, id, err := name.resolve(c, first(args[:len(args)-1]), false)
			if err != nil {
				return err
			}
			text, err := t.readPolicy(args[len(args)-1])
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				info, err := cl.SetPolicy(c.Context(), kind, id, text)
				if err != nil {
					return err
				}
				return t.done(info, "%s: version %d", policyTitle(kind, id), info.Version)
			})
		},
	}
	name.add(c)
	return c
}

func (t *trusteeGroup) policyDeleteCommand() *cobra.Command {
	var name policyName
	c := &cobra.Command{
		Use: "delete [ID]", Short: "Take a policy out of force; a less specific or the built-in one is in force again",
		Example: `  coffer trustee policy delete default_cpu
  coffer trustee policy delete --scope kbs:///shop`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			kind, id, err := name.resolve(c, first(args), true)
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.DeletePolicy(c.Context(), kind, id); err != nil {
					return err
				}
				return t.done(admin.PolicyInfo{Kind: kind, ID: id, Deleted: true}, "")
			})
		},
	}
	name.add(c)
	return c
}

func (t *trusteeGroup) policyVersionsCommand() *cobra.Command {
	var name policyName
	c := &cobra.Command{
		Use: "versions [ID]", Short: "List a policy's versions, newest first",
		Example: `  coffer trustee policy versions --scope kbs:///shop`,
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			kind, id, err := name.resolve(c, first(args), false)
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				list, err := cl.PolicyVersions(c.Context(), kind, id)
				if err != nil {
					return err
				}
				return t.printPolicies(list)
			})
		},
	}
	name.add(c)
	return c
}

func (t *trusteeGroup) policyCheckCommand() *cobra.Command {
	var name policyName
	c := &cobra.Command{
		Use: "check [ID] FILE", Short: "Ask the trustee whether a policy could be stored; stores nothing",
		Long: `Ask the trustee whether a policy could be stored: whether it compiles, and fits
the registered reference values. Nothing is stored. Exit code 1 means it could
not. With ID it is an attestation policy, else a resource policy.`,
		Example: `  coffer trustee policy check default_cpu cpu.rego
  coffer trustee policy check shop.rego --scope kbs:///shop`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			kind, id, err := name.resolve(c, first(args[:len(args)-1]), false)
			if err != nil {
				return err
			}
			file := args[len(args)-1]
			text, err := t.readPolicy(file)
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				problems, err := cl.CheckPolicy(c.Context(), admin.PolicyCheck{Kind: kind, ID: id, Text: text})
				if err != nil {
					return err
				}
				if t.json() {
					if err := t.printJSON(problems); err != nil {
						return err
					}
				} else {
					for _, p := range problems.Problems {
						t.printf("%s: %s\n", file, clean(p))
					}
					if problems.OK {
						t.printf("%s: ok\n", file)
					}
				}
				if !problems.OK {
					return exitCode(ExitFailed)
				}
				return nil
			})
		},
	}
	name.add(c)
	return c
}
