package softport

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// Timeout bounds one request where the context has no earlier deadline: a host
// may keep silent for ever.
const Timeout = 30 * time.Second

// maxStale is how many responses to earlier requests are skipped. They are
// left over where a request was given up before its response came.
const maxStale = 4

// attester asks the software TEE for reports.
type attester struct {
	open func(context.Context) (io.ReadWriteCloser, error)
	// turn is held by the one request under way: the port has one opener.
	turn chan struct{}
}

// New returns the attester of a guest whose security processor is behind a
// virtio-serial port. open opens that port anew for each request; what it
// returns is closed after the request, and earlier, from another goroutine,
// when the request's context ends. Its TEE is [tee.SNP]: the evidence has the
// format of real hardware and differs in the root that its chain ends in.
func New(open func(context.Context) (io.ReadWriteCloser, error)) tee.Attester {
	return &attester{open: open, turn: make(chan struct{}, 1)}
}

// TEE implements [tee.Attester].
func (*attester) TEE() tee.Name { return tee.SNP }

// Evidence implements [tee.Attester].
func (a *attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > ReportDataSize {
		return nil, fmt.Errorf("softport: report data: expected at most %d bytes, got %d", ReportDataSize, len(reportData))
	}
	e, err := a.request(ctx, [ReportDataSize]byte(tee.Fit(reportData, ReportDataSize)))
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// InitData implements [tee.Attester]: HOST_DATA of a report over fresh report
// data.
func (a *attester) InitData(ctx context.Context) ([]byte, error) {
	var fresh [ReportDataSize]byte
	_, _ = rand.Read(fresh[:]) // never fails
	e, err := a.request(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return e.AttestationReport.HostData[:], nil
}

// request gets one report.
func (a *attester) request(ctx context.Context, reportData [ReportDataSize]byte) (*snp.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("softport: waiting for an earlier request: %w", ctx.Err())
	}
	port, err := a.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("softport: opening port %s: %w", PortName, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = port.Close() })
	defer func() {
		if stop() {
			_ = port.Close()
		}
	}()
	e, err := exchange(port, reportData)
	if ctx.Err() != nil {
		// The port was closed under the exchange; its error says nothing.
		return nil, fmt.Errorf("softport: no answer on port %s: %w", PortName, ctx.Err())
	}
	return e, err
}

// exchange sends a request and reads its response.
func exchange(port io.ReadWriter, reportData [ReportDataSize]byte) (*snp.Evidence, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	q := Request{ID: binary.BigEndian.Uint64(id[:]), ReportData: reportData}
	if err := writeRequest(port, q); err != nil {
		return nil, fmt.Errorf("softport: sending a report request: %w", err)
	}
	for range maxStale + 1 {
		resp, err := readResponse(port)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("softport: reading a report: %w", err)
		}
		if resp.id != q.ID {
			continue
		}
		if resp.report == nil {
			return nil, fmt.Errorf("softport: the host refused the report: %q", resp.refusal)
		}
		e, err := snp.NewEvidence(resp.report, resp.certs)
		if err != nil {
			return nil, fmt.Errorf("softport: %w", err)
		}
		if e.AttestationReport.ReportData != reportData {
			return nil, fmt.Errorf("softport: report_data: expected %x, got %x; the host answered another request", reportData, e.AttestationReport.ReportData)
		}
		return e, nil
	}
	return nil, fmt.Errorf("softport: got %d responses to other requests", maxStale+1)
}
