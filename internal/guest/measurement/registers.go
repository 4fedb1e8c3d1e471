package measurement

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
)

// DefaultPCR is the register of a TPM that is extended unless initdata names
// another. It is not [PCR]: a TPM lets nobody but a dynamic launch extend 17 to 22
// (TCG PC Client Platform TPM Profile 1.05, section 4.6), and the first ten are the
// firmware's, the boot loader's and the initdata's.
const DefaultPCR = 15

// RTMRs is an attester whose evidence has RTMR 3 and the log behind it, as TDX's
// does. HasRTMR says whether this kernel lets it be extended.
type RTMRs interface {
	tee.Attester
	HasRTMR() bool
	ReadRTMR3(ctx context.Context) ([]byte, error)
	ExtendRTMR3(ctx context.Context, digest []byte) error
	// SetRuntimeLog has the log follow that of the firmware.
	SetRuntimeLog(log func() []byte)
}

// PCRs is an attester whose evidence has the registers of a TPM.
type PCRs interface {
	tee.Attester
	ReadPCR(ctx context.Context, pcr int) ([]byte, error)
	ExtendPCR(ctx context.Context, pcr int, digest []byte) error
}

// Open starts a recorder with the registers that the environment has, and returns
// the attester to use from then on, and what makes additional evidence. pcr is the
// register of a TPM, 0 for the default.
func Open(a tee.Attester, pcr int) (*Recorder, tee.Attester, []tee.Attester) {
	if pcr == 0 {
		pcr = DefaultPCR
	}
	switch a := a.(type) {
	case RTMRs:
		if a.HasRTMR() {
			r := New(rtmr3{a})
			a.SetRuntimeLog(r.Log)
			return r, r.Attester(a), nil
		}
	case PCRs:
		r := New(&register{a, pcr})
		return r, r.Attester(a), []tee.Attester{r.Device(&pcr)}
	}
	r := New(nil)
	return r, a, []tee.Attester{r.Device(nil)}
}

type rtmr3 struct{ RTMRs }

// Alg implements [Register].
func (rtmr3) Alg() eventlog.Alg { return eventlog.SHA384 }

// Number implements [Register].
func (rtmr3) Number() int { return eventlog.CCMR(PCR, false) }

// Read implements [Register].
func (r rtmr3) Read(ctx context.Context) ([]byte, error) { return r.ReadRTMR3(ctx) }

// Extend implements [Register].
func (r rtmr3) Extend(ctx context.Context, digest []byte) error { return r.ExtendRTMR3(ctx, digest) }

type register struct {
	PCRs
	pcr int
}

// Alg implements [Register].
func (*register) Alg() eventlog.Alg { return eventlog.SHA256 }

// Number implements [Register].
func (r *register) Number() int { return r.pcr }

// Read implements [Register].
func (r *register) Read(ctx context.Context) ([]byte, error) {
	value, err := r.ReadPCR(ctx, r.pcr)
	if err != nil {
		return nil, fmt.Errorf("register %d: %w", r.pcr, err)
	}
	return value, nil
}

// Extend implements [Register].
func (r *register) Extend(ctx context.Context, digest []byte) error {
	return r.ExtendPCR(ctx, r.pcr, digest)
}
