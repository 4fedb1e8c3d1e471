package evidence

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

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
	"github.com/coffer-project/coffer/tee/se"
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
	// complete adds to raw evidence what is kept in files beside it, in each way
	// that is possible. Nil, or nothing added: it is whole.
	complete func(raw []byte, files [][]byte) [][]byte
	// why says why there is no verifier.
	why string
}

// kinds lists them all, those first whose form is unmistakable.
func kinds() []kind {
	return []kind{
		{name: tee.SNP, fromRaw: snp.FromRaw, inspect: snp.Inspect, verifier: newSNP, complete: withVLEK},
		{name: tee.TDX, fromRaw: tdx.FromRaw, inspect: tdx.Inspect, verifier: newTDX},
		{name: tee.SGX, fromRaw: sgx.FromRaw, inspect: sgx.Inspect, verifier: newSGX},
		{name: tee.AzureSNPVTPM, fromRaw: azure.FromRaw, inspect: azure.Inspect, verifier: newAzureSNP},
		{name: tee.AzureTDXVTPM, fromRaw: azure.FromRaw, inspect: azure.Inspect, verifier: newAzureTDX},
		{name: tee.NVIDIA, fromRaw: nvidia.FromRaw, inspect: nvidia.Inspect, verifier: newNVIDIA, complete: withDeviceChain},
		{name: tee.CSV, fromRaw: csv.FromRaw, inspect: csv.Inspect, verifier: newCSV},
		{name: tee.TPM, fromRaw: tpm.FromRaw, inspect: tpm.Inspect, verifier: newTPM},
		{name: tee.CCA, fromRaw: cca.FromRaw, inspect: cca.Inspect, verifier: newCCA},
		{name: tee.SE, fromRaw: se.FromRaw, inspect: se.Inspect, why: "only who made the request has the keys that it is sealed with (Go package tee/se/severify)"},
		{name: tee.Sample, fromRaw: sample.FromRaw, inspect: sample.Inspect, verifier: newSample},
	}
}

func find(name tee.Name) (kind, error) {
	for _, k := range kinds() {
		if k.name == name {
			return k, nil
		}
	}
	return kind{}, &InputError{fmt.Errorf("evidence of %s is not known here: expected one of %s", name, strings.Join(Inspectable(), ", "))}
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
	if len(o.Roots) > 0 {
		return nil, errors.New("development root: a TPM has none: name its attestation keys as trust anchors")
	}
	err := readEach("trust anchor", o.Anchors, func(_ string, text []byte) error {
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
	add := func(development bool) func(name string, text []byte) error {
		return func(_ string, text []byte) error {
			anchors, err := ccaverify.ParseTrustAnchors(text, development)
			c.TrustAnchors = append(c.TrustAnchors, anchors...)
			return err
		}
	}
	if err := errors.Join(readEach("trust anchor", o.Anchors, add(false)), readEach("development root", o.Roots, add(true))); err != nil {
		return nil, err
	}
	return ccaverify.New(c)
}

func newSample(o Options) (tee.Verifier, error) {
	if len(o.Roots)+len(o.Anchors) > 0 {
		return nil, errors.New("sample evidence is not signed: roots and trust anchors do not apply")
	}
	return sample.NewVerifier(), nil
}

// maxTrustFile bounds a file of roots or trust anchors in bytes.
const maxTrustFile = 1 << 20

// readEach hands the content of each file to use, with the file's base name.
func readEach(what string, files []string, use func(name string, text []byte) error) error {
	for _, file := range files {
		text, err := readSmall(file, maxTrustFile)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := use(filepath.Base(file), text); err != nil {
			return fmt.Errorf("%s %s: %w", what, file, err)
		}
	}
	return nil
}

// roots reads the files of development roots. Who has roots takes no trust anchors.
func (o Options) roots(add func(name string, text []byte)) error {
	if len(o.Anchors) > 0 {
		return errors.New("trust anchor: the vendor's root is pinned for this TEE, and no other is trusted; for a software TEE name a development root")
	}
	return readEach("development root", o.Roots, func(name string, text []byte) error {
		add(name, text)
		return nil
	})
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
