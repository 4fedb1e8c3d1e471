package cli

import (
	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/kbs/admin"
)

// trusteeGroup is what the commands below `coffer trustee` share.
type trusteeGroup struct {
	*app
	flags adminFlags
}

func (a *app) trusteeCommand() *cobra.Command {
	t := &trusteeGroup{app: a}
	c := group("trustee", "Administer a trustee: secrets, policies, reference values, records, tenants",
		t.secretCommand(), t.bindCommand(), t.unbindCommand(), t.bindingsCommand(),
		t.referenceCommand(), t.trusteePolicyCommand(),
		t.verdictsCommand(), t.auditCommand(),
		t.adminKeyCommand(), t.tenantCommand(), t.tokenKeyCommand(), t.pluginCommand(),
		t.backupCommand(), t.whoAmICommand(), t.statusCommand(),
	)
	c.Long = `Administer a trustee. Without --trustee it is the embedded one of --state, which
runs for the time of the command.

An administrator proves himself with an Ed25519 key (--admin-key) or with the
token of an OpenID provider (--token-file), and where the trustee asks for one,
with a client certificate. A role of less than the key allows is claimed with
--role; --tenant chooses the tenant among those that share the trustee.

Results go to standard output, as tables, or with --output json as one JSON
document and nothing else. The content of a secret is never printed.

Exit codes: 0 when it was done and what was checked is true; 1 when the trustee
refused or could not be reached, or a policy, test or record is not right; 2
for wrong usage or input that cannot be read.`
	c.Example = `  coffer trustee status
  coffer trustee --trustee https://trustee.example:8443 --trustee-ca ca.pem --admin-key me.pem whoami
  coffer trustee --trustee https://trustee.example:8443 --token-file oidc.jwt --tenant shop secret list`
	t.flags.addTo(c, true)
	return c
}

// group is a command that has others and does nothing itself.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(commands...)
	return c
}

// ask calls f with a client of the trustee that the flags name.
func (t *trusteeGroup) ask(c *cobra.Command, f func(*admin.Client) error) error {
	return t.withAdmin(c, t.flags, f)
}

// lists is a command without arguments that asks the trustee.
func (t *trusteeGroup) lists(use, short string, f func(*cobra.Command, *admin.Client) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return t.ask(c, func(cl *admin.Client) error { return f(c, cl) })
		},
	}
}
