package vtpm

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure/peimage"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// Limits of what is booted.
const (
	MaxKernel  = 256 << 20
	MaxInitrd  = 2 << 30
	MaxCmdline = 64 << 10
)

// Launch is what a machine is started with.
type Launch struct {
	// Firmware is OVMF_CODE.fd, or a whole OVMF.fd.
	Firmware []byte
	// Vars is OVMF_VARS.fd as it is at the start. nil: a store without variables.
	Vars []byte
	// FirmwareVersion is the text that the firmware was built with
	// (PcdFirmwareVersionString), empty for Debian 12.
	FirmwareVersion string
	// PEIVolume are the digests of the event EV_EFI_PLATFORM_FIRMWARE_BLOB over the
	// volume of the PEI phase, from the log of a boot of the same firmware on a
	// machine of the same type, memory and number of CPUs that is trusted. Without
	// them PCR 0 is not predicted.
	PEIVolume []eventlog.Digest
	// Kernel, Initrd and Cmdline are those of direct kernel boot. Initrd may be nil.
	Kernel, Initrd []byte
	Cmdline        string
	// Machine and Memory (bytes) are what QEMU writes into the kernel's header.
	Machine qemuload.Machine
	Memory  uint64
	// KernelAsIs: the kernel reaches the firmware as it is in its file, as with AMD
	// SEV and TDX. Machine and Memory are not needed then.
	KernelAsIs bool
	// Algorithms are the banks. nil: SHA-256 and SHA-384.
	Algorithms []eventlog.Alg
}

// Event is a predicted event. Digests is nil where it is not known.
type Event struct {
	PCR     int
	Type    eventlog.EventType
	What    string
	Digests []eventlog.Digest
}

// Prediction is what a boot is expected to measure.
type Prediction struct {
	// PCRs are algorithm → PCR → value, of those that are predicted.
	PCRs map[eventlog.Alg]map[int][]byte
	// Events are in the order of the log.
	Events []Event
	// Unpredicted are PCRs that firmware and kernel use and for which there is no
	// value, with the reason.
	Unpredicted map[int]string
}

// Predict computes PCR values from what a machine is started with. It fails for
// input that cannot be booted this way.
func Predict(l Launch) (*Prediction, error) {
	p, err := newPredictor(l)
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{p.firmware, p.secureBoot, p.kernel, p.bootOptions, p.readyToBoot, p.stub, p.exit} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p.result()
}

type predictor struct {
	l       Launch
	sum     *summer
	volumes []*volume
	vars    variables
	out     *Prediction
}

