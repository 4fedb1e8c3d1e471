// Package platform says what this host's hardware and kernel offer to
// confidential virtual machines. It only looks; internal/host/accel finds out
// whether KVM really runs guests.
package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Facts are what a host offers: nil where it does, else why not and what
// would help.
type Facts struct {
	// KVM: /dev/kvm opens. It may still run no guest.
	KVM error
	// VhostVsock: /dev/vhost-vsock opens.
	VhostVsock error
	// SNP: this kernel launches SEV-SNP guests.
	SNP error
	// TDX: this kernel launches TDX guests.
	TDX error
	// CBitPos and ReducedPhysBits parameterise SNP guests (CPUID
	// Fn8000_001F EBX[5:0] and [11:6], AMD publication 24594); zero where the
	// processor has no memory encryption.
	CBitPos, ReducedPhysBits int
}

// CPUID executes the instruction for a leaf, with sub-leaf 0.
type CPUID func(leaf uint32) (eax, ebx, ecx, edx uint32)

// Inspect looks at the host.
func Inspect() Facts { return InspectRoot("/", cpuid) }

// InspectRoot is Inspect for the devices and /sys below root.
func InspectRoot(root string, cpuid CPUID) Facts {
	f := Facts{
		KVM:        opens(root, "dev/kvm", "load kvm_amd or kvm_intel, and join the group that owns it"),
		VhostVsock: opens(root, "dev/vhost-vsock", "modprobe vhost_vsock; the serial transport is used without it"),
		SNP: errors.Join(
			enabled(root, "sys/module/kvm_amd/parameters/sev_snp", "enable SEV-SNP in the firmware's setup and boot a kernel from 6.11 on"),
			opens(root, "dev/sev", "load ccp")),
		TDX: enabled(root, "sys/module/kvm_intel/parameters/tdx", "enable TDX in the firmware's setup and boot a kernel from 6.16 on with kvm_intel.tdx=1"),
	}
	const encryptionLeaf = 0x8000001f
	if top, _, _, _ := cpuid(0x80000000); top >= encryptionLeaf {
		_, ebx, _, _ := cpuid(encryptionLeaf)
		f.CBitPos, f.ReducedPhysBits = int(ebx&0x3f), int(ebx>>6&0x3f)
	}
	return f
}

func opens(root, name, help string) error {
	f, err := os.OpenFile(filepath.Join(root, name), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("/%s: %w (%s)", name, unwrapPath(err), help)
	}
	return f.Close()
}

// enabled reads a module's boolean parameter.
func enabled(root, name, help string) error {
	f, err := os.Open(filepath.Join(root, name))
	if err != nil {
		return fmt.Errorf("/%s: %w (%s)", name, unwrapPath(err), help)
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return fmt.Errorf("/%s: %w", name, unwrapPath(err))
	}
	switch value := strings.TrimSpace(string(data)); value {
	case "Y", "1":
		return nil
	default:
		return fmt.Errorf("/%s: expected Y, got %q (%s)", name, value, help)
	}
}

// unwrapPath drops the path, which the message has already.
func unwrapPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
