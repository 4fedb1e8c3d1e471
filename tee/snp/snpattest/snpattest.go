// Package snpattest gets SEV-SNP evidence from the kernel: through the report
// interface that all TEEs share (configfs-tsm, Linux 6.7 and newer), or else
// through the device /dev/sev-guest (Linux 5.19 and newer).
//
// Both are written to the kernel's interface and tested against fakes of it;
// they have run on no hardware yet.
package snpattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/tsm"
	"github.com/coffer-project/coffer/tee/snp"
)

const reportDataSize = 64

// source is one of the kernel's interfaces. One call is under way at a time.
type source interface {
	// report returns the processor's report (1184 bytes, or more of which they
	// are the first) and the host's certificate table, which may be empty.
	report(ctx context.Context, reportData [reportDataSize]byte) (report, table []byte, err error)
}

type attester struct {
	source source
	turn   tsm.Turn
}

// New returns the attester of a guest with SNP hardware: over configfs-tsm, or
// over the device where the kernel has no such interface. It fails where there
// is neither.
func New() (tee.Attester, error) { return choose(linuxtsm.MakeClient, openDevice) }

func choose(configFS func() (configfsi.Client, error), device func() (tee.Attester, error)) (tee.Attester, error) {
	client, err := configFS()
	if err == nil {
		return NewWithClient(client), nil
	}
	a, deviceErr := device()
	if deviceErr != nil {
		return nil, fmt.Errorf("snpattest: %w; is this an SNP guest, with configfs mounted on /sys/kernel/config or the sev-guest module loaded?", errors.Join(err, deviceErr))
	}
	return a, nil
}

// NewWithClient is an attester over a configfs.
func NewWithClient(client configfsi.Client) tee.Attester { return newAttester(reports{client}) }

func newAttester(s source) tee.Attester {
	return &attester{source: s, turn: tsm.NewTurn()}
}

// TEE implements [tee.Attester].
func (*attester) TEE() tee.Name { return tee.SNP }

// Evidence implements [tee.Attester]: a report at VMPL 0, with the certificates
// that the host supplies, if it does.
func (a *attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > reportDataSize {
		return nil, fmt.Errorf("snpattest: report data: expected at most %d bytes, got %d", reportDataSize, len(reportData))
	}
	e, err := a.request(ctx, [reportDataSize]byte(tee.Fit(reportData, reportDataSize)))
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// InitData implements [tee.Attester]: HOST_DATA of a report.
func (a *attester) InitData(ctx context.Context) ([]byte, error) {
	var fresh [reportDataSize]byte
	_, _ = rand.Read(fresh[:]) // never fails
	e, err := a.request(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return e.AttestationReport.HostData[:], nil
}

// request gets one report.
func (a *attester) request(ctx context.Context, reportData [reportDataSize]byte) (*snp.Evidence, error) {
	e, err := tsm.Do(ctx, a.turn, func() (*snp.Evidence, error) { return a.get(ctx, reportData) })
	if err != nil {
		return nil, fmt.Errorf("snpattest: %w", err)
	}
	return e, nil
}

func (a *attester) get(ctx context.Context, reportData [reportDataSize]byte) (*snp.Evidence, error) {
	raw, table, err := a.source.report(ctx, reportData)
	if err != nil {
		return nil, fmt.Errorf("the kernel's report: %w", err)
	}
	// The report fills the blob, or (in early kernels) begins it.
	if len(raw) > snp.ReportSize {
		raw = raw[:snp.ReportSize]
	}
	certs, err := snp.ParseCertTable(table)
	if err != nil {
		// The host wrote the table, not the processor. Without it the
		// verifier finds the certificates itself.
		certs = nil
	}
	e, err := snp.NewEvidence(raw, certs)
	if err != nil {
		return nil, err
	}
	if e.AttestationReport.ReportData != reportData {
		return nil, fmt.Errorf("report_data: expected %x, got %x", reportData, e.AttestationReport.ReportData)
	}
	return e, nil
}
