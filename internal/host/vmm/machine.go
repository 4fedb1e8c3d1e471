// Package vmm runs virtual machines with QEMU.
//
// A [Machine] describes one in typed terms and renders itself to a command
// line; [Start] runs it. Everything between the host program and the emulator
// (monitor, console, virtio-serial ports, and the open files of kernel and initrd
// that were checked) travels over inherited file
// descriptors, so a machine leaves no socket and no file behind however it
// ends. It ends with the context it was started in, with [VM.Close], and with
// the process that started it.
//
// Network cards are on taps of the host, which come by descriptor as well.
// Disks may be attached and detached while the machine runs
// ([VM.AttachDisk]): spare PCI Express ports take them. A guest that hardware does
// not protect gives memory that it does not use back to the host.
//
// The emulator is confined by its own seccomp filter: it starts no program
// and gains no privilege.
package vmm

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"regexp"
	"strings"
)

// Limits of a machine.
const (
	// MaxVCPUs is what a q35 machine takes without further options.
	MaxVCPUs = 255
	// MinMemoryMiB is less than any guest image boots with.
	MinMemoryMiB = 64
	// MaxMemoryMiB is 4 TiB.
	MaxMemoryMiB = 4 << 20
	// MaxCmdline is Linux's COMMAND_LINE_SIZE on x86 without the final NUL;
	// the kernel cuts what is longer.
	MaxCmdline = 2047
	// MaxPorts bounds the virtio-serial ports of a machine.
	MaxPorts = 16
	// MaxDisks bounds the disks of a machine: each is a PCI device.
	MaxDisks = 16
	// TranslationMiB bounds what the translator (TCG) keeps of the guest's code that
	// it has translated; when it is full it begins anew. Left to itself QEMU takes up
	// to 1 GiB (since 5.0, an eighth of the host's memory if that is less:
	// accel/tcg/translate-all.c, later tcg/region.c), which no pod is accounted for.
	// A boot fills this once, with code that is never executed again: at 128 it takes
	// a fifth more of the host's processor time, for the pages that are touched, and
	// an idle machine 60 MiB more (docs/benchmarks.md).
	TranslationMiB = 48
	// MaxCards bounds its network cards. With every limit reached all devices
	// still find a place on the one bus of the board.
	MaxCards = 8
)

// Accelerator is what executes the guest's instructions.
type Accelerator string

const (
	// KVM is hardware virtualisation.
	KVM Accelerator = "kvm"
	// TCG is QEMU's translator: runs everywhere, ten to fifty times slower.
	TCG Accelerator = "tcg"
)

// Input is a file that the machine starts with: exactly one of Path and File.
type Input struct {
	// Path is opened by the emulator.
	Path string
	// File is handed to the emulator, which reads it from the start. It must
	// stay open until Start returns.
	File *os.File
}

func (i Input) absent() bool { return i.Path == "" && i.File == nil }

// Port is a virtio-serial port. The guest finds it by name in
// /sys/class/virtio-ports/*/name.
type Port struct {
	Name string
}

// UserNetwork is a network card behind QEMU's user-mode stack: the guest
// reaches whatever the host's user can, through addresses of its own.
type UserNetwork struct {
	MAC net.HardwareAddr
}

// Addresses of the user-mode network.
const (
	// GuestAddress is the guest's address with its prefix.
	GuestAddress = "10.0.2.15/24"
	// HostAddress is the gateway; connections to it reach the host's loopback.
	HostAddress = "10.0.2.2"
	// DNSAddress forwards to the host's resolver.
	DNSAddress = "10.0.2.3"
	userNet    = "10.0.2.0/24"
	firstGuest = "10.0.2.15"
)

// Machine is one virtual machine. Its fields are what the guest's launch
// depends on; nothing else does.
type Machine struct {
	// Name tells machines apart in process lists: [A-Za-z0-9._-], at most 64.
	Name        string
	Accelerator Accelerator
	// CPU is a QEMU CPU model: "max" under TCG, "host" under KVM, or the
	// model that was measured.
	CPU       string
	VCPUs     int
	MemoryMiB int
	// Firmware is always given: what runs must be what is measured.
	Firmware Input
	Kernel   Input
	Initrd   Input
	// Cmdline is the kernel's, byte for byte.
	Cmdline string
	// Confidential is nil for a machine that hardware does not protect.
	Confidential Confidential
	// Network is nil for a machine without one.
	Network *UserNetwork
	// Cards are network cards on taps of the host.
	Cards []Card
	Ports []Port
	// Disks appear to the guest under their serial numbers.
	Disks []Disk
	// DiskSlots is how many disks can be attached while the machine runs, at
	// most MaxDiskSlots; see VM.AttachDisk.
	DiskSlots int
	// VsockCID gives the machine a vsock device of that context id; 0: none.
	// It needs the host's /dev/vhost-vsock and has only been run as a golden
	// file.
	VsockCID uint32
}

