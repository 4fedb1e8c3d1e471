package softport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/tdx"
)

// TDXAttester is that of a TD. It implements [tee.Attester] and is safe for
// concurrent use.
type TDXAttester struct {
	port
	runtimeLog func() []byte
}

// NewTDX is [New] for a guest that was launched as a TD: its TEE is [tee.TDX],
// and its evidence has the event log that the host wrote at the launch.
func NewTDX(open func(context.Context) (io.ReadWriteCloser, error)) *TDXAttester {
	return &TDXAttester{port: newPort(open)}
}

// SetRuntimeLog has the entries of runtime events (AAEL), which extend RTMR 3,
// follow the host's in the evidence. It must be called before the attester is used.
func (a *TDXAttester) SetRuntimeLog(log func() []byte) { a.runtimeLog = log }

// HasRTMR is true: the software TEE lets RTMR 3 be extended.
func (*TDXAttester) HasRTMR() bool { return true }

// ReadRTMR3 reads the register.
func (a *TDXAttester) ReadRTMR3(ctx context.Context) ([]byte, error) { return a.rtmr3(ctx, nil) }

// ExtendRTMR3 extends the register by a digest of 48 bytes.
func (a *TDXAttester) ExtendRTMR3(ctx context.Context, digest []byte) error {
	if len(digest) != RegisterSize {
		return fmt.Errorf("softport: digest: expected %d bytes, got %d", RegisterSize, len(digest))
	}
	_, err := a.rtmr3(ctx, (*[RegisterSize]byte)(digest))
	return err
}

func (a *TDXAttester) rtmr3(ctx context.Context, digest *[RegisterSize]byte) ([]byte, error) {
	resp, err := a.request(ctx, Request{Format: TDX, Register: true, Digest: digest})
	if err != nil {
		return nil, err
	}
	return resp.rtmr[:], nil
}

// TEE implements [tee.Attester].
func (*TDXAttester) TEE() tee.Name { return tee.TDX }

// Evidence implements [tee.Attester].
func (a *TDXAttester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data, err := fit(reportData)
	if err != nil {
		return nil, err
	}
	resp, _, err := a.quote(ctx, data)
	if err != nil {
		return nil, err
	}
	e := tdx.Evidence{Quote: resp.quote}
	if e.EventLog, err = a.log(resp.log); err != nil {
		return nil, fmt.Errorf("softport: event log: %w", err)
	}
	return e.JSON()
}

// log is the host's log with the runtime events behind it.
func (a *TDXAttester) log(host []byte) ([]byte, error) {
	var runtime []byte
	if a.runtimeLog != nil {
		runtime = a.runtimeLog()
	}
	switch {
	case len(runtime) == 0 && len(host) == 0:
		return nil, nil
	case len(runtime) == 0:
		return host, nil
	case len(host) == 0:
		return eventlog.Evidence(nil, runtime)
	}
	return eventlog.Evidence(host, runtime)
}

// InitData implements [tee.Attester]: MRCONFIGID of a quote over fresh report
// data.
func (a *TDXAttester) InitData(ctx context.Context) ([]byte, error) {
	_, q, err := a.quote(ctx, fresh())
	if err != nil {
		return nil, err
	}
	return q.MRConfigID[:], nil
}

// quote gets one quote, with the event log beside it.
func (a *TDXAttester) quote(ctx context.Context, reportData [ReportDataSize]byte) (response, *tdx.Quote, error) {
	resp, err := a.request(ctx, Request{Format: TDX, ReportData: reportData})
	if err != nil {
		return response{}, nil, err
	}
	q, err := tdx.ParseQuote(resp.quote)
	if err != nil {
		return response{}, nil, fmt.Errorf("softport: %w", err)
	}
	if err := same(reportData, q.ReportData); err != nil {
		return response{}, nil, err
	}
	return resp, q, nil
}
