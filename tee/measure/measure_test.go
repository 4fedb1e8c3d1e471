package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func amdSevLaunch() Launch {
	return Launch{
		Firmware: ovmfImage(4*pageSize, amdSevSections(), amdSevResetEIP, amdSevHashesGPA),
		Kernel:   []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "console=ttyS0", VCPUs: 2, VCPUModel: "EPYC-Milan",
	}
}

func softLaunch() Launch {
	return Launch{
		Firmware: bytes.Repeat([]byte{0x90}, 64*pageSize), Kernel: []byte("kernel"), Initrd: []byte("initrd"),
		Cmdline: "console=ttyS0", VCPUs: 2, VCPUModel: "max",
	}
}

// Frozen values: a change of any of them is a change of every measurement that
// owners have registered. virtee/sev-snp-measure 0.0.13 gives the same ones:
// for the first as a whole, for the second by its page and VMSA functions.
func TestFrozenDigests(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		launch Launch
		layout Layout
		want   string
	}{
		{"ovmf", amdSevLaunch(), LayoutOVMF, "03788f135f9cea291dbbb4e1cb8164feff32a6421806b4b7fe5bfa06f4822bc0aa54fe84e44daef58609ead709d5a828"},
		{"software", softLaunch(), LayoutSoftware, "6548f6a4d166f0a29ec5f625ec681141cc29003e25ee7710016bf6b6df7545104b3e0ad364e31bab78ad4ab29c127c06"},
	} {
		got, err := Predict(tc.launch)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got.Digest[:]) != tc.want || got.Layout != tc.layout {
			t.Errorf("%s: got %x in layout %s, want %s in %s", tc.name, got.Digest, got.Layout, tc.want, tc.layout)
		}
	}
}

// Every input is measured, and Diff names the one that changed.
func TestEveryInputCounts(t *testing.T) {
	t.Parallel()
	for _, base := range []func() Launch{amdSevLaunch, softLaunch} {
		want, err := SNP(base())
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			input  string
			change func(*Launch)
		}{
			{"firmware", func(l *Launch) { l.Firmware = slices.Clone(l.Firmware); l.Firmware[0] ^= 1 }},
			{"kernel", func(l *Launch) { l.Kernel = []byte("kernel2") }},
			{"initrd", func(l *Launch) { l.Initrd = nil }},
			{"cmdline", func(l *Launch) { l.Cmdline += " debug" }},
			{"vcpus", func(l *Launch) { l.VCPUs++ }},
			{"vcpu_model", func(l *Launch) { l.VCPUModel = "EPYC-Genoa" }},
			{"guest_features", func(l *Launch) { l.GuestFeatures = 0x21 }},
		} {
			l := base()
			tc.change(&l)
			got, err := SNP(l)
			if err != nil {
				t.Fatalf("%s: %v", tc.input, err)
			}
			if got == want {
				t.Errorf("%s is not measured", tc.input)
			}
			changes := Diff(base().Inputs(), l.Inputs())
			if len(changes) != 1 || changes[0].Input != tc.input || changes[0].Expected == changes[0].Got {
				t.Errorf("%s: Diff says %v", tc.input, changes)
			}
		}
	}
}

func TestInputs(t *testing.T) {
	t.Parallel()
	in := amdSevLaunch().Inputs()
	if want := "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c"; in.Kernel != want {
		t.Errorf("kernel: got %s, want %s", in.Kernel, want)
	}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var again Inputs
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, again); diff != "" {
		t.Error(diff)
	}
	if changes := Diff(in, again); changes != nil {
		t.Errorf("equal inputs differ: %v", changes)
	}
	again.GuestFeatures = 0 // stands for the default
	if changes := Diff(in, again); changes != nil {
		t.Errorf("default features differ from none: %v", changes)
	}
	if none := (Launch{}).Inputs(); none.Kernel != "" || none.Initrd != "" {
		t.Errorf("no kernel: got %+v", none)
	}
}

func TestLaunchRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Launch)
		want   string
	}{
		"no firmware":             {func(l *Launch) { l.Firmware = nil }, "firmware"},
		"large firmware":          {func(l *Launch) { l.Firmware = make([]byte, MaxFirmware+pageSize) }, "firmware"},
		"cut firmware":            {func(l *Launch) { l.Firmware = l.Firmware[1:] }, "multiple"},
		"no CPU":                  {func(l *Launch) { l.VCPUs = 0 }, "vcpus"},
		"many CPUs":               {func(l *Launch) { l.VCPUs = MaxVCPUs + 1 }, "vcpus"},
		"long command line":       {func(l *Launch) { l.Cmdline = strings.Repeat("x", MaxCmdline+1) }, "cmdline"},
		"NUL in command line":     {func(l *Launch) { l.Cmdline = "a\x00b" }, "NUL at byte 1"},
		"initrd without kernel":   {func(l *Launch) { l.Kernel = nil }, "without a kernel"},
		"unknown model":           {func(l *Launch) { l.VCPUModel = "host" }, `"host"`},
		"model only for software": {func(l *Launch) { l.VCPUModel = "max" }, "EPYC-v4"},
		"features without SNP":    {func(l *Launch) { l.GuestFeatures = 0x20 }, "guest_features"},
	} {
		l := amdSevLaunch()
		tc.change(&l)
		if d, err := SNP(l); err == nil || !strings.Contains(err.Error(), tc.want) || d != [48]byte{} {
			t.Errorf("%s: got %x, %v; want an error with %q", name, d, err, tc.want)
		}
	}
	// All problems are reported at once.
	_, err := SNP(Launch{})
	for _, want := range []string{"firmware", "vcpus"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("empty launch: %v does not mention %s", err, want)
		}
	}
}

