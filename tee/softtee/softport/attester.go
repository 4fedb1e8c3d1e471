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

// port asks the software TEE for evidence.
type port struct {
	open func(context.Context) (io.ReadWriteCloser, error)
	// turn is held by the one request under way: the port has one opener.
	turn chan struct{}
}

// snpAttester is that of an SEV-SNP guest.
type snpAttester struct{ port }

// New returns the attester of a guest whose security processor is behind a
// virtio-serial port. open opens that port anew for each request; what it
// returns is closed after the request, and earlier, from another goroutine,
// when the request's context ends. Its TEE is [tee.SNP]: the evidence has the
// format of real hardware and differs in the root that its chain ends in.
func New(open func(context.Context) (io.ReadWriteCloser, error)) tee.Attester {
	return &snpAttester{newPort(open)}
}

func newPort(open func(context.Context) (io.ReadWriteCloser, error)) port {
	return port{open: open, turn: make(chan struct{}, 1)}
}

// TEE implements [tee.Attester].
func (*snpAttester) TEE() tee.Name { return tee.SNP }

// Evidence implements [tee.Attester].
func (a *snpAttester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data, err := fit(reportData)
	if err != nil {
		return nil, err
	}
	e, err := a.report(ctx, data)
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// InitData implements [tee.Attester]: HOST_DATA of a report over fresh report
// data.
func (a *snpAttester) InitData(ctx context.Context) ([]byte, error) {
	e, err := a.report(ctx, fresh())
	if err != nil {
		return nil, err
	}
	return e.AttestationReport.HostData[:], nil
}

// report gets one report.
func (a *snpAttester) report(ctx context.Context, reportData [ReportDataSize]byte) (*snp.Evidence, error) {
	resp, err := a.request(ctx, Request{Format: SNP, ReportData: reportData})
	if err != nil {
		return nil, err
	}
	e, err := snp.NewEvidence(resp.report, resp.certs)
	if err != nil {
		return nil, fmt.Errorf("softport: %w", err)
	}
	if err := same(reportData, e.AttestationReport.ReportData); err != nil {
		return nil, err
	}
	return e, nil
}

// fit is report data in its full size.
func fit(reportData []byte) ([ReportDataSize]byte, error) {
	if len(reportData) > ReportDataSize {
		return [ReportDataSize]byte{}, fmt.Errorf("softport: report data: expected at most %d bytes, got %d", ReportDataSize, len(reportData))
	}
	return [ReportDataSize]byte(tee.Fit(reportData, ReportDataSize)), nil
}

func fresh() (out [ReportDataSize]byte) {
	_, _ = rand.Read(out[:]) // never fails
	return out
}

func same(want, got [ReportDataSize]byte) error {
	if got != want {
		return fmt.Errorf("softport: report_data: expected %x, got %x; the host answered another request", want, got)
	}
	return nil
}

// request gets one answer.
func (p *port) request(ctx context.Context, q Request) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return response{}, fmt.Errorf("softport: waiting for an earlier request: %w", ctx.Err())
	}
	conn, err := p.open(ctx)
	if err != nil {
		return response{}, fmt.Errorf("softport: opening port %s: %w", PortName, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	resp, err := exchange(conn, q)
	if ctx.Err() != nil {
		// The port was closed under the exchange; its error says nothing.
		return response{}, fmt.Errorf("softport: no answer on port %s: %w", PortName, ctx.Err())
	}
	return resp, err
}

// exchange sends a request and reads its response.
func exchange(conn io.ReadWriter, q Request) (response, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	q.ID = binary.BigEndian.Uint64(id[:])
	if err := writeRequest(conn, q); err != nil {
		return response{}, fmt.Errorf("softport: sending a request: %w", err)
	}
	for range maxStale + 1 {
		resp, err := readResponse(conn, q)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return response{}, fmt.Errorf("softport: reading the answer: %w", err)
		}
		if resp.id != q.ID {
			continue
		}
		if resp.report == nil && resp.quote == nil && resp.rtmr == nil {
			return response{}, fmt.Errorf("softport: the host refused the report: %q", resp.refusal)
		}
		return resp, nil
	}
	return response{}, fmt.Errorf("softport: got %d responses to other requests", maxStale+1)
}
