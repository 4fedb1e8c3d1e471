package evidence

import (
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee/collateral"
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
}

// OpenCollateral opens the sources. The caller closes the client.
func OpenCollateral(o CollateralOptions, now func() time.Time) (*collateral.Client, []collateral.Finding, error) {
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{})
	if err != nil {
		return nil, nil, err
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
