// Package snpattest gets SEV-SNP evidence from the kernel, through the report
// interface that all TEEs share (configfs-tsm, Linux 6.7 and newer).
package snpattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

const (
	// provider is what the kernel's SNP driver calls itself.
	provider = "sev_guest"
	// maxRaces is how often a request is repeated that another process
	// disturbed.
	maxRaces       = 3
	reportDataSize = 64
)

type attester struct {
	client configfsi.Client
	// turn is held by the one request under way: the kernel serialises them
	// anyway, and a waiting caller can give up.
	turn chan struct{}
}

// New returns the attester of a guest with SNP hardware. It fails where
// configfs is not mounted or the kernel has no report interface.
func New() (tee.Attester, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, fmt.Errorf("snpattest: %w; is configfs mounted on /sys/kernel/config, and the sev-guest module loaded?", err)
	}
	return NewWithClient(client), nil
}

// NewWithClient is New over another configfs.
func NewWithClient(client configfsi.Client) tee.Attester {
	return &attester{client: client, turn: make(chan struct{}, 1)}
}

// TEE implements [tee.Attester].
func (*attester) TEE() tee.Name { return tee.SNP }

// Evidence implements [tee.Attester]: a report at VMPL 0, with the certificates
// that the host supplies, if it does.
func (a *attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > reportDataSize {
		return nil, fmt.Errorf("snpattest: report data: expected at most %d bytes, got %d", reportDataSize, len(reportData))
	}
	e, err := a.request(ctx, tee.Fit(reportData, reportDataSize))
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// InitData implements [tee.Attester]: HOST_DATA of a report.
func (a *attester) InitData(ctx context.Context) ([]byte, error) {
	fresh := make([]byte, reportDataSize)
	_, _ = rand.Read(fresh) // never fails
	e, err := a.request(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return e.AttestationReport.HostData[:], nil
}

// request gets one report. The kernel's call cannot be interrupted: when ctx
// ends first, it finishes in the background and its result is dropped.
func (a *attester) request(ctx context.Context, reportData []byte) (*snp.Evidence, error) {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("snpattest: waiting for an earlier request: %w", ctx.Err())
	}
	type result struct {
		evidence *snp.Evidence
		err      error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-a.turn }()
		e, err := a.get(reportData)
		done <- result{e, err}
	}()
	select {
	case r := <-done:
		return r.evidence, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("snpattest: the kernel's report: %w", ctx.Err())
	}
}

func (a *attester) get(reportData []byte) (*snp.Evidence, error) {
	request := &report.Request{InBlob: reportData, Privilege: &report.Privilege{Level: 0}, GetAuxBlob: true}
	var response *report.Response
	var err error
	for range maxRaces {
		response, err = report.Get(a.client, request)
		if _, raced := errors.AsType[*report.GenerationErr](err); !raced {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("snpattest: the kernel's report: %w", err)
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return nil, fmt.Errorf("snpattest: report provider: expected %q, got %.40q; this is not an SNP guest", provider, got)
	}
	// The report fills the blob, or (in early kernels) begins it.
	blob := response.OutBlob
	if len(blob) > snp.ReportSize {
		blob = blob[:snp.ReportSize]
	}
	certs, err := snp.ParseCertTable(response.AuxBlob)
	if err != nil {
		// The host wrote the table, not the processor. Without it the
		// verifier finds the certificates itself.
		certs = nil
	}
	e, err := snp.NewEvidence(blob, certs)
	if err != nil {
		return nil, fmt.Errorf("snpattest: %w", err)
	}
	if want := [reportDataSize]byte(reportData); e.AttestationReport.ReportData != want {
		return nil, fmt.Errorf("snpattest: report_data: expected %x, got %x", want, e.AttestationReport.ReportData)
	}
	return e, nil
}
