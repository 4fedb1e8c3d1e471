package vtpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// section is a section of a firmware file.
func section(typ byte, body ...[]byte) []byte {
	b := bytes.Join(body, nil)
	n := len(b) + 4
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), typ}, b...)
}

// ffs is a firmware file.
func ffs(name eventlog.GUID, typ byte, sections ...[]byte) []byte {
	var body []byte
	for _, s := range sections {
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
		body = append(body, s...)
	}
	n := len(body) + 24
	b := append(name[:], 0, 0, typ, 0, byte(n), byte(n>>8), byte(n>>16), 0xf8)
	return append(b, body...)
}

// fv is a firmware volume with an extended header.
func fv(name eventlog.GUID, files ...[]byte) []byte {
	b := bytes.Repeat([]byte{0}, 72)
	copy(b[40:], "_FVH")
	binary.LittleEndian.PutUint16(b[48:], 72)
	binary.LittleEndian.PutUint16(b[52:], 72)
	b = append(b, name[:]...)
	b = binary.LittleEndian.AppendUint32(b, 20)
	for _, f := range files {
		for len(b)%8 != 0 {
			b = append(b, 0xff)
		}
		b = append(b, f...)
	}
	for len(b)%4096 != 0 {
		b = append(b, 0xff)
	}
	binary.LittleEndian.PutUint64(b[32:], uint64(len(b)))
	return b
}

var (
	peiName = eventlog.GUID{1}
	dxeName = eventlog.GUID{2}
)

// firmware is an image as OVMF's, but not compressed.
func firmware() []byte {
	menu := ffs(uiApp, 9, section(sectionUI, []byte("U\x00i\x00\x00\x00")))
	inner := ffs(eventlog.GUID{9}, fileTypeVolume,
		section(sectionVolumeImage, fv(peiName, ffs(eventlog.GUID{3}, 6))),
		section(sectionVolumeImage, fv(dxeName, menu)))
	return fv(eventlog.GUID{8}, inner)
}

