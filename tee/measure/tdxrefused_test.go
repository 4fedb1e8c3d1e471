package measure

import (
	"encoding/binary"
	"strings"
	"testing"
)

func TestTDXRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*TDXLaunch)
		want   string
	}{
		"no firmware":        {func(l *TDXLaunch) { l.Firmware = nil }, "firmware"},
		"no CPU":             {func(l *TDXLaunch) { l.VCPUs = 0 }, "vcpus"},
		"no memory":          {func(l *TDXLaunch) { l.Memory = 0 }, "memory"},
		"odd memory":         {func(l *TDXLaunch) { l.Memory++ }, "memory"},
		"too much memory":    {func(l *TDXLaunch) { l.Memory = 1 << 60 }, "memory"},
		"little memory":      {func(l *TDXLaunch) { l.Memory = 4 << 20 }, "memory"},
		"page order":         {func(l *TDXLaunch) { l.Order = "random" }, "order"},
		"no profile":         {func(l *TDXLaunch) { l.Profile = "" }, "profile"},
		"initrd alone":       {func(l *TDXLaunch) { l.Kernel = nil }, "without a kernel"},
		"short kernel":       {func(l *TDXLaunch) { l.Kernel = l.Kernel[:100] }, "kernel"},
		"no Linux kernel":    {func(l *TDXLaunch) { l.Kernel[0x202] = 0 }, "HdrS"},
		"old kernel":         {func(l *TDXLaunch) { l.Kernel[0x207] = 0 }, "boot protocol"},
		"no PE image":        {func(l *TDXLaunch) { l.Kernel[0] = 0 }, "EFI stub"},
		"raw kernel, no PE":  {func(l *TDXLaunch) { l.Kernel, l.RawKernel = []byte("x"), true }, "EFI stub"},
		"video mode":         {func(l *TDXLaunch) { l.Cmdline = "vga=ask" }, "vga="},
		"no ACPI tables":     {func(l *TDXLaunch) { l.RTMR0.Tables = Blob{} }, "etc/acpi/tables"},
		"odd boot order":     {func(l *TDXLaunch) { l.RTMR0.BootOrder = []byte{1} }, "boot_order"},
		"boot without order": {func(l *TDXLaunch) { l.RTMR0.Boot = [][]byte{{1}} }, "boot_order"},
		"no authority":       {func(l *TDXLaunch) { l.Profile = ProfileOVMF2025 }, "variable_authority"},
		"large initrd":       {func(l *TDXLaunch) { l.Memory = 12 << 20; l.Initrd = make([]byte, 12<<20) }, "initrd"},
	} {
		l := tdxLaunch(t)
		tc.change(&l)
		if r, err := TDX(l); err == nil || !strings.Contains(err.Error(), tc.want) || r.MRTD != ([48]byte{}) {
			t.Errorf("%s: got %x, %v; want an error with %q", name, r.MRTD, err, tc.want)
		}
	}
}

func TestTDVFRefused(t *testing.T) {
	t.Parallel()
	one := func(change func(*TDVFSection)) []byte {
		s := smallSections()
		change(&s[0])
		return tdvfImage(0x6000, s)
	}
	patch := func(at int, b ...byte) []byte { // at: distance from the end
		image := tdvfImage(0x6000, smallSections())
		copy(image[len(image)-at:], b)
		return image
	}
	for name, tc := range map[string]struct {
		image []byte
		want  string
	}{
		"no code":              {one(func(s *TDVFSection) { s.Kind = TDVFTempMem }), "boot firmware volume"},
		"unknown kind":         {one(func(s *TDVFSection) { s.Kind = 9 }), "kind 9"},
		"unaligned":            {one(func(s *TDVFSection) { s.Address++ }), "whole pages"},
		"odd size":             {one(func(s *TDVFSection) { s.MemorySize++ }), "whole pages"},
		"huge":                 {one(func(s *TDVFSection) { s.MemorySize = 1 << 40 }), "whole pages"},
		"far away":             {one(func(s *TDVFSection) { s.Address = 1 << 63 }), "2^52"},
		"beyond the image":     {one(func(s *TDVFSection) { s.Offset = 0x4000 }), "OVMF.fd"},
		"offset overflows":     {one(func(s *TDVFSection) { s.Offset = 0xffffffff }), "within the image"},
		"more data than room":  {one(func(s *TDVFSection) { s.MemorySize = 0x1000 }), "as much memory"},
		"no data":              {one(func(s *TDVFSection) { s.Size = 0 }), "data for all"},
		"attributes":           {one(func(s *TDVFSection) { s.Attributes = 4 }), "attributes"},
		"measured, added late": {one(func(s *TDVFSection) { s.Attributes = 3 }), "added after"},
		"overlap":              {one(func(s *TDVFSection) { s.Address = 0xffff9000 }), "overlap"},
		"much memory":          {tdvfImage(0x6000, append(smallSections(), spread(2, maxTDXMemory, 0)...)), "in all sections"},
		"much content":         {tdvfImage(0x6000, append(smallSections(), spread(5, maxTDXExtended/4, TDVFExtend)...)), "in all sections"},
		"two hand-off blocks":  {tdvfImage(0x6000, append(smallSections(), TDVFSection{Kind: TDVFHOB, Address: 0x80d000, MemorySize: 0x1000})), "TD_HOB"},
		"GUID":                 {patch(0x810, 0), "GUID"},
		"signature":            {patch(0x800, 'X'), "TDVF"},
		"version":              {patch(0x800-8, 2), "version"},
		"count":                {patch(0x800-12, 200), "sections"},
		"length":               {patch(0x800-4, 0), "sections"},
	} {
		if s, err := ParseTDVF(tc.image); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, s, err, tc.want)
		}
	}
	for name, offset := range map[string]uint32{"in the end": 8, "beyond the image": 1 << 31} {
		image := make([]byte, pageSize)
		putFooter(image, []footerEntry{{guidTDXOffset, binary.LittleEndian.AppendUint32(nil, offset)}})
		if _, err := ParseTDVF(image); err == nil || !strings.Contains(err.Error(), "offset") {
			t.Errorf("offset %s: got %v", name, err)
		}
	}
}

// spread are n sections without data, side by side above 4 GiB.
func spread(n int, size uint64, attributes uint32) (out []TDVFSection) {
	for i := range n {
		out = append(out, TDVFSection{Kind: TDVFPayload, Address: fourGiB + uint64(i)*size, MemorySize: size, Attributes: attributes})
	}
	return out
}

func FuzzTDX(f *testing.F) {
	image := tdvfImage(0x6000, smallSections())
	f.Add(image[0x5000:], linuxImage(f, 0x4000))
	f.Add([]byte("SeaBIOS"), []byte("MZ"))
	f.Fuzz(func(t *testing.T, tail, kernel []byte) {
		image := make([]byte, 0x5000+(len(tail)+pageSize-1)/pageSize*pageSize)
		copy(image[len(image)-len(tail):], tail)
		r, err := TDX(TDXLaunch{
			Firmware: image, Kernel: kernel, Initrd: []byte("initrd"), Memory: 1 << 30, VCPUs: 1, Profile: ProfileOVMF2024,
			RTMR0: &TDXPlatform{Loader: Blob{Data: []byte{}}, RSDP: Blob{Data: []byte{}}, Tables: Blob{Data: []byte{}}},
		})
		if err != nil && (r.MRTD != [48]byte{} || r.Events != nil) {
			t.Fatal("both a prediction and an error")
		}
	})
}
