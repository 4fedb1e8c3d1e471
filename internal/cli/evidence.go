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
	"github.com/coffer-project/coffer/tee/collateral"
)

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
The messages that carry evidence ("tee-evidence", a request to an attestation service)
are taken as well.

Collateral that the evidence does not bring comes from --collateral, a directory as
` + "`coffer collateral export`" + ` makes it or with loose files, else from the cache, else from the
vendor's service; with --offline nothing is fetched. A VLEK certificate or a GPU's
certificate chain may lie there too; a GPU's may also stand behind the report in FILE.

Where the vendor has no root, who is trusted has to be said with --trust-anchor: cca is
never genuine without, tpm is, with a warning that anybody can have made the key.

--allow-missing-collateral turns into warnings what cannot be checked for want of
collateral, or by collateral past its date: revocation, patch levels, manifests. Read
them: a revoked platform then verifies. Without the certificate of the key that signed
an SNP report nothing is known of it, and it is not accepted even so; a report of
Hygon CSV without its chip's certificates (HSK, CEK) is accepted with the warning
csv.chain, and anybody can have made it.

With --reference the claims are held against reference values by the trustee's
built-in policy too.

Exit codes: 0 when it is genuine, 1 when it is not or cannot be judged, 2 on wrong
usage or input that cannot be read, or that is no evidence of this TEE at all.`,
		Example: `  coffer evidence verify report.bin --tee snp --collateral ./amd --offline
  coffer evidence verify quote.dat --tee tdx --at 2025-10-20T00:00:00Z --output json
  coffer evidence verify token.cbor --tee cca --trust-anchor tastore.json
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
	fl.StringVar(&f.reportData, "report-data", "", "the report data that the evidence must be bound to, in hex (before it is fitted to the field); without it a warning says that nothing was compared")
	fl.StringVar(&f.initData, "init-data", "", "the initdata digest that the evidence must be bound to, in hex")
	fl.StringVar(&f.at, "at", "", "the time to verify at, RFC 3339 (default now)")
	fl.StringVar(&f.reference, "reference", "", "file with reference values to hold the claims against: an RVPS message, a CoRIM, or {\"name\": value}")
	fl.BoolVar(&f.options.AllowDebug, "allow-debug", false, "accept an environment whose memory a debugger can read, with a warning")
	fl.BoolVar(&f.options.AllowMissingCollateral, "allow-missing-collateral", false, "accept what cannot be checked for want of (current) collateral, with a warning; a CSV report without HSK and CEK can then be anybody's")
	fl.StringArrayVar(&f.options.Roots, "development-root", nil, "PEM file with the root of a software TEE, for tdx and sgx with its collateral; such evidence counts as simulated (cca: JSON file of emulated platforms' keys)")
	fl.StringArrayVar(&f.options.Anchors, "trust-anchor", nil, "file with keys to trust where the vendor has no root: cca (platforms' keys, JSON), tpm (attestation keys or their authorities, PEM)")
	fl.StringArrayVar(&f.collateral.Dirs, "collateral", nil, "directory or file with collateral: an export, or loose files")
	fl.BoolVar(&f.collateral.Offline, "offline", false, "fetch nothing")
	fl.StringVar(&f.collateral.Update, "tcb-update", "standard", "Intel's track: standard or early")
	fl.StringVar(&f.collateral.Endpoints.KDS, "kds", "", "URL of AMD's key distribution service or a mirror (default AMD's)")
	fl.StringVar(&f.collateral.Endpoints.PCS, "pcs", "", "URL of Intel's provisioning service or a PCCS (default Intel's)")
	fl.StringVar(&f.collateral.Endpoints.RIM, "rim-service", "", "URL of NVIDIA's manifests or a mirror (default NVIDIA's)")
	fl.StringVar(&f.collateral.Endpoints.OCSP, "ocsp-service", "", "URL of NVIDIA's OCSP responder (default NVIDIA's)")
	fl.StringVar(&f.collateral.Endpoints.Hygon, "hygon-service", "", "URL of Hygon's certificate service or a mirror (default Hygon's)")
	fl.StringVar(&f.collateral.Cache, "cache", "", "directory that keeps what is fetched (default that of coffer collateral)")
	return c
}

