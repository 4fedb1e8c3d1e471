package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/evidence"
	"github.com/coffer-project/coffer/tee"
)

// inspection is what `coffer evidence inspect --output json` prints.
type inspection struct {
	TEE    tee.Name       `json:"tee"`
	Format string         `json:"format"`
	Fields map[string]any `json:"fields"`
	Odd    []string       `json:"odd"`
}

func (a *app) evidenceInspectCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "inspect FILE", Short: "Decode evidence without trusting it, and say what is odd about it",
		Long: `Decode evidence without verifying anything: whoever made the file chose every
value that is printed. FILE is as with ` + "`coffer evidence verify`" + `; whose evidence it is is
found out by its form.

Exit code 2 means that FILE cannot be read, or is no evidence.`,
		Example: `  coffer evidence inspect report.bin
  coffer evidence inspect evidence.json --tee tdx --output json`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			var only tee.Name
			var err error
			if name != "" {
				if only, err = tee.ParseName(name); err != nil {
					return usageError{hint.New(fmt.Errorf("--tee: unknown TEE %.40q", name), "known are "+strings.Join(evidence.Inspectable(), ", "))}
				}
			}
			data, err := readInput(args[0], c.InOrStdin(), evidence.MaxFile)
			if err != nil {
				return usageError{err}
			}
			x, err := evidence.Inspect(data, only)
			if err != nil {
				return usageError{fmt.Errorf("%s: %w", args[0], err)}
			}
			return a.printInspection(x)
		},
	}
	c.Flags().StringVar(&name, "tee", "", "whose evidence it is, where its form does not tell")
	return c
}

func (a *app) printInspection(x *tee.Inspection) error {
	if a.json() {
		return a.printJSON(inspection{x.TEE, x.Format, x.Fields, append([]string{}, x.Odd...)})
	}
	a.printf("%s: %s (not verified)\n", x.TEE, clean(x.Format))
	if err := a.printFields(x.Fields); err != nil {
		return err
	}
	for _, odd := range x.Odd {
		a.printf("odd: %s\n", clean(odd))
	}
	return nil
}
