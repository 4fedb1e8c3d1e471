package tdxattest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// MeasurementsDir is where Linux has the registers of a TDX guest as files
	// (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest, Linux 6.16).
	MeasurementsDir = "/sys/devices/virtual/misc/tdx_guest/measurements"

	// rtmr3 is the name of RTMR 3 there. Reading it gives the value of now, and
	// one write of a whole digest extends it.
	rtmr3    = "rtmr3:sha384"
	rtmrSize = 48
)

// HasRTMR reports whether this kernel lets RTMR 3 be read and extended.
func (a *Attester) HasRTMR() bool {
	if a.o.Measurements == "" {
		return false
	}
	info, err := os.Lstat(a.rtmr())
	const readWrite = 0o600
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&readWrite == readWrite
}

// ReadRTMR3 reads RTMR 3, 48 bytes.
func (a *Attester) ReadRTMR3(ctx context.Context) ([]byte, error) {
	f, err := a.openRTMR(ctx, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was read
	value, err := io.ReadAll(io.LimitReader(f, rtmrSize+1))
	if err != nil {
		return nil, fmt.Errorf("tdxattest: RTMR 3: %w", err)
	}
	if len(value) != rtmrSize {
		return nil, fmt.Errorf("tdxattest: RTMR 3: %s: expected %d bytes, got %d or more", f.Name(), rtmrSize, len(value))
	}
	return value, nil
}

// ExtendRTMR3 extends RTMR 3 with a SHA-384 digest, 48 bytes.
func (a *Attester) ExtendRTMR3(ctx context.Context, digest []byte) error {
	if len(digest) != rtmrSize {
		return fmt.Errorf("tdxattest: RTMR 3: digest: expected %d bytes, got %d", rtmrSize, len(digest))
	}
	f, err := a.openRTMR(ctx, os.O_WRONLY)
	if err != nil {
		return err
	}
	// The kernel takes all of it at once, or nothing.
	n, err := unix.Write(int(f.Fd()), digest)
	if err == nil && n != rtmrSize {
		err = io.ErrShortWrite
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("tdxattest: RTMR 3: extend: %w", err)
	}
	return nil
}

// SetRuntimeLog has the event log of evidence end with what log returns, which is
// then what RTMR 3 amounts to. It takes the place of [Options.RuntimeLog].
func (a *Attester) SetRuntimeLog(log func() []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runtimeLog = func() ([]byte, error) { return log(), nil }
}

func (a *Attester) rtmr() string { return filepath.Join(a.o.Measurements, rtmr3) }

func (a *Attester) openRTMR(ctx context.Context, flag int) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("tdxattest: RTMR 3: %w", err)
	}
	if a.o.Measurements == "" {
		return nil, fmt.Errorf("tdxattest: RTMR 3: this kernel has no file of it: %w; it takes Linux 6.16", os.ErrNotExist)
	}
	f, err := os.OpenFile(a.rtmr(), flag|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("tdxattest: RTMR 3: %w", err)
	}
	return f, nil
}
