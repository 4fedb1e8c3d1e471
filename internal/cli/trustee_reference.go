package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxProvenance bounds a file with reference values.
const maxProvenance = 1 << 20

func (t *trusteeGroup) referenceCommand() *cobra.Command {
	c := t.lists("reference-value", "List and register reference values, which evidence is compared with", t.listReferences)
	c.Aliases = []string{"reference-values"}
	c.Example = `  coffer trustee reference-value list
  coffer trustee reference-value add snp_launch_measurement 77aa… --description "guest 1.3, 2 vCPUs" --expires 365d
  coffer trustee reference-value set snp_snp_svn 23 --json --scalar`
	list := t.lists("list", "List reference values, expired ones included", t.listReferences)
	list.Example = `  coffer trustee reference-value list --output json`
	c.AddCommand(list, t.referenceGetCommand(), t.referenceSetCommand(false), t.referenceSetCommand(true),
		t.referenceDeleteCommand(), t.referenceHistoryCommand(), t.registerCommand())
	return c
}

func (t *trusteeGroup) listReferences(c *cobra.Command, cl *admin.Client) error {
	values, err := cl.ReferenceValues(c.Context())
	if err != nil {
		return err
	}
	return t.table(values, "NAME\tVALUES\tEXPIRES\tDESCRIPTION", func(w io.Writer) {
		for _, v := range values {
			expires := "never"
			if v.Expires != nil {
				expires = v.Expires.Format(time.RFC3339)
			}
			var shown any = v.Values
			if v.Scalar && len(v.Values) == 1 {
				shown = v.Values[0]
			}
			row(w, v.Name, compact(shown), expires, v.Description)
		}
	})
}

func (t *trusteeGroup) referenceGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show a reference value, each of its values with description, source and expiry",
		Example: `  coffer trustee reference-value get snp_launch_measurement`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return t.ask(c, func(cl *admin.Client) error {
				v, err := cl.ReferenceValue(c.Context(), args[0])
				if err != nil {
					return err
				}
				return t.table(v, entriesHeader, func(w io.Writer) { entryRows(w, v.Entries) })
			})
		},
	}
}

const entriesHeader = "VALUE\tEXPIRES\tSOURCE\tDESCRIPTION"

func entryRows(w io.Writer, entries []admin.ReferenceEntry) {
	for _, e := range entries {
		expires := "never"
		if !e.Expires.IsZero() {
			expires = stamp(e.Expires)
		}
		row(w, string(e.Value), expires, e.Source, e.Description)
	}
}

// referenceSetCommand is set, or add.
func (t *trusteeGroup) referenceSetCommand(add bool) *cobra.Command {
	var (
		v               admin.ReferenceValue
		asJSON          bool
		expires, inputs string
	)
	c := &cobra.Command{
		Use: "set NAME VALUE…", Short: "Register values under a name, replacing all earlier ones",
		Long: `Register values under a name, replacing all earlier ones. Earlier versions stay
in the history. VALUEs are text; with --json they are JSON: 8, true, "text". A
value of a type that a policy in force could not use is refused.`,
		Example: `  coffer trustee reference-value set snp_launch_measurement 77aa… 3ad3… --expires 2027-01-01
  coffer trustee reference-value set snp_snp_svn 23 --json --scalar`,
		Args: args(cobra.MinimumNArgs(2)),
	}
	if add {
		c.Use, c.Short = "add NAME VALUE…", "Add values to those under a name"
		c.Long = `Add values to the list under a name; equal ones get the new description and
expiry. VALUEs are text; with --json they are JSON: 8, true, "text".`
		c.Example = `  coffer trustee reference-value add snp_launch_measurement 77aa… --description "guest 1.3, 2 vCPUs"`
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		r := v
		r.Name = args[0]
		var err error
		if r.Values, err = referenceValues(args[1:], asJSON); err != nil {
			return err
		}
		if r.Scalar && len(r.Values) != 1 {
			return usageError{hint.New(fmt.Errorf("--scalar: a scalar has one value, got %d", len(r.Values)), "leave --scalar out to register a list")}
		}
		if expires != "" {
			at, err := parseTime(expires, t.now(), +1)
			if err != nil {
				return usagef("--expires: %w", err)
			}
			r.Expires = &at
		}
		if inputs != "" {
			if r.Inputs, err = t.readLimited(inputs, maxProvenance); err != nil {
				return usagef("--inputs: %w", err)
			}
			if !json.Valid(r.Inputs) {
				return usagef("--inputs: %s: expected a JSON document", inputs)
			}
		}
		return t.ask(c, func(cl *admin.Client) error {
			var err error
			if add {
				err = cl.AddReferenceValue(c.Context(), r)
			} else {
				err = cl.SetReferenceValue(c.Context(), r)
			}
			if err != nil {
				return err
			}
			return t.done(r, "")
		})
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "the VALUEs are JSON")
	f.StringVar(&expires, "expires", "", "when they stop counting: 2027-01-01, a time of RFC 3339, or 90d from now (default: what the trustee is configured for)")
	f.StringVar(&v.Description, "description", "", "what they are; guests that are refused may read it")
	f.StringVar(&inputs, "inputs", "", "file with the launch inputs, as `coffer guest measure --output json` has them")
	if !add {
		f.BoolVar(&v.Scalar, "scalar", false, "policies see the value itself, not a list of one")
	}
	return c
}

