package tdxattest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Device is the kernel's device of a TDX guest.
	Device = "/dev/tdx_guest"

	reportDataSize = 64
	tdreportSize   = 1024
	// TDREPORT holds REPORTMACSTRUCT (256 bytes), TEE_TCB_INFO with its
	// padding (256), then TDINFO, in which ATTRIBUTES, XFAM (8 bytes each)
	// and MRTD (48) come before MRCONFIGID (Intel TDX module ABI
	// specification, TDREPORT_STRUCT and TDINFO_STRUCT).
	mrConfigIDOffset = 512 + 8 + 8 + 48
	mrConfigIDSize   = 48
	// reportDataOffset is that of REPORTDATA in REPORTMACSTRUCT.
	reportDataOffset = 128

	// getReport0 is TDX_CMD_GET_REPORT0: _IOWR('T', 1, struct tdx_report_req)
	// (Linux, include/uapi/linux/tdx-guest.h).
	getReport0 = 3<<30 | (reportDataSize+tdreportSize)<<16 | 'T'<<8 | 1
)

// readTDReport gets a TDREPORT over report data from the TDX module.
func readTDReport(device string, reportData [reportDataSize]byte) ([]byte, error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("TDREPORT: %w", err)
	}
	defer func() { _ = f.Close() }()
	var request [reportDataSize + tdreportSize]byte
	copy(request[:], reportData[:])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getReport0, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil, fmt.Errorf("TDREPORT: %s: %w", device, errno)
	}
	return request[reportDataSize:], nil
}
