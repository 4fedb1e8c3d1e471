package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/coffer-project/coffer/tee/measure/peimage"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// kernelDigest is the Authenticode SHA-384 of the kernel as the firmware gets it.
func (l TDXLaunch) kernelDigest() (out [48]byte, err error) {
	head, rest := l.Kernel, []byte(nil)
	if !l.RawKernel {
		// A trust domain is a machine of type q35.
		load := qemuload.Load{Machine: qemuload.Q35, Memory: l.Memory, Cmdline: l.Cmdline, Initrd: len(l.Initrd)}
		if head, rest, err = load.Kernel(l.Kernel); err != nil {
			return out, fmt.Errorf("measure: %w", err)
		}
	}
	h := sha512.New384()
	if err := peimage.Digest(h, head, rest); err != nil {
		return out, fmt.Errorf("measure: kernel: %w; UEFI firmware starts only a kernel with an EFI stub", err)
	}
	h.Sum(out[:0])
	return out, nil
}

// utf16le is s as UEFI writes text, without a terminator.
func utf16le(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// loadOptions is the command line as OVMF hands it to the kernel's EFI stub,
// which measures it with its terminator.
func (l TDXLaunch) loadOptions() string {
	if len(l.Initrd) > 0 && !l.NoInitrdOption {
		return l.Cmdline + " initrd=initrd"
	}
	return l.Cmdline
}
