package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxPage is how many entries the trustee gives at once.
const maxPage = 1000

func (t *trusteeGroup) auditCommand() *cobra.Command {
	c := group("audit", "Read, export and verify the record of every handshake, release and change",
		t.auditListCommand(), t.auditShowCommand(), t.auditExportCommand(), t.auditVerifyCommand(), t.checkpointsCommand(), t.auditKeysCommand())
	c.Long = `Read, export and verify the trustee's record: every handshake, verdict, release
and administrator's change, with claims and without secrets, in one chain of
hashes per tenant whose head is signed from time to time (checkpoints).

Whoever can rewrite the whole database can also sign it anew. What shows that is
what you kept elsewhere: the keys of checkpoints, and a checkpoint.`
	c.Example = `  coffer trustee audit list --resource kbs:///shop --refused --from 7d
  coffer trustee audit verify --keys trustee-keys.json --pin-keys --save-checkpoint last.jws`
	return c
}

func (t *trusteeGroup) verdictsCommand() *cobra.Command {
	q := admin.VerdictQuery{Limit: 20}
	c := t.lists("verdicts", "List the trustee's decisions, newest first, with the reason of each refusal", func(c *cobra.Command, cl *admin.Client) error {
		verdicts, err := cl.Verdicts(c.Context(), q)
		if err != nil {
			return err
		}
		return t.table(verdicts, "AT\tKIND\tTEE\tVERDICT\tWHAT", func(w io.Writer) {
			for _, v := range verdicts {
				what := v.Resource
				if v.Reason != nil {
					what = strings.TrimSpace(what + " " + v.Reason.String())
				}
				row(w, v.At.Format(time.RFC3339), v.Kind, v.TEE, verdictWord(v.Granted, v.Status), what)
			}
		})
	})
	c.Example = `  coffer trustee verdicts --limit 5`
	c.PreRunE = func(*cobra.Command, []string) error {
		if q.Limit < 1 || q.Limit > maxPage {
			return usageError{hint.New(fmt.Errorf("--limit: expected 1 to %d, got %d", maxPage, q.Limit), "`coffer trustee audit list` has all of the record")}
		}
		return nil
	}
	c.Flags().IntVar(&q.Limit, "limit", q.Limit, "how many")
	c.Flags().StringVar(&q.Session, "session", "", "those of one handshake")
	return c
}

func verdictWord(granted bool, status int) string {
	if granted {
		return "granted"
	}
	return "refused (" + strconv.Itoa(status) + ")"
}

// auditFlags narrow a listing.
type auditFlags struct {
	q                admin.AuditQuery
	granted, refused bool
	from, to         string
	limit            int
}

func (f *auditFlags) add(c *cobra.Command) {
	s := c.Flags()
	s.StringVar(&f.q.Kind, "kind", "", "attestation, resource or admin")
	s.StringVar(&f.q.Resource, "resource", "", "URI, or the beginning of one that ends at a slash: kbs:///shop/")
	s.StringVar(&f.q.InitData, "workload", "", "the workload's initdata digest, or its first digits")
	s.StringVar(&f.q.Session, "session", "", "one handshake and what followed from it")
	s.StringVar(&f.q.Subject, "subject", "", "the administrator's name")
	s.BoolVar(&f.granted, "granted", false, "only what was granted")
	s.BoolVar(&f.refused, "refused", false, "only what was refused")
	s.StringVar(&f.from, "from", "", "since: 2026-09-01, a time of RFC 3339, or 24h or 7d ago")
	s.StringVar(&f.to, "to", "", "before: as --from")
	s.Int64Var(&f.q.Before, "before", 0, "only records with a lower number")
	s.Int64Var(&f.q.After, "after", 0, "only records with a higher number, oldest first; 0 begins at the first")
	s.IntVar(&f.limit, "limit", 50, "how many; 0 is all")
}

