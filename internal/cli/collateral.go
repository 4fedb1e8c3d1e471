package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// maxRootFile bounds a file of a development root.
const maxRootFile = 64 << 10

// collateralGroup is what the commands share.
type collateralGroup struct {
	*app
	dir   string
	roots []string
}

func (a *app) collateralCommand() *cobra.Command {
	g := &collateralGroup{app: a}
	c := &cobra.Command{
		Use: "collateral", Short: "Fetch, move and look at what the check of evidence needs beside it",
		Long: `Fetch, move and look at what the check of evidence needs beside it: AMD's chip
certificates and revocation lists, Intel's TCB info, identities of quoting enclaves
and revocation lists, NVIDIA's reference manifests, Hygon's chip certificates.

It is kept in a directory, by default $XDG_CACHE_HOME/coffer/collateral. Everything
is checked before it is kept: signed by the vendor, for the chip or platform in
question.`,
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVar(&g.dir, "dir", "", "the directory where collateral is kept (default $XDG_CACHE_HOME/coffer/collateral)")
	c.PersistentFlags().StringArrayVar(&g.roots, "development-root", nil, "a root to trust beside the vendor's, as amd=FILE, intel=FILE or nvidia=FILE (PEM); may be given several times")
	c.AddCommand(g.fetchCommand(), g.exportCommand(), g.importCommand(), g.showCommand())
	return c
}

// directory is where collateral is kept.
func (g *collateralGroup) directory() (string, error) {
	if g.dir != "" {
		return g.dir, nil
	}
	dir, err := collateralCache()
	if err != nil {
		return "", usageError{hint.New(err, "name the directory with --dir")}
	}
	return dir, nil
}

// collateralCache is the directory of collateral where none is named.
func collateralCache() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "coffer", "collateral"), nil
}

// checks are the verifiers' checks, under the vendors' roots and those given.
func (g *collateralGroup) checks() (collateral.Checks, error) {
	var d collateral.DevelopmentRoots
	for _, r := range g.roots {
		vendor, file, ok := strings.Cut(r, "=")
		if !ok {
			return collateral.Checks{}, usagef("--development-root: expected VENDOR=FILE, got %.200q", r)
		}
		pem, err := readSmall(file, maxRootFile)
		if err != nil {
			return collateral.Checks{}, usagef("--development-root: %w", err)
		}
		switch vendor {
		case "amd":
			d.AMD = append(d.AMD, snpverify.DevelopmentRoot{Name: file, PEM: pem})
		case "intel":
			root, err := dcap.ParseDevelopmentRoot(file, pem)
			if err != nil {
				return collateral.Checks{}, usagef("--development-root: %w", err)
			}
			d.Intel = append(d.Intel, root)
		case "nvidia":
			d.NVIDIA = append(d.NVIDIA, nvidiaverify.DevelopmentRoot{Name: file, PEM: pem})
		default:
			return collateral.Checks{}, usagef("--development-root: expected amd, intel or nvidia, got %.40q", vendor)
		}
	}
	checks, err := collateral.DefaultChecks(d)
	if err != nil {
		return checks, usagef("--development-root: %w", err)
	}
	return checks, nil
}

// collateralItem is an item in the output.
type collateralItem struct {
	Item       collateral.Item `json:"item"`
	Kind       collateral.Kind `json:"kind"`
	ID         string          `json:"id"`
	Source     string          `json:"source"`
	Fetched    time.Time       `json:"fetched"`
	Issued     time.Time       `json:"issued,omitzero"`
	ValidUntil time.Time       `json:"valid_until,omitzero"`
	Stale      bool            `json:"stale"`
	Status     string          `json:"status,omitempty"`
}

func newCollateralItem(e *collateral.Entry, now time.Time) collateralItem {
	return collateralItem{
		Item: e.Item, Kind: e.Item.Kind, ID: e.Item.ID, Source: e.Source, Fetched: e.Fetched.UTC(),
		Issued: e.Issued.UTC(), ValidUntil: e.NextUpdate.UTC(), Stale: e.Stale(now),
	}
}

// collateralRow prints an item in a table.
func collateralRow(w io.Writer, i collateralItem) {
	stale := "no"
	if i.Stale {
		stale = "stale"
	}
	row(w, i.Kind, shortID(i.ID), stamp(i.Fetched), stamp(i.ValidUntil), stale, i.Source)
}

const collateralHeader = "KIND\tID\tFETCHED\tVALID UNTIL\tSTALE\tSOURCE"

// shortID shortens the long hexadecimal numbers of an identifier.
func shortID(id string) string {
	parts := strings.Split(id, "/")
	for i, p := range parts {
		if len(p) > 40 {
			parts[i] = p[:16] + "…"
		}
	}
	return strings.Join(parts, "/")
}

func (g *collateralGroup) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [PATH]", Short: "List what is there, where it came from and how long it is good",
		Long: `List what is in the directory of collateral, or in PATH: a bundle, another
directory, or a file. Each item is checked again. What is not recognised, or does not
pass the checks, is listed on standard error, and under "problems" in JSON.`,
		Example: `  coffer collateral show
  coffer collateral show bundle.tar --output json`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			files, dir, err := g.open(args)
			if err != nil {
				return err
			}
			items := []collateralItem{}
			for _, e := range files.Entries() {
				items = append(items, newCollateralItem(e, g.now()))
			}
			problems := []collateral.Finding{}
			for _, f := range files.Findings() {
				if f.Status == collateral.Refused || f.Status == collateral.Ignored {
					problems = append(problems, f)
					_, _ = fmt.Fprintf(g.env.Stderr, "coffer: %s: %s: %s\n", clean(f.File), f.Status, clean(f.Reason))
				}
			}
			out := struct {
				Path     string               `json:"path"`
				Items    []collateralItem     `json:"items"`
				Problems []collateral.Finding `json:"problems"`
			}{dir, items, problems}
			return g.table(out, collateralHeader, func(w io.Writer) {
				for _, i := range items {
					collateralRow(w, i)
				}
			})
		},
	}
}

// open reads the path in the arguments, or the directory of collateral, which
// need not be there.
func (g *collateralGroup) open(args []string) (*collateral.Files, string, error) {
	checks, err := g.checks()
	if err != nil {
		return nil, "", err
	}
	var name string
	if len(args) > 0 {
		name = args[0]
	} else if name, err = g.directory(); err != nil {
		return nil, "", err
	}
	files, err := collateral.Open(name, checks)
	if len(args) == 0 && g.dir == "" && errors.Is(err, os.ErrNotExist) {
		return &collateral.Files{}, name, nil
	}
	if err != nil {
		return nil, "", usageError{err}
	}
	return files, name, nil
}
