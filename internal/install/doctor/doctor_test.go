package doctor

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

func machine(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	snpOn = "sys/module/kvm_amd/parameters/sev_snp=Y"
	tdxOn = "sys/module/kvm_intel/parameters/tdx=Y"
	cg2   = "sys/fs/cgroup/cgroup.controllers="
)

func inspect(t *testing.T, o Options, qemu vmm.QEMU, qemuErr error) (*Report, map[string]Check) {
	t.Helper()
	o.CPUID = func(uint32) (a, b, c, d uint32) { return 0, 0, 0, 0 }
	o.FindQEMU = func(context.Context, string) (vmm.QEMU, error) { return qemu, qemuErr }
	if o.Network == nil {
		o.Network = func() error { return nil }
	}
	o.Accelerator = func(context.Context, accel.Options) (accel.Verdict, error) {
		return accel.Verdict{}, errors.New("not asked here")
	}
	o.Install.Root = o.Root
	r := Inspect(t.Context(), o)
	checks := make(map[string]Check)
	for _, c := range r.Checks {
		checks[c.Name] = c
	}
	return r, checks
}

func TestHardware(t *testing.T) {
	t.Parallel()
	new91, new101, old := vmm.QEMU{Path: "/q", Major: 9, Minor: 1}, vmm.QEMU{Path: "/q", Major: 10, Minor: 1}, vmm.QEMU{Path: "/q", Major: 9, Minor: 0}
	const snpFirmware, tdxFirmware = "usr/share/ovmf/OVMF.amdsev.fd=", "usr/share/edk2/ovmf/OVMF.inteltdx.fd="
	for _, tc := range []struct {
		name     string
		files    []string
		qemu     vmm.QEMU
		snp, tdx bool
		detail   string // of the TEE that is not there
	}{
		{"SNP", []string{snpOn, "dev/sev=", snpFirmware, cg2}, new91, true, false, "no such file"},
		{"SNP without firmware", []string{snpOn, "dev/sev=", cg2}, new91, false, false, "no firmware for its guests"},
		{"SNP, old QEMU", []string{snpOn, "dev/sev=", snpFirmware, cg2}, old, false, false, "needs QEMU 9.1 or newer, this is 9.0"},
		{"SNP off", []string{"sys/module/kvm_amd/parameters/sev_snp=N", "dev/sev=", snpFirmware, cg2}, new91, false, false, "expected Y"},
		{"TDX", []string{tdxOn, tdxFirmware, cg2}, new101, false, true, ""},
		{"TDX, old QEMU", []string{tdxOn, tdxFirmware, cg2}, new91, false, false, "needs QEMU 10.1 or newer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, checks := inspect(t, Options{Root: machine(t, tc.files...)}, tc.qemu, nil)
			if r.SNP != tc.snp || r.TDX != tc.tdx || !r.Soft {
				t.Errorf("%+v", r)
			}
			if detail := checks["SEV-SNP"].Detail + checks["TDX"].Detail; !strings.Contains(detail, tc.detail) {
				t.Errorf("%q", detail)
			}
			if r.Ready() || len(r.Labels()) != 0 {
				t.Error("nothing is installed, but the node is ready")
			}
			r.Runtime, r.Handlers = true, []string{"coffer-qemu-soft", "coffer-qemu-snp", "coffer-qemu-tdx"}
			r.Checks = slices.DeleteFunc(r.Checks, func(c Check) bool { return c.Name == "runtime" })
			want := []string{LabelPrefix + "runtime", LabelPrefix + "soft"}
			if tc.snp {
				want = append(want, LabelPrefix+"snp")
			}
			if tc.tdx {
				want = append(want, LabelPrefix+"tdx")
			}
			slices.Sort(want)
			if got := slices.Sorted(maps.Keys(r.Labels())); !slices.Equal(got, want) {
				t.Errorf("labels %q, want %q", got, want)
			}
			r.Handlers = nil
			if got := r.Labels(); len(got) != 1 {
				t.Errorf("labels without handlers: %v", got)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	r, checks := inspect(t, Options{Root: machine(t, "x="), Network: func() error { return errors.New("no u32") }}, vmm.QEMU{}, errors.New("no QEMU"))
	for name, want := range map[string]string{"QEMU": "no QEMU", "pod network": "no u32", "cgroups": "no memory controller", "runtime": "not installed"} {
		if c := checks[name]; c.Level != Missing || !strings.Contains(c.Detail, want) || c.Help == "" {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if r.Soft || r.Ready() {
		t.Errorf("%+v", r)
	}
	for _, c := range r.Checks {
		if strings.Contains(c.Detail, "\n") {
			t.Errorf("several lines: %+v", c)
		}
	}
}

// TestThisMachine makes a tap device and its filters for real.
func TestThisMachine(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("makes a network namespace: needs root")
	}
	before := links(t)
	if err := tryNetwork(); err != nil {
		t.Errorf("%v", err)
	}
	if after := links(t); !slices.Equal(before, after) {
		t.Errorf("links before: %v, after: %v", before, after)
	}
}

func links(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() == "tap0" {
			names = append(names, e.Name())
		}
	}
	return names
}
