package evidence

import (
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// CollateralOptions say where to look for what evidence does not bring.
type CollateralOptions struct {
	// Dirs are directories or files: exports, or loose files.
	Dirs []string
	// Cache is a directory that is read and written; empty: none.
	Cache string
	// Offline: nothing is fetched.
	Offline bool
	// Endpoints are the services, Update is Intel's track.
	Endpoints collateral.Endpoints
	Update    string
	// Roots are PEM files of software TEEs' roots: collateral under them counts
	// for evidence of TEE.
	Roots []string
	TEE   tee.Name
}

// OpenCollateral opens the sources. The caller closes the client. The findings
// are files that were recognised and are not what they should be.
func OpenCollateral(o CollateralOptions, now func() time.Time) (*collateral.Client, []collateral.Finding, error) {
	roots, err := developmentRoots(o.TEE, o.Roots)
	if err != nil {
		return nil, nil, err
	}
	checks, err := collateral.DefaultChecks(roots)
	if err != nil {
		return nil, nil, fmt.Errorf("development root: %w", err)
	}
	c := collateral.Options{Dir: o.Cache, Offline: o.Offline, Endpoints: o.Endpoints, Update: collateral.Update(o.Update), Checks: checks, Now: now}
	var findings []collateral.Finding
	for _, dir := range o.Dirs {
		files, err := collateral.Open(dir, checks)
		if err != nil {
			return nil, nil, fmt.Errorf("--collateral: %w", err)
		}
		for _, f := range files.Findings() {
			if f.Status == collateral.Refused {
				findings = append(findings, f)
			}
		}
		c.Stores = append(c.Stores, files)
	}
	client, err := collateral.New(c)
	return client, findings, err
}

// developmentRoots reads the roots as those of the TEE's vendor.
func developmentRoots(name tee.Name, files []string) (collateral.DevelopmentRoots, error) {
	var out collateral.DevelopmentRoots
	err := readEach("development root", files, func(file string, text []byte) error {
		switch name {
		case tee.SNP, tee.AzureSNPVTPM:
			out.AMD = append(out.AMD, snpverify.DevelopmentRoot{Name: file, PEM: text})
		case tee.TDX, tee.SGX, tee.AzureTDXVTPM:
			out.Intel = append(out.Intel, dcap.DevelopmentRoot{Name: file, PEM: text})
		case tee.NVIDIA:
			out.NVIDIA = append(out.NVIDIA, nvidiaverify.DevelopmentRoot{Name: file, PEM: text})
		default: // no collateral, or none that a root signs
		}
		return nil
	})
	return out, err
}
