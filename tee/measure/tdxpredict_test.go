package measure

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/measure/peimage"
)

func smallSections() []TDVFSection {
	return []TDVFSection{
		{TDVFBFV, 0x2000, 0x4000, 0xffffc000, 0x4000, TDVFExtend},
		{TDVFCFV, 0, 0x2000, 0xffffa000, 0x2000, 0},
		{TDVFTempMem, 0, 0, 0x810000, 0x2000, 0},
		{TDVFHOB, 0, 0, 0x809000, 0x1000, 0},
		{TDVFPermMem, 0, 0, 0x900000, 0x3000, TDVFAug},
		{TDVFPayload, 0x100, 0x300, 0x1000000, 0x1000, TDVFExtend},
	}
}

func tdxLaunch(t testing.TB) TDXLaunch {
	return TDXLaunch{
		Firmware: tdvfImage(0x6000, smallSections()), Kernel: linuxImage(t, 0x8000), Initrd: bytes.Repeat([]byte("initrd"), 1000),
		Cmdline: "console=ttyS0 ü", Memory: 512 << 20, VCPUs: 2, Profile: ProfileOVMF2024,
		RTMR0: &TDXPlatform{Loader: Blob{Data: []byte("loader")}, RSDP: Blob{Data: []byte("rsdp")}, Tables: Blob{Data: []byte("tables")}},
	}
}

// MRTD as the TDX module's specification words it, with no regard to speed.
func naiveMRTD(image []byte, sections []TDVFSection, twoPass bool) [48]byte {
	var stream []byte
	buffer := func(name string, gpa uint64) {
		b := make([]byte, 128)
		copy(b, name)
		binary.LittleEndian.PutUint64(b[16:], gpa)
		stream = append(stream, b...)
	}
	for _, s := range sections {
		memory := make([]byte, s.MemorySize)
		copy(memory, image[s.Offset:s.Offset+s.Size])
		extend := func(page uint64) {
			for chunk := page; chunk < page+4096; chunk += 256 {
				buffer("MR.EXTEND", s.Address+chunk)
				stream = append(stream, memory[chunk:chunk+256]...)
			}
		}
		var later []uint64
		for page := uint64(0); page < s.MemorySize; page += 4096 {
			if s.Attributes&TDVFAug != 0 {
				continue
			}
			buffer("MEM.PAGE.ADD", s.Address+page)
			switch {
			case s.Attributes&TDVFExtend == 0:
			case twoPass:
				later = append(later, page)
			default:
				extend(page)
			}
		}
		for _, page := range later {
			extend(page)
		}
	}
	return sha512.Sum384(stream)
}

func TestMRTD(t *testing.T) {
	t.Parallel()
	l := tdxLaunch(t)
	digests := map[[48]byte]bool{}
	for _, order := range []PageOrder{"", PageOrderInterleaved, PageOrderTwoPass} {
		l.Order = order
		r, err := TDX(l)
		if err != nil {
			t.Fatal(err)
		}
		if want := naiveMRTD(l.Firmware, smallSections(), order == PageOrderTwoPass); r.MRTD != want || r.Layout != LayoutTDVF {
			t.Errorf("order %q: got %x in layout %s, want %x", order, r.MRTD, r.Layout, want)
		}
		digests[r.MRTD] = true
	}
	if len(digests) != 2 {
		t.Errorf("three orders give %d digests, want 2", len(digests))
	}
}

// Frozen values: a change of any of them is a change of every measurement that
// owners have registered.
func TestTDXFrozen(t *testing.T) {
	t.Parallel()
	soft := tdxLaunch(t)
	soft.Firmware, soft.Profile = bytes.Repeat([]byte{0x90}, 4*pageSize), ""
	newer := tdxLaunch(t)
	newer.Profile, newer.RawKernel, newer.RTMR0.VariableAuthority = ProfileOVMF2025, true, [48]byte{1}
	for _, tc := range []struct {
		name   string
		launch TDXLaunch
		want   [4]string // beginnings of MRTD, RTMR0, RTMR1, RTMR2
	}{
		{"ovmf-2024", tdxLaunch(t), [4]string{"959de7c0af3bcf59", "77a4ceeea5f71c4b", "8abfffd7f20ba7f2", "f3c720cd949a5974"}},
		{"ovmf-2025", newer, [4]string{"959de7c0af3bcf59", "eb8aa5394460c6f4", "9509b7ae81938d6e", "f3c720cd949a5974"}},
		{"software", soft, [4]string{"697f7e439309db5c", "4b834eb8fe4a1fa6", "32cf10bf3e898b36", "23b7f0337719c073"}},
	} {
		r, err := TDX(tc.launch)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		got := [4]string{hex.EncodeToString(r.MRTD[:8]), hex.EncodeToString(r.RTMR[0][:8]), hex.EncodeToString(r.RTMR[1][:8]), hex.EncodeToString(r.RTMR[2][:8])}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		if r.RTMR != Replay(r.Events) || r.RTMR[3] != ([48]byte{}) || r.Unknown != ([4]string{}) {
			t.Errorf("%s: registers %x, unknown %q", tc.name, r.RTMR, r.Unknown)
		}
	}
}

