package cli

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Write, check, compare and explain pod policies", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	var (
		canonical bool
		flags     workloadFlags
	)
	check := &cobra.Command{
		Use: "check FILE [POLICY]", Short: "Check a pod policy, or whether a workload fits one",
		Long: `With one file, check a pod policy and print its digest.

With two, say whether the Kubernetes workload of FILE fits POLICY (a policy
document, initdata, or a manifest that carries initdata): what a host that runs
the workload would propose is put to the guest's own rules, and each refusal is
shown with rule, field, expected and got. Exit code 1 if there is one. - reads
standard input.`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				if canonical {
					return usagef("--canonical is for a policy alone")
				}
				return a.checkWorkload(c, &flags, args[0], args[1])
			}
			data, err := a.readLimited(args[0], podpolicy.MaxBytes)
			if err != nil {
				return usageError{err}
			}
			p, err := podpolicy.Parse(data)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			out, err := p.Canonical()
			if err != nil {
				return err
			}
			if canonical {
				_, err = a.env.Stdout.Write(out)
				return err
			}
			digest, err := p.Digest()
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]string{"digest": "sha256:" + hex.EncodeToString(digest[:])})
			}
			a.printf("sha256:%x\n", digest)
			return nil
		},
	}
	check.Flags().BoolVar(&canonical, "canonical", false, "print the canonical form instead of the digest")
	flags.add(check)
	c.AddCommand(a.policyGenerateCommand(), check, a.policyDiffCommand(), a.policyExplainCommand())
	return c
}

func (a *app) initdataCommand() *cobra.Command {
	c := &cobra.Command{Use: "initdata", Short: "Inspect initdata documents", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(&cobra.Command{
		Use: "inspect FILE", Short: "Check a document and print its digest and entries; - reads standard input", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := a.readLimited(args[0], initdata.MaxBytes)
			if err != nil {
				return usageError{err}
			}
			doc, err := initdata.Parse(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			id, err := run.OpenInitdata(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			entries := make([]string, 0, len(doc.Data))
			for name := range doc.Data {
				entries = append(entries, name)
			}
			slices.Sort(entries)
			out := struct {
				Algorithm string   `json:"algorithm"`
				Digest    string   `json:"digest"`
				HostData  string   `json:"host_data"`
				Entries   []string `json:"entries"`
			}{id.Algorithm, hex.EncodeToString(id.Digest), hex.EncodeToString(tee.Fit(id.Digest, 32)), entries}
			if a.json() {
				return a.printJSON(out)
			}
			a.printf("algorithm  %s\ndigest     %s\nHOST_DATA  %s\nentries    %v\n", out.Algorithm, out.Digest, out.HostData, out.Entries)
			return nil
		},
	})
	return c
}
