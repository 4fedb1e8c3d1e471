// Package nvidiaverify verifies evidence of NVIDIA's GPUs (Hopper, Blackwell) and
// NVSwitches (LS10).
//
// For each device it checks the certificate chain to NVIDIA's device root, that
// the certificate was made for the firmware that the report names, the report's
// signature, and that the report was made for the expected report data (its
// first 32 bytes, the SPDM nonce). Asked to, it checks with NVIDIA's OCSP service
// that no certificate was revoked, and compares the measurements with NVIDIA's
// signed reference manifests of the driver and the firmware. A device has no
// field for initdata: where some is given to compare with, that is a failure.
//
// The result is one for each device, of class gpu or switch. Of eight GPUs and
// four switches it is checked that they name each other, and there is one result
// more, of class ppcie.
//
// What is known about formats is from NVIDIA's own verifiers
// (NVIDIA/nvtrust@0281730, NVIDIA/attestation-sdk@73c032e). Published evidence of
// all three generations verifies, and real switch evidence matches its real
// manifest. Unproven, for want of published data, are NVIDIA's OCSP responses, a
// GPU whose two manifests are both published, and which certificates and flags a
// device has that is open to a debugger.
//
// # Checks
//
// A [tee.Failure] names one of: nvidia.format, nvidia.report, nvidia.devices,
// nvidia.chain, nvidia.arch, nvidia.fwid, nvidia.signature, nvidia.debug,
// nvidia.claims, nvidia.report_data, nvidia.init_data, nvidia.revocation,
// nvidia.collateral, nvidia.rim, nvidia.measurements, nvidia.topology. Its field begins with the
// device, for example device_evidence_list[0].nonce.
//
// # Claims
//
// As the confidential containers' attestation service names them: arch
// (Hopper, Blackwell, LS10), uuid ("unknown" where the attester gives none;
// nothing vouches for it), measurements (index from 1 to hex), config (the
// opaque fields, see [nvidia.Report.Config]).
//
// As NVIDIA's verifiers name them, K being gpu or switch:
// x-nvidia-K-arch-check, x-nvidia-K-attestation-report-parsed,
// x-nvidia-K-attestation-report-signature-verified: true.
// x-nvidia-K-attestation-report-nonce-match: true, missing where there was no
// report data to compare with.
// x-nvidia-K-attestation-report-cert-chain-fwid-match: true, missing where the
// report has no firmware identifier (switches, and drivers before 550).
// x-nvidia-K-attestation-report-cert-chain: x-nvidia-cert-status ("valid"),
// x-nvidia-cert-expiration-date (RFC 3339), and x-nvidia-cert-ocsp-status
// ("good"), which is missing where nobody asked NVIDIA.
// hwmodel, ueid (common name, and serial number in decimal, of the certificate
// that identifies the device).
// x-nvidia-gpu-driver-version, x-nvidia-gpu-vbios-version, or
// x-nvidia-switch-bios-version.
//
// Where the manifests were compared, with R being gpu-driver, gpu-vbios or
// switch-bios: x-nvidia-R-rim-fetched, x-nvidia-R-rim-signature-verified,
// x-nvidia-R-rim-version-match, x-nvidia-R-rim-measurements-available (true or
// missing), x-nvidia-R-rim-cert-chain; x-nvidia-gpu-vbios-index-no-conflict;
// measres: "success" or "fail"; secboot (true) and dbgstat ("disabled") where it
// is a success, which is all that NVIDIA's verifiers base them on. measres is
// missing where a manifest could not be had.
//
// In addition: simulated (boolean: the chain ends in a development root),
// development_root (its name, only then), x-nvidia-chip and x-nvidia-serial (the
// identity in the device's certificate), x-nvidia-pdi (the identifier that
// switches and GPUs know the device by), x-nvidia-dice-flags (hex, Blackwell),
// x-nvidia-measurement-mismatches (a list of "driver 9" and the like, indices as in
// measurements), collateral_expiration_status ("0", or "1" where collateral has
// expired; missing where none was asked for).
// Class ppcie: gpu_count, switch_count, simulated.
package nvidiaverify

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/rim"
)

// The classes besides [tee.GPU].
const (
	Switch tee.Class = "switch"
	PPCIe  tee.Class = "ppcie"
)