// MinVsockCID is the first context id that is a guest's: lower ones are
// reserved (vsock(7)).
const MinVsockCID = 3

var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	cpuRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

// Validate reports everything that is wrong with the machine.
func (m *Machine) Validate() error {
	var problems []error
	bad := func(field, expected string, got any, help string) {
		problems = append(problems, fmt.Errorf("%s: expected %s, got %v (%s)", field, expected, got, help))
	}
	if !nameRE.MatchString(m.Name) {
		bad("name", "1 to 64 characters of [A-Za-z0-9._-]", fmt.Sprintf("%q", m.Name), "choose another name")
	}
	if m.Accelerator != KVM && m.Accelerator != TCG {
		bad("accelerator", "kvm or tcg", fmt.Sprintf("%q", m.Accelerator), "let internal/host/accel choose")
	}
	if !cpuRE.MatchString(m.CPU) {
		bad("cpu", "a QEMU CPU model without properties", fmt.Sprintf("%q", m.CPU), "see qemu-system-x86_64 -cpu help")
	}
	if m.VCPUs < 1 || m.VCPUs > MaxVCPUs {
		bad("vcpus", fmt.Sprintf("1 to %d", MaxVCPUs), m.VCPUs, "ask for fewer CPUs")
	}
	if m.MemoryMiB < MinMemoryMiB || m.MemoryMiB > MaxMemoryMiB {
		bad("memory", fmt.Sprintf("%d to %d MiB", MinMemoryMiB, MaxMemoryMiB), m.MemoryMiB, "change the memory size")
	}
	for _, in := range []struct {
		field string
		input Input
	}{{"firmware", m.Firmware}, {"kernel", m.Kernel}, {"initrd", m.Initrd}} {
		switch {
		case in.input.absent():
			bad(in.field, "a file", "none", "every machine boots a kernel and an initrd with a firmware that is named")
		case in.input.Path != "" && in.input.File != nil:
			bad(in.field, "a path or an open file", "both", "give one of them")
		}
	}
	if len(m.Cmdline) > MaxCmdline {
		bad("cmdline", fmt.Sprintf("at most %d bytes", MaxCmdline), len(m.Cmdline), "Linux would cut it")
	}
	if strings.ContainsFunc(m.Cmdline, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		bad("cmdline", "no control characters", fmt.Sprintf("%q", m.Cmdline), "remove them")
	}
	if m.Network != nil && (len(m.Network.MAC) != 6 || m.Network.MAC[0]&1 != 0) {
		bad("network.mac", "a 48-bit unicast address", m.Network.MAC, "use MAC")
	}
	if m.VsockCID != 0 && (m.VsockCID < MinVsockCID || m.VsockCID == math.MaxUint32) {
		bad("vsock_cid", "0 for none, or 3 to 4294967294", m.VsockCID, "the others are reserved")
	}
	problems = append(problems, m.validatePorts()...)
	problems = append(problems, m.validateDisks()...)
	problems = append(problems, m.validateCards()...)
	if m.DiskSlots < 0 || m.DiskSlots > MaxDiskSlots {
		bad("disk_slots", fmt.Sprintf("0 to %d", MaxDiskSlots), m.DiskSlots, "attach fewer disks at a time")
	}
	if m.Confidential != nil {
		if m.Accelerator != KVM {
			bad("accelerator", "kvm, for a confidential machine", m.Accelerator, "use the software TEE on this host")
		}
		problems = append(problems, m.Confidential.validate()...)
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("machine %q: %w", m.Name, errors.Join(problems...))
}

func (m *Machine) validatePorts() []error {
	var problems []error
	if len(m.Ports) > MaxPorts {
		problems = append(problems, fmt.Errorf("ports: expected at most %d, got %d", MaxPorts, len(m.Ports)))
	}
	seen := make(map[string]bool)
	for i, p := range m.Ports {
		switch {
		case !nameRE.MatchString(p.Name):
			problems = append(problems, fmt.Errorf("ports[%d].name: expected 1 to 64 characters of [A-Za-z0-9._-], got %q", i, p.Name))
		case seen[p.Name]:
			problems = append(problems, fmt.Errorf("ports[%d].name: %q is there twice; the guest finds a port by its name", i, p.Name))
		}
		seen[p.Name] = true
	}
	return problems
}
