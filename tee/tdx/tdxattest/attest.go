// Package tdxattest gets evidence of Intel TDX inside a guest: a quote, and the
// event log of what the firmware and the runtime measured.
//
// There are two ways to a quote. The kernel's report interface (configfs-tsm,
// Linux 6.7) asks the hypervisor and then looks once a second whether the quote
// is there. Where the host offers its quote generation service on a vsock port,
// a TDREPORT from the kernel's device and one message to that port take a few
// milliseconds. The second way is tried first; what it does not give, the
// first does.
//
// RTMR 3, the register for what happens at run time, is the kernel's to read and
// to extend (Linux 6.16, sysfs).
//
// Unproven on hardware: layouts and messages are tested against fakes of the
// device, of configfs, of the service and of the register's file.
package tdxattest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/tsm"
	"github.com/coffer-project/coffer/tee/tdx"
)

const (
	// provider is what the kernel's TDX driver calls itself.
	provider = "tdx_guest"
	// EventLogArea is where the kernel shows the firmware's log (ACPI table CCEL).
	EventLogArea = "/sys/firmware/acpi/tables/data/CCEL"
)

// Options say where things are. The zero value is no guest.
type Options struct {
	// TDReport gets a TDREPORT (1024 bytes) over report data; nil: there is
	// no device.
	TDReport func(reportData [64]byte) ([]byte, error)
	// Service connects to the host's quote generation service; nil: it has none.
	Service Dial
	// ConfigFS is the kernel's report interface; nil: there is none.
	ConfigFS configfsi.Client
	// EventLog returns the firmware's log as the kernel shows it, and
	// RuntimeLog that of runtime events. Both return an error that is
	// fs.ErrNotExist where there is none; nil: there is none.
	EventLog, RuntimeLog func() ([]byte, error)
	// Measurements is the kernel's directory of measurement registers, as
	// [MeasurementsDir]; empty: there is none.
	Measurements string
}

// Linux are the options of a guest as Linux shows it. service may be nil;
// runtimeLog is a file's name, which may be empty.
func Linux(service Dial, runtimeLog string) Options {
	o := Options{Service: service, EventLog: func() ([]byte, error) { return readLog(EventLogArea) }, Measurements: MeasurementsDir}
	if _, err := os.Stat(Device); err == nil {
		o.TDReport = func(data [64]byte) ([]byte, error) { return readTDReport(Device, data) }
	}
	if client, err := linuxtsm.MakeClient(); err == nil {
		o.ConfigFS = client
	}
	if runtimeLog != "" {
		o.RuntimeLog = func() ([]byte, error) { return readLog(runtimeLog) }
	}
	return o
}

// readLog reads no more than a log may have: the area is the host's.
func readLog(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > eventlog.MaxLog {
		return nil, fmt.Errorf("%s: expected at most %d bytes, got %d", name, eventlog.MaxLog, info.Size())
	}
	return os.ReadFile(name) //nolint:gosec // a fixed place
}

// Attester implements [tee.Attester]. It is safe for concurrent use.
type Attester struct {
	o    Options
	turn tsm.Turn

	mu         sync.Mutex
	runtimeLog func() ([]byte, error)
}

// New returns the attester of a TDX guest. It fails where neither way to a
// quote is there.
func New(o Options) (*Attester, error) {
	if o.ConfigFS == nil && (o.TDReport == nil || o.Service == nil) {
		return nil, errors.New("tdxattest: no way to a quote: neither the kernel's report interface (configfs-tsm) nor /dev/tdx_guest with a quote generation service")
	}
	return &Attester{o: o, turn: tsm.NewTurn(), runtimeLog: o.RuntimeLog}, nil
}

// TEE implements [tee.Attester].
func (*Attester) TEE() tee.Name { return tee.TDX }