// pe is a PE32+ image with two sections, out of order, and a certificate.
func pe() []byte {
	b := bytes.Repeat([]byte{0}, 0x400)
	copy(b, "MZ")
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1 // loaded high
	binary.LittleEndian.PutUint32(b[0x22c:], 0x7fffffff)
	const at = 0x280
	binary.LittleEndian.PutUint32(b[0x3c:], at)
	copy(b[at:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[at+6:], 2)
	binary.LittleEndian.PutUint16(b[at+20:], 0xa0)
	optional := at + 24
	binary.LittleEndian.PutUint16(b[optional:], 0x20b)
	binary.LittleEndian.PutUint32(b[optional+60:], 0x400)
	binary.LittleEndian.PutUint32(b[optional+108:], 6)
	binary.LittleEndian.PutUint32(b[optional+112+32:], 0x800)
	binary.LittleEndian.PutUint32(b[optional+112+36:], 16)
	for i, from := range []uint32{0x600, 0x400} {
		s := optional + 0xa0 + 40*i
		binary.LittleEndian.PutUint32(b[s+16:], 0x200)
		binary.LittleEndian.PutUint32(b[s+20:], from)
	}
	b = append(b, bytes.Repeat([]byte{4}, 0x200)...)
	b = append(b, bytes.Repeat([]byte{6}, 0x200)...)
	return append(b, bytes.Repeat([]byte{0xcc}, 16)...)
}

// store is a variable store with the records given.
func store(records ...[]byte) []byte {
	b := bytes.Repeat([]byte{0}, 72)
	copy(b[40:], "_FVH")
	binary.LittleEndian.PutUint16(b[48:], 72)
	b = append(b, authenticatedStore[:]...)
	b = binary.LittleEndian.AppendUint32(b, 8192)
	b = append(b, 0x5a, 0xfe, 0, 0, 0, 0, 0, 0)
	for _, r := range records {
		for len(b)%4 != 0 {
			b = append(b, 0xff)
		}
		b = append(b, r...)
	}
	return append(b, bytes.Repeat([]byte{0xff}, 72+8192-len(b))...)
}

func record(state byte, vendor eventlog.GUID, name string, data []byte) []byte {
	text := append(eventlog.LoadOptions(name), 0, 0)
	b := make([]byte, 44)
	copy(b, []byte{0xaa, 0x55, state})
	binary.LittleEndian.PutUint32(b[36:], uint32(len(text)))
	binary.LittleEndian.PutUint32(b[40:], uint32(len(data)))
	return bytes.Join([][]byte{b, vendor[:], text, data}, nil)
}

func launch() Launch {
	return Launch{
		Firmware: firmware(), Kernel: pe(), Initrd: []byte("initrd"), Cmdline: "quiet", Machine: qemuload.Q35, Memory: 1 << 30,
		Algorithms: []eventlog.Alg{eventlog.SHA256},
	}
}

func predict(t *testing.T, l Launch) *Prediction {
	t.Helper()
	p, err := Predict(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKernelHeader(t *testing.T) {
	l := launch()
	kernel := predict(t, l).PCRs[eventlog.SHA256][4]
	for name, c := range map[string]struct {
		change func(*Launch)
		same   bool
	}{
		"memory":         {func(l *Launch) { l.Memory = 2 << 30 }, false},
		"initrd":         {func(l *Launch) { l.Initrd = []byte("other!") }, true},
		"size of initrd": {func(l *Launch) { l.Initrd = []byte("longer!") }, false},
		"as is":          {func(l *Launch) { l.KernelAsIs, l.Machine, l.Memory = true, "", 0 }, false},
		"cmdline":        {func(l *Launch) { l.Cmdline = "" }, true},
		"machine":        {func(l *Launch) { l.Machine = qemuload.PC }, true},
	} {
		other := launch()
		c.change(&other)
		if got := predict(t, other).PCRs[eventlog.SHA256][4]; bytes.Equal(got, kernel) != c.same {
			t.Errorf("%s: PCR 4 was %x, is %x", name, kernel, got)
		}
	}
}

func TestVariables(t *testing.T) {
	pk := []byte("platform key")
	raw := store(
		record(0x3c, efiGlobal, "PK", []byte("deleted")),
		record(0x3f, efiGlobal, "PK", pk),
		record(0x3e, imageSecurity, "db", []byte("old")),
		record(0x3f, imageSecurity, "db", []byte("new")),
		record(0x3e, efiGlobal, "KEK", []byte("being replaced")),
	)
	v, err := parseVariables(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(v.get(efiGlobal, "PK"), pk) || string(v.get(imageSecurity, "db")) != "new" ||
		string(v.get(efiGlobal, "KEK")) != "being replaced" || v.get(efiGlobal, "db") != nil {
		t.Errorf("got %v", v)
	}
	teetest.EachPrefix(raw, func(cut []byte) {
		if _, err := parseVariables(cut); err == nil {
			t.Fatalf("%d bytes: expected an error", len(cut))
		}
	})
	l := launch()
	l.Vars = raw
	p := predict(t, l)
	for _, pcr := range []int{4, 7, 9} {
		if p.Unpredicted[pcr] == "" || p.PCRs[eventlog.SHA256][pcr] != nil {
			t.Errorf("PCR %d is predicted with secure boot on", pcr)
		}
	}
	for _, e := range p.Events {
		if e.What == "SecureBoot" {
			on := sha256.Sum256(eventlog.AppendVariable(nil, efiGlobal, "SecureBoot", []byte{1}))
			if !bytes.Equal(e.Digests[0].Value, on[:]) {
				t.Error("SecureBoot: not measured as on")
			}
		}
	}
	l.Vars = store(record(0x3f, efiGlobal, "PK", pk), record(0x3f, secureBootEnable, "SecureBootEnable", []byte{0}))
	if p := predict(t, l); p.Unpredicted[7] != "" {
		t.Errorf("switched off: got %v", p.Unpredicted)
	}
}

func TestBootOptions(t *testing.T) {
	l := launch()
	l.Vars = store()
	fresh := predict(t, l).PCRs[eventlog.SHA256][1]
	option, err := menuOption(mustVolumes(t, l.Firmware)[1])
	if err != nil {
		t.Fatal(err)
	}
	// A store that a boot has left behind measures the same.
	l.Vars = store(record(0x3f, efiGlobal, "Boot0000", option), record(0x3f, efiGlobal, "BootOrder", []byte{0, 0}))
	if got := predict(t, l).PCRs[eventlog.SHA256][1]; !bytes.Equal(got, fresh) {
		t.Errorf("used store: expected %x, got %x", fresh, got)
	}
	l.Vars = store(record(0x3f, efiGlobal, "Boot0001", option), record(0x3f, efiGlobal, "BootOrder", []byte{1, 0}))
	if got := predict(t, l).PCRs[eventlog.SHA256][1]; got == nil || bytes.Equal(got, fresh) {
		t.Errorf("another number: got %x", got)
	}
	for name, order := range map[string][]byte{"option that is not there": {7, 0}, "odd length": {0}, "nothing": {}} {
		l.Vars = store(record(0x3f, efiGlobal, "Boot0000", option), record(0x3f, efiGlobal, "BootOrder", order))
		if p := predict(t, l); p.Unpredicted[1] == "" {
			t.Errorf("%s: is predicted", name)
		}
	}
}

func mustVolumes(t *testing.T, image []byte) []*volume {
	t.Helper()
	v, err := volumes(image)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPEIVolume(t *testing.T) {
	l := launch()
	if p := predict(t, l); p.Unpredicted[0] == "" || p.PCRs[eventlog.SHA256][0] != nil {
		t.Error("PCR 0 is predicted without the PEI volume")
	}
	l.PEIVolume = []eventlog.Digest{{Alg: eventlog.SHA256, Value: make([]byte, 32)}}
	p := predict(t, l)
	value := bytes.Repeat([]byte{0}, 32)
	dxe := sha256.Sum256(mustVolumes(t, l.Firmware)[1].raw)
	version, separator := sha256.Sum256([]byte{0, 0}), sha256.Sum256(zeros)
	for _, d := range [][]byte{version[:], make([]byte, 32), dxe[:], separator[:]} {
		sum := sha256.Sum256(append(value, d...))
		value = sum[:]
	}
	if !bytes.Equal(p.PCRs[eventlog.SHA256][0], value) || len(p.Unpredicted) != 0 {
		t.Errorf("PCR 0: expected %x, got %x", value, p.PCRs[eventlog.SHA256][0])
	}
	l.Algorithms = nil
	if _, err := Predict(l); err == nil || !strings.Contains(err.Error(), "SHA-384") {
		t.Errorf("a bank without a digest: got %v", err)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Launch)
		want   string
	}{
		"no kernel":       {func(l *Launch) { l.Kernel = nil }, "kernel"},
		"no PE":           {func(l *Launch) { l.Kernel, l.KernelAsIs = make([]byte, 4096), true }, "EFI stub"},
		"no header":       {func(l *Launch) { l.Kernel = make([]byte, 4096) }, "HdrS"},
		"old kernel":      {func(l *Launch) { l.Kernel[0x207] = 0 }, "boot protocol"},
		"NUL":             {func(l *Launch) { l.Cmdline = "a\x00b" }, "NUL"},
		"no firmware":     {func(l *Launch) { l.Firmware = nil }, "no firmware volume"},
		"one volume":      {func(l *Launch) { l.Firmware = fv(dxeName) }, "two volumes"},
		"no variables":    {func(l *Launch) { l.Vars = make([]byte, 4096) }, "variable store"},
		"no memory":       {func(l *Launch) { l.Memory = 0 }, "memory"},
		"no machine":      {func(l *Launch) { l.Machine = "" }, "machine"},
		"small memory":    {func(l *Launch) { l.Memory, l.Initrd = 16<<20, make([]byte, 17<<20) }, "initrd: expected fewer"},
		"SM3":             {func(l *Launch) { l.Algorithms = []eventlog.Alg{eventlog.SM3} }, "SM3"},
		"algorithm twice": {func(l *Launch) { l.Algorithms = append(l.Algorithms, l.Algorithms...) }, "twice"},
	} {
		l := launch()
		c.change(&l)
		if _, err := Predict(l); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error with %q, got %v", name, c.want, err)
		}
	}
	l := launch()
	teetest.EachPrefix(l.Firmware, func(cut []byte) { _, _ = volumes(cut) })
	teetest.EachPrefix(l.Kernel, func(cut []byte) {
		l.Kernel = cut
		if _, err := Predict(l); err == nil && len(cut) < 0x800 { // the certificate may be gone
			t.Fatalf("kernel of %#x bytes: no error", len(cut))
		}
	})
}

// Debian's OVMF, where it is installed: its DXE volume has a digest that was read
// from the log of a machine (ovmf 2022.11-6+deb12u2).
func TestDebianOVMF(t *testing.T) {
	image, err := os.ReadFile("/usr/share/OVMF/OVMF_CODE_4M.fd")
	if err != nil {
		t.Skip(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	v := mustVolumes(t, image)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 4*uint64(len(v[0].raw)+len(v[1].raw)+len(image)) {
		t.Errorf("%d bytes were allocated", got)
	}
	if len(v) != 2 || v[1].name.String() != "7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1" {
		t.Fatalf("got %d volumes", len(v))
	}
	option, err := menuOption(v[1])
	if err != nil {
		t.Fatal(err)
	}
	const want = "090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c46147603458" +
		"36e8ab6f46623317fff0400"
	if hex.EncodeToString(option) != want {
		t.Errorf("boot option: expected %s, got %x", want, option)
	}
}

func FuzzFirmware(f *testing.F) {
	f.Add(firmware(), store(record(0x3f, efiGlobal, "PK", []byte("x"))))
	f.Fuzz(func(t *testing.T, code, vars []byte) {
		l := launch()
		l.Firmware, l.Vars = code, vars
		if p, err := Predict(l); err == nil && p.Unpredicted[0] == "" {
			t.Error("PCR 0 is predicted")
		}
	})
}

func TestManyCompressedSections(t *testing.T) {
	t.Parallel()
	section := append([]byte{0, 0, 0, sectionGUIDed}, lzmaSection[:]...)
	section = append(section, 24, 0, 1, 0)                // data offset, attributes
	section = append(section, 93)                         // lc 3, lp 0, pb 2
	section = append(section, make([]byte, 4+8+5+1+1)...) // of no bytes, and up to a multiple of 4
	section[0] = byte(len(section))
	budget := maxUnpacked
	if _, err := volumesIn(bytes.Repeat(section, maxUnpacked/minUnpacked), &budget, 0); err != nil {
		t.Fatal(err)
	}
	budget = maxUnpacked
	if _, err := volumesIn(bytes.Repeat(section, maxUnpacked/minUnpacked+1), &budget, 0); err == nil || !strings.Contains(err.Error(), "in all") {
		t.Errorf("one section too many: got %v", err)
	}
}