// query checks the flags. ascending: oldest first.
func (f *auditFlags) query(c *cobra.Command, now time.Time) (q admin.AuditQuery, ascending bool, err error) {
	q, ascending = f.q, c.Flags().Changed("after")
	contradict := func(a, b string) error {
		return usageError{hint.New(fmt.Errorf("--%s and --%s: expected at most one of them", a, b), "see `"+c.CommandPath()+" --help`")}
	}
	switch {
	case f.granted && f.refused:
		return q, false, contradict("granted", "refused")
	case ascending && c.Flags().Changed("before"):
		return q, false, contradict("after", "before")
	case q.Before < 0 || q.After < 0 || f.limit < 0:
		return q, false, usagef("--before, --after and --limit: expected no negative number")
	}
	switch q.Kind {
	case "", admin.KindAttestation, admin.KindResource, admin.KindAdmin:
	default:
		return q, false, usagef("--kind: expected attestation, resource or admin, got %q", q.Kind)
	}
	q.InitData = strings.TrimPrefix(strings.ToLower(q.InitData), "sha256:")
	if strings.Trim(q.InitData, "0123456789abcdef") != "" || len(q.InitData) > 128 {
		return q, false, usagef("--workload: expected at most 128 hexadecimal digits, got %.40q", f.q.InitData)
	}
	if f.granted || f.refused {
		q.Granted = &f.granted
	}
	for _, x := range []struct {
		flag, value string
		at          *time.Time
	}{{"from", f.from, &q.From}, {"to", f.to, &q.To}} {
		if x.value == "" {
			continue
		}
		if *x.at, err = parseTime(x.value, now, -1); err != nil {
			return q, false, usagef("--%s: %w", x.flag, err)
		}
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return q, false, usagef("--from: expected a time before --to, got %s and %s", stamp(q.From), stamp(q.To))
	}
	return q, ascending, nil
}

func (t *trusteeGroup) auditListCommand() *cobra.Command {
	var f auditFlags
	c := &cobra.Command{
		Use: "list", Short: "List records, newest first", Args: args(cobra.NoArgs),
		Example: `  coffer trustee audit list --resource kbs:///shop/ --refused
  coffer trustee audit list --workload b3c1 --from 24h --limit 0 --output json
  coffer trustee audit list --kind admin --subject alice`,
		RunE: func(c *cobra.Command, _ []string) error {
			q, ascending, err := f.query(c, t.now())
			if err != nil {
				return err
			}
			return t.ask(c, func(cl *admin.Client) error {
				entries, err := listAudit(c.Context(), cl, q, ascending, f.limit)
				if err != nil {
					return err
				}
				return t.printEntries(entries)
			})
		},
	}
	f.add(c)
	return c
}

// listAudit asks on until there are limit entries, or no more.
func listAudit(ctx context.Context, cl *admin.Client, q admin.AuditQuery, ascending bool, limit int) ([]admin.AuditEntry, error) {
	all := []admin.AuditEntry{}
	// An After of 0 is no place in a query: the first record is asked for by
	// itself.
	if ascending && q.After == 0 {
		one := q
		one.Before, one.Limit = 2, 1
		page, err := cl.Audit(ctx, one)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		q.After = 1
	}
	for limit == 0 || len(all) < limit {
		q.Limit = maxPage
		if limit > 0 {
			q.Limit = min(maxPage, limit-len(all))
		}
		page, err := cl.Audit(ctx, q)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			break
		}
		all = append(all, page...)
		last := page[len(page)-1].Seq
		if (ascending && last <= q.After) || (!ascending && q.Before != 0 && last >= q.Before) || last < 1 {
			return nil, fmt.Errorf("audit: the trustee's list does not advance at record %d", last)
		}
		if ascending {
			q.After = last
		} else if q.Before = last; last == 1 {
			break
		}
	}
	return all, nil
}