// RTMR1 and RTMR2 of a direct boot, by the recipe of Dstack-TEE/dstack
// (dstack-mr/src/kernel.rs) and virtee/tdx-measure (src/kernel.rs) at the time of
// edk2-stable202502, written down a second time.
func TestDirectBootRecipe(t *testing.T) {
	t.Parallel()
	l := tdxLaunch(t)
	r, err := TDX(l)
	if err != nil {
		t.Fatal(err)
	}
	patched := slices.Clone(l.Kernel)
	patched[0x210], patched[0x211] = 0xb0, 0x81
	le := binary.LittleEndian
	le.PutUint32(patched[0x224:], 0xfe00)
	le.PutUint32(patched[0x228:], 0x20000)
	le.PutUint32(patched[0x218:], (512<<20-0x28000-1-6000)&^0xfff)
	le.PutUint32(patched[0x21c:], 6000)
	kernel := sha512.New384()
	if err := peimage.Digest(kernel, patched, nil); err != nil {
		t.Fatal(err)
	}
	fold := func(digests ...[]byte) (mr [48]byte) {
		for _, d := range digests {
			mr = sha512.Sum384(append(mr[:], d...))
		}
		return mr
	}
	sum := func(b string) []byte { d := sha512.Sum384([]byte(b)); return d[:] }
	if want := fold(kernel.Sum(nil), sum("Calling EFI Application from Boot Option"), sum("\x00\x00\x00\x00"), sum("Exit Boot Services Invocation"), sum("Exit Boot Services Returned with Success")); r.RTMR[1] != want {
		t.Errorf("RTMR1: got %x, want %x", r.RTMR[1], want)
	}
	line := ""
	for _, c := range "console=ttyS0 ü initrd=initrd\x00" {
		line += string([]byte{byte(c), byte(c >> 8)})
	}
	if want := fold(sum(line), sum(string(l.Initrd))); r.RTMR[2] != want {
		t.Errorf("RTMR2: got %x, want %x", r.RTMR[2], want)
	}
}

// The digests of OVMF's boot options: dstack-mr/src/tdvf.rs and src/uefi_var.rs
// (Dstack-TEE/dstack, Apache-2.0) have the first two, from captured logs.
func TestBootOptionDigests(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"UiApp":     {loadOption(0x109, "UiApp", guidUIApp), "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"},
		"BootOrder": {[]byte{0, 0, 1, 0}, "52b9a02de946b947364b57d8210c63113b9058996e2a3ba7cead54af11ae0873b085d1e52bc01e4febe57ca05ca1332b"},
	} {
		if d := sha512.Sum384(tc.data); hex.EncodeToString(d[:]) != tc.want {
			t.Errorf("%s: got %x, want %s", name, d, tc.want)
		}
	}
}

