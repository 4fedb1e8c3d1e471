package snpattest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// devicePath is the device of the kernel's SNP driver.
const devicePath = "/dev/sev-guest"

// Commands of the device: _IOWR('S', n, struct snp_guest_request_ioctl) (Linux,
// include/uapi/linux/sev-guest.h).
const (
	commandReport         = 0xC020_5300 // SNP_GET_REPORT
	commandExtendedReport = 0xC020_5302 // SNP_GET_EXT_REPORT
)

const (
	messageVersion = 1
	// firstTable is the room for certificates that is offered first, and the
	// most that today's kernels take (SEV_FW_BLOB_MAX_SIZE).
	firstTable = 16 << 10
	// maxTable is the most that is offered to a host that asks for more.
	maxTable = 128 << 10
	// maxTries bounds repetitions: for a host that is busy, a signal, a table
	// that grew meanwhile.
	maxTries  = 5
	busyDelay = 500 * time.Millisecond
)

// The structures of sev-guest.h. Their addresses are numbers of 64 bits there;
// SEV-SNP exists on such processors only.
type (
	// guestRequest is struct snp_guest_request_ioctl.
	guestRequest struct {
		version           uint8
		_                 [7]byte
		request, response unsafe.Pointer
		exitInfo2         uint64
	}
	// reportRequest is struct snp_report_req.
	reportRequest struct {
		userData [reportDataSize]byte
		vmpl     uint32
		_        [28]byte
	}
	// extendedRequest is struct snp_ext_report_req. The kernel puts the size
	// that it needs into tableSize where it is not enough.
	extendedRequest struct {
		reportRequest
		table     unsafe.Pointer
		tableSize uint32
		_         uint32
	}
	// reportResponse is struct snp_report_resp: MSG_REPORT_RSP of publication
	// 56860 with a status, the report's size, and the report from byte 0x20 on.
	reportResponse [4000]byte
)

const responseReport = 0x20

// device is /dev/sev-guest.
type device struct {
	// call is the system call. It fails with an errno.
	call func(command uint32, arg *guestRequest) error
}

// openDevice returns the attester over the device, if there is one.
func openDevice() (tee.Attester, error) {
	f, err := os.OpenFile(devicePath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return newAttester(device{call: deviceCall}), nil
}

// deviceCall opens the device for one request: attesters are never closed.
func deviceCall(command uint32, arg *guestRequest) (err error) {
	f, err := os.OpenFile(devicePath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(command), uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}

// report asks for an extended report, whose certificates spare the verifier a
// search, and for a bare one where the host cannot give that.
func (d device) report(ctx context.Context, reportData [reportDataSize]byte) (raw, table []byte, err error) {
	raw, table, err = d.extended(ctx, reportData)
	if err == nil || ctx.Err() != nil {
		return raw, table, err
	}
	request := &reportRequest{userData: reportData}
	raw, bareErr := d.request(ctx, commandReport, unsafe.Pointer(request))
	if bareErr != nil {
		return nil, nil, fmt.Errorf("%w; without certificates: %w", err, bareErr)
	}
	return raw, nil, nil
}

func (d device) extended(ctx context.Context, reportData [reportDataSize]byte) (raw, table []byte, err error) {
	size := uint32(firstTable)
	for range maxTries {
		table = make([]byte, size)
		request := &extendedRequest{reportRequest: reportRequest{userData: reportData}, table: unsafe.Pointer(&table[0]), tableSize: size}
		raw, err = d.request(ctx, commandExtendedReport, unsafe.Pointer(request))
		if failure, ok := errors.AsType[*requestError](err); !ok || failure.vmm() != vmmTooSmall {
			break
		}
		if request.tableSize <= size || request.tableSize > maxTable {
			return nil, nil, fmt.Errorf("%w: the host wants %d bytes after %d; expected at most %d", err, request.tableSize, size, maxTable)
		}
		size = request.tableSize
	}
	if err != nil {
		return nil, nil, err
	}
	return raw, table, nil
}

// request makes one request and returns the report in its response. It repeats
// what a signal or a busy host kept from happening.
func (d device) request(ctx context.Context, command uint32, request unsafe.Pointer) ([]byte, error) {
	for try := 1; ; try++ {
		response := new(reportResponse)
		arg := &guestRequest{version: messageVersion, request: request, response: unsafe.Pointer(response)}
		err := d.call(command, arg)
		if err == nil {
			return response.report()
		}
		failure := &requestError{errno: err, exitInfo2: arg.exitInfo2}
		interrupted, busy := errors.Is(err, unix.EINTR), failure.vmm() == vmmBusy || errors.Is(err, unix.EAGAIN)
		if try == maxTries || !interrupted && !busy {
			return nil, failure
		}
		if busy {
			select {
			case <-time.After(busyDelay):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// report is the report in a response.
func (r *reportResponse) report() ([]byte, error) {
	if status := binary.LittleEndian.Uint32(r[0:]); status != 0 {
		return nil, fmt.Errorf("report response: status: expected 0, got %#x", status)
	}
	if size := binary.LittleEndian.Uint32(r[4:]); size != snp.ReportSize {
		return nil, fmt.Errorf("report response: size of the report: expected %d, got %d", snp.ReportSize, size)
	}
	return r[responseReport : responseReport+snp.ReportSize], nil
}

// Errors of the hypervisor (SNP_GUEST_VMM_ERR_ in sev-guest.h; GHCB
// specification, publication 56421, §4.1.7 and §4.1.8).
const (
	vmmTooSmall = 1 // the certificates need more room
	vmmBusy     = 2 // the host throttles requests
)

// noFirmwareCall is what the kernel reports where the firmware was not asked
// (SEV_RET_NO_FW_CALL).
const noFirmwareCall = 0xFFFF_FFFF

// requestError is a request that failed: the system call's error, and what the
// kernel reports in exitinfo2. Early kernels call the same 64 bits fw_err.
type requestError struct {
	errno     error
	exitInfo2 uint64
}

func (e *requestError) vmm() uint32      { return uint32(e.exitInfo2 >> 32) }
func (e *requestError) firmware() uint32 { return uint32(e.exitInfo2) }

func (e *requestError) Error() string {
	text := devicePath + ": " + e.errno.Error()
	switch e.vmm() {
	case 0:
	case vmmTooSmall:
		text += ", the hypervisor's error 1 (too little room for certificates)"
	case vmmBusy:
		text += ", the hypervisor's error 2 (busy)"
	default:
		text += fmt.Sprintf(", the hypervisor's error %d", e.vmm())
	}
	switch f := e.firmware(); f {
	case 0:
	case noFirmwareCall:
		text += ", the firmware was not asked"
	default:
		text += fmt.Sprintf(", the firmware's error %#x", f)
	}
	return text
}

func (e *requestError) Unwrap() error { return e.errno }
