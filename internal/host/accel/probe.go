package accel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Bounds of the probe. Under working hardware virtualisation the kernel
// speaks within a second and its init within two.
const (
	silenceLimit = 10 * time.Second
	bootLimit    = 30 * time.Second
)

// probeCmdline lets the kernel speak from its first instructions on, so that
// slow and dead can be told apart. reboot=t and panic=-1 end the machine.
const probeCmdline = "console=ttyS0 earlyprintk=ttyS0 panic=-1 reboot=t cryptomgr.notests no_timer_check"

// marker is what the probe's init says.
const marker = "coffer: guest boots"

// probe boots the kernel with an init of a few instructions. It returns nil
// when the init ran, an *unusable when the accelerator cannot run the kernel,
// and another error when the question stays open.
func probe(ctx context.Context, opts Options, log *slog.Logger) error {
	initrd, err := probeInitrd()
	if err != nil {
		return err
	}
	archive, err := vmm.Sealed("probe-initrd", initrd)
	if err != nil {
		return err
	}
	defer archive.Close() //nolint:errcheck // nothing was written through it
	spoke, booted := make(chan struct{}), make(chan struct{})
	// Called by one reader, line by line.
	lines := 0
	line := func(l string) {
		if lines++; lines == 1 {
			close(spoke)
		}
		if strings.Contains(l, marker) {
			select {
			case <-booted:
			default:
				close(booted)
			}
		}
	}
	m := &vmm.Machine{
		Name: "coffer-probe", Accelerator: vmm.KVM, CPU: CPU(vmm.KVM), VCPUs: 1, MemoryMiB: 256,
		Firmware: vmm.Input{Path: opts.Firmware}, Kernel: vmm.Input{Path: opts.Kernel},
		Initrd: vmm.Input{File: archive}, Cmdline: probeCmdline,
	}
	vm, err := vmm.Start(ctx, m, vmm.Options{QEMU: opts.QEMU, Logger: log, ConsoleLine: line})
	if err != nil {
		return verdictOf(ctx, err)
	}
	defer vm.Close() //nolint:errcheck // always nil
	switch watch(spoke, booted, vm.Done()) {
	case silent:
		return &unusable{fmt.Sprintf("the kernel printed nothing within %s", silenceLimit)}
	case slow:
		return &unusable{fmt.Sprintf("the kernel did not come up within %s; it got to %q", bootLimit, last(vm.Console()))}
	case ended:
		return verdictOf(ctx, vm.End())
	}
	return nil
}

// outcome is how the probe guest fared.
type outcome int

const (
	up outcome = iota
	silent
	slow
	ended
)

// watch waits for the first that happens: the init speaks, the machine ends,
// the kernel has kept silent for too long, or was too slow.
func watch(spoke, booted, done <-chan struct{}) outcome {
	silence, limit := time.NewTimer(silenceLimit), time.NewTimer(bootLimit)
	defer silence.Stop()
	defer limit.Stop()
	for {
		select {
		case <-booted:
			return up
		case <-spoke:
			spoke = nil
			silence.Stop()
		case <-silence.C:
			return silent
		case <-limit.C:
			return slow
		case <-done:
			// The machine may end right after its init has spoken.
			select {
			case <-booted:
				return up
			default:
				return ended
			}
		}
	}
}

// verdictOf tells a machine that could not run from one that was not let.
func verdictOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("probing KVM: %w", context.Cause(ctx))
	}
	end, ok := errors.AsType[*vmm.End](err)
	if !ok {
		return fmt.Errorf("probing KVM: %w", err)
	}
	reason := string(end.Cause)
	if l := first(end.Emulator); l != "" {
		reason += ": " + l
	}
	return &unusable{reason}
}

// unusable is a conclusive no.
type unusable struct{ reason string }

func (u *unusable) Error() string { return u.reason }

// first returns the first line that is not a warning.
func first(lines []string) string {
	for _, l := range lines {
		if !strings.Contains(l, "warning:") {
			return l
		}
	}
	return ""
}

func last(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// probeInitrd is an initial root file system of a console and an init.
func probeInitrd() ([]byte, error) {
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	for _, e := range []cpio.Entry{
		{Name: "dev", Mode: cpio.TypeDir | 0o755},
		{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: cpio.TypeRegular | 0o755, Data: probeInit()},
	} {
		if err := w.Add(e); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

// Layout of the init's ELF image: one header, one program header, code.
const (
	elfHeaderSize     = 64
	programHeaderSize = 56
	loadAddress       = 0x400000
)

// probeCode is x86-64 code: write(1, text, len), then
// reboot(MAGIC1, MAGIC2, POWER_OFF), then exit(0), with the text behind it.
//
//	mov eax, 1           b8 01 00 00 00
//	mov edi, 1           bf 01 00 00 00
//	lea rsi, [rip+38]    48 8d 35 26 00 00 00
//	mov edx, len         ba xx 00 00 00
//	syscall              0f 05
//	mov eax, 169         b8 a9 00 00 00
//	mov edi, 0xfee1dead  bf ad de e1 fe
//	mov esi, 0x28121969  be 69 19 12 28
//	mov edx, 0x4321fedc  ba dc fe 21 43
//	syscall              0f 05
//	mov eax, 60          b8 3c 00 00 00
//	xor edi, edi         31 ff
//	syscall              0f 05
func probeCode() []byte {
	text := marker + "\n"
	code := []byte{
		0xb8, 0x01, 0x00, 0x00, 0x00,
		0xbf, 0x01, 0x00, 0x00, 0x00,
		0x48, 0x8d, 0x35, 0x26, 0x00, 0x00, 0x00,
		0xba, byte(len(text)), 0x00, 0x00, 0x00,
		0x0f, 0x05,
		0xb8, 0xa9, 0x00, 0x00, 0x00,
		0xbf, 0xad, 0xde, 0xe1, 0xfe,
		0xbe, 0x69, 0x19, 0x12, 0x28,
		0xba, 0xdc, 0xfe, 0x21, 0x43,
		0x0f, 0x05,
		0xb8, 0x3c, 0x00, 0x00, 0x00,
		0x31, 0xff,
		0x0f, 0x05,
	}
	return append(code, text...)
}

// probeInit is a static ELF program (System V ABI, AMD64 supplement) that
// says marker and powers off. Made here, it needs no compiler and no file.
func probeInit() []byte {
	code := probeCode()
	size := uint64(elfHeaderSize + programHeaderSize + len(code))
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2 /* 64 bit */, 1 /* little endian */, 1 /* version */, 15: 0}
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, loadAddress+elfHeaderSize+programHeaderSize) // entry
	b = le.AppendUint64(b, elfHeaderSize)                               // program headers
	b = le.AppendUint64(b, 0)                                           // no sections
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, elfHeaderSize)
	b = le.AppendUint16(b, programHeaderSize)
	b = le.AppendUint16(b, 1)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, loadAddress)
	b = le.AppendUint64(b, loadAddress)
	b = le.AppendUint64(b, size)
	b = le.AppendUint64(b, size)
	b = le.AppendUint64(b, 0x1000)
	return append(b, code...)
}
