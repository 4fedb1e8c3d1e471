package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
)

// withDefaults fills in what makes a real pod.
func (o Options) withDefaults() Options {
	if o.Launch == nil {
		o.Launch = launchMachine
	}
	if o.Network == nil {
		o.Network = func(context.Context, string) (Network, error) {
			return nil, errors.New("this program has no way to connect a machine with a network namespace")
		}
	}
	return o
}

// launchMachine starts what the driver says.
func launchMachine(ctx context.Context, plan *Plan) (Machine, error) {
	if plan.Driver != runtimeconfig.DriverQEMU {
		return nil, fmt.Errorf("driver: expected %s, got %q", runtimeconfig.DriverQEMU, plan.Driver)
	}
	m, err := sandbox.Launch(ctx, plan.Sandbox)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// maxCA bounds the file of the unsealed trustee's authorities.
const maxCA = 256 << 10

// unsealedTrustee is the trustee that a pod without initdata is told of; nil: none.
func unsealedTrustee(t runtimeconfig.Trustee) (*agentapi.UnsealedTrustee, error) {
	if t.URL == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	told := &agentapi.UnsealedTrustee{Url: t.URL}
	if t.CA == "" {
		return told, nil
	}
	f, err := os.Open(t.CA)
	if err != nil {
		return nil, fmt.Errorf("unsealed_trustee.ca: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	pem, err := io.ReadAll(io.LimitReader(f, maxCA+1))
	if err == nil && len(pem) > maxCA {
		err = fmt.Errorf("expected at most %d bytes, got more", maxCA)
	}
	if err != nil {
		return nil, fmt.Errorf("unsealed_trustee.ca: %s: %w", t.CA, err)
	}
	told.CaPem = string(pem)
	return told, nil
}
