package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// What concerns the trustee as a whole takes an administrator of every tenant,
// at the default tenant.

func (t *trusteeGroup) tenantCommand() *cobra.Command {
	list := t.lists("list", "List the tenants", func(c *cobra.Command, cl *admin.Client) error {
		tenants, err := cl.Tenants(c.Context())
		if err != nil {
			return err
		}
		return t.table(tenants, "NAME\tSTATE\tCREATED\tDESCRIPTION", func(w io.Writer) {
			for _, x := range tenants {
				state := "enabled"
				if !x.Enabled {
					state = "disabled"
				}
				row(w, x.Name, state, stamp(x.Created), x.Description)
			}
		})
	})
	c := group("tenant", "Manage the owners that share the trustee", list, t.tenantCreateCommand(),
		t.tenantSwitchCommand("enable", "Let a tenant's guests and administrators in again", true),
		t.tenantSwitchCommand("disable", "Shut a tenant's guests and administrators out; nothing of it is lost", false))
	c.Long = `Manage the owners that share the trustee and cannot see each other. Takes an
administrator of every tenant. A tenant's guests and administrators are at
URL/tenants/NAME, or --tenant NAME.`
	c.Example = `  coffer trustee tenant create shop --description "the shop's team"
  coffer trustee --tenant shop admin-key add alice alice.pem.pub --roles admin`
	return c
}

// tenantName checks a tenant's name.
func tenantName(s string) error {
	if _, err := tenant.Parse(s); err != nil {
		return usageError{hint.New(err, "for example shop or team-7")}
	}
	return nil
}

func (t *trusteeGroup) tenantCreateCommand() *cobra.Command {
	var description string
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a tenant",
		Example: `  coffer trustee tenant create shop --description "the shop's team"`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := tenantName(args[0]); err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.CreateTenant(c.Context(), args[0], description); err != nil {
					return err
				}
				return t.done(admin.Tenant{Name: args[0], Description: description, Enabled: true}, "")
			})
		},
	}
	c.Flags().StringVar(&description, "description", "", "whose it is")
	return c
}

func (t *trusteeGroup) tenantSwitchCommand(verb, short string, enabled bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short,
		Example: "  coffer trustee tenant " + verb + " shop",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := tenantName(args[0]); err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.SetTenantEnabled(c.Context(), args[0], enabled); err != nil {
					return err
				}
				return t.done(struct {
					Name    string `json:"name"`
					Enabled bool   `json:"enabled"`
				}{args[0], enabled}, "")
			})
		},
	}
}

func (t *trusteeGroup) tokenKeyCommand() *cobra.Command {
	list := t.lists("list", "List the keys of attestation tokens, the signing one first", func(c *cobra.Command, cl *admin.Client) error {
		keys, err := cl.TokenKeys(c.Context())
		if err != nil {
			return err
		}
		return t.table(keys, "KID\tALG\tCREATED\tRETIRED", func(w io.Writer) {
			for _, k := range keys {
				row(w, k.KeyID, k.Algorithm, stamp(k.Created), stamp(k.Retired))
			}
		})
	})
	var alg string
	rotate := t.lists("rotate", "Make a new key that signs from now on; tokens of the old one stay valid for their lifetime", func(c *cobra.Command, cl *admin.Client) error {
		k, err := cl.RotateTokenKey(c.Context(), alg)
		if err != nil {
			return err
		}
		return t.done(k, "%s  %s", clean(k.KeyID), clean(k.Algorithm))
	})
	rotate.Example = `  coffer trustee token-key rotate --alg ES384`
	rotate.PreRunE = func(*cobra.Command, []string) error {
		if alg != "" && alg != "ES256" && alg != "ES384" {
			return usagef("--alg: expected ES256 or ES384, got %q", alg)
		}
		return nil
	}
	rotate.Flags().StringVar(&alg, "alg", "", "ES256 or ES384 (default: that of the present key)")
	return group("token-key", "List and rotate the keys that sign attestation tokens", list, rotate)
}

func (t *trusteeGroup) backupCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "backup FILE", Short: "Write a consistent copy of the trustee's database to a file",
		Long: `Write a consistent copy of the trustee's whole database, of all tenants, to a new
file, which is there only when it is whole. Secrets in it stay sealed: to restore
it (` + "`coffer-trustee restore`" + `) takes the key-encryption key, which is not in it.
Keep that apart. - writes standard output.`,
		Example: `  coffer trustee backup trustee-$(date +%F).backup`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.checkTarget(args[0], force); err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				if args[0] == "-" {
					_, err := cl.Backup(c.Context(), t.env.Stdout)
					return err
				}
				var n int64
				err := writeFile(args[0], force, func(w io.Writer) (err error) {
					n, err = cl.Backup(c.Context(), w)
					return err
				})
				if err != nil {
					return err
				}
				return t.done(struct {
					File  string `json:"file"`
					Bytes int64  `json:"bytes"`
				}{args[0], n}, "%s: %d bytes", args[0], n)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

// fields prints v as JSON, or names with what they are.
func (a *app) fields(v any, pairs ...[2]string) error {
	if a.json() {
		return a.printJSON(v)
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	for _, p := range pairs {
		row(w, p[0], p[1])
	}
	return w.Flush()
}

func (t *trusteeGroup) whoAmICommand() *cobra.Command {
	c := t.lists("whoami", "Show how the trustee sees you, and what you may do", func(c *cobra.Command, cl *admin.Client) error {
		who, err := cl.WhoAmI(c.Context())
		if err != nil {
			return err
		}
		how := who.Method
		if who.KeyID != "" {
			how += " " + who.KeyID
		}
		return t.fields(who, [2]string{"subject", who.Subject}, [2]string{"proved by", how},
			[2]string{"roles", strings.Join(who.Roles, ", ")}, [2]string{"tenants", strings.Join(who.Tenants, ", ")},
			[2]string{"this tenant", who.Tenant}, [2]string{"may", strings.Join(who.Permissions, ", ")})
	})
	c.Example = `  coffer trustee --trustee https://trustee.example:8443 --admin-key me.pem --role auditor whoami`
	return c
}

func (t *trusteeGroup) statusCommand() *cobra.Command {
	c := t.lists("status", "Describe the running trustee: version, database, what the tenant has", func(c *cobra.Command, cl *admin.Client) error {
		s, err := cl.Status(c.Context())
		if err != nil {
			return err
		}
		pairs := [][2]string{
			{"version", s.Version},
			{"started", stamp(s.Started)},
			{"up for", (time.Duration(s.UptimeSeconds) * time.Second).String()},
			{"database", fmt.Sprintf("%s, schema %d", s.Database, s.Schema)},
			{"resources in", s.ResourceBackend},
			{"tenant", s.Tenant},
		}
		for _, name := range slices.Sorted(maps.Keys(s.Counts)) {
			pairs = append(pairs, [2]string{strings.ReplaceAll(name, "_", " "), fmt.Sprint(s.Counts[name])})
		}
		return t.fields(s, pairs...)
	})
	c.Example = `  coffer trustee status --output json`
	return c
}
