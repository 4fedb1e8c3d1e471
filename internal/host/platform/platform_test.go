package platform

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func noEncryption(uint32) (uint32, uint32, uint32, uint32) { return 0x80000008, 0, 0, 0 }

func milan(leaf uint32) (uint32, uint32, uint32, uint32) {
	if leaf == 0x8000001f {
		return 0x1ffffff, 1<<6 | 51, 509, 1
	}
	return 0x80000023, 0, 0, 0
}

func TestInspect(t *testing.T) {
	t.Parallel()
	const snp, tdx = "sys/module/kvm_amd/parameters/sev_snp", "sys/module/kvm_intel/parameters/tdx"
	for _, tc := range []struct {
		name               string
		files              map[string]string
		cpuid              CPUID
		kvm, vsock         bool
		snp, tdx           string // "" works, else part of the error
		cbit, reducedPhysB int
	}{
		{name: "bare", cpuid: noEncryption, snp: "no such file", tdx: "no such file"},
		{
			name: "SNP", cpuid: milan, files: map[string]string{"dev/kvm": "", "dev/sev": "", "dev/vhost-vsock": "", snp: "Y\n"},
			kvm: true, vsock: true, tdx: "no such file", cbit: 51, reducedPhysB: 1,
		},
		{name: "SNP off", cpuid: milan, files: map[string]string{"dev/sev": "", snp: "N\n"}, snp: `expected Y, got "N"`, tdx: "no such", cbit: 51, reducedPhysB: 1},
		{name: "no /dev/sev", cpuid: milan, files: map[string]string{snp: "1"}, snp: "/dev/sev", tdx: "no such", cbit: 51, reducedPhysB: 1},
		{name: "TDX", cpuid: noEncryption, files: map[string]string{"dev/kvm": "", tdx: "Y"}, kvm: true, snp: "no such"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := InspectRoot(host(t, tc.files), tc.cpuid)
			if (f.KVM == nil) != tc.kvm || (f.VhostVsock == nil) != tc.vsock {
				t.Errorf("kvm %v, vsock %v", f.KVM, f.VhostVsock)
			}
			check(t, "SNP", f.SNP, tc.snp)
			check(t, "TDX", f.TDX, tc.tdx)
			if f.CBitPos != tc.cbit || f.ReducedPhysBits != tc.reducedPhysB {
				t.Errorf("C bit %d, reduced %d", f.CBitPos, f.ReducedPhysBits)
			}
		})
	}
}

func check(t *testing.T, what string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

func TestCPUIDInstruction(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("no CPUID on " + runtime.GOARCH)
	}
	top, b, c, d := cpuid(0)
	if top == 0 || b == 0 || c == 0 || d == 0 {
		t.Errorf("leaf 0: %#x %#x %#x %#x", top, b, c, d)
	}
	_ = Inspect()
}