// Every input is measured where it belongs.
func TestEveryTDXInputCounts(t *testing.T) {
	t.Parallel()
	base, err := TDX(tdxLaunch(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*TDXLaunch)
		want   string // which of MRTD (m) and the RTMRs change
	}{
		"code":            {func(l *TDXLaunch) { l.Firmware[0x2000] ^= 1 }, "m"},
		"variables":       {func(l *TDXLaunch) { l.Firmware[0x1000] ^= 1 }, "0"},
		"payload":         {func(l *TDXLaunch) { l.Firmware[0x100] ^= 1 }, "m0"}, // in the variables, too
		"kernel":          {func(l *TDXLaunch) { l.Kernel[0x7fff] ^= 1 }, "1"},
		"initrd":          {func(l *TDXLaunch) { l.Initrd[0] ^= 1 }, "2"},
		"longer initrd":   {func(l *TDXLaunch) { l.Initrd = append(l.Initrd, 0) }, "12"},
		"cmdline":         {func(l *TDXLaunch) { l.Cmdline += " x" }, "2"},
		"suffix":          {func(l *TDXLaunch) { l.NoInitrdOption = true }, "2"},
		"raw kernel":      {func(l *TDXLaunch) { l.RawKernel = true }, "1"},
		"memory":          {func(l *TDXLaunch) { l.Memory += 1 << 20 }, "01"},
		"profile":         {func(l *TDXLaunch) { l.Profile = ProfileOVMF2022 }, "01"},
		"page order":      {func(l *TDXLaunch) { l.Order = PageOrderTwoPass }, "m"},
		"table loader":    {func(l *TDXLaunch) { l.RTMR0.Loader.Data = []byte("x") }, "0"},
		"rsdp":            {func(l *TDXLaunch) { l.RTMR0.RSDP = Blob{Digest: [48]byte{1}} }, "0"},
		"tables":          {func(l *TDXLaunch) { l.RTMR0.Tables.Data = []byte("x") }, "0"},
		"secure boot":     {func(l *TDXLaunch) { l.RTMR0.SecureBoot = []byte{1} }, "0"},
		"PK":              {func(l *TDXLaunch) { l.RTMR0.PK = []byte{1} }, "0"},
		"KEK":             {func(l *TDXLaunch) { l.RTMR0.KEK = []byte{1} }, "0"},
		"db":              {func(l *TDXLaunch) { l.RTMR0.DB = []byte{1} }, "0"},
		"dbx":             {func(l *TDXLaunch) { l.RTMR0.DBX = []byte{1} }, "0"},
		"boot order":      {func(l *TDXLaunch) { l.RTMR0.BootOrder, l.RTMR0.Boot = []byte{1, 0}, [][]byte{{1}} }, "0"},
		"RTMR3":           {func(l *TDXLaunch) { l.RTMR3 = [][48]byte{{1}} }, "3"},
		"CPUs":            {func(l *TDXLaunch) { l.VCPUs++ }, ""},
		"the same digest": {func(l *TDXLaunch) { l.RTMR0.RSDP = Blob{Digest: sha512.Sum384([]byte("rsdp"))} }, ""},
	} {
		l := tdxLaunch(t)
		tc.change(&l)
		r, err := TDX(l)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := ""
		if r.MRTD != base.MRTD {
			got = "m"
		}
		for i := range r.RTMR {
			if r.RTMR[i] != base.RTMR[i] {
				got += string(rune('0' + i))
			}
		}
		if got != tc.want {
			t.Errorf("%s: changes %q, want %q", name, got, tc.want)
		}
	}
	// The same of the software layout.
	soft := func() TDXLaunch {
		l := tdxLaunch(t)
		l.Firmware, l.RTMR0 = make([]byte, 2*pageSize), nil
		return l
	}
	base, err = TDX(soft())
	if err != nil || base.Layout != LayoutSoftware {
		t.Fatalf("got %+v, %v", base, err)
	}
	for want, change := range map[string]func(*TDXLaunch){
		"m": func(l *TDXLaunch) { l.Firmware[0] = 1 },
		"0": func(l *TDXLaunch) { l.VCPUs++ },
		"1": func(l *TDXLaunch) { l.Kernel = []byte("no PE image") },
		"2": func(l *TDXLaunch) { l.Cmdline += " x" },
	} {
		l := soft()
		change(&l)
		r, err := TDX(l)
		if err != nil {
			t.Fatal(err)
		}
		for i, changed := range []bool{r.RTMR[0] != base.RTMR[0], r.RTMR[1] != base.RTMR[1], r.RTMR[2] != base.RTMR[2], r.MRTD != base.MRTD} {
			if changed != (want == string("012m"[i])) {
				t.Errorf("software: change of %s: %c changed: %t", want, "012m"[i], changed)
			}
		}
	}
}

// What cannot be predicted is said, not guessed.
func TestUnknownRegisters(t *testing.T) {
	t.Parallel()
	l := tdxLaunch(t)
	l.RTMR0, l.Kernel, l.Initrd, l.Cmdline = nil, nil, nil, ""
	r, err := TDX(l)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false} {
		if (r.Unknown[i] != "") != want || r.RTMR[i] != ([48]byte{}) {
			t.Errorf("RTMR%d: unknown %q, value %x", i, r.Unknown[i], r.RTMR[i])
		}
	}
	if r.MRTD == ([48]byte{}) {
		t.Error("MRTD is not predicted")
	}
}

func TestCCEL(t *testing.T) {
	t.Parallel()
	r, err := TDX(tdxLaunch(t))
	if err != nil {
		t.Fatal(err)
	}
	log := readCCEL(t, CCEL(r.Events))
	var want []logEvent
	for _, e := range r.Events {
		want = append(want, logEvent{e.Register, e.Type, hex.EncodeToString(e.Digest[:]), e.Data})
	}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Error(diff)
	}
	data, err := json.Marshal(r.Events[0])
	if err != nil || !strings.HasPrefix(string(data), `{"register":"rtmr_0","type":"EV_EFI_HANDOFF_TABLES2","digest":"`) {
		t.Errorf("event as JSON: %s, %v", data, err)
	}
}