// referenceValues are arguments as values. Numbers keep their digits.
func referenceValues(args []string, asJSON bool) ([]any, error) {
	out := make([]any, len(args))
	for i, s := range args {
		if !asJSON {
			out[i] = s
			continue
		}
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		err := d.Decode(&out[i])
		if err == nil {
			if _, e := d.Token(); e != io.EOF {
				err = errors.New("more than one document")
			}
		}
		if err != nil {
			return nil, usageError{hint.New(fmt.Errorf("value %d: %.80q is not JSON: %w", i+1, s, err), `text is quoted in JSON: '"text"'; without --json values are text`)}
		}
	}
	return out, nil
}

func (t *trusteeGroup) referenceDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Delete a reference value; its history stays",
		Example: `  coffer trustee reference-value delete snp_bootloader`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return t.ask(c, func(cl *admin.Client) error {
				if err := cl.DeleteReferenceValue(c.Context(), args[0]); err != nil {
					return err
				}
				return t.done(struct {
					Name    string `json:"name"`
					Deleted bool   `json:"deleted"`
				}{args[0], true}, "")
			})
		},
	}
}

func (t *trusteeGroup) referenceHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history NAME", Short: "List what was registered under a name, newest first",
		Example: `  coffer trustee reference-value history snp_launch_measurement`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return t.ask(c, func(cl *admin.Client) error {
				versions, err := cl.ReferenceHistory(c.Context(), args[0])
				if err != nil {
					return err
				}
				return t.table(versions, "VERSION\tCREATED\tVALUES", func(w io.Writer) {
					for _, v := range versions {
						shown := "deleted"
						if !v.Deleted {
							values := make([]json.RawMessage, len(v.Entries))
							for i, e := range v.Entries {
								values[i] = e.Value
							}
							shown = compact(values)
							if v.Scalar && len(values) == 1 {
								shown = string(values[0])
							}
						}
						row(w, v.Version, stamp(v.Created), shown)
					}
				})
			})
		},
	}
}

// provenanceTypes are the formats that an RVPS message can carry.
func provenanceTypes() []string { return []string{"sample", "corim", "swid", "in-toto"} }

func (t *trusteeGroup) registerCommand() *cobra.Command {
	var typ string
	c := &cobra.Command{
		Use: "register FILE", Short: "Register what a provenance document vouches for",
		Long: `Register reference values from a provenance document and print their names. FILE
is an RVPS message {"version","type","payload"}, or with --type the document
itself: sample ({"name": value, …}), corim (CBOR, signed or not), swid (XML),
in-toto (a DSSE envelope). Which signatures the trustee demands is in its
configuration. - reads standard input.`,
		Example: `  coffer trustee reference-value register message.json
  coffer trustee reference-value register guest.corim --type corim`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if typ != "" && !slices.Contains(provenanceTypes(), typ) {
				return usagef("--type: expected %s, got %q", strings.Join(provenanceTypes(), ", "), typ)
			}
			doc, err := t.readLimited(args[0], maxProvenance)
			if err != nil {
				return usageError{err}
			}
			if doc, err = rvpsMessage(doc, typ); err != nil {
				return usageError{hint.New(fmt.Errorf("%s: %w", args[0], err), "a document that is no RVPS message needs --type "+strings.Join(provenanceTypes(), "|"))}
			}
			return t.ask(c, func(cl *admin.Client) error {
				names, err := cl.RegisterProvenance(c.Context(), doc)
				if err != nil {
					return err
				}
				return t.table(admin.Registered{Names: names}, "REGISTERED", func(w io.Writer) {
					for _, n := range names {
						row(w, n)
					}
				})
			})
		},
	}
	c.Flags().StringVar(&typ, "type", "", "FILE is such a document, not a message: "+strings.Join(provenanceTypes(), ", "))
	return c
}

// rvpsMessage wraps a document of a type, or checks that it is a message.
func rvpsMessage(doc []byte, typ string) ([]byte, error) {
	if typ != "" {
		return json.Marshal(map[string]string{"version": "0.1.0", "type": typ, "payload": base64.StdEncoding.EncodeToString(doc)})
	}
	var m struct {
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(doc, &m); err != nil {
		return nil, fmt.Errorf("expected an RVPS message: %w", err)
	}
	if m.Type == "" || m.Payload == "" {
		return nil, errors.New(`expected an RVPS message {"version","type","payload"}: type or payload is missing`)
	}
	return bytes.TrimSpace(doc), nil
}
