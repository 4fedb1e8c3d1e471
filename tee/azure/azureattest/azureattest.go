// Package azureattest gets evidence in an Azure confidential virtual machine:
// from its virtual TPM, which a paravisor runs, and from the instance metadata
// service.
//
// The guest writes report data into one NV index; the paravisor has the hardware
// make a report over it and puts that into another index. The TPM's attestation
// key, which that report vouches for, then signs a quote over the same report
// data.
//
// It is tested against a software TPM in the paravisor's role and a metadata
// service of the tests' own, not on Azure.
package azureattest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// Where the paravisor keeps things (microsoft/openvmm, tpm_protocol:
// TPM_NV_INDEX_ATTESTATION_REPORT, TPM_NV_INDEX_GUEST_ATTESTATION_INPUT; the
// key: learn.microsoft.com, "Leverage virtual TPMs in Azure confidential VMs").
const (
	IndexReport   = 0x01400001
	IndexUserData = 0x01400002
	HandleAK      = 0x81000003
)

// ErrNotAzure says that a TPM has no HCL report: the machine is no confidential
// one of Azure's.
var ErrNotAzure = errors.New("azureattest: the TPM holds no HCL report: this is no Azure confidential VM")

// Defaults of waiting for a new report. Azure's paravisor takes up to three
// seconds.
const (
	DefaultWait = 30 * time.Second

	firstPoll = 50 * time.Millisecond
	maxPoll   = time.Second
)

// Options configure an attester.
type Options struct {
	// TPM is the device; see [tpmattest.Open]. The attester does not close it,
	// and expects nobody else to use it at the same time.
	TPM transport.TPM
	// HTTP asks the metadata service. Nil: a client without a proxy that follows
	// no redirects and waits for 20 seconds at most.
	HTTP *http.Client
	// IMDS is the base URL of the metadata service. Empty: DefaultIMDS.
	IMDS string
	// Wait is how long a new hardware report may take. Zero: DefaultWait.
	Wait time.Duration
}

// Attester implements [tee.Attester]. It is safe for concurrent use.
type Attester struct {
	name tee.Name
	tpm  transport.TPM
	key  *tpmattest.Key
	imds *imds
	wait time.Duration
	turn *tpmattest.Turn
}

// Detect tells by the HCL report which environment a TPM is in. Where there is
// none the error is [ErrNotAzure].
func Detect(t transport.TPM) (tee.Name, error) {
	r, err := readReport(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return "", fmt.Errorf("%w (%w)", ErrNotAzure, err)
	}
	if err != nil {
		return "", err
	}
	return r.Type.TEE(), nil
}

// report is a parsed HCL report with its bytes.
type report struct {
	*azure.Report
	raw []byte
}

func readReport(t transport.TPM) (*report, error) {
	raw, err := tpmattest.ReadNV(t, IndexReport)
	if err != nil {
		return nil, err
	}
	r, err := azure.ParseReport(raw)
	if err != nil {
		return nil, fmt.Errorf("azureattest: NV index %#x: %w", IndexReport, err)
	}
	return &report{r, raw}, nil
}

// New returns the attester of the environment that o.TPM is in.
func New(o Options) (*Attester, error) {
	if o.TPM == nil {
		return nil, errors.New("azureattest: no TPM given")
	}
	name, err := Detect(o.TPM)
	if err != nil {
		return nil, err
	}
	key, err := tpmattest.ReadKey(o.TPM, HandleAK)
	if err != nil {
		return nil, fmt.Errorf("azureattest: attestation key: %w", err)
	}
	a := &Attester{name: name, tpm: o.TPM, key: key, imds: &imds{o.HTTP, o.IMDS}, wait: o.Wait, turn: tpmattest.NewTurn()}
	if a.imds.client == nil {
		a.imds.client = newClient()
	}
	if a.imds.base == "" {
		a.imds.base = DefaultIMDS
	}
	if a.wait == 0 {
		a.wait = DefaultWait
	}
	return a, nil
}

