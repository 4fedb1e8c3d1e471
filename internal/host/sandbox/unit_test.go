package sandbox

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/platform"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/measure"
)

var errNone = errors.New("not here")

func TestChoose(t *testing.T) {
	t.Parallel()
	bare := platform.Facts{SNP: errors.Join(errNone, errNone), TDX: errNone}
	amd, intel := platform.Facts{TDX: errNone}, platform.Facts{SNP: errNone}
	for _, tc := range []struct {
		kind   Kind
		facts  platform.Facts
		want   Kind
		reason string
	}{
		{Auto, bare, Soft, "the software TEE protects nothing"},
		{"", bare, Soft, "not here; not here; not here"},
		{Auto, amd, SNP, "launches SEV-SNP"},
		{Auto, intel, Soft, "not supported yet"},
		{Soft, amd, Soft, "asked for"},
		{None, amd, None, "asked for"},
		{SNP, amd, SNP, "asked for"},
		{SNP, intel, "", "tee snp: not here"},
		{TDX, intel, TDX, "asked for"},
		{TDX, amd, "", "tee tdx: not here"},
		{SoftTDX, intel, SoftTDX, "asked for"},
		{"sgx", amd, "", "expected auto, soft, soft-tdx, snp, tdx or none"},
	} {
		got, reason, err := Choose(tc.kind, tc.facts)
		if err != nil {
			reason = err.Error()
		}
		if got != tc.want || !strings.Contains(reason, tc.reason) || strings.Contains(reason, "\n") {
			t.Errorf("%q: %q, %q; want %q, %q", tc.kind, got, reason, tc.want, tc.reason)
		}
	}
	for _, s := range []string{"", "auto", "soft", "soft-tdx", "snp", "tdx", "none"} {
		if _, err := ParseKind(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := ParseKind("sample"); err == nil {
		t.Error("ParseKind takes sample")
	}
}

func TestCmdline(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind        Kind
		development bool
		want        string
	}{
		{Soft, false, "quiet coffer.tee=soft"},
		{SoftTDX, false, "quiet coffer.tee=soft-tdx"},
		{Soft, true, "quiet coffer.tee=soft coffer.development"},
		{None, false, "quiet coffer.tee=none coffer.development"},
		{SNP, false, "quiet coffer.tee=auto"},
		{TDX, true, "quiet coffer.tee=auto coffer.development"},
	} {
		if got := Cmdline("quiet", tc.kind, tc.development); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.kind, got, tc.want)
		}
	}
}

func TestExplainNamesTheInput(t *testing.T) {
	t.Parallel()
	image := &Image{Manifest: &manifest.Manifest{Cmdline: "quiet"}, Kernel: []byte("k"), Initrd: []byte("i"), Firmware: []byte("f")}
	expected := image.Launch(Soft, 1, false)
	launched := expected
	launched.Cmdline += " debug"
	got := Explain(launched.Inputs(), expected.Inputs())
	want := []measure.Change{{Input: "cmdline", Expected: "quiet coffer.tee=soft", Got: "quiet coffer.tee=soft debug"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("changes (-want +got):\n%s", d)
	}
	if got := Explain(expected.Inputs(), expected.Inputs()); len(got) != 0 {
		t.Errorf("changes of nothing: %v", got)
	}
}

// TestHardwareMachines shows what a hardware launch is made of; it cannot be
// run here.
func TestHardwareMachines(t *testing.T) {
	t.Parallel()
	digest := make([]byte, 48)
	for i := range digest {
		digest[i] = byte(i + 1)
	}
	image := &Image{Dir: "/image", FirmwarePath: "/ovmf.fd", firmware: imageFile{file: os.Stdin}}
	c := Config{
		ID: "pod-1", VCPUs: 2, MemoryMiB: 512, InitDataDigest: digest,
		Facts: &platform.Facts{CBitPos: 51, ReducedPhysBits: 1},
	}
	for _, tc := range []struct {
		kind Kind
		want vmm.Confidential
		cpu  string
	}{
		{SNP, &vmm.SNP{CBitPos: 51, ReducedPhysBits: 1, HostData: [32]byte(digest)}, "EPYC-v4"},
		{TDX, &vmm.TDX{MRConfigID: [48]byte(digest)}, "host"},
	} {
		s := &Sandbox{mac: MAC(c.ID), info: Info{Kind: tc.kind, Accelerator: accel.Verdict{Accelerator: vmm.KVM}}}
		m := s.machine(c, image, measure.Launch{Cmdline: "quiet"})
		if d := cmp.Diff(tc.want, m.Confidential); d != "" || m.CPU != tc.cpu || len(m.Ports) != 1 {
			t.Errorf("%s: cpu %s, ports %v, (-want +got):\n%s", tc.kind, m.CPU, m.Ports, d)
		}
		m.Kernel, m.Initrd = vmm.Input{Path: "/k"}, vmm.Input{Path: "/i"}
		if err := m.Validate(); err != nil {
			t.Error(err)
		}
		if s.Network().GetInterfaces()[0].GetMac() != m.Network.MAC.String() {
			t.Errorf("the guest is told another address than the card has: %v", s.Network())
		}
		if _, err := s.accelerator(t.Context(), Config{Accelerator: accel.TCG}, vmm.QEMU{}, image); err == nil {
			t.Errorf("%s under TCG", tc.kind)
		}
	}
	// A pod's network is on the host's taps, and the user-mode network is not there.
	c.Network = &Network{
		Cards: []vmm.Card{{MAC: MAC("card"), Tap: os.Stdin, MTU: 1450}},
		Guest: &agentapi.Network{Interfaces: []*agentapi.Interface{{Mac: MAC("card").String(), Name: "eth0"}}},
	}
	c.DiskSlots = 3
	s := &Sandbox{mac: MAC(c.ID), info: Info{Kind: SNP, Accelerator: accel.Verdict{Accelerator: vmm.KVM}}}
	m := s.machine(c, image, measure.Launch{Cmdline: "quiet"})
	if m.Network != nil || len(m.Cards) != 1 || m.DiskSlots != 3 {
		t.Errorf("machine %+v", m)
	}
	s.Network().GetInterfaces()[0].Name = "changed"
	if got := s.Network(); !proto.Equal(got, c.Network.Guest) || got.GetInterfaces()[0].GetName() != "eth0" {
		t.Errorf("the guest is told %v", got)
	}
	c.NoNetwork, c.Logger = true, slog.New(slog.DiscardHandler)
	if _, err := c.prepare(); err == nil || !strings.Contains(err.Error(), "network: expected cards") {
		t.Errorf("a network and none: %v", err)
	}
	if _, err := LoadImage(t.TempDir(), SNP, ""); err == nil || !strings.Contains(err.Error(), "coffer guest build") {
		t.Errorf("no image: %v", err)
	}
}

func TestPrepareNamesEveryProblem(t *testing.T) {
	t.Parallel()
	_, err := Config{InitDataDigest: []byte("x")}.prepare()
	for _, want := range []string{"image: ", "vcpus: ", "memory: ", "initdata digest: ", "logger: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
	ok := Config{Image: "x", VCPUs: 1, MemoryMiB: 256, Logger: slog.New(slog.DiscardHandler)}
	a, err := ok.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := ok.prepare(); a.ID == b.ID || !strings.HasPrefix(a.ID, "coffer-") {
		t.Errorf("ids %q, %q", a.ID, b.ID)
	}
	again := MAC("a").String()
	if MAC("a").String() == MAC("b").String() || MAC("a").String() != again {
		t.Error("a MAC is not fixed by the id")
	}
}
