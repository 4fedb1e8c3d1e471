package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/trustee/release/policytest"
	"github.com/coffer-project/coffer/kbs/admin"
)

func (t *trusteeGroup) policyTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test POLICY CASES", Short: "Put the cases of a file to a policy, before it is stored; asks no trustee",
		Long: `Put the cases of a file (TOML, or JSON by its name) to a policy and report which
of them did not come out as expected, and which lines of the policy no case
reached. No trustee is asked. Exit code 1 means that a case failed or that the
policy does not compile.

  kind = "resource"             # or "attestation"
  [[case]]
  name = "the shop gets its password"
  claims = "claims.json"        # a file (JSON, a token, an audit record) or a table
  resource = "kbs:///shop/db/password"
  registered_initdata = ["b3c1…"]
  expect = "allow"              # or "deny", with expect_rule = "initdata.registered"`,
		Example: `  coffer trustee policy test shop.rego shop-cases.toml`,
		Args:    args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := offline(c, "policy test"); err != nil {
				return err
			}
			text, err := t.readLimited(args[0], admin.MaxPolicyBytes)
			if err != nil {
				return usageError{err}
			}
			cases, err := policytest.Load(args[1])
			if err != nil {
				return usageError{err}
			}
			report, err := policytest.Run(c.Context(), args[0], string(text), cases)
			if err != nil {
				return err
			}
			if err := t.printTest(report); err != nil {
				return err
			}
			if !report.OK {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
}

func (t *trusteeGroup) printTest(r policytest.Report) error {
	if t.json() {
		return t.printJSON(r)
	}
	for _, x := range r.Results {
		verdict := "ok  "
		if !x.OK {
			verdict = "FAIL"
		}
		t.printf("%s  %s (%s)\n", verdict, clean(x.Name), x.Took.Round(10*time.Microsecond))
		for _, f := range x.Failures {
			t.printf("      %s\n", clean(f))
		}
	}
	t.printf("%d passed, %d failed; %.0f%% of the policy's lines were reached\n", r.Passed, r.Failed, r.Coverage.Percent)
	for _, m := range r.Coverage.Missed {
		lines := fmt.Sprintf("line %d", m.From)
		if m.To > m.From {
			lines = fmt.Sprintf("lines %d to %d", m.From, m.To)
		}
		t.printf("%s: %s: no case got there\n", r.Policy, lines)
	}
	return nil
}