func newPredictor(l Launch) (*predictor, error) {
	switch {
	case len(l.Kernel) == 0:
		return nil, errors.New("vtpm: kernel: expected a kernel: only direct kernel boot is predicted")
	case len(l.Kernel) > MaxKernel || len(l.Initrd) > MaxInitrd || len(l.Cmdline) > MaxCmdline:
		return nil, fmt.Errorf("vtpm: expected at most %d bytes of kernel, %d of initrd and %d of command line", MaxKernel, MaxInitrd, MaxCmdline)
	case strings.ContainsRune(l.Cmdline, 0):
		return nil, errors.New("vtpm: cmdline: has a NUL")
	}
	sum, err := newSummer(l.Algorithms)
	if err != nil {
		return nil, err
	}
	p := &predictor{l: l, sum: sum, out: &Prediction{PCRs: map[eventlog.Alg]map[int][]byte{}, Unpredicted: map[int]string{}}}
	if p.volumes, err = volumes(l.Firmware); err != nil {
		return nil, err
	}
	if len(p.volumes) != 2 {
		return nil, fmt.Errorf("vtpm: firmware: expected the two volumes of OVMF (PEI and DXE), found %d", len(p.volumes))
	}
	p.vars = variables{}
	if l.Vars != nil {
		if p.vars, err = parseVariables(l.Vars); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// measure adds an event whose digests are those of data.
func (p *predictor) measure(pcr int, t eventlog.EventType, what string, data []byte) {
	p.out.Events = append(p.out.Events, Event{pcr, t, what, p.sum.digests(data)})
}

func (p *predictor) unpredicted(pcr int, reason string) {
	if p.out.Unpredicted[pcr] == "" {
		p.out.Unpredicted[pcr] = reason
	}
}

// firmware is what the PEI phase measures (edk2, SecurityPkg, Tcg2Pei): the version,
// and the volumes that it has unpacked into memory. The PEI phase runs in place
// there, and its modules have written into their own data by then.
func (p *predictor) firmware() error {
	version := append(eventlog.LoadOptions(p.l.FirmwareVersion), 0, 0)
	p.measure(0, eventlog.SCRTMVersion, "firmware version", version)
	pei := Event{0, eventlog.EFIPlatformFirmwareBlob, "volume of the PEI phase", nil}
	if len(p.l.PEIVolume) == 0 {
		p.unpredicted(0, "the firmware's PEI volume is measured after its modules have written into it what machine they found: its digest has to come from a boot that is trusted")
	} else {
		for _, a := range p.sum.algorithms {
			i := slices.IndexFunc(p.l.PEIVolume, func(d eventlog.Digest) bool { return d.Alg == a && len(d.Value) == a.Size() })
			if i < 0 {
				return fmt.Errorf("vtpm: PEI volume: has no digest of %s", a)
			}
			pei.Digests = append(pei.Digests, p.l.PEIVolume[i])
		}
	}
	p.out.Events = append(p.out.Events, pei)
	p.measure(0, eventlog.EFIPlatformFirmwareBlob, "volume of the DXE phase", p.volumes[1].raw)
	return nil
}

var zeros = []byte{0, 0, 0, 0}

// secureBoot is what the DXE phase measures of secure boot (Tcg2Dxe).
func (p *predictor) secureBoot() error {
	on := byte(0)
	pk := p.vars.get(efiGlobal, "PK")
	enable := p.vars.get(secureBootEnable, "SecureBootEnable")
	if len(pk) > 0 && (len(enable) == 0 || enable[0] == 1) {
		on = 1
		for _, pcr := range []int{4, 7, 9} {
			p.unpredicted(pcr, "secure boot is on: whether a certificate of db lets the kernel pass, and which, is not predicted")
		}
	}
	for _, v := range []struct {
		vendor eventlog.GUID
		name   string
		data   []byte
	}{
		{efiGlobal, "SecureBoot", []byte{on}},
		{efiGlobal, "PK", pk},
		{efiGlobal, "KEK", p.vars.get(efiGlobal, "KEK")},
		{imageSecurity, "db", p.vars.get(imageSecurity, "db")},
		{imageSecurity, "dbx", p.vars.get(imageSecurity, "dbx")},
	} {
		p.measure(7, eventlog.EFIVariableDriverConfig, v.name, eventlog.AppendVariable(nil, v.vendor, v.name, v.data))
	}
	p.measure(7, eventlog.Separator, "separator", zeros)
	return nil
}

func (p *predictor) kernel() error {
	head, rest := p.l.Kernel, []byte(nil)
	if !p.l.KernelAsIs {
		var err error
		load := qemuload.Load{Machine: p.l.Machine, Memory: p.l.Memory, Cmdline: p.l.Cmdline, Initrd: len(p.l.Initrd)}
		if head, rest, err = load.Kernel(p.l.Kernel); err != nil {
			return fmt.Errorf("vtpm: %w", err)
		}
	}
	e := Event{4, eventlog.EFIBootServicesApp, "kernel", nil}
	for _, a := range p.sum.algorithms {
		h := p.sum.new(a)
		if err := peimage.Digest(h, head, rest); err != nil {
			return fmt.Errorf("vtpm: kernel: %w; UEFI firmware starts only a kernel with an EFI stub", err)
		}
		e.Digests = append(e.Digests, eventlog.Digest{Alg: a, Value: h.Sum(nil)})
	}
	p.out.Events = append(p.out.Events, e)
	return nil
}

// readyToBoot ends the firmware's part of the PCRs 0 to 6.
func (p *predictor) readyToBoot() error {
	const call = "Calling EFI Application from Boot Option"
	p.measure(4, eventlog.EFIAction, call, []byte(call))
	for pcr := range 7 {
		p.measure(pcr, eventlog.Separator, "separator", zeros)
	}
	return nil
}

// stub is what the EFI stub of Linux measures (linux 6.12,
// drivers/firmware/efi/libstub/efi-stub-helper.c). OVMF names the initrd on the
// command line, makes each byte a character of UTF-16, and ends it with a zero.
func (p *predictor) stub() error {
	cmdline := p.l.Cmdline
	if len(p.l.Initrd) > 0 {
		cmdline += " initrd=initrd"
	}
	options := make([]byte, 2*len(cmdline)+2)
	for i := range len(cmdline) {
		options[2*i] = cmdline[i]
	}
	p.measure(9, eventlog.EventTag, "command line", options)
	if len(p.l.Initrd) > 0 {
		p.measure(9, eventlog.EventTag, "initrd", p.l.Initrd)
	}
	return nil
}

func (p *predictor) exit() error {
	for _, s := range []string{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"} {
		p.measure(5, eventlog.EFIAction, s, []byte(s))
	}
	return nil
}

// result replays the events.
func (p *predictor) result() (*Prediction, error) {
	for _, a := range p.sum.algorithms {
		bank := map[int][]byte{}
		for _, e := range p.out.Events {
			if p.out.Unpredicted[e.PCR] != "" {
				continue
			}
			i := slices.IndexFunc(e.Digests, func(d eventlog.Digest) bool { return d.Alg == a })
			if i < 0 {
				return nil, fmt.Errorf("vtpm: PCR %d, %s: no digest of %s", e.PCR, e.What, a)
			}
			value, ok := bank[e.PCR]
			if !ok {
				value = make([]byte, a.Size())
			}
			bank[e.PCR] = p.sum.extend(a, value, e.Digests[i].Value)
		}
		p.out.PCRs[a] = bank
	}
	return p.out, nil
}
