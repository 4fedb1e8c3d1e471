// Package verifiers builds the evidence verifiers that a configuration names,
// and the source of collateral that they share.
package verifiers

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure/azureverify"
	"github.com/coffer-project/coffer/tee/cca/ccaverify"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/csv/csvverify"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/sample"
	"github.com/coffer-project/coffer/tee/se"
	"github.com/coffer-project/coffer/tee/se/severify"
	"github.com/coffer-project/coffer/tee/sgx/sgxverify"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// maxFile bounds one file of roots, anchors or keys in bytes.
const maxFile = 1 << 20

// Options of New.
type Options struct {
	TEE config.TEE
	// Collateral is asked for what evidence does not bring.
	Collateral *collateral.Client
	// Secret seals what IBM Secure Execution guests carry between challenge and
	// evidence: at least 32 bytes, the same for all replicas.
	Secret secret.Bytes
	Now    func() time.Time
}

// New returns the enabled verifiers by TEE. Every problem of the configuration
// is reported.
func New(o Options) (map[tee.Name]tee.Verifier, error) {
	out := map[tee.Name]tee.Verifier{}
	var problems []error
	add := func(enabled bool, name tee.Name, build func() (tee.Verifier, error)) {
		if !enabled {
			return
		}
		v, err := build()
		if err != nil {
			problems = append(problems, fmt.Errorf("tee.%s: %w", name, err))
			return
		}
		out[name] = v
	}
	c := o.TEE
	// Bare and behind Azure's paravisor a platform has one verifier, so that
	// its chain is verified once.
	snps, tdxs := sync.OnceValues(o.snp), sync.OnceValues(o.tdx)
	add(c.SNP.Enabled, tee.SNP, func() (tee.Verifier, error) { return snps() })
	add(c.TDX.Enabled, tee.TDX, func() (tee.Verifier, error) { return tdxs() })
	add(c.AzureSNP.Enabled, tee.AzureSNPVTPM, func() (tee.Verifier, error) {
		v, err := snps()
		return azureverify.NewSNP(v, azureverify.Options{RequireV2: c.AzureSNP.RequireVersion2}), err
	})
	add(c.AzureTDX.Enabled, tee.AzureTDXVTPM, func() (tee.Verifier, error) {
		v, err := tdxs()
		return azureverify.NewTDX(v, azureverify.Options{RequireV2: c.AzureTDX.RequireVersion2}), err
	})
	add(c.SGX.Enabled, tee.SGX, o.sgx)
	add(c.TPM.Enabled, tee.TPM, o.tpm)
	add(c.CCA.Enabled, tee.CCA, o.cca)
	add(c.SE.Enabled, tee.SE, o.se)
	add(c.CSV.Enabled, tee.CSV, o.csv)
	add(c.NVIDIA.Enabled, tee.NVIDIA, o.nvidia)
	add(c.Sample.Enabled, tee.SampleDevice, func() (tee.Verifier, error) { return sample.NewDeviceVerifier(), nil })
	add(c.Sample.Enabled, tee.Sample, func() (tee.Verifier, error) { return sample.NewVerifier(), nil })
	return out, errors.Join(problems...)
}

