package measure

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/measure/qemuload"
)

// tdvfImage builds a firmware image of the given size that declares sections as
// a TDVF does.
func tdvfImage(size int, sections []TDVFSection) []byte {
	le := binary.LittleEndian
	image := make([]byte, size)
	for i := range image {
		image[i] = byte(i >> 8)
	}
	data := append([]byte(nil), guidTDXMetadata[:]...)
	data = append(data, "TDVF"...)
	data = le.AppendUint32(data, uint32(16+32*len(sections)))
	data = le.AppendUint32(data, 1)
	data = le.AppendUint32(data, uint32(len(sections)))
	for _, s := range sections {
		data = le.AppendUint32(le.AppendUint32(data, s.Offset), s.Size)
		data = le.AppendUint64(le.AppendUint64(data, s.Address), s.MemorySize)
		data = le.AppendUint32(le.AppendUint32(data, uint32(s.Kind)), s.Attributes)
	}
	const offset = 0x800
	copy(image[size-offset-len(guid{}):], data)
	putFooter(image, []footerEntry{{guidTDXOffset, le.AppendUint32(nil, offset)}})
	return image
}

const cfvSize = 0x84000

// ovmfSections are those of edk2's OvmfPkgX64 build of 4 MiB (OvmfPkg/ResetVector
// and OvmfPkgDefines.fdf.inc).
func ovmfSections() []TDVFSection {
	const size = 0x400000
	return []TDVFSection{
		{TDVFBFV, cfvSize, size - cfvSize, fourGiB - size + cfvSize, size - cfvSize, TDVFExtend},
		{TDVFCFV, 0, cfvSize, fourGiB - size, cfvSize, 0},
		{TDVFTempMem, 0, 0, 0x810000, 0x10000, 0},
		{TDVFTempMem, 0, 0, 0x80b000, 0x2000, 0},
		{TDVFHOB, 0, 0, 0x809000, 0x2000, 0},
		{TDVFTempMem, 0, 0, 0x800000, 0x6000, 0},
	}
}

