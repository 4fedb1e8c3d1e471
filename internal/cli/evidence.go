package cli

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/evidence"
	"github.com/coffer-project/coffer/tee"
)

// verdict is what `coffer evidence verify --output json` prints. Its form is a
// contract with scripts: members may be added, none changed.
type verdict struct {
	TEE      tee.Name       `json:"tee"`
	Verified bool           `json:"verified"`
	Claims   map[string]any `json:"claims"`
	Failures []tee.Failure  `json:"failures"`
	Warnings []tee.Failure  `json:"warnings"`
	// Simulated is whether the evidence is of a software TEE.
	Simulated bool `json:"simulated"`
	// Devices are the claims of each device, where evidence is of several.
	Devices []deviceClaims `json:"devices,omitempty"`
}

type deviceClaims struct {
	Class  tee.Class      `json:"class"`
	Claims map[string]any `json:"claims"`
}

// evidenceFlags are the flags of `coffer evidence verify`.
type evidenceFlags struct {
	tee, reportData, initData, at, reference string
	options                                  evidence.Options
	collateral                               evidence.CollateralOptions
}

func (a *app) evidenceCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "evidence", Short: "Verify or look at evidence of a trusted execution environment",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.evidenceVerifyCommand(), a.evidenceInspectCommand())
	return c
}

func (a *app) evidenceVerifyCommand() *cobra.Command {
	var f evidenceFlags
	c := &cobra.Command{
		Use: "verify FILE --tee NAME", Short: "Verify evidence: is it genuine, and what does it claim?",
		Long: `Verify evidence as a trustee does: signatures, certificate chains, revocation,
patch levels, debug bits, and what it is bound to. FILE is raw bytes (a report, a
quote, a token) or the evidence JSON of the KBS protocol; "-" is standard input.

Collateral that the evidence does not bring comes from --collateral, a directory as
` + "`coffer collateral export`" + ` makes it or with loose files, else from the cache, else from the
vendor's service; with --offline nothing is fetched.

With --reference the claims are held against reference values by the trustee's
built-in policy too.

Exit codes: 0 when it is genuine, 1 when it is not or cannot be judged, 2 on wrong
usage or input that cannot be read.`,
		Example: `  coffer evidence verify report.bin --tee snp --collateral ./amd --offline
  coffer evidence verify quote.dat --tee tdx --at 2025-10-20T00:00:00Z --output json
  coffer evidence verify evidence.json --tee az-snp-vtpm --report-data 982f5c… --reference values.json`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := a.verifyEvidence(c, &f, args[0])
			if err != nil {
				return err
			}
			if err := a.printVerdict(v); err != nil {
				return err
			}
			if !v.Verified {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.tee, "tee", "", "whose evidence it is: "+strings.Join(evidence.Names(), ", "))
	fl.StringVar(&f.reportData, "report-data", "", "the report data that the evidence must be bound to, in hex (before it is fitted to the field)")
	fl.StringVar(&f.initData, "init-data", "", "the initdata digest that the evidence must be bound to, in hex")
	fl.StringVar(&f.at, "at", "", "the time to verify at, RFC 3339 (default now)")
	fl.StringVar(&f.reference, "reference", "", "file with reference values to hold the claims against")
	fl.BoolVar(&f.options.AllowDebug, "allow-debug", false, "accept an environment whose memory a debugger can read, with a warning")
	fl.BoolVar(&f.options.AllowMissingCollateral, "allow-missing-collateral", false, "accept what cannot be checked for want of collateral, with a warning")
	fl.StringArrayVar(&f.options.Roots, "development-root", nil, "PEM file with the root of a software TEE, for TDX and SGX with its collateral; such evidence counts as simulated")
	fl.StringArrayVar(&f.options.Anchors, "trust-anchor", nil, "file with keys to trust where the vendor has no root: Arm CCA (CPAK, JSON), TPM (attestation keys, PEM), IBM SE (host key documents, PEM)")
	fl.StringArrayVar(&f.collateral.Dirs, "collateral", nil, "directory or file with collateral: an export, or loose files")
	fl.BoolVar(&f.collateral.Offline, "offline", false, "fetch nothing")
	fl.StringVar(&f.collateral.Update, "tcb-update", "standard", "Intel's track: standard or early")
	fl.StringVar(&f.collateral.Endpoints.KDS, "kds", "", "URL of AMD's key distribution service or a mirror (default AMD's)")
	fl.StringVar(&f.collateral.Endpoints.PCS, "pcs", "", "URL of Intel's provisioning service or a PCCS (default Intel's)")
	fl.StringVar(&f.collateral.Cache, "cache", "", "directory that keeps what is fetched (default that of coffer collateral)")
	_ = c.MarkFlagRequired("tee")
	return c
}

func (a *app) verifyEvidence(c *cobra.Command, f *evidenceFlags, file string) (*verdict, error) {
	name, err := tee.ParseName(f.tee)
	if err != nil {
		return nil, usageError{hint.New(fmt.Errorf("--tee: unknown TEE %q", f.tee), "known are "+strings.Join(evidence.Names(), ", "))}
	}
	want := tee.Expected{AnyReportData: f.reportData == ""}
	if want.ReportData, err = digestFlag("report-data", f.reportData); err != nil {
		return nil, err
	}
	if want.InitData, err = digestFlag("init-data", f.initData); err != nil {
		return nil, err
	}
	now := time.Now
	if f.at != "" {
		at, err := time.Parse(time.RFC3339, f.at)
		if err != nil {
			return nil, usagef("--at: expected a time such as 2026-01-31T12:00:00Z, got %q", f.at)
		}
		now = func() time.Time { return at }
	}
	f.options.Now = now
	data, err := readInput(file, c.InOrStdin(), evidence.MaxFile)
	if err != nil {
		return nil, usageError{err}
	}
	var refs evidence.References
	if f.reference != "" {
		text, err := readInput(f.reference, nil, evidence.MaxFile)
		if err != nil {
			return nil, usageError{err}
		}
		if refs, err = evidence.ParseReferences(c.Context(), text, now); err != nil {
			return nil, usageError{fmt.Errorf("--reference: %w", err)}
		}
	}
	source, unused, err := evidence.OpenCollateral(f.collateral, now)
	if err != nil {
		return nil, usageError{err}
	}
	defer func() { _ = source.Close() }()
	for _, x := range unused {
		a.warnf("collateral %s is not used: %s", x.File, x.Reason)
	}
	f.options.Collateral = source
	results, err := evidence.Verify(c.Context(), name, data, want, f.options)
	v := &verdict{TEE: name, Claims: map[string]any{}, Failures: []tee.Failure{}, Warnings: []tee.Failure{}}
	refused, isRefused := errors.AsType[*tee.Error](err)
	unavailable, isUnavailable := errors.AsType[*tee.UnavailableError](err)
	switch {
	case isRefused:
		v.Failures = refused.Failures
		return v, nil
	case isUnavailable:
		v.Failures = unavailable.Failures
		return v, nil
	case evidence.IsInput(err):
		return nil, usageError{err}
	case err != nil:
		return nil, err
	}
	for _, r := range results {
		v.Warnings = append(v.Warnings, r.Warnings...)
		v.Simulated = v.Simulated || r.Simulated
		if len(results) > 1 {
			v.Devices = append(v.Devices, deviceClaims{r.Class, r.Claims})
		}
	}
	v.Claims, v.Verified = results[0].Claims, true
	if refs != nil {
		failures, err := evidence.Appraise(c.Context(), results, refs, now)
		if err != nil {
			return nil, err
		}
		if len(failures) > 0 {
			v.Failures, v.Verified = failures, false
		}
	}
	return v, nil
}

// digestFlag reads a digest. Nothing given is nil.
func digestFlag(name, text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, usagef("--%s: expected hexadecimal digits, got %.80q", name, text)
	}
	if len(b) > 64 {
		return nil, usagef("--%s: expected at most 64 bytes, got %d", name, len(b))
	}
	return b, nil
}

