package softport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tdx"
)

// tdxAttester is that of a TD.
type tdxAttester struct{ port }

// NewTDX is [New] for a guest that was launched as a TD: its TEE is [tee.TDX],
// and its evidence has the event log that the host wrote at the launch.
func NewTDX(open func(context.Context) (io.ReadWriteCloser, error)) tee.Attester {
	return &tdxAttester{newPort(open)}
}

// TEE implements [tee.Attester].
func (*tdxAttester) TEE() tee.Name { return tee.TDX }

// Evidence implements [tee.Attester].
func (a *tdxAttester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data, err := fit(reportData)
	if err != nil {
		return nil, err
	}
	resp, _, err := a.quote(ctx, data)
	if err != nil {
		return nil, err
	}
	e := tdx.Evidence{Quote: resp.quote}
	if len(resp.log) > 0 {
		e.EventLog = resp.log
	}
	return e.JSON()
}

// InitData implements [tee.Attester]: MRCONFIGID of a quote over fresh report
// data.
func (a *tdxAttester) InitData(ctx context.Context) ([]byte, error) {
	_, q, err := a.quote(ctx, fresh())
	if err != nil {
		return nil, err
	}
	return q.MRConfigID[:], nil
}

// quote gets one quote, with the event log beside it.
func (a *tdxAttester) quote(ctx context.Context, reportData [ReportDataSize]byte) (response, *tdx.Quote, error) {
	resp, err := a.request(ctx, TDX, reportData)
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