// emptyVariables is the variable store of a fresh OVMF: a firmware volume header
// with a variable store header, and a working block of the fault-tolerant
// writer; all else is erased flash.
func emptyVariables(t testing.TB) []byte {
	t.Helper()
	v := bytes.Repeat([]byte{0xff}, cfvSize)
	for at, text := range map[int]string{
		0:       "000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f5000400800000000005f465648fffe04004800afb80000000284000000001000000000000000000000782cf3aa7b949a43a1802e144ec37792b8ff03005afe000000000000",
		0x41000: "2b29589e687c7d49a0ce6500fd9f1b952caf2c64feffffffe00f000000000000",
	} {
		if _, err := hex.Decode(v[at:], []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// logEvent is an event as a guest's firmware logged it.
type logEvent struct {
	Register int
	Type     EventType
	Digest   string
	Data     []byte
}

// readCCEL reads a log that has SHA-384 digests only.
func readCCEL(t testing.TB, log []byte) (out []logEvent) {
	t.Helper()
	le := binary.LittleEndian
	at := 32 + int(le.Uint32(log[28:]))
	for at+16 <= len(log) && le.Uint32(log[at:]) != 0xffffffff {
		if count, alg := le.Uint32(log[at+8:]), le.Uint16(log[at+12:]); count != 1 || alg != 0xc {
			t.Fatalf("event at %#x: %d digests, algorithm %#x", at, count, alg)
		}
		n := int(le.Uint32(log[at+62:]))
		out = append(out, logEvent{int(le.Uint32(log[at:])) - 1, EventType(le.Uint32(log[at+4:])), hex.EncodeToString(log[at+14 : at+62]), log[at+66 : at+66+n]})
		at += 66 + n
	}
	return out
}

func digestOf(t testing.TB, s string) (d [48]byte) {
	t.Helper()
	if n, err := hex.Decode(d[:], []byte(s)); err != nil || n != len(d) {
		t.Fatalf("digest %q: %v", s, err)
	}
	return d
}

// A log of a TDX guest: QEMU, OVMF, 2 GiB, direct kernel boot. All of RTMR0 is
// predicted but for the ACPI tables, of which nothing but digests is known; of
// RTMR1 and RTMR2 all but kernel, command line and initrd.
func TestLogOfRealGuest(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/ccel-ovmf.bin")
	if err != nil {
		t.Fatal(err)
	}
	log := readCCEL(t, raw)
	image := tdvfImage(0x400000, ovmfSections())
	copy(image, emptyVariables(t))
	var acpi []Blob
	for _, e := range log {
		if e.Type == EvPlatformConfigFlags {
			acpi = append(acpi, Blob{Digest: digestOf(t, e.Digest)})
		}
	}
	kernel := linuxImage(t, 0x8000)
	got, err := TDX(TDXLaunch{
		Firmware: image, Kernel: kernel, Initrd: []byte("initrd"), Memory: 2 << 30, VCPUs: 1, Profile: ProfileOVMF2022,
		RTMR0: &TDXPlatform{Loader: acpi[0], RSDP: acpi[1], Tables: acpi[2]},
	})
	if err != nil {
		t.Fatal(err)
	}
	ours := map[EventType]bool{EvEFIApplication: true, EvEventTag: true} // of files that are not the guest's
	if len(log) != len(got.Events) {
		t.Fatalf("got %d events, want %d", len(got.Events), len(log))
	}
	var theirs []Event
	for i, want := range log {
		e := got.Events[i]
		g := logEvent{e.Register, e.Type, hex.EncodeToString(e.Digest[:]), e.Data}
		if ours[want.Type] {
			g.Digest = want.Digest
		}
		if want.Type == EvEFIApplication { // where the kernel lay, and how large it was
			copy(g.Data[:16], want.Data)
		}
		if diff := cmp.Diff(want, g); diff != "" {
			t.Errorf("event %d (%s): log and prediction differ:\n%s", i, e.Description, diff)
		}
		theirs = append(theirs, Event{Register: want.Register, Digest: digestOf(t, want.Digest)})
	}
	if got.RTMR[0] != Replay(theirs)[0] {
		t.Errorf("RTMR0: got %x, want %x", got.RTMR[0], Replay(theirs)[0])
	}
}

// The hand-off block of another guest, with 5000 MiB and so memory above 4 GiB:
// google/go-eventlog (Apache-2.0), testdata/eventlogs/ccel/gdc-tdx.bin.
func TestHandOffBlocks(t *testing.T) {
	t.Parallel()
	for memory, want := range map[uint64]string{
		2048 << 20: "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
		5000 << 20: "a916fc3fdff3f3f32076dbc0e6817236a09da7f318561ae53870a0dea063ed741486f950e8b43b38533112c992937303",
	} {
		hob, err := tdHOB(ovmfSections(), memory)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha512.Sum384(hob)
		if got := hex.EncodeToString(sum[:]); !strings.HasPrefix(got, want) {
			t.Errorf("%d bytes: got %s, want %s", memory, got, want)
		}
	}
	if _, err := tdHOB(ovmfSections(), 8<<20); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("too little memory: got %v", err)
	}
	if _, err := tdHOB(ovmfSections()[:1], 1<<30); err == nil || !strings.Contains(err.Error(), "TD_HOB") {
		t.Errorf("no TD_HOB: got %v", err)
	}
}

// Debian's OVMF (package ovmf 2022.11-6+deb12u2) as other tools measure it:
// google/gce-tcb-verifier v0.3.1 MRTD with interleaved pages, and the SNP launch
// digests of GCE (on Milan); virtee/sev-snp-measure 0.0.13 those of QEMU and EC2,
// for EPYC-Milan and SEV_FEATURES 0x21.
func TestDebianOVMF(t *testing.T) {
	t.Parallel()
	firmware, err := os.ReadFile("/usr/share/ovmf/OVMF.fd")
	if err != nil {
		t.Skipf("Debian's package ovmf is not installed: %v", err)
	}
	if sum := sha256.Sum256(firmware); hex.EncodeToString(sum[:]) != "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773" {
		t.Skipf("another version of Debian's package ovmf: %x", sum)
	}
	r, err := TDX(TDXLaunch{Firmware: firmware, Memory: 1 << 30, VCPUs: 1, Profile: ProfileOVMF2022})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(r.MRTD[:]), "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"; got != want {
		t.Errorf("MRTD: got %s, want %s", got, want)
	}
	for _, tc := range []struct {
		launch Launch
		cpus   int
		want   string
	}{
		{Launch{VMM: VMMGCE}, 1, "6c5ed8d7d566801c36cf93c1e735e111d212d71892755cc9967a50c67f72e387909cfd3a3961b10d2799f7779f3beac6"},
		{Launch{VMM: VMMGCE}, 4, "dc9e0c41c8b0ca2000043e749d6fd77737d0ef146b3c9eaaaf693f50dd5ce57fbcb379cb4af9918c94d265a7e0bd8317"},
		{Launch{VMM: VMMQEMU, VCPUModel: "EPYC-Milan", GuestFeatures: 0x21}, 1, "179c6ad39ad318c8c8d18444634df7217b63695830f1cde0b2f01fe53d2cd2f4d39207f50bf659554e2f5ec4ee0f72b6"},
		{Launch{VMM: VMMQEMU, VCPUModel: "EPYC-Milan", GuestFeatures: 0x21}, 3, "91a010c577dd03d3c50658db806fbf9395c43820acd3a5626c3a22d1fc2d26174e75c0a9dea33ada784f2f21ef07a2c5"},
		{Launch{VMM: VMMEC2, GuestFeatures: 0x21}, 1, "0381842f22891da83270bda56fa82bb1c48285a474b5b99391ad21ef7cdf5827ddd7cf65e9713db0bffa90b4e5328e0b"},
		{Launch{VMM: VMMEC2, GuestFeatures: 0x21}, 3, "55a74f0b1ee578e1cd27bb17cf9975e5cfede361abb11eb3054da93f39f0f88eb7103c962acf27f5be8c6c5615d739de"},
	} {
		l := tc.launch
		l.Firmware, l.VCPUs = firmware, tc.cpus
		if got, err := SNP(l); err != nil || hex.EncodeToString(got[:]) != tc.want {
			t.Errorf("SNP on %s with %d CPUs: got %x, %v; want %s", l.VMM, tc.cpus, got, err, tc.want)
		}
	}
}

// linuxImage is a file with the headers of an x86 Linux kernel with EFI stub.
func linuxImage(t testing.TB, size int) []byte {
	t.Helper()
	le := binary.LittleEndian
	b := make([]byte, size)
	for i := qemuload.MaxHeader; i < size; i++ {
		b[i] = byte(i * 7)
	}
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], 0x8664)
	le.PutUint16(b[0x46:], 2)   // sections
	le.PutUint16(b[0x54:], 160) // size of the optional header
	opt := 0x58
	le.PutUint16(b[opt:], 0x20b)
	le.PutUint32(b[opt+60:], qemuload.MaxHeader)
	le.PutUint32(b[opt+108:], 6)
	for i, s := range [][2]uint32{{qemuload.MaxHeader, 0x2000}, {qemuload.MaxHeader + 0x2000, uint32(size) - qemuload.MaxHeader - 0x2000}} {
		at := opt + 160 + 40*i
		le.PutUint32(b[at+16:], s[1])
		le.PutUint32(b[at+20:], s[0])
	}
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 0x7f)
	return b
}