// Collateral is where revocation and manifests come from. Implementations are
// safe for concurrent use and return *[tee.CollateralError] where they have
// nothing.
type Collateral interface {
	// RIM returns NVIDIA's manifest with that id, for example
	// NV_GPU_DRIVER_GH100_550.90.07: the XML document.
	RIM(ctx context.Context, id string) ([]byte, error)
	// OCSP returns an OCSP response (RFC 6960, DER) about cert, which issuer has
	// issued. It may be cached: the verifier judges its dates, and cannot ask
	// for a nonce.
	OCSP(ctx context.Context, cert, issuer *x509.Certificate) ([]byte, error)
}

// DevelopmentRoot is a root that is not NVIDIA's. Devices under it are
// Simulated, and only they are held against manifests under it.
type DevelopmentRoot struct {
	// Name appears in claims.
	Name string
	// PEM is one certificate with a key on P-384.
	PEM []byte
}

// Options configure a verifier. The zero value takes NVIDIA's devices, and looks at
// neither revocation nor manifests.
type Options struct {
	// Now is the clock for certificates and collateral. Nil: time.Now.
	Now func() time.Time
	// AllowDebug accepts devices whose certificate says that they can be debugged.
	AllowDebug bool
	// AllowMissingCollateral makes warnings of what cannot be checked for want of
	// current collateral.
	AllowMissingCollateral bool
	// CheckRevocation asks for the revocation status of every certificate above
	// the device's own, which is short-lived and made by the device.
	CheckRevocation bool
	// CompareRIM compares measurements with NVIDIA's manifests. A device that
	// differs is genuine all the same: the claim measres is for a policy to judge.
	CompareRIM bool
	// Collateral is needed for both.
	Collateral Collateral
	// DevelopmentRoots are trusted beside NVIDIA's.
	DevelopmentRoots []DevelopmentRoot
}

// How many verdicts are remembered: chains and manifests of a large fleet.
const (
	maxChains    = 4096
	maxManifests = 256
)

type verifier struct {
	o         Options
	roots     []root
	rimRoots  []root
	chains    *memo.Memo[*chain]
	manifests *memo.Memo[*rim.Manifest]
}

// New returns a verifier, which is safe for concurrent use. What it returns is a
// [tee.MultiVerifier].
func New(o Options) (tee.Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if (o.CheckRevocation || o.CompareRIM) && o.Collateral == nil {
		return nil, errors.New("nvidiaverify: CheckRevocation and CompareRIM need Collateral")
	}
	v := &verifier{o: o, chains: memo.New[*chain](maxChains), manifests: memo.New[*rim.Manifest](maxManifests)}
	var err error
	if v.roots, v.rimRoots, err = loadRoots(o.DevelopmentRoots); err != nil {
		return nil, fmt.Errorf("nvidiaverify: %w", err)
	}
	return v, nil
}

// TEE implements [tee.Verifier].
func (*verifier) TEE() tee.Name { return tee.NVIDIA }

