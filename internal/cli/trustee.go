package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// adminFlags say which trustee is administered, and as whom.
type adminFlags struct {
	url, ca, key, state string
}

func (f *adminFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.url, "trustee", "", "the trustee's URL (default: the embedded one)")
	flags.StringVar(&f.ca, "trustee-ca", "", "PEM file with the certificates that vouch for the trustee")
	flags.StringVar(&f.key, "admin-key", "", "PEM file with the administrator's Ed25519 key (needed with --trustee)")
	flags.StringVar(&f.state, "state", run.DefaultState(), "state directory of the embedded trustee")
}

// withAdmin calls f with a client of the trustee that the flags name; the
// embedded trustee runs for the time of the call.
func (a *app) withAdmin(c *cobra.Command, f adminFlags, call func(*admin.Client) error) error {
	if f.url == "" {
		t, err := run.StartTrustee(c.Context(), run.TrusteeOptions{State: f.state, Logger: a.logger()})
		if err != nil {
			return err
		}
		defer func() { _ = t.Close() }()
		return call(t.Admin)
	}
	if f.key == "" {
		return usagef("--admin-key: expected the administrator's key file together with --trustee")
	}
	key, err := readEd25519(f.key)
	if err != nil {
		return usagef("--admin-key %s: %w", f.key, err)
	}
	o := admin.Options{URL: f.url, Key: key}
	if f.ca != "" {
		if o.RootPEM, err = os.ReadFile(f.ca); err != nil {
			return usagef("--trustee-ca: %w", err)
		}
	}
	client, err := admin.New(o)
	if err != nil {
		return usagef("%w", err)
	}
	defer client.Close()
	return call(client)
}

func readEd25519(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("expected a PEM block, found none")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("expected an Ed25519 key, got %T", parsed)
	}
	return key, nil
}

func (a *app) trusteeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "trustee", Short: "Administer a trustee: secrets, bindings, reference values, verdicts",
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		a.secretCommand(),
		a.adminCommand("bind RESOURCE INITDATA-DIGEST", "Let pods with this initdata have a resource (or all below a repository or type)", 2,
			func(ctx context.Context, cl *admin.Client, args []string) error {
				return cl.Bind(ctx, admin.Binding{Resource: strings.TrimPrefix(args[0], "kbs:///"), InitData: args[1]})
			}),
		a.adminCommand("unbind RESOURCE INITDATA-DIGEST", "Take a binding back", 2,
			func(ctx context.Context, cl *admin.Client, args []string) error {
				return cl.Unbind(ctx, admin.Binding{Resource: strings.TrimPrefix(args[0], "kbs:///"), InitData: args[1]})
			}),
		a.adminCommand("bindings", "List bindings", 0, func(ctx context.Context, cl *admin.Client, _ []string) error {
			bindings, err := cl.Bindings(ctx)
			if err != nil {
				return err
			}
			return a.table(bindings, "RESOURCE\tINITDATA\tDESCRIPTION", func(w io.Writer) {
				for _, b := range bindings {
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", b.Resource, b.InitData, b.Description)
				}
			})
		}),
		a.adminCommand("reference-values", "List reference values", 0, func(ctx context.Context, cl *admin.Client, _ []string) error {
			values, err := cl.ReferenceValues(ctx)
			if err != nil {
				return err
			}
			return a.table(values, "NAME\tVALUES\tEXPIRES\tDESCRIPTION", func(w io.Writer) {
				for _, v := range values {
					list, _ := json.Marshal(v.Values)
					expires := "never"
					if v.Expires != nil {
						expires = v.Expires.Format(time.RFC3339)
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Name, list, expires, v.Description)
				}
			})
		}),
		a.verdictsCommand(),
	)
	return c
}

// adminCommand is a command with the trustee's flags.
func (a *app) adminCommand(use, short string, n int, call func(context.Context, *admin.Client, []string) error) *cobra.Command {
	var f adminFlags
	c := &cobra.Command{
		Use: use, Short: short, Args: args(cobra.ExactArgs(n)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c, f, func(cl *admin.Client) error { return call(c.Context(), cl, args) })
		},
	}
	f.add(c)
	return c
}

func (a *app) secretCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "secret", Short: "Put, list and delete the secrets that pods may have",
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		a.adminCommand("set kbs:///REPOSITORY/TYPE/TAG FILE", "Put a secret; - reads standard input", 2,
			func(ctx context.Context, cl *admin.Client, args []string) error {
				uri, err := kbs.ParseResourceURI(args[0])
				if err != nil {
					return usageError{err}
				}
				value, err := a.readLimited(args[1], kbs.MaxResourceBytes)
				if err != nil {
					return usageError{err}
				}
				return cl.SetResource(ctx, uri, secret.New(value))
			}),
		a.adminCommand("list", "List the secrets' names", 0, func(ctx context.Context, cl *admin.Client, _ []string) error {
			uris, err := cl.Resources(ctx)
			if err != nil {
				return err
			}
			names := make([]string, len(uris))
			for i, u := range uris {
				names[i] = u.String()
			}
			return a.table(names, "RESOURCE", func(w io.Writer) {
				for _, n := range names {
					_, _ = fmt.Fprintln(w, n)
				}
			})
		}),
		a.adminCommand("delete kbs:///REPOSITORY/TYPE/TAG", "Delete a secret", 1,
			func(ctx context.Context, cl *admin.Client, args []string) error {
				uri, err := kbs.ParseResourceURI(args[0])
				if err != nil {
					return usageError{err}
				}
				return cl.DeleteResource(ctx, uri)
			}),
	)
	return c
}

func (a *app) verdictsCommand() *cobra.Command {
	limit := 20
	c := a.adminCommand("verdicts", "List the trustee's decisions, newest first, with the reason of each refusal", 0,
		func(ctx context.Context, cl *admin.Client, _ []string) error {
			verdicts, err := cl.Verdicts(ctx, admin.VerdictQuery{Limit: limit})
			if err != nil {
				return err
			}
			return a.table(verdicts, "AT\tKIND\tTEE\tVERDICT\tWHAT", func(w io.Writer) {
				for _, v := range verdicts {
					verdict, what := "granted", v.Resource
					if !v.Granted {
						verdict = "refused (" + strconv.Itoa(v.Status) + ")"
					}
					if v.Reason != nil {
						what = strings.TrimSpace(what + " " + v.Reason.String())
					}
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.At.Format(time.RFC3339), v.Kind, v.TEE, verdict, what)
				}
			})
		})
	c.Flags().IntVar(&limit, "limit", limit, "how many")
	return c
}

// table prints v as JSON, or rows below a header.
func (a *app) table(v any, header string, rows func(io.Writer)) error {
	if a.json() {
		return a.printJSON(v)
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, header)
	rows(w)
	return w.Flush()
}

// readLimited reads a file, or standard input for "-", of at most limit bytes.
func (a *app) readLimited(path string, limit int64) ([]byte, error) {
	f := a.env.Stdin
	if path != "-" {
		opened, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = opened.Close() }()
		f = opened
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, err
}