func TestFirmwareRefused(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	sections := func(s ...section) []byte { return ovmfImage(4*pageSize, s, amdSevResetEIP, amdSevHashesGPA) }
	footer := func(entries ...footerEntry) []byte {
		image := make([]byte, 4*pageSize)
		putFooter(image, entries)
		return image
	}
	patch := func(at int, b ...byte) []byte { // at: distance from the end
		image := sections(amdSevSections()...)
		copy(image[len(image)-at:], b)
		return image
	}
	metadata := footerEntry{guidSEVMetadata, le.AppendUint32(nil, 0x554)}
	hashes := section{0x810000, 0x1000, sectionKernelHashes}
	for name, tc := range map[string]struct {
		image []byte
		want  string
	}{
		"no place for hashes":     {sections(section{0x800000, 0x1000, sectionSecMem}), "AmdSev"},
		"hashes elsewhere":        {sections(section{0x820000, 0x1000, sectionKernelHashes}), "kernel hashes page"},
		"two pages of hashes":     {sections(section{0x810000, 0x2000, sectionKernelHashes}), "kernel hashes page"},
		"hashes twice":            {sections(hashes, hashes), "kernel hashes page"},
		"hashes beyond the page":  {ovmfImage(4*pageSize, []section{hashes}, 1, 0x810fff), "kernel hashes page"},
		"unknown section":         {sections(hashes, section{0x800000, 0x1000, 0x77}), "kind 0x77"},
		"two secrets pages":       {sections(hashes, section{0x800000, 0x2000, sectionSecrets}), "secrets"},
		"two CPUID pages":         {sections(hashes, section{0x800000, 0x2000, sectionCPUID}), "CPUID"},
		"unaligned section":       {sections(section{0x800001, 0x1000, sectionSecMem}), "whole pages"},
		"empty section":           {sections(section{0x800000, 0, sectionSecMem}), "whole pages"},
		"huge section":            {sections(section{0x800000, 0xfffff000, sectionSecMem}), "whole pages"},
		"signature":               {patch(0x554, 'X'), "ASEV"},
		"version":                 {patch(0x554-8, 2), "version"},
		"count":                   {patch(0x554-12, 200), "sections"},
		"length":                  {patch(0x554-4, 0), "sections"},
		"table too long":          {patch(50, 0xff, 0xff), "footer table"},
		"table too short":         {patch(50, 1, 0), "footer table"},
		"entry too long":          {patch(50+18, 0xff, 0xff), "footer table"},
		"entry twice":             {footer(metadata, metadata), "twice"},
		"entry without content":   {footer(footerEntry{guidSEVMetadata, nil}), "offset"},
		"offset beyond the image": {footer(footerEntry{guidSEVMetadata, le.AppendUint32(nil, 1<<31)}), "offset"},
		"offset in the end":       {footer(footerEntry{guidSEVMetadata, le.AppendUint32(nil, 8)}), "offset"},
	} {
		l := amdSevLaunch()
		l.Firmware = tc.image
		if _, err := SNP(l); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, tc.want)
		}
	}
	// Metadata, but nowhere for the second CPU to start.
	image := sections(hashes)
	putFooter(image, []footerEntry{metadata})
	copy(image[len(image)-0x554:], "ASEV")
	l := amdSevLaunch()
	l.Firmware = image
	if _, err := SNP(l); err == nil || !strings.Contains(err.Error(), "reset block") {
		t.Errorf("no reset block: got %v", err)
	}
}

func TestCPUSignature(t *testing.T) {
	t.Parallel()
	for model, want := range map[string]uint32{
		"EPYC-v4": 0x00800f12, "EPYC-Rome-v2": 0x00830f10, "EPYC-Milan": 0x00a00f11, "EPYC-Genoa": 0x00a10f10, "EPYC-Turin": 0x00b00f00,
	} {
		if got, err := CPUSignature(model); err != nil || got != want {
			t.Errorf("%s: got %#x, %v; want %#x", model, got, err, want)
		}
	}
	if got, err := cpuSignature("max", LayoutSoftware); err != nil || got != 0x00060fb1 {
		t.Errorf("max: got %#x, %v", got, err)
	}
}

// The firmware that QEMU brings along declares nothing: it is measured in the
// software layout.
func TestSeaBIOS(t *testing.T) {
	t.Parallel()
	firmware, err := os.ReadFile("/usr/share/seabios/bios-256k.bin")
	if err != nil {
		t.Skipf("Debian's package seabios is not installed: %v", err)
	}
	l := softLaunch()
	l.Firmware = firmware
	if r, err := Predict(l); err != nil || r.Layout != LayoutSoftware {
		t.Errorf("got %+v, %v", r, err)
	}
}

func FuzzFirmware(f *testing.F) {
	f.Add(ovmfImage(pageSize, amdSevSections(), amdSevResetEIP, amdSevHashesGPA)[pageSize-0x600:])
	f.Add([]byte("SeaBIOS"))
	f.Fuzz(func(t *testing.T, tail []byte) {
		image := make([]byte, pageSize+(len(tail)+pageSize-1)/pageSize*pageSize)
		copy(image[len(image)-len(tail):], tail)
		l := Launch{Firmware: image, Kernel: []byte("kernel"), VCPUs: 1, VCPUModel: "EPYC"}
		d, err := SNP(l)
		if err != nil && d != [48]byte{} {
			t.Fatal("both a digest and an error")
		}
	})
}
