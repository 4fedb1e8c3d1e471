package measure

import (
	"strings"
	"testing"
)

// A seed gives what measuring each count anew gives, and so does a published
// digest for one CPU with the firmware's reset address.
func TestSeed(t *testing.T) {
	t.Parallel()
	for _, v := range VMMs() {
		l := amdSevLaunch()
		l.VMM = v
		seed, err := NewSeed(l)
		if err != nil {
			t.Fatal(err)
		}
		all, err := seed.Digests(MaxVCPUs)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := CPUSignature(l.VCPUModel)
		if err != nil {
			t.Fatal(err)
		}
		resumed, err := ResumeSeed(all[0], amdSevResetEIP, signature, DefaultGuestFeatures, v).Digests(5)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 5; n++ {
			l.VCPUs = n
			want, err := SNP(l)
			if err != nil || all[n-1] != want || resumed[n-1] != want {
				t.Errorf("%s, %d CPUs: from the seed %x, from one digest %x, want %x, %v", v, n, all[n-1], resumed[n-1], want, err)
			}
		}
		for _, n := range []int{-1, 0, MaxVCPUs + 1} {
			if _, err := seed.Digests(n); err == nil || !strings.Contains(err.Error(), "vcpus") {
				t.Errorf("%d CPUs: got %v", n, err)
			}
		}
	}
}

// The firmware's digest stands for its pages; its end is enough for the rest.
func TestFirmwareDigest(t *testing.T) {
	t.Parallel()
	l := amdSevLaunch()
	want, err := SNP(l)
	if err != nil {
		t.Fatal(err)
	}
	if l.FirmwareDigest, err = FirmwareDigest(l.Firmware); err != nil {
		t.Fatal(err)
	}
	l.Firmware = l.Firmware[len(l.Firmware)-pageSize:]
	if got, err := SNP(l); err != nil || got != want {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
	if in := l.Inputs(); !strings.HasPrefix(in.Firmware, "snp:") {
		t.Errorf("inputs: %+v", in)
	}
	if _, err := FirmwareDigest(nil); err == nil {
		t.Error("no firmware: no error")
	}
}

// A signature stands for a model; EC2 and GCE need neither.
func TestSignature(t *testing.T) {
	t.Parallel()
	l := amdSevLaunch()
	want, err := SNP(l)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := SignatureOf(25, 1, 1)
	if err != nil || signature != 0x00a00f11 {
		t.Fatalf("got %#x, %v", signature, err)
	}
	l.VCPUModel, l.VCPUSignature = "", &signature
	if got, err := SNP(l); err != nil || got != want {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
	if changes := Diff(amdSevLaunch().Inputs(), l.Inputs()); len(changes) != 2 {
		t.Errorf("changes: %v", changes)
	}
	l.VCPUModel = "EPYC-Milan"
	if _, err := SNP(l); err == nil || !strings.Contains(err.Error(), "vcpu_signature") {
		t.Errorf("both: got %v", err)
	}
	l.VCPUModel, l.VCPUSignature, l.VMM = "", nil, VMMEC2
	if _, err := SNP(l); err != nil {
		t.Errorf("EC2: %v", err)
	}
	l.VMM = "xen"
	if _, err := SNP(l); err == nil || !strings.Contains(err.Error(), "vmm") {
		t.Errorf("unknown VMM: got %v", err)
	}
	for _, bad := range [][3]uint32{{271, 0, 0}, {25, 256, 0}, {25, 1, 16}} {
		if _, err := SignatureOf(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
	if low, err := SignatureOf(6, 1, 2); err != nil || low != 0x612 {
		t.Errorf("family 6: got %#x, %v", low, err)
	}
}
