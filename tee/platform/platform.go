// Package platform finds out which trusted execution environment this machine
// is, and returns its attester.
//
// The order is that of the guest components' attestation agent
// (guest-components at 8246e5e0, attester detection), with the Azure vTPMs moved
// to the end: TDX, SGX, SNP, CSV, CCA, Secure Execution, then what a TPM says.
// Any host can offer a TPM with an index of its own making, so it is not asked
// where the processor shows itself. (An Azure machine whose TPM a paravisor runs
// shows its guest neither /dev/sev-guest nor /dev/tdx_guest.)
//
// Two things more are different. A machine that is an environment without an
// attester here is an error that names it, and a machine that is none is
// [ErrNone]: nothing falls back to the sample TEE, which any machine can be. And a
// TPM alone is not looked for unless it is asked for.
package platform

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee"
)

// ErrNone says that the machine is no environment that is known.
var ErrNone = errors.New("no trusted execution environment found")

// Candidate is an environment that a machine may be.
type Candidate struct {
	TEE tee.Name
	// Sign returns by what the environment shows ("/dev/sev-guest"), or "" where
	// it does not.
	Sign func(ctx context.Context) (string, error)
	// New returns the attester; nil: there is none for this environment.
	New func(ctx context.Context) (tee.Attester, error)
}

// Found is what a machine is.
type Found struct {
	TEE tee.Name
	// Sign is by what it shows.
	Sign string
	new  func(ctx context.Context) (tee.Attester, error)
}

// Detect returns the first candidate that shows itself. A sign that cannot be
// read is an error: a later candidate would be a guess.
func Detect(ctx context.Context, candidates []Candidate) (Found, error) {
	var looked []string
	for _, c := range candidates {
		sign, err := c.Sign(ctx)
		if err != nil {
			return Found{}, fmt.Errorf("looking for %s: %w", c.TEE, err)
		}
		if sign != "" {
			return Found{c.TEE, sign, c.New}, nil
		}
		looked = append(looked, string(c.TEE))
	}
	return Found{}, fmt.Errorf("%w: looked for %s", ErrNone, strings.Join(looked, ", "))
}

// Attester returns the attester of what was found.
func (f Found) Attester(ctx context.Context) (tee.Attester, error) {
	if f.new == nil {
		return nil, fmt.Errorf("this machine is %s (%s), for which there is no attester", f.TEE, f.Sign)
	}
	a, err := f.new(ctx)
	if err != nil {
		return nil, fmt.Errorf("this machine is %s (%s), but: %w", f.TEE, f.Sign, err)
	}
	return a, nil
}
