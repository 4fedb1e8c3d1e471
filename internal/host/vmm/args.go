package vmm

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// channel is a connection between this process and the emulator.
type channel string

// Channels every machine has; a port's channel is its name behind "port:".
const (
	monitorChannel channel = "monitor"
	consoleChannel channel = "console"
)

func portChannel(name string) channel { return channel("port:" + name) }

// inherited is one descriptor the emulator is started with: an end of a
// channel, or an open file.
type inherited struct {
	channel channel
	file    *os.File
}

// firstFD is the number of the first inherited descriptor: os/exec puts
// ExtraFiles behind standard input, output and error.
const firstFD = 3

// plan is a command line and the descriptors its numbers mean.
type plan struct {
	args []string
	fds  []inherited
}

func (p *plan) add(args ...string) { p.args = append(p.args, args...) }

func (p *plan) inherit(i inherited) string {
	p.fds = append(p.fds, i)
	return strconv.Itoa(firstFD + len(p.fds) - 1)
}

// Args returns the emulator's arguments, without the program's name. They
// are a function of the machine alone.
func (m *Machine) Args() ([]string, error) {
	p, err := m.plan()
	if err != nil {
		return nil, err
	}
	return p.args, nil
}

func (m *Machine) plan() (*plan, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	p := &plan{}
	p.add("-name", options("", "guest", m.Name))
	p.add("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot")
	p.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	p.add("-machine", m.board())
	p.add("-accel", m.accelerator())
	p.add("-cpu", m.cpu())
	p.add("-smp", options("", "cpus", strconv.Itoa(m.VCPUs), "sockets", "1", "cores", strconv.Itoa(m.VCPUs), "threads", "1", "maxcpus", strconv.Itoa(m.VCPUs)))
	p.add("-m", options("", "size", strconv.Itoa(m.MemoryMiB)+"M"))
	if m.Confidential != nil {
		object, err := m.Confidential.object()
		if err != nil {
			return nil, fmt.Errorf("machine %q: %w", m.Name, err)
		}
		p.add("-object", object)
	}
	p.add("-chardev", options("socket", "id", "monitor", "fd", p.inherit(inherited{channel: monitorChannel})))
	p.add("-mon", options("", "chardev", "monitor", "mode", "control"))
	p.add("-chardev", options("socket", "id", "console", "fd", p.inherit(inherited{channel: consoleChannel})))
	p.add("-serial", "chardev:console")
	m.addPorts(p)
	if m.VsockCID != 0 {
		p.add("-device", options("vhost-vsock-pci", m.virtio("guest-cid", strconv.FormatUint(uint64(m.VsockCID), 10))...))
	}
	m.addNetwork(p)
	m.addCards(p)
	m.addDisks(p)
	m.addBalloon(p)
	m.addSlots(p)
	p.add("-bios", p.path(m.Firmware))
	p.add("-kernel", p.path(m.Kernel))
	p.add("-initrd", p.path(m.Initrd))
	p.add("-append", m.Cmdline)
	return p, nil
}

// path is how the emulator opens an input. An inherited file is opened anew
// through /proc, which gives it an offset of its own.
func (p *plan) path(in Input) string {
	if in.File != nil {
		return "/proc/self/fd/" + p.inherit(inherited{file: in.File})
	}
	return in.Path
}

func (m *Machine) board() string {
	// Guest memory has no place in a core file, nor may it be merged with
	// that of another machine.
	board := []string{"dump-guest-core", "off", "mem-merge", "off"}
	if m.Confidential != nil {
		board = append(board, "kernel-irqchip", "split", "confidential-guest-support", m.Confidential.id())
	} else {
		// Devices no guest of ours uses, each of which the kernel would probe.
		board = append(board, "vmport", "off", "smbus", "off", "sata", "off", "i8042", "off", "hpet", "off")
	}
	return options("q35", board...)
}

func (m *Machine) accelerator() string {
	if m.Accelerator == TCG {
		// One thread for all virtual CPUs. With one each, a Linux guest that
		// patches its own code (text_poke) now and then dies of it on a busy
		// host; a boot takes as long either way.
		return options("tcg", "thread", "single", "tb-size", strconv.Itoa(TranslationMiB))
	}
	return string(m.Accelerator)
}

func (m *Machine) cpu() string {
	if m.Accelerator == KVM {
		return options(m.CPU, "pmu", "off")
	}
	return m.CPU
}

// virtio returns the options every virtio device needs: a confidential
// machine's devices may only reach memory that the guest shares with them.
func (m *Machine) virtio(more ...string) []string {
	if m.Confidential == nil {
		return more
	}
	return append(more, "disable-legacy", "on", "iommu_platform", "on")
}

func (m *Machine) addPorts(p *plan) {
	if len(m.Ports) == 0 {
		return
	}
	// Port 0 is reserved for a console.
	p.add("-device", options("virtio-serial-pci", m.virtio("id", "serial", "max_ports", strconv.Itoa(len(m.Ports)+1))...))
	for i, port := range m.Ports {
		id := "port" + strconv.Itoa(i+1)
		p.add("-chardev", options("socket", "id", id, "fd", p.inherit(inherited{channel: portChannel(port.Name)})))
		p.add("-device", options("virtserialport", "bus", "serial.0", "nr", strconv.Itoa(i+1), "chardev", id, "name", port.Name))
	}
}

func (m *Machine) addNetwork(p *plan) {
	if m.Network == nil {
		return
	}
	p.add("-netdev", options("user", "id", "net", "ipv6", "off", "net", userNet, "host", HostAddress, "dns", DNSAddress, "dhcpstart", firstGuest))
	// Without a boot ROM: the firmware has nothing to load from the network.
	p.add("-device", options("virtio-net-pci", m.virtio("netdev", "net", "mac", m.Network.MAC.String(), "romfile", "")...))
}

// options renders QEMU's option form: a first value that needs no name (or
// none), then name=value pairs. A comma in a value is doubled.
func options(first string, pairs ...string) string {
	var parts []string
	if first != "" {
		parts = append(parts, escape(first))
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		parts = append(parts, pairs[i]+"="+escape(pairs[i+1]))
	}
	return strings.Join(parts, ",")
}

func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
