package agent

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/tee"
)

// plainAttester is a TEE launched without initdata.
type plainAttester struct{}

func (plainAttester) TEE() tee.Name { return tee.SNP }

func (plainAttester) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }

func (plainAttester) InitData(context.Context) ([]byte, error) { return make([]byte, 32), nil }

func factsSource(t *testing.T, simulated bool) *attestation.Source {
	t.Helper()
	o := attestation.Options{Cmdline: boot.Cmdline{TEE: boot.TEEAuto}}
	if simulated {
		o.Cmdline.TEE = boot.TEESoft
		o.HasSoft, o.Soft = func() bool { return true }, func() tee.Attester { return plainAttester{} }
	} else {
		o.Hardware = func(context.Context) (tee.Attester, error) { return plainAttester{}, nil }
	}
	return attestation.New(o)
}
