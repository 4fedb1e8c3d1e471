package snpattest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// The structures have the sizes and offsets of sev-guest.h on 64-bit machines.
func TestLayout(t *testing.T) {
	t.Parallel()
	var g guestRequest
	var e extendedRequest
	for name, pair := range map[string][2]uintptr{
		"snp_guest_request_ioctl":           {unsafe.Sizeof(g), 32},
		"snp_guest_request_ioctl.req_data":  {unsafe.Offsetof(g.request), 8},
		"snp_guest_request_ioctl.resp_data": {unsafe.Offsetof(g.response), 16},
		"snp_guest_request_ioctl.exitinfo2": {unsafe.Offsetof(g.exitInfo2), 24},
		"snp_report_req":                    {unsafe.Sizeof(reportRequest{}), 96},
		"snp_report_req.vmpl":               {unsafe.Offsetof(e.vmpl), 64},
		"snp_ext_report_req":                {unsafe.Sizeof(e), 112},
		"snp_ext_report_req.certs_address":  {unsafe.Offsetof(e.table), 96},
		"snp_ext_report_req.certs_len":      {unsafe.Offsetof(e.tableSize), 104},
		"snp_report_resp":                   {unsafe.Sizeof(reportResponse{}), 4000},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %d, want %d", name, pair[0], pair[1])
		}
	}
	const iowr, kind = 3 << 30, 'S' << 8
	if commandReport != iowr|32<<16|kind || commandExtendedReport != iowr|32<<16|kind|2 {
		t.Errorf("commands: got %#x and %#x", commandReport, commandExtendedReport)
	}
}

// driver plays the kernel's part. Its faults are used up one by one, one for
// each call; nil: none.
type driver struct {
	t      *testing.T
	table  []byte // what the host supplies
	faults []*requestError
	answer func(*reportResponse)
	calls  []uint32
}

func (d *driver) call(command uint32, arg *guestRequest) error {
	d.calls = append(d.calls, command)
	if arg.version != 1 {
		d.t.Errorf("message version %d", arg.version)
	}
	if len(d.faults) > 0 {
		fault := d.faults[0]
		d.faults = d.faults[1:]
		if fault != nil {
			arg.exitInfo2 = fault.exitInfo2
			return fault.errno
		}
	}
	var request *reportRequest
	switch command {
	case commandReport:
		request = (*reportRequest)(arg.request)
	case commandExtendedReport:
		extended := (*extendedRequest)(arg.request)
		request = &extended.reportRequest
		if pages := (len(d.table) + 4095) &^ 4095; int(extended.tableSize) < pages {
			extended.tableSize = uint32(pages)
			arg.exitInfo2 = vmmTooSmall << 32
			return unix.EIO
		}
		if extended.tableSize%4096 != 0 {
			return unix.EINVAL
		}
		copy(unsafe.Slice((*byte)(extended.table), extended.tableSize), d.table)
	default:
		return unix.ENOTTY
	}
	if request.vmpl != 0 {
		d.t.Errorf("VMPL %d", request.vmpl)
	}
	report, err := processor(request.userData[:])
	if err != nil {
		return unix.EIO
	}
	response := (*reportResponse)(arg.response)
	binary.LittleEndian.PutUint32(response[4:], snp.ReportSize)
	copy(response[responseReport:], report)
	if d.answer != nil {
		d.answer(response)
	}
	return nil
}

func table(t *testing.T, size int) ([]snp.Certificate, []byte) {
	t.Helper()
	var certs []snp.Certificate
	for size > 0 {
		n := min(size, snp.MaxCertificate)
		certs = append(certs, snp.Certificate{Type: snp.CertVCEK, Data: bytes.Repeat([]byte{7}, n)})
		size -= n
	}
	raw, err := snp.EncodeCertTable(certs)
	if err != nil {
		t.Fatal(err)
	}
	return certs, raw
}