// readInput reads a file of at most limit bytes; "-" is stdin.
func readInput(file string, stdin io.Reader, limit int64) ([]byte, error) {
	in := stdin
	if file != "-" || stdin == nil {
		f, err := os.Open(filepath.Clean(file))
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: expected at most %d bytes", file, limit)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%s: is empty", file)
	}
	return data, nil
}

func (a *app) printVerdict(v *verdict) error {
	if a.json() {
		return a.printJSON(v)
	}
	for _, w := range v.Warnings {
		a.warnf("%s", w.String())
	}
	if !v.Verified {
		a.printf("%s evidence is NOT genuine\n", v.TEE)
		for _, f := range v.Failures {
			a.printFailure(f)
		}
		return nil
	}
	kind := "genuine"
	if v.Simulated {
		kind = "genuine as of a software TEE, which protects nothing"
	}
	a.printf("%s evidence is %s\n", v.TEE, kind)
	if len(v.Devices) == 0 {
		return a.printFields(v.Claims)
	}
	for i, d := range v.Devices {
		a.printf("\n%s %d\n", d.Class, i)
		if err := a.printFields(d.Claims); err != nil {
			return err
		}
	}
	return nil
}

// warnf writes a line to standard error.
func (a *app) warnf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.env.Stderr, "warning: %s\n", clean(fmt.Sprintf(format, args...)))
}

func (a *app) printFailure(f tee.Failure) {
	a.printf("\n  %s (%s)\n", clean(f.Check), clean(f.Field))
	for _, part := range []struct{ name, text string }{{"expected", f.Expected}, {"got", f.Got}, {"help", f.Help}} {
		if part.text != "" {
			a.printf("    %-9s %s\n", part.name, clean(part.text))
		}
	}
}

func (a *app) evidenceInspectCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "inspect FILE", Short: "Decode evidence without trusting it, and say what is odd about it",
		Long: `Decode evidence without verifying anything: whoever made the file chose every
value that is printed. FILE is as with ` + "`coffer evidence verify`" + `; whose evidence it is is
found out by its form.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := readInput(args[0], c.InOrStdin(), evidence.MaxFile)
			if err != nil {
				return usageError{err}
			}
			var only tee.Name
			if name != "" {
				if only, err = tee.ParseName(name); err != nil {
					return usageError{hint.New(fmt.Errorf("--tee: unknown TEE %q", name), "known are "+strings.Join(evidence.Names(), ", "))}
				}
			}
			x, err := evidence.Inspect(data, only)
			if err != nil {
				return usageError{err}
			}
			if a.json() {
				return a.printJSON(x)
			}
			a.printf("%s: %s (not verified)\n", x.TEE, clean(x.Format))
			if err := a.printFields(x.Fields); err != nil {
				return err
			}
			for _, odd := range x.Odd {
				a.printf("odd: %s\n", clean(odd))
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "tee", "", "whose evidence it is, where its form does not tell")
	return c
}
