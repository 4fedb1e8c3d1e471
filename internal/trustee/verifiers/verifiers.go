// Package verifiers builds the evidence verifiers that a configuration names.
package verifiers

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/sample"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// New returns the enabled verifiers by TEE.
func New(c config.TEE, now func() time.Time) (map[tee.Name]tee.Verifier, error) {
	out := map[tee.Name]tee.Verifier{}
	if c.SNP.Enabled {
		v, err := newSNP(c.SNP, now)
		if err != nil {
			return nil, fmt.Errorf("tee.snp: %w", err)
		}
		out[tee.SNP] = v
	}
	if c.Sample.Enabled {
		out[tee.Sample] = sample.NewVerifier()
	}
	return out, nil
}

func newSNP(c config.SNP, now func() time.Time) (tee.Verifier, error) {
	o := snpverify.Options{Now: now, AllowDebug: c.AllowDebug, CheckRevocation: c.CheckRevocation}
	for _, file := range c.DevelopmentRoots {
		text, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return nil, fmt.Errorf("development_roots: %w", err)
		}
		o.DevelopmentRoots = append(o.DevelopmentRoots, snpverify.DevelopmentRoot{Name: filepath.Base(file), PEM: text})
	}
	for g, t := range c.MinimumTCB {
		if o.MinimumTCB == nil {
			o.MinimumTCB = map[snp.Generation]snpverify.MinimumTCB{}
		}
		level := snp.TCB{Bootloader: t.Bootloader, TEE: t.TEE, SNP: t.SNP, Microcode: t.Microcode}
		if g == string(snp.Turin) {
			level.FMC = &t.FMC
		}
		o.MinimumTCB[snp.Generation(g)] = snpverify.EveryTCB(level)
	}
	return snpverify.New(o)
}