func (o Options) snp() (*snpverify.Verifier, error) {
	c := o.TEE.SNP
	v := snpverify.Options{Now: o.Now, AllowDebug: c.AllowDebug, AllowMigration: c.AllowMigration, CheckRevocation: c.CheckRevocation}
	v.Collateral = o.Collateral.AMD()
	err := read("development_roots", c.DevelopmentRoots, func(name string, text []byte) error {
		v.DevelopmentRoots = append(v.DevelopmentRoots, snpverify.DevelopmentRoot{Name: name, PEM: text})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for g, t := range c.MinimumTCB {
		if v.MinimumTCB == nil {
			v.MinimumTCB = map[snp.Generation]snpverify.MinimumTCB{}
		}
		v.MinimumTCB[snp.Generation(g)] = minimumTCB(snp.Generation(g), t)
	}
	if c.ForbidSMT {
		v.ForbidPolicy, v.ForbidPlatform = snp.PolicySMT, snp.PlatformSMT
	}
	if len(c.IDKeyDigests)+len(c.AuthorKeyDigests) > 0 || c.MinimumGuestSVN > 0 {
		v.IDBlock = &snpverify.IDBlock{MinGuestSVN: c.MinimumGuestSVN}
		if v.IDBlock.IDKeyDigests, err = digests("id_key_digests", c.IDKeyDigests); err != nil {
			return nil, err
		}
		if v.IDBlock.AuthorKeyDigests, err = digests("author_key_digests", c.AuthorKeyDigests); err != nil {
			return nil, err
		}
	}
	return snpverify.New(v)
}

func digests(key string, list []string) ([][48]byte, error) {
	var out [][48]byte
	for _, text := range list {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != 48 {
			return nil, fmt.Errorf("%s: expected SHA-384 digests of 96 hexadecimal digits, got %.100q", key, text)
		}
		out = append(out, [48]byte(b))
	}
	return out, nil
}

func minimumTCB(g snp.Generation, t config.TCB) snpverify.MinimumTCB {
	of := func(own *config.Levels) snp.TCB {
		l := t.Levels
		if own != nil {
			l = *own
		}
		out := snp.TCB{Bootloader: l.Bootloader, TEE: l.TEE, SNP: l.SNP, Microcode: l.Microcode}
		if g == snp.Turin {
			out.FMC = &l.FMC
		}
		return out
	}
	return snpverify.MinimumTCB{Reported: of(t.Reported), Committed: of(t.Committed), Launch: of(t.Launch)}
}

func (o Options) intel(c config.Intel) ([]dcap.DevelopmentRoot, dcap.Collateral, error) {
	var roots []dcap.DevelopmentRoot
	err := read("development_roots", c.DevelopmentRoots, func(name string, text []byte) error {
		root, err := dcap.ParseDevelopmentRoot(name, text)
		roots = append(roots, root)
		return err
	})
	return roots, o.Collateral.Intel(), err
}

func (o Options) tdx() (*tdxverify.Verifier, error) {
	roots, source, err := o.intel(o.TEE.TDX)
	if err != nil {
		return nil, err
	}
	return tdxverify.New(tdxverify.Options{Now: o.Now, DevelopmentRoots: roots, Collateral: source, AllowDebug: o.TEE.TDX.AllowDebug, AllowStaleCollateral: o.TEE.TDX.AllowStaleCollateral})
}

func (o Options) sgx() (tee.Verifier, error) {
	roots, source, err := o.intel(o.TEE.SGX)
	if err != nil {
		return nil, err
	}
	return sgxverify.New(sgxverify.Options{Now: o.Now, DevelopmentRoots: roots, Collateral: source, AllowDebug: o.TEE.SGX.AllowDebug, AllowStaleCollateral: o.TEE.SGX.AllowStaleCollateral})
}

func (o Options) tpm() (tee.Verifier, error) {
	v := tpmverify.Options{Now: o.Now}
	err := read("trusted_aks", o.TEE.TPM.TrustedAKs, func(name string, text []byte) error {
		keys, roots, err := tpmverify.ParseAnchors(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		v.TrustedAKs, v.AKRoots = append(v.TrustedAKs, keys...), append(v.AKRoots, roots...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return tpmverify.New(v)
}

func (o Options) cca() (tee.Verifier, error) {
	v := ccaverify.Options{Now: o.Now, AllowDebug: o.TEE.CCA.AllowDebug}
	anchors := func(development bool) func(string, []byte) error {
		return func(name string, text []byte) error {
			list, err := ccaverify.ParseTrustAnchors(text, development)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			v.TrustAnchors = append(v.TrustAnchors, list...)
			return nil
		}
	}
	err := errors.Join(read("trust_anchors", o.TEE.CCA.TrustAnchors, anchors(false)), read("development_anchors", o.TEE.CCA.DevelopmentAnchors, anchors(true)))
	if err != nil {
		return nil, err
	}
	return ccaverify.New(v)
}

// maxImage bounds a Secure Execution image in bytes.
const maxImage = 512 << 20

func (o Options) se() (tee.Verifier, error) {
	c := o.TEE.SE
	v := severify.Options{Now: o.Now, Secret: o.Secret.Expose()}
	var problems []error
	for _, list := range []struct {
		key   string
		files []string
		into  *[][]byte
	}{
		{"host_keys", c.HostKeys, &v.HostKeys}, {"certificates", c.Certificates, &v.Certificates}, {"roots", c.Roots, &v.Roots},
		{"crls", c.CRLs, &v.CRLs}, {"development_host_keys", c.DevelopmentHostKeys, &v.DevelopmentHostKeys},
	} {
		problems = append(problems, read(list.key, list.files, func(_ string, text []byte) error {
			*list.into = append(*list.into, text)
			return nil
		}))
	}
	image, err := readFile(c.Image, maxImage)
	if err == nil {
		v.Tags, err = se.TagsOfImage(image)
	}
	if err != nil {
		problems = append(problems, fmt.Errorf("image: %w", err))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return severify.New(v)
}

func (o Options) csv() (tee.Verifier, error) {
	v := csvverify.Options{Now: o.Now, AllowDebug: o.TEE.CSV.AllowDebug}
	v.Collateral = o.Collateral.Hygon()
	return csvverify.New(v)
}

func (o Options) nvidia() (tee.Verifier, error) {
	c := o.TEE.NVIDIA
	v := nvidiaverify.Options{Now: o.Now, AllowDebug: c.AllowDebug, CheckRevocation: c.CheckRevocation, CompareRIM: c.CompareRIM}
	v.Collateral = o.Collateral.NVIDIA()
	err := read("development_roots", c.DevelopmentRoots, func(name string, text []byte) error {
		v.DevelopmentRoots = append(v.DevelopmentRoots, nvidiaverify.DevelopmentRoot{Name: name, PEM: text})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return nvidiaverify.New(v)
}

// read hands the content of each file to use, with the file's base name.
func read(key string, files []string, use func(name string, text []byte) error) error {
	for _, file := range files {
		text, err := readFile(file, maxFile)
		if err == nil {
			err = use(filepath.Base(file), text)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(filepath.Clean(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: expected at most %d bytes", name, limit)
	}
	return data, err
}