// Verify implements [tee.Verifier]: the result of the first device. All devices
// have to be genuine.
func (v *verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	all, err := v.VerifyAll(ctx, evidence, want)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// device is one device on its way through the checks.
type device struct {
	*nvidia.Device
	// field is its place in the evidence, for failures.
	field  string
	report *nvidia.Report
	chain  *chain
	claims map[string]any
}

// kind is how claims name the sort of device.
func (d *device) kind() string {
	if d.Arch == nvidia.LS10 {
		return "switch"
	}
	return "gpu"
}

func (d *device) fail(check, field, expected, got, help string) tee.Failure {
	return tee.Failure{Check: check, Field: d.field + field, Expected: expected, Got: got, Help: help}
}

// VerifyAll implements [tee.MultiVerifier].
func (v *verifier) VerifyAll(ctx context.Context, evidence json.RawMessage, want tee.Expected) ([]*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := nvidia.ParseEvidence(evidence)
	if err != nil {
		return nil, checks.Refuse(tee.NVIDIA, tee.Failure{Check: "nvidia.format", Field: "evidence", Expected: "evidence of NVIDIA's devices", Got: err.Error()})
	}
	l := checks.New(tee.NVIDIA, v.o.AllowMissingCollateral)
	devices := make([]*device, len(e.Devices))
	for i := range e.Devices {
		d := &device{Device: &e.Devices[i], field: fmt.Sprintf("device_evidence_list[%d].", i), claims: map[string]any{}}
		devices[i] = d
		v.genuine(l, d, want)
	}
	unique(l, devices)
	if want.InitData != nil {
		l.Fail(tee.Failure{
			Check: "nvidia.init_data", Field: "init_data", Expected: hex.EncodeToString(want.InitData) + ", bound by the report", Got: "reports that have no field for it",
			Help: "nothing binds initdata to a device: compare it with the evidence of the guest's own environment",
		})
	}
	var group *tee.Result
	if !l.Failed() {
		group = topology(l, devices)
	}
	if !l.Failed() {
		for _, d := range devices {
			if err := v.collateral(ctx, l, d); err != nil {
				return nil, err
			}
		}
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	return results(devices, group, l.Warnings()), nil
}

func results(devices []*device, group *tee.Result, warnings []tee.Failure) []*tee.Result {
	var out []*tee.Result
	for _, d := range devices {
		r := &tee.Result{TEE: tee.NVIDIA, Class: tee.Class(d.kind()), Claims: d.claims, ReportData: slices.Clone(d.report.Nonce[:]), Simulated: d.chain.root.development != ""}
		for _, w := range warnings {
			if strings.HasPrefix(w.Field, d.field) {
				r.Warnings = append(r.Warnings, w)
			}
		}
		out = append(out, r)
	}
	if group != nil {
		out = append(out, group)
	}
	return out
}

// genuine makes every check that needs no collateral.
func (v *verifier) genuine(l *checks.List, d *device, want tee.Expected) {
	var err error
	if d.chain, err = v.verifyChain(d); err != nil {
		l.Fail(d.fail("nvidia.chain", "certificate", "a chain of five certificates from a device to "+v.rootNames(), err.Error(), chainHelp))
	}
	if d.report, err = nvidia.ParseReport(d.Report); err != nil {
		l.Fail(d.fail("nvidia.report", "evidence", "a report of SPDM 1.1", err.Error(), ""))
		return
	}
	if d.chain != nil {
		d.signed(l, v.o.AllowDebug)
	}
	for _, c := range d.Contradictions(d.report) {
		l.Fail(d.fail("nvidia.claims", c[0], c[1], c[2], "what is written beside the report differs from what the device signed"))
	}
	l.ReportData("nvidia", d.field+"nonce", d.report.Nonce[:], want)
	if d.chain != nil {
		d.claim(want.ReportData != nil)
	}
}

const chainHelp = "send the device's attestation certificate chain as the driver gives it, whole and in its order; a chain of a development device needs its root configured"

// signed checks what the device's certificate is needed for.
func (d *device) signed(l *checks.List, allowDebug bool) {
	if arch, err := d.chain.id.Arch(); err != nil || arch != d.Arch {
		l.Fail(d.fail("nvidia.arch", "arch", string(d.Arch), d.chain.id.Chip+" in the certificate", "the evidence is of a device of another generation than it says"))
	}
	if !d.chain.signed(d.report) {
		l.Fail(d.fail("nvidia.signature", "evidence", "the device's signature (ECDSA on P-384 with SHA-384)", "one that does not verify", "the report was changed, or is of another device than the certificate"))
	}
	fwid, got := fmt.Sprintf("%x", d.chain.dice.fwid), fmt.Sprintf("%x", d.report.Field(nvidia.FieldFWID))
	if got != "" && got != fwid {
		l.Fail(d.fail("nvidia.fwid", "evidence: fwid", fwid, got, "the certificate was made for other firmware than the device runs: restart the device"))
	}
	if d.chain.dice.debug {
		l.FailUnless(allowDebug, d.fail("nvidia.debug", "certificate: TCB flags", "no debug flag", fmt.Sprintf("%x", d.chain.dice.flags), "the device's firmware can be debugged: use a production device"))
	}
}

// unique refuses a device that is shown twice, to make one look like two.
func unique(l *checks.List, devices []*device) {
	seen := map[string]string{}
	for _, d := range devices {
		if d.chain == nil {
			continue
		}
		if other, ok := seen[d.chain.ueid]; ok {
			l.Fail(d.fail("nvidia.devices", "certificate", "another device than in "+strings.TrimSuffix(other, "."), "the same ("+d.chain.ueid+")", "show each device once"))
		}
		seen[d.chain.ueid] = d.field
	}
}

// collateral makes the checks that need some.
func (v *verifier) collateral(ctx context.Context, l *checks.List, d *device) error {
	if !v.o.CheckRevocation && !v.o.CompareRIM {
		return nil
	}
	d.claims["collateral_expiration_status"] = "0"
	if v.o.CheckRevocation {
		status, err := v.revocation(ctx, l, d, "certificate", d.chain.certs[1:])
		if err != nil {
			return err
		}
		if status != "" {
			d.certClaims()["x-nvidia-cert-ocsp-status"] = status
		}
	}
	if v.o.CompareRIM {
		return v.compare(ctx, l, d)
	}
	return nil
}