// Evidence implements [tee.Attester]: a quote over report data, and the event
// log where the guest has one.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > reportDataSize {
		return nil, fmt.Errorf("tdxattest: report data: expected at most %d bytes, got %d", reportDataSize, len(reportData))
	}
	want := [reportDataSize]byte(tee.Fit(reportData, reportDataSize))
	quote, parsed, err := a.quote(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("tdxattest: %w", err)
	}
	if parsed.ReportData != want {
		return nil, fmt.Errorf("tdxattest: report_data: expected %x, got %x", want, parsed.ReportData)
	}
	log, err := a.log()
	if err != nil {
		return nil, fmt.Errorf("tdxattest: event log: %w", err)
	}
	return (&tdx.Evidence{Quote: quote, EventLog: log}).JSON()
}

// InitData implements [tee.Attester]: MRCONFIGID, from a TDREPORT where there
// is a device, else from a quote.
func (a *Attester) InitData(ctx context.Context) ([]byte, error) {
	var fresh [reportDataSize]byte
	_, _ = rand.Read(fresh[:]) // never fails
	if a.o.TDReport != nil {
		r, err := a.tdreport(fresh)
		if err != nil {
			return nil, fmt.Errorf("tdxattest: %w", err)
		}
		return r[mrConfigIDOffset : mrConfigIDOffset+mrConfigIDSize], nil
	}
	_, parsed, err := a.quote(ctx, fresh)
	if err != nil {
		return nil, fmt.Errorf("tdxattest: %w", err)
	}
	return parsed.MRConfigID[:], nil
}

func (a *Attester) log() ([]byte, error) {
	area, err := optional(a.o.EventLog)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	read := a.runtimeLog
	a.mu.Unlock()
	runtime, err := optional(read)
	if err != nil {
		return nil, err
	}
	return eventlog.Evidence(area, runtime)
}

// optional reads what may be absent.
func optional(read func() ([]byte, error)) ([]byte, error) {
	if read == nil {
		return nil, nil
	}
	b, err := read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// tdreport checks that what the kernel returns is what was asked for.
func (a *Attester) tdreport(reportData [reportDataSize]byte) ([]byte, error) {
	r, err := a.o.TDReport(reportData)
	if err != nil {
		return nil, err
	}
	if len(r) != tdreportSize {
		return nil, fmt.Errorf("TDREPORT: expected %d bytes, got %d", tdreportSize, len(r))
	}
	if got := r[reportDataOffset : reportDataOffset+reportDataSize]; !bytes.Equal(got, reportData[:]) {
		return nil, fmt.Errorf("TDREPORT: report data: expected %x, got %x", reportData, got)
	}
	return r, nil
}

// quote gets a quote by the first way that gives one.
func (a *Attester) quote(ctx context.Context, reportData [reportDataSize]byte) ([]byte, *tdx.Quote, error) {
	var tried []error
	if a.o.TDReport != nil && a.o.Service != nil {
		raw, parsed, err := a.viaService(ctx, reportData)
		if err == nil {
			return raw, parsed, nil
		}
		tried = append(tried, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, errors.Join(append(tried, err)...)
	}
	if a.o.ConfigFS != nil {
		raw, parsed, err := a.viaKernel(ctx, reportData)
		if err == nil {
			return raw, parsed, nil
		}
		tried = append(tried, err)
	}
	return nil, nil, errors.Join(tried...)
}

func (a *Attester) viaService(ctx context.Context, reportData [reportDataSize]byte) ([]byte, *tdx.Quote, error) {
	r, err := a.tdreport(reportData)
	if err != nil {
		return nil, nil, err
	}
	raw, err := quoteFromService(ctx, a.o.Service, r)
	if err != nil {
		return nil, nil, err
	}
	return parse(raw)
}

func parse(raw []byte) ([]byte, *tdx.Quote, error) {
	raw = tdx.Trim(raw)
	q, err := tdx.ParseQuote(raw)
	return raw, q, err
}

// viaKernel gets one quote over configfs.
func (a *Attester) viaKernel(ctx context.Context, reportData [reportDataSize]byte) ([]byte, *tdx.Quote, error) {
	response, err := tsm.Do(ctx, a.turn, func() (*report.Response, error) {
		return tsm.Get(a.o.ConfigFS, provider, &report.Request{InBlob: reportData[:]})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("the kernel's quote: %w", err)
	}
	return parse(response.OutBlob)
}