func TestDevice(t *testing.T) {
	t.Parallel()
	fault := func(errno unix.Errno, exitInfo2 uint64) *requestError { return &requestError{errno, exitInfo2} }
	busy, interrupted, broken := fault(unix.EIO, vmmBusy<<32), fault(unix.EINTR, 0), fault(unix.EIO, 0x16)
	few, fewTable := table(t, 2000)
	brokenTable := slices.Clone(fewTable)
	brokenTable[19] = 0xFF // the offset
	many, manyTable := table(t, 40_000)
	_, hugeTable := table(t, maxTable)
	const ext, bare = commandExtendedReport, commandReport
	for name, tc := range map[string]struct {
		table  []byte
		faults []*requestError
		answer func(*reportResponse)
		certs  []snp.Certificate
		calls  []uint32
		err    string // "": evidence
	}{
		"certificates":                {table: fewTable, certs: few, calls: []uint32{ext}},
		"no certificates":             {calls: []uint32{ext}},
		"more room":                   {table: manyTable, certs: many, calls: []uint32{ext, ext}},
		"too much room":               {table: hugeTable, calls: []uint32{ext, bare}},
		"never enough room":           {faults: []*requestError{fault(unix.ENOSPC, vmmTooSmall<<32)}, calls: []uint32{ext, bare}},
		"a busy host":                 {table: fewTable, faults: []*requestError{busy, fault(unix.EAGAIN, 0)}, certs: few, calls: []uint32{ext, ext, ext}},
		"signals":                     {table: fewTable, faults: []*requestError{interrupted, interrupted}, certs: few, calls: []uint32{ext, ext, ext}},
		"no extended reports":         {table: fewTable, faults: []*requestError{fault(unix.EINVAL, 0)}, calls: []uint32{ext, bare}},
		"a broken table":              {table: brokenTable, calls: []uint32{ext}},
		"the firmware refuses":        {faults: []*requestError{broken, broken}, calls: []uint32{ext, bare}, err: "the firmware's error 0x16"},
		"no key":                      {faults: []*requestError{fault(unix.ENOTTY, noFirmwareCall), fault(unix.ENOTTY, noFirmwareCall)}, calls: []uint32{ext, bare}, err: "the firmware was not asked"},
		"another error of the host's": {faults: []*requestError{fault(unix.EIO, 9<<32), fault(unix.EIO, 9<<32|3)}, calls: []uint32{ext, bare}, err: "the hypervisor's error 9, the firmware's error 0x3"},
		"busy for ever":               {faults: slices.Repeat([]*requestError{busy}, 2*maxTries), calls: append(slices.Repeat([]uint32{ext}, maxTries), slices.Repeat([]uint32{bare}, maxTries)...), err: "busy"},
		"a status":                    {answer: func(r *reportResponse) { r[0] = 0x27 }, calls: []uint32{ext, bare}, err: "status: expected 0, got 0x27"},
		"another size":                {answer: func(r *reportResponse) { r[4]-- }, calls: []uint32{ext, bare}, err: "expected 1184, got 1183"},
		"another's report":            {answer: func(r *reportResponse) { r[responseReport+0x50]++ }, calls: []uint32{ext}, err: "report_data"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // whoever waits for a busy host does not hold the test up
				d := &driver{t: t, table: tc.table, faults: tc.faults, answer: tc.answer}
				raw, err := newAttester(device{d.call}).Evidence(t.Context(), []byte("data"))
				if diff := cmp.Diff(tc.calls, d.calls); diff != "" {
					t.Errorf("calls: %s", diff)
				}
				if tc.err != "" {
					if err == nil || !strings.Contains(err.Error(), tc.err) {
						t.Errorf("got %v, want an error with %q", err, tc.err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				e, err := snp.ParseEvidence(raw)
				if err != nil {
					t.Fatal(err)
				}
				if want := [64]byte(tee.Fit([]byte("data"), 64)); e.AttestationReport.ReportData != want {
					t.Errorf("report data: got %x", e.AttestationReport.ReportData)
				}
				if diff := cmp.Diff(tc.certs, e.CertChain); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestDeviceInitData(t *testing.T) {
	t.Parallel()
	a := newAttester(device{(&driver{t: t}).call})
	if got, err := a.InitData(t.Context()); err != nil || !bytes.Equal(got, append([]byte{7}, make([]byte, 31)...)) {
		t.Errorf("initdata: got %x, %v", got, err)
	}
}

// Who waits for a busy host can give up.
func TestDeviceContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), busyDelay/2)
		defer cancel()
		d := &driver{t: t, faults: []*requestError{{unix.EAGAIN, vmmBusy << 32}}}
		start := time.Now()
		_, err := newAttester(device{d.call}).Evidence(ctx, nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != busyDelay/2 {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
		synctest.Wait()
		if len(d.calls) != 1 {
			t.Errorf("got %d calls", len(d.calls))
		}
	})
}

// The report interface is preferred; without either there is no attester.
func TestChoose(t *testing.T) {
	t.Parallel()
	none := errors.New("none")
	client := kernel(processor, []byte{0}).Client()
	overDevice := newAttester(device{(&driver{t: t}).call})
	tsmIs := func(c configfsi.Client, err error) func() (configfsi.Client, error) {
		return func() (configfsi.Client, error) { return c, err }
	}
	deviceIs := func(a tee.Attester, err error) func() (tee.Attester, error) {
		return func() (tee.Attester, error) { return a, err }
	}
	if a, err := choose(tsmIs(client, nil), deviceIs(overDevice, nil)); err != nil || a == overDevice {
		t.Errorf("both: got %v, %v", a, err)
	}
	if a, err := choose(tsmIs(nil, none), deviceIs(overDevice, nil)); err != nil || a != overDevice {
		t.Errorf("device only: got %v, %v", a, err)
	}
	if a, err := choose(tsmIs(nil, none), deviceIs(nil, none)); !errors.Is(err, none) || a != nil {
		t.Errorf("neither: got %v, %v", a, err)
	}
}