func (a *app) verifyEvidence(c *cobra.Command, f *evidenceFlags, file string) (*verdict, error) {
	name, err := verifiable(f.tee)
	if err != nil {
		return nil, err
	}
	want, now, err := f.wanted(c)
	if err != nil {
		return nil, err
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
			return nil, usageError{fmt.Errorf("--reference: %w", err)}
		}
		if refs, err = evidence.ParseReferences(c.Context(), text, now); err != nil {
			return nil, usageError{fmt.Errorf("--reference: %w", err)}
		}
	}
	source, err := a.openCollateral(name, f, now)
	if err != nil {
		return nil, usageError{err}
	}
	defer func() { _ = source.Close() }()
	f.options.Collateral, f.options.Beside = source, f.collateral.Dirs
	results, err := evidence.Verify(c.Context(), name, data, want, f.options)
	v := &verdict{TEE: name, Claims: map[string]any{}, Failures: failures(nil), Warnings: failures(nil)}
	refused, isRefused := errors.AsType[*tee.Error](err)
	unavailable, isUnavailable := errors.AsType[*tee.UnavailableError](err)
	input, isInput := errors.AsType[*evidence.InputError](err)
	switch {
	case isRefused:
		v.Failures = failures(refused.Failures)
		return v, nil
	case isUnavailable:
		v.Failures = failures(unavailable.Failures)
		return v, nil
	case isInput && input.Content:
		return nil, usageError{fmt.Errorf("%s: %w", file, err)}
	case isInput:
		return nil, usageError{err}
	case err != nil:
		return nil, err
	}
	for _, r := range results {
		v.Warnings = append(v.Warnings, failures(r.Warnings)...)
		v.Simulated = v.Simulated || r.Simulated
		if len(results) > 1 {
			v.Devices = append(v.Devices, deviceClaims{r.Class, r.Claims})
		}
	}
	v.Claims, v.Verified = results[0].Claims, true
	if refs != nil {
		objections, err := evidence.Appraise(c.Context(), results, refs, now)
		if err != nil {
			return nil, err
		}
		v.Failures, v.Verified = failures(objections), len(objections) == 0
	}
	return v, nil
}

// verifiable is the TEE that --tee names.
func verifiable(text string) (tee.Name, error) {
	known := "known are " + strings.Join(evidence.Names(), ", ")
	if text == "" {
		return "", usageError{hint.New(errors.New("--tee: expected whose evidence it is"), known+"; `coffer evidence inspect` finds it out")}
	}
	name, err := tee.ParseName(text)
	if err != nil {
		return "", usageError{hint.New(fmt.Errorf("--tee: unknown TEE %.40q", text), known)}
	}
	return name, nil
}

// wanted is what the flags say of binding and time.
func (f *evidenceFlags) wanted(c *cobra.Command) (want tee.Expected, now func() time.Time, err error) {
	// A variable that a script left empty must not turn the comparison off.
	for _, name := range []string{"report-data", "init-data", "at", "reference"} {
		if flag := c.Flags().Lookup(name); flag.Changed && flag.Value.String() == "" {
			return want, nil, usagef("--%s: expected a value, got an empty one; leave the flag out where there is nothing to say", name)
		}
	}
	if want.ReportData, err = digestFlag("report-data", f.reportData); err != nil {
		return want, nil, err
	}
	if want.InitData, err = digestFlag("init-data", f.initData); err != nil {
		return want, nil, err
	}
	want.AnyReportData = want.ReportData == nil
	if f.at == "" {
		return want, time.Now, nil
	}
	at, err := time.Parse(time.RFC3339, f.at)
	if err != nil {
		return want, nil, usagef("--at: expected a time such as 2026-01-31T12:00:00Z, got %.80q", f.at)
	}
	return want, func() time.Time { return at }, nil
}

// openCollateral opens the sources of collateral. The cache that nobody has asked
// for need not work.
func (a *app) openCollateral(name tee.Name, f *evidenceFlags, now func() time.Time) (*collateral.Client, error) {
	o := f.collateral
	o.TEE, o.Roots = name, f.options.Roots
	if o.Cache == "" {
		o.Cache, _ = collateralCache() // without a home directory there is none
	}
	source, unused, err := evidence.OpenCollateral(o, now)
	if err != nil && f.collateral.Cache == "" && o.Cache != "" {
		o.Cache = ""
		var again error
		if source, unused, again = evidence.OpenCollateral(o, now); again == nil {
			a.warnf("the cache of collateral is not used: %v", err)
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	for _, x := range unused {
		a.warnf("collateral %s is not used: %s", x.File, x.Reason)
	}
	return source, nil
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
