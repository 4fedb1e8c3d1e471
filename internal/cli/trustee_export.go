package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// remoteLog reads a trustee's record.
type remoteLog struct {
	tenant      tenant.Name
	keys        audit.Keys
	checkpoints []admin.Checkpoint
	client      *admin.Client
}

// openRemote reads what has to be read before the entries.
func openRemote(ctx context.Context, cl *admin.Client) (*remoteLog, error) {
	who, err := cl.WhoAmI(ctx)
	if err != nil {
		return nil, err
	}
	l := &remoteLog{client: cl}
	if l.tenant, err = tenant.Parse(who.Tenant); err != nil {
		return nil, err
	}
	if l.keys, err = auditKeys(ctx, cl); err != nil {
		return nil, err
	}
	l.checkpoints, err = cl.Checkpoints(ctx, 0)
	return l, err
}

// auditKeys are the keys of checkpoints, as the trustee names them.
func auditKeys(ctx context.Context, cl *admin.Client) (audit.Keys, error) {
	doc, err := cl.AuditKeys(ctx)
	if err != nil {
		return nil, err
	}
	return audit.ParseKeys(doc)
}

// signHead has the record's head signed now.
func signHead(ctx context.Context, cl *admin.Client) (admin.Checkpoint, error) {
	first, err := cl.AuditFrom(ctx, 0, 1)
	if err != nil {
		return admin.Checkpoint{}, err
	}
	if len(first) == 0 {
		return admin.Checkpoint{}, errors.New("the record is empty: there is nothing to sign yet")
	}
	return cl.MakeCheckpoint(ctx)
}

func (l *remoteLog) jws() []string {
	out := make([]string, len(l.checkpoints))
	for i, c := range l.checkpoints {
		out[i] = c.JWS
	}
	return out
}

// list is an [audit.Lister].
func (l *remoteLog) list(ctx context.Context, _ tenant.Name, q audit.Query) ([]audit.Entry, error) {
	page, err := l.client.AuditFrom(ctx, max(q.After, 0), q.Limit)
	if err != nil {
		return nil, err
	}
	out := make([]audit.Entry, len(page))
	for i, e := range page {
		out[i] = audit.Entry(e)
	}
	return out, nil
}

func (t *trusteeGroup) auditExportCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "export FILE", Short: "Write the whole record to a file that can be verified without the trustee",
		Long: `Write the whole record, with its checkpoints and their keys, to a new file of JSON
lines that ` + "`coffer trustee audit verify FILE`" + ` verifies without the trustee. The
file is there only when it is whole. - writes standard output.`,
		Example: `  coffer trustee audit export records-2026.jsonl`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := t.checkTarget(args[0], force); err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				l, err := openRemote(c.Context(), cl)
				if err != nil {
					return err
				}
				var n int64
				write := func(w io.Writer) error {
					entries := func(yield func(audit.Entry, error) bool) {
						for e, err := range audit.Pages(c.Context(), l.list, l.tenant) {
							if err == nil {
								n++
							}
							if !yield(e, err) {
								return
							}
						}
					}
					return audit.WriteExport(w, l.tenant, t.now(), l.keys, l.jws(), entries)
				}
				if args[0] == "-" {
					return write(t.env.Stdout)
				}
				if err := writeFile(args[0], force, write); err != nil {
					return err
				}
				return t.done(struct {
					File        string      `json:"file"`
					Tenant      tenant.Name `json:"tenant"`
					Entries     int64       `json:"entries"`
					Checkpoints int         `json:"checkpoints"`
				}{args[0], l.tenant, n, len(l.checkpoints)}, "%s: %s, %s", args[0], count(n, "record"), count(int64(len(l.checkpoints)), "checkpoint"))
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

// checkTarget refuses a file that could not be written, before any work.
func (a *app) checkTarget(path string, force bool) error {
	if path == "-" {
		if a.json() {
			return usageError{hint.New(errors.New("-: standard output is the file's then"), "leave --output json out, or name a file")}
		}
		return nil
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return usageError{hint.New(fmt.Errorf("%s: exists already", path), "--force replaces it")}
	}
	return nil
}
