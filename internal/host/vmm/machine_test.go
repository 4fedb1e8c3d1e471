package vmm

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// machine is a valid machine without protection.
func machine() *Machine {
	return &Machine{
		Name: "sandbox-1", Accelerator: TCG, CPU: "max", VCPUs: 2, MemoryMiB: 1024,
		Firmware: Input{Path: "/usr/share/seabios/bios-256k.bin"},
		Kernel:   Input{Path: "/image/vmlinuz"},
		Initrd:   Input{Path: "/image/initrd.img"},
		Cmdline:  "console=ttyS0 quiet panic=-1 coffer.tee=soft",
		Network:  &UserNetwork{MAC: net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}},
		Ports:    []Port{{"org.coffer.agent.0"}, {"org.coffer.softtee.0"}},
	}
}

func confidential(c Confidential) *Machine {
	m := machine()
	m.Accelerator, m.CPU, m.Confidential = KVM, "EPYC-v4", c
	m.Firmware = Input{Path: "/firmware/OVMF,AMDSEV.fd"}
	m.Ports = m.Ports[:1]
	return m
}

// TestGolden pins the command lines. Those of SNP and TDX have not been run:
// they are what QEMU 9.1 and 10.1 document.
func TestGolden(t *testing.T) {
	t.Parallel()
	digest := func(n int) (b [48]byte) {
		for i := range n {
			b[i] = byte(i + 1)
		}
		return b
	}
	none := machine()
	none.Cmdline, none.Ports, none.Network = "console=ttyS0 coffer.tee=none coffer.development", none.Ports[:1], nil
	kvm := machine()
	kvm.Accelerator, kvm.CPU = KVM, "host"
	tdx := confidential(&TDX{MRConfigID: digest(32)})
	tdx.CPU = "host"
	vsock := machine()
	vsock.VsockCID, vsock.Ports = 4711, vsock.Ports[1:]
	disks := func(m *Machine) *Machine {
		m.Disks = []Disk{
			{Serial: "scratch", Image: Input{File: os.Stdin}},
			{Serial: "volume-0", Image: Input{Path: "/volumes/a,b.img"}},
			{Serial: "volume-1", Image: Input{Path: "/dev/sdb1"}, BlockDevice: true, ReadOnly: true},
		}
		return m
	}
	// As a pod of Kubernetes has it: two cards of its CNI, a scratch disk and a
	// block volume, and slots for more.
	pod := func(m *Machine) *Machine {
		m.Network = nil
		m.Cards = []Card{
			{MAC: net.HardwareAddr{0x9a, 0x10, 0, 0, 0, 1}, Tap: os.Stdin, MTU: 1450},
			{MAC: net.HardwareAddr{0x9a, 0x10, 0, 0, 0, 2}, Tap: os.Stdout},
		}
		m.DiskSlots = MaxDiskSlots
		m.Disks = []Disk{{Serial: "scratch", Image: Input{File: os.Stdin}}, {Serial: "block-0", Image: Input{Path: "/dev/sdb1"}, BlockDevice: true}}
		return m
	}
	podTDX := pod(confidential(&TDX{MRConfigID: digest(48)}))
	podTDX.CPU = "host"
	for _, tc := range []struct {
		name string
		m    *Machine
	}{
		{"soft", machine()},
		{"soft-pod", pod(machine())},
		{"snp-pod", pod(confidential(&SNP{CBitPos: 51, ReducedPhysBits: 1, HostData: [32]byte(firstBytes(digest(32)))}))},
		{"tdx-pod", podTDX},
		{"soft-disks", disks(machine())},
		{"snp-disks", disks(confidential(&SNP{CBitPos: 51, ReducedPhysBits: 1}))},
		{"soft-vsock", vsock},
		{"soft-kvm", kvm},
		{"none", none},
		{"snp", confidential(&SNP{CBitPos: 51, ReducedPhysBits: 1, HostData: [32]byte(firstBytes(digest(32)))})},
		{"tdx", tdx},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			args, err := tc.m.Args()
			if err != nil {
				t.Fatal(err)
			}
			got := lines(args)
			path := filepath.Join("testdata", tc.name+".args")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("arguments (-want +got), -update rewrites:\n%s", d)
			}
		})
	}
}

