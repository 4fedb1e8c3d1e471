package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/tee/collateral"
)

func (g *collateralGroup) importCommand() *cobra.Command {
	return &cobra.Command{
		Use: "import PATH...", Short: "Check collateral in files and keep it",
		Long: `Check collateral in files and keep it in the directory of collateral. PATH is a bundle
of ` + "`coffer collateral export`" + `, a file, or a directory, whose files are recognised by
their content: certificates and revocation lists (DER, PEM), TCB info and enclave
identities, the JSON of Intel's client tool and of dcap-qvl, manifests named after
their identifier, Trustee's stores.

Nothing is kept that a vendor did not sign, and what is kept already is not replaced
by something older. What became of each file is printed. Exit status 1 means that a
file was refused or not recognised, or that there was nothing to keep.`,
		Example: `  coffer collateral import bundle.tar
  coffer collateral import ./from-the-vendor`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, paths []string) error {
			dir, err := g.directory()
			if err != nil {
				return err
			}
			checks, err := g.checks()
			if err != nil {
				return err
			}
			findings := []collateral.Finding{}
			good, bad := 0, 0
			for _, path := range paths {
				found, err := collateral.Import(dir, path, checks)
				if err != nil {
					return usagef("%s: %w", path, err)
				}
				findings = append(findings, found...)
			}
			for _, f := range findings {
				switch f.Status {
				case collateral.Accepted, collateral.Kept:
					good++
				case collateral.Refused, collateral.Ignored:
					bad++
				}
			}
			err = g.table(struct {
				Dir   string               `json:"dir"`
				Files []collateral.Finding `json:"files"`
			}{dir, findings}, "STATUS\tFILE\tITEM\tREASON", func(w io.Writer) {
				for _, f := range findings {
					item := "-"
					if f.Item != nil {
						item = string(f.Item.Kind) + " " + shortID(f.Item.ID)
					}
					row(w, f.Status, f.File, item, f.Reason)
				}
			})
			switch {
			case err != nil:
				return err
			case bad > 0:
				return hint.New(fmt.Errorf("%s not kept", count(int64(bad), "item")), "the reasons are in the list")
			case good == 0:
				return errors.New("there is no collateral in it")
			}
			return nil
		},
	}
}

func (g *collateralGroup) exportCommand() *cobra.Command {
	var vendor, chip, fmspc string
	var force bool
	c := &cobra.Command{
		Use: "export FILE", Short: "Write collateral to one file, for a machine without a network",
		Long: `Write what is in the directory of collateral, or a selection of it, to one file: a
bundle (tar) that ` + "`coffer collateral import`" + ` reads, and that unpacked is a directory of
collateral. The same items make the same file. - writes standard output.

With --chip-id, --fmspc or both: what evidence of that chip or platform family needs,
revocation lists included.`,
		Example: `  coffer collateral export bundle.tar
  coffer collateral export --fmspc 00A06D080000 bundle.tar`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := g.checkTarget(args[0], force); err != nil {
				return err
			}
			chosen, err := selection(vendor, chip, fmspc)
			if err != nil {
				return err
			}
			files, _, err := g.open(nil)
			if err != nil {
				return err
			}
			entries := slices.DeleteFunc(files.Entries(), func(e *collateral.Entry) bool { return !chosen(e.Item) })
			if len(entries) == 0 {
				return hint.New(errors.New("there is no such collateral"), "`coffer collateral show` lists what there is, `coffer collateral fetch` fetches")
			}
			write := func(w io.Writer) error { return collateral.WriteBundle(w, entries) }
			if args[0] == "-" {
				return write(g.env.Stdout)
			}
			if err := writeFile(args[0], force, write); err != nil {
				return err
			}
			return g.done(struct {
				File  string `json:"file"`
				Items int    `json:"items"`
			}{args[0], len(entries)}, "%s: %s", args[0], count(int64(len(entries)), "item"))
		},
	}
	c.Flags().StringVar(&vendor, "vendor", "", "only of amd, intel, nvidia or hygon")
	c.Flags().StringVar(&chip, "chip-id", "", "only what evidence of this AMD chip needs (hex)")
	c.Flags().StringVar(&fmspc, "fmspc", "", "only what evidence of this Intel platform family needs (12 hex digits)")
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

// selection says which items are asked for.
func selection(vendor, chip, fmspc string) (func(collateral.Item) bool, error) {
	if vendor != "" && !slices.Contains([]string{"amd", "intel", "nvidia", "hygon"}, vendor) {
		return nil, usagef("--vendor: expected amd, intel, nvidia or hygon, got %.40q", vendor)
	}
	if chip != "" {
		id, err := hexOf("--chip-id", chip, 8, 64)
		if err != nil {
			return nil, err
		}
		chip = hex.EncodeToString(id)
	}
	if fmspc != "" {
		id, err := hexOf("--fmspc", fmspc, 6)
		if err != nil {
			return nil, err
		}
		fmspc = hex.EncodeToString(id)
	}
	return func(i collateral.Item) bool {
		if vendor != "" && i.Kind.Vendor() != vendor {
			return false
		}
		if chip == "" && fmspc == "" {
			return true
		}
		switch i.Kind {
		case collateral.VCEK:
			return chip != "" && strings.Contains(i.ID, "/"+chip+"/")
		case collateral.AMDCRL, collateral.AMDChain:
			return chip != ""
		case collateral.TCBInfo:
			return fmspc != "" && strings.Contains(i.ID, "/"+fmspc+"/")
		case collateral.QEIdentity, collateral.PCKCRL, collateral.RootCRL:
			return fmspc != ""
		}
		return false
	}, nil
}
