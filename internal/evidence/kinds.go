package evidence

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/azure/azureverify"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/cca/ccaverify"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/csv/csvverify"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/sample"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/sgx/sgxverify"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// kind is what is known of one TEE's evidence.
type kind struct {
	name     tee.Name
	fromRaw  func([]byte) (json.RawMessage, error)
	inspect  func([]byte) (*tee.Inspection, error)
	verifier func(Options) (tee.Verifier, error)
}

// kinds lists them all, those first whose form is unmistakable.
func kinds() []kind {
	return []kind{
		{tee.SNP, snp.FromRaw, snp.Inspect, newSNP},
		{tee.TDX, tdx.FromRaw, tdx.Inspect, newTDX},
		{tee.SGX, sgx.FromRaw, sgx.Inspect, newSGX},
		{tee.AzureSNPVTPM, azure.FromRaw, azure.Inspect, newAzureSNP},
		{tee.AzureTDXVTPM, azure.FromRaw, azure.Inspect, newAzureTDX},
		{tee.NVIDIA, nvidia.FromRaw, nvidia.Inspect, newNVIDIA},
		{tee.CSV, csv.FromRaw, csv.Inspect, newCSV},
		{tee.TPM, tpm.FromRaw, tpm.Inspect, newTPM},
		{tee.CCA, cca.FromRaw, cca.Inspect, newCCA},
		{tee.Sample, sample.FromRaw, sample.Inspect, func(Options) (tee.Verifier, error) { return sample.NewVerifier(), nil }},
	}
}

func find(name tee.Name) (kind, error) {
	for _, k := range kinds() {
		if k.name == name {
			return k, nil
		}
	}
	return kind{}, &InputError{fmt.Errorf("evidence of %s cannot be verified: known are %v", name, Names())}
}

func decodeURL(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }

func newSNP(o Options) (tee.Verifier, error) { return o.snp() }

func (o Options) snp() (*snpverify.Verifier, error) {
	c := snpverify.Options{Now: o.Now, AllowDebug: o.AllowDebug, AllowMissingCollateral: o.AllowMissingCollateral, CheckRevocation: true}
	if o.Collateral != nil {
		c.Collateral = o.Collateral.AMD()
	}
	err := o.roots(func(name string, text []byte) {
		c.DevelopmentRoots = append(c.DevelopmentRoots, snpverify.DevelopmentRoot{Name: name, PEM: text})
	})
	if err != nil {
		return nil, err
	}
	return snpverify.New(c)
}

func (o Options) dcapRoots() ([]dcap.DevelopmentRoot, error) {
	var out []dcap.DevelopmentRoot
	var problems []error
	err := o.roots(func(name string, text []byte) {
		root, err := dcap.ParseDevelopmentRoot(name, text)
		out, problems = append(out, root), append(problems, err)
	})
	return out, errors.Join(append(problems, err)...)
}

func newTDX(o Options) (tee.Verifier, error) { return o.tdx() }

func (o Options) tdx() (*tdxverify.Verifier, error) {
	roots, err := o.dcapRoots()
	if err != nil {
		return nil, err
	}
	c := tdxverify.Options{Now: o.Now, AllowDebug: o.AllowDebug, AllowMissingCollateral: o.AllowMissingCollateral, DevelopmentRoots: roots}
	if o.Collateral != nil {
		c.Collateral = o.Collateral.Intel()
	}
	return tdxverify.New(c)
}

func newAzureSNP(o Options) (tee.Verifier, error) {
	v, err := o.snp()
	return azureverify.NewSNP(v, azureverify.Options{AllowMissingCollateral: o.AllowMissingCollateral}), err
}

func newAzureTDX(o Options) (tee.Verifier, error) {
	v, err := o.tdx()
	return azureverify.NewTDX(v, azureverify.Options{AllowMissingCollateral: o.AllowMissingCollateral}), err
}

func newSGX(o Options) (tee.Verifier, error) {
	roots, err := o.dcapRoots()
	if err != nil {
		return nil, err
	}
	c := sgxverify.Options{Now: o.Now, AllowDebug: o.AllowDebug, AllowMissingCollateral: o.AllowMissingCollateral, DevelopmentRoots: roots}
	if o.Collateral != nil {
		c.Collateral = o.Collateral.Intel()
	}
	return sgxverify.New(c)
}

func newTPM(o Options) (tee.Verifier, error) {
	c := tpmverify.Options{Now: o.Now}
	err := readAnchors(o.Anchors, func(text []byte) error {
		keys, roots, err := tpmverify.ParseAnchors(text)
		c.TrustedAKs, c.AKRoots = append(c.TrustedAKs, keys...), append(c.AKRoots, roots...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return tpmverify.New(c)
}

func newCCA(o Options) (tee.Verifier, error) {
	c := ccaverify.Options{Now: o.Now, AllowDebug: o.AllowDebug}
	add := func(development bool) func([]byte) error {
		return func(text []byte) error {
			anchors, err := ccaverify.ParseTrustAnchors(text, development)
			c.TrustAnchors = append(c.TrustAnchors, anchors...)
			return err
		}
	}
	if err := errors.Join(readAnchors(o.Anchors, add(false)), readAnchors(o.Roots, add(true))); err != nil {
		return nil, err
	}
	return ccaverify.New(c)
}

// readAnchors hands the content of each file to add.
func readAnchors(files []string, add func(text []byte) error) error {
	for _, file := range files {
		text, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return fmt.Errorf("trust anchor: %w", err)
		}
		if err := add(text); err != nil {
			return fmt.Errorf("trust anchor: %s: %w", file, err)
		}
	}
	return nil
}

// roots reads the files of development roots.
func (o Options) roots(add func(name string, text []byte)) error {
	for _, file := range o.Roots {
		text, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return fmt.Errorf("development root: %w", err)
		}
		add(filepath.Base(file), text)
	}
	return nil
}

func newNVIDIA(o Options) (tee.Verifier, error) {
	c := nvidiaverify.Options{Now: o.Now, AllowDebug: o.AllowDebug, AllowMissingCollateral: o.AllowMissingCollateral, CheckRevocation: true, CompareRIM: true}
	if o.Collateral != nil {
		c.Collateral = o.Collateral.NVIDIA()
	}
	err := o.roots(func(name string, text []byte) {
		c.DevelopmentRoots = append(c.DevelopmentRoots, nvidiaverify.DevelopmentRoot{Name: name, PEM: text})
	})
	if err != nil {
		return nil, err
	}
	return nvidiaverify.New(c)
}

func newCSV(o Options) (tee.Verifier, error) {
	c := csvverify.Options{Now: o.Now, AllowDebug: o.AllowDebug, AllowMissingCollateral: o.AllowMissingCollateral}
	if o.Collateral != nil {
		c.Collateral = o.Collateral.Hygon()
	}
	err := o.roots(func(name string, text []byte) {
		c.DevelopmentRoots = append(c.DevelopmentRoots, csvverify.DevelopmentRoot{Name: name, HRK: text})
	})
	if err != nil {
		return nil, err
	}
	return csvverify.New(c)
}