// ReadPCR reads a register of the SHA-256 bank, in turn with evidence.
func (a *Attester) ReadPCR(ctx context.Context, pcr int) ([]byte, error) {
	return tpmattest.Take(ctx, a.turn, func() ([]byte, error) { return tpmattest.ReadPCR(a.tpm, pcr) })
}

// ExtendPCR extends one by a digest of 32 bytes, in turn with evidence.
func (a *Attester) ExtendPCR(ctx context.Context, pcr int, digest []byte) error {
	return tpmattest.Extend(ctx, a.turn, a.tpm, pcr, digest)
}

// TEE implements [tee.Attester].
func (a *Attester) TEE() tee.Name { return a.name }

// Evidence implements [tee.Attester]: version 2. Report data is not padded; it
// must not be empty.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) == 0 || len(reportData) > azure.UserDataSize {
		return nil, fmt.Errorf("azureattest: report data: expected 1 to %d bytes, got %d", azure.UserDataSize, len(reportData))
	}
	reportData = bytes.Clone(reportData)
	return tpmattest.Take(ctx, a.turn, func() (json.RawMessage, error) {
		e, err := a.gather(ctx, reportData)
		if err != nil {
			return nil, err
		}
		return e.JSON()
	})
}

func (a *Attester) gather(ctx context.Context, reportData []byte) (*azure.Evidence, error) {
	r, err := a.freshReport(ctx, reportData)
	if err != nil {
		return nil, err
	}
	q, err := tpmattest.Quote(a.tpm, a.key, reportData)
	if err != nil {
		return nil, err
	}
	if q.Parsed.Scheme != tpm.AlgRSASSA || q.Parsed.Hash != tpm.AlgSHA256 {
		return nil, fmt.Errorf("azureattest: attestation key: expected signatures by RSASSA-SHA256, got %v", q.Parsed)
	}
	e := &azure.Evidence{
		TEE: a.name, Version: 2, HCLReport: r.raw,
		Quote: azure.Quote{Signature: q.Parsed.RSA, Message: q.Quote.Message, PCRs: q.Quote.PCRs},
	}
	if a.name == tee.AzureTDXVTPM {
		e.TDQuote, err = a.imds.tdQuote(ctx, r.Hardware[:azure.TDReportSize])
	} else {
		e.VCEK, err = a.imds.vcek(ctx)
	}
	return e, err
}

// freshReport writes report data into the paravisor's index and waits until the
// HCL report shows it.
func (a *Attester) freshReport(ctx context.Context, reportData []byte) (*report, error) {
	if err := tpmattest.WriteNV(a.tpm, IndexUserData, reportData); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	want := tee.Fit(reportData, azure.UserDataSize)
	for pause := firstPoll; ; pause = min(2*pause, maxPoll) {
		r, err := readReport(a.tpm)
		if err != nil {
			return nil, err
		}
		if r.Type.TEE() != a.name {
			return nil, fmt.Errorf("azureattest: HCL report: expected one of %s, got one of %s", a.name, r.Type.TEE())
		}
		claims, err := azure.ParseRuntimeClaims(r.VarData)
		if err != nil {
			return nil, fmt.Errorf("azureattest: NV index %#x: %w", IndexReport, err)
		}
		if bytes.Equal(claims.UserData, want) {
			return r, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("azureattest: waiting for a hardware report with user-data %x, got %x: %w", want, claims.UserData, ctx.Err())
		}
	}
}

// InitData implements [tee.Attester]: register 8, which is 32 zeros unless
// initdata was bound. It is not the digest itself; see [tpm.Extended].
func (a *Attester) InitData(ctx context.Context) ([]byte, error) {
	return tpmattest.Take(ctx, a.turn, func() ([]byte, error) {
		pcrs, err := tpmattest.ReadPCRs(a.tpm)
		if err != nil {
			return nil, err
		}
		return pcrs[tpm.InitDataPCR][:], nil
	})
}

// BindInitData extends register 8 with the SHA-256 digest of initdata; see
// [tpmattest.BindInitData].
func (a *Attester) BindInitData(ctx context.Context, digest []byte) error {
	_, err := tpmattest.Take(ctx, a.turn, func() (struct{}, error) { return struct{}{}, tpmattest.BindInitData(a.tpm, digest) })
	return err
}
