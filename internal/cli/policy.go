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
	c := &cobra.Command{Use: "policy", Short: "Check pod policies", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	var canonical bool
	check := &cobra.Command{
		Use: "check FILE", Short: "Check a pod policy and print its digest; - reads standard input", Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
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
	c.AddCommand(check)
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