func firstBytes(b [48]byte) []byte { return b[:32] }

// lines puts every option on a line of its own.
func lines(args []string) string {
	var b strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-") && !strings.Contains(a, " "):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	b.WriteByte('\n')
	return b.String()
}

func TestValidateNamesEveryProblem(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*Machine)
		want   string
	}{
		{"name", func(m *Machine) { m.Name = "a,b" }, "name: expected"},
		{"empty name", func(m *Machine) { m.Name = "" }, "name: expected"},
		{"accelerator", func(m *Machine) { m.Accelerator = "xen" }, "accelerator: expected"},
		{"cpu with properties", func(m *Machine) { m.CPU = "max,+svm" }, "cpu: expected"},
		{"no vcpus", func(m *Machine) { m.VCPUs = 0 }, "vcpus: expected 1 to 255, got 0"},
		{"memory", func(m *Machine) { m.MemoryMiB = 32 }, "memory: expected 64"},
		{"no firmware", func(m *Machine) { m.Firmware = Input{} }, "firmware: expected a file"},
		{"no kernel", func(m *Machine) { m.Kernel = Input{} }, "kernel: expected a file"},
		{"no initrd", func(m *Machine) { m.Initrd = Input{} }, "initrd: expected a file"},
		{"two initrds", func(m *Machine) { m.Initrd.File = os.Stdin }, "initrd: expected a path or an open file"},
		{"long cmdline", func(m *Machine) { m.Cmdline = strings.Repeat("x", 2048) }, "cmdline: expected at most 2047"},
		{"control in cmdline", func(m *Machine) { m.Cmdline = "a\x00b" }, "cmdline: expected no control"},
		{"multicast", func(m *Machine) { m.Network.MAC[0] = 1 }, "network.mac: expected"},
		{"port name", func(m *Machine) { m.Ports[0].Name = "a,b=c" }, "ports[0].name: expected"},
		{"port twice", func(m *Machine) { m.Ports[1].Name = m.Ports[0].Name }, "is there twice"},
		{"disk without serial", func(m *Machine) { m.Disks = []Disk{{Image: Input{Path: "/a"}}} }, "disks[0].serial: expected 1 to 20"},
		{"long serial", func(m *Machine) { m.Disks = []Disk{{Serial: strings.Repeat("a", 21), Image: Input{Path: "/a"}}} }, "disks[0].serial: expected 1 to 20"},
		{"serial with options", func(m *Machine) { m.Disks = []Disk{{Serial: "a,b=c", Image: Input{Path: "/a"}}} }, "disks[0].serial: expected 1 to 20"},
		{"serial twice", func(m *Machine) {
			m.Disks = []Disk{{Serial: "a", Image: Input{Path: "/a"}}, {Serial: "a", Image: Input{Path: "/b"}}}
		}, "disks[1].serial: expected one that no other"},
		{"disk without image", func(m *Machine) { m.Disks = []Disk{{Serial: "a"}} }, "disks[0].image: expected a path"},
		{"disk of two images", func(m *Machine) { m.Disks = []Disk{{Serial: "a", Image: Input{Path: "/a", File: os.Stdin}}} }, "disks[0].image: expected a path"},
		{"many disks", func(m *Machine) { m.Disks = make([]Disk, 17) }, "disks: expected at most 16"},
		{"many cards", func(m *Machine) { m.Cards = make([]Card, 9) }, "cards: expected at most 8, got 9"},
		{"card without tap", func(m *Machine) { m.Cards = []Card{{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}} }, "cards[0].tap: expected an open tap"},
		{"card without address", func(m *Machine) { m.Cards = []Card{{Tap: os.Stdin}} }, "cards[0].mac: expected a 48-bit"},
		{"card's address twice", func(m *Machine) { m.Cards = []Card{{Tap: os.Stdin, MAC: m.Network.MAC}} }, "cards[0].mac: expected one that no other"},
		{"card's MTU", func(m *Machine) {
			m.Cards = []Card{{Tap: os.Stdin, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 67}}
		}, "cards[0].mtu: expected 0 or 68 to 65535, got 67"},
		{"many slots", func(m *Machine) { m.DiskSlots = 9 }, "disk_slots: expected 0 to 8, got 9"},
		{"many ports", func(m *Machine) { m.Ports = make([]Port, 17) }, "ports: expected at most 16"},
		{"SNP under TCG", func(m *Machine) { m.Confidential = &SNP{CBitPos: 51, ReducedPhysBits: 1} }, "accelerator: expected kvm"},
		{"SNP C bit", func(m *Machine) { m.Accelerator, m.Confidential = KVM, &SNP{ReducedPhysBits: 1} }, "snp.cbitpos: expected"},
		{"SNP bits", func(m *Machine) { m.Accelerator, m.Confidential = KVM, &SNP{CBitPos: 51} }, "snp.reduced_phys_bits"},
		{"SNP policy", func(m *Machine) {
			m.Accelerator, m.Confidential = KVM, &SNP{CBitPos: 51, ReducedPhysBits: 1, Policy: 1}
		}, "snp.policy: expected bit 17"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := machine()
			tc.change(m)
			if _, err := m.Args(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	m := &Machine{}
	err := m.Validate()
	for _, field := range []string{"name", "accelerator", "cpu", "vcpus", "memory", "firmware", "kernel", "initrd"} {
		if err == nil || !strings.Contains(err.Error(), field+": ") {
			t.Errorf("the zero machine's error does not name %s: %v", field, err)
		}
	}
}

func TestQEMUVersion(t *testing.T) {
	t.Parallel()
	snp, tdx := confidential(&SNP{}), confidential(&TDX{})
	for _, tc := range []struct {
		out              string
		major, minor     int
		snp, tdx, parses bool
	}{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright", 7, 2, false, false, true},
		{"QEMU emulator version 9.1.0\n", 9, 1, true, false, true},
		{"QEMU emulator version 10.0.50", 10, 0, true, false, true},
		{"QEMU emulator version 10.1", 10, 1, true, true, true},
		{"QEMU emulator version 11.0.1", 11, 0, true, true, true},
		{"bochs 2.6", 0, 0, false, false, false},
		{"QEMU emulator version 99999.1", 0, 0, false, false, false},
		{"", 0, 0, false, false, false},
	} {
		q, err := parseVersion("/usr/bin/qemu", tc.out)
		if (err == nil) != tc.parses || q.Major != tc.major || q.Minor != tc.minor {
			t.Errorf("%q: %+v, %v", tc.out, q, err)
		}
		if err != nil {
			continue
		}
		if err := q.Supports(machine()); err != nil {
			t.Errorf("%q: ordinary machine: %v", tc.out, err)
		}
		if err := q.Supports(snp); (err == nil) != tc.snp {
			t.Errorf("%q: SNP: %v", tc.out, err)
		}
		if err := q.Supports(tdx); (err == nil) != tc.tdx {
			t.Errorf("%q: TDX: %v", tc.out, err)
		}
	}
	if _, err := FindQEMU(t.Context(), "no-such-qemu"); err == nil || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("missing program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindQEMU(ctx, "sh"); err == nil {
		t.Error("FindQEMU ignores its context")
	}
}

func TestOptionsEscapeCommas(t *testing.T) {
	t.Parallel()
	if got, want := options("a,b", "k", "v,w=x"), "a,,b,k=v,,w=x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