func (t *trusteeGroup) printEntries(entries []admin.AuditEntry) error {
	records := make([]admin.AuditRecord, len(entries))
	for i, e := range entries {
		var err error
		if records[i], err = e.Record(); err != nil {
			return err
		}
	}
	return t.table(entries, "SEQ\tAT\tKIND\tWHO\tVERDICT\tWHAT", func(w io.Writer) {
		for i, r := range records {
			who, what := r.TEE, r.Resource
			if r.Kind == admin.KindAdmin {
				who, what = r.Subject, strings.TrimSpace(r.Action+" "+r.Resource)
			}
			switch {
			case len(r.Reasons) > 0:
				what = strings.TrimSpace(what + " " + r.Reasons[0].String())
			case r.Detail != "":
				what = strings.TrimSpace(what + " (" + r.Detail + ")")
			}
			row(w, entries[i].Seq, stamp(r.At), r.Kind, who, verdictWord(r.Granted, r.Status), what)
		}
	})
}

func (t *trusteeGroup) auditShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SEQ", Short: "Print one record as JSON, with its claims", Args: args(cobra.ExactArgs(1)),
		Example: `  coffer trustee audit show 4711`,
		RunE: func(c *cobra.Command, args []string) error {
			seq, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || seq < 1 {
				return usagef("%.40q: expected a record's number", args[0])
			}
			return t.ask(c, func(cl *admin.Client) error {
				page, err := cl.AuditFrom(c.Context(), seq-1, 1)
				if err != nil {
					return err
				}
				if len(page) == 0 || page[0].Seq != seq {
					return fmt.Errorf("there is no record %d", seq)
				}
				return t.printJSON(page[0])
			})
		},
	}
}

func (t *trusteeGroup) checkpointsCommand() *cobra.Command {
	var (
		after int64
		sign  bool
	)
	c := &cobra.Command{
		Use: "checkpoints", Short: "List the signed checkpoints, or sign one now", Args: args(cobra.NoArgs),
		Long: `List the signed checkpoints of the record, oldest first. With --sign the record's
head is signed now, and that checkpoint printed alone: keep it where nobody who
can write the trustee's database can.`,
		Example: `  coffer trustee audit checkpoints --output json
  coffer trustee audit checkpoints --sign > checkpoint-$(date +%F).jws`,
		RunE: func(c *cobra.Command, _ []string) error {
			if after < 0 {
				return usagef("--after: expected no negative number, got %d", after)
			}
			if sign && c.Flags().Changed("after") {
				return usageError{hint.New(errors.New("--sign and --after: expected at most one of them"), "--sign prints the new checkpoint alone")}
			}
			return t.ask(c, func(cl *admin.Client) error {
				if sign {
					x, err := signHead(c.Context(), cl)
					if err != nil {
						return err
					}
					return t.done(x, "%s", clean(x.JWS))
				}
				list, err := cl.Checkpoints(c.Context(), after)
				if err != nil {
					return err
				}
				if t.json() {
					return t.printJSON(list)
				}
				keys, err := auditKeys(c.Context(), cl)
				if err != nil {
					return err
				}
				return t.table(list, "SEQ\tAT\tHASH", func(w io.Writer) {
					for _, x := range list {
						pinned, err := keys.Checkpoint(x.JWS)
						if err != nil {
							pinned.Hash = err.Error()
						}
						row(w, x.Seq, stamp(x.At), pinned.Hash)
					}
				})
			})
		},
	}
	c.Flags().Int64Var(&after, "after", 0, "only those of records with a higher number")
	c.Flags().BoolVar(&sign, "sign", false, "sign the record's head now")
	return c
}

func (t *trusteeGroup) auditKeysCommand() *cobra.Command {
	c := t.lists("keys", "Print the public keys of checkpoints (a JSON Web Key Set), for --keys", func(c *cobra.Command, cl *admin.Client) error {
		keys, err := cl.AuditKeys(c.Context())
		if err != nil {
			return err
		}
		return t.printJSON(keys)
	})
	c.Example = `  coffer trustee audit keys > trustee-keys.json`
	return c
}
