package cli

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxSeqDigits is how many digits a sequence number may have: records' ids are
// longer.
const maxSeqDigits = 18

func (t *trusteeGroup) policyExplainCommand() *cobra.Command {
	var candidate string
	c := &cobra.Command{
		Use: "explain RECORD", Short: "Replay a recorded decision on a resource, and show which conditions failed",
		Long: `Replay a recorded decision on a resource with the policy that was in force, or
with --policy a candidate for its successor: which rules could have granted,
which of their conditions failed, and what the claims really were. RECORD is the
number (SEQ) or the id of a record in ` + "`coffer trustee audit list`" + `.`,
		Example: `  coffer trustee audit list --kind resource --refused
  coffer trustee policy explain 4711
  coffer trustee policy explain 4711 --policy shop-next.rego`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := recordName(args[0])
			if err != nil {
				return err
			}
			if candidate != "" {
				if r.Text, err = t.readPolicy(candidate); err != nil {
					return err
				}
			}
			return t.ask(c, func(cl *admin.Client) error {
				x, err := cl.Explain(c.Context(), r)
				if err != nil {
					return err
				}
				return t.printExplanation(x)
			})
		},
	}
	c.Flags().StringVar(&candidate, "policy", "", "file with a policy to try instead of the recorded one")
	return c
}

// recordName tells a sequence number from an id.
func recordName(s string) (admin.ExplainRequest, error) {
	if strings.Trim(s, "0123456789") == "" && len(s) <= maxSeqDigits {
		if seq, err := strconv.ParseInt(s, 10, 64); err == nil && seq > 0 {
			return admin.ExplainRequest{Seq: seq}, nil
		}
	}
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return admin.ExplainRequest{}, usageError{hint.New(errors.New(strconv.Quote(s)+": expected a record's number or its id of 32 hexadecimal digits"), "`coffer trustee audit list --kind resource --refused` lists them")}
	}
	return admin.ExplainRequest{ID: s}, nil
}

func (t *trusteeGroup) printExplanation(x admin.Explanation) error {
	if t.json() {
		return t.printJSON(x)
	}
	word := func(granted bool) string {
		if granted {
			return "granted"
		}
		return "refused"
	}
	t.printf("record %d was %s; policy %s says: %s\n", x.Seq, word(x.Recorded), clean(x.Policy), word(x.Granted))
	for _, r := range x.Reasons {
		t.printf("reason: %s\n", clean(r.String()))
	}
	if len(x.Allow) == 0 {
		t.printf("no rule of the policy could grant: it has no allow\n")
	}
	t.printRules(x.Allow, "")
	for _, line := range x.Needed {
		t.printf("to be granted: %s\n", clean(line))
	}
	return nil
}

// printRules prints a rule's conditions, and below each that failed why.
func (t *trusteeGroup) printRules(rules []admin.Rule, indent string) {
	for _, r := range rules {
		state := "does not hold"
		if r.Holds {
			state = "holds"
		}
		t.printf("%s%s (line %d) %s\n", indent, clean(r.Name), r.Line, state)
		for _, c := range r.Conditions {
			mark := map[string]string{"holds": "yes", "fails": "NO "}[c.State]
			if mark == "" {
				mark = "?  "
			}
			t.printf("%s  %s %4d  %s\n", indent, mark, c.Line, clean(c.Text))
			for _, v := range c.Values {
				t.printf("%s             %s is %s\n", indent, clean(v.Ref), clean(v.Value))
			}
			t.printRules(c.Because, indent+"           ")
		}
	}
}
