package measure

import (
	"crypto/sha512"
	"runtime"
	"testing"
)

// BenchmarkPredict compares predictions with the SHA-384 of what they read: 4 MiB
// of firmware, 12 of kernel, 20 of initrd.
func BenchmarkPredict(b *testing.B) {
	snp := amdSevLaunch()
	snp.Firmware = ovmfImage(4<<20, amdSevSections(), amdSevResetEIP, amdSevHashesGPA)
	tdx := tdxLaunch(b)
	tdx.Firmware = tdvfImage(4<<20, ovmfSections())
	tdx.Kernel, tdx.Initrd = linuxImage(b, 12<<20), make([]byte, 20<<20)
	snp.Kernel, snp.Initrd = tdx.Kernel, tdx.Initrd
	total := int64(4+12+20) << 20
	b.Run("sha384", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			h := sha512.New384()
			for _, part := range [][]byte{snp.Firmware, snp.Kernel, snp.Initrd} {
				_, _ = h.Write(part)
			}
			h.Sum(nil)
		}
	})
	b.Run("snp", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			if _, err := SNP(snp); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tdx", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			if _, err := TDX(tdx); err != nil {
				b.Fatal(err)
			}
		}
	})
	// Firmware alone is the worst case: every page costs more than its bytes.
	b.Run("firmware/sha384", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			sha512.Sum384(snp.Firmware)
		}
	})
	b.Run("firmware/snp", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			if _, err := FirmwareDigest(snp.Firmware); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("firmware/tdx", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			m := newMRTD()
			for _, s := range ovmfSections() {
				m.section(tdx.Firmware, s, PageOrderInterleaved)
			}
			m.sum()
		}
	})
}

// A prediction never copies what it reads, and no firmware makes it allocate more
// than a part of its own size.
func TestAllocations(t *testing.T) {
	snp := amdSevLaunch()
	snp.Firmware = ovmfImage(1<<20, amdSevSections(), amdSevResetEIP, amdSevHashesGPA)
	tdx := tdxLaunch(t)
	tdx.Firmware = tdvfImage(0x400000, ovmfSections())
	tdx.Kernel, tdx.Initrd = linuxImage(t, 4<<20), make([]byte, 1<<20)
	for name, f := range map[string]func() error{
		"snp": func() error { _, err := SNP(snp); return err },
		"tdx": func() error { _, err := TDX(tdx); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := f(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
			t.Errorf("%s: allocates %d bytes, want at most 64 KiB", name, got)
		}
	}
}
