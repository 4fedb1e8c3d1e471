package measure

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// footerEntry is one entry of OVMF's table, in the order of the image's end.
type footerEntry struct {
	id   guid
	data []byte
}

// ovmfImage builds a firmware image of the given size that declares sections
// as OVMF does.
func ovmfImage(size int, sections []section, resetEIP, hashesGPA uint32) []byte {
	le := binary.LittleEndian
	image := make([]byte, size)

	metadata := append([]byte("ASEV"), make([]byte, 12)...)
	le.PutUint32(metadata[4:], uint32(16+12*len(sections)))
	le.PutUint32(metadata[8:], 1)
	le.PutUint32(metadata[12:], uint32(len(sections)))
	for _, s := range sections {
		metadata = le.AppendUint32(metadata, s.gpa)
		metadata = le.AppendUint32(metadata, s.size)
		metadata = le.AppendUint32(metadata, s.kind)
	}
	const metadataOffset = 0x554
	copy(image[size-metadataOffset:], metadata)

	putFooter(image, []footerEntry{
		{guidResetBlock, le.AppendUint32(nil, resetEIP)},
		{guidHashesArea, le.AppendUint32(le.AppendUint32(nil, hashesGPA), 0x400)},
		{guidSEVMetadata, le.AppendUint32(nil, metadataOffset)},
	})
	return image
}

// putFooter writes the table into image.
func putFooter(image []byte, entries []footerEntry) {
	le := binary.LittleEndian
	entry := func(data []byte, id guid, length int) []byte {
		out := le.AppendUint16(append([]byte(nil), data...), uint16(length))
		return append(out, id[:]...)
	}
	var table []byte
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		table = append(table, entry(e.data, e.id, len(e.data)+entryHeader)...)
	}
	table = append(table, entry(nil, guidTableFooter, len(table)+entryHeader)...)
	copy(image[len(image)-footerEnd-len(table):], table)
}

// What edk2-stable202405's AmdSev build declares, as the fixture of
// virtee/sev-snp-measure shows.
func amdSevSections() []section {
	return []section{
		{0x800000, 0x9000, sectionSecMem},
		{0x80a000, 0x3000, sectionSecMem},
		{0x80d000, 0x1000, sectionSecrets},
		{0x80e000, 0x1000, sectionCPUID},
		{0x80f000, 0x1000, sectionSVSMCAA},
		{0x810000, 0x1000, sectionKernelHashes},
		{0x811000, 0xf000, sectionSecMem},
	}
}

const (
	amdSevResetEIP  = 0x0080b004
	amdSevHashesGPA = 0x00810c00
)

// The digests below are those that virtee/sev-snp-measure 0.0.13 (Apache-2.0)
// publishes in tests/test_guest.py for the last 4 KiB of that firmware. The
// image itself is not copied here: the published digest of its one page is
// where each computation starts.
const amdSevFirmwareDigest = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"

func TestPublishedDigests(t *testing.T) {
	t.Parallel()
	fw, err := parseFirmware(ovmfImage(2*pageSize, amdSevSections(), amdSevResetEIP, amdSevHashesGPA))
	if err != nil {
		t.Fatal(err)
	}
	kernel := []byte{} // the vectors use /dev/null as kernel and initrd
	for _, tc := range []struct {
		name     string
		kernel   []byte
		cmdline  string
		vcpus    int
		features uint64
		want     string
		vmm      VMM
	}{
		{"empty command line", kernel, "", 1, 0x21, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198", ""},
		{"empty command line, SNP only", kernel, "", 1, 0x1, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5", ""},
		{"command line", kernel, "console=ttyS0 loglevel=7", 1, 0x21, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977", ""},
		{"command line, SNP only", kernel, "console=ttyS0 loglevel=7", 1, 0x1, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa", ""},
		{"four CPUs", kernel, "", 4, 0x21, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942", ""},
		{"four CPUs, SNP only", kernel, "", 4, 0x1, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5", ""},
		{"no kernel", nil, "", 1, 0x21, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b", ""},
		{"no kernel, SNP only", nil, "", 1, 0x1, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sig, err := CPUSignature("EPYC-v4")
			if err != nil {
				t.Fatal(err)
			}
			var start digest
			if _, err := hex.Decode(start.ld[:], []byte(amdSevFirmwareDigest)); err != nil {
				t.Fatal(err)
			}
			l := Launch{VMM: tc.vmm, Kernel: tc.kernel, Cmdline: tc.cmdline, VCPUs: tc.vcpus, GuestFeatures: tc.features}
			seed, err := l.seed(start, fw, LayoutOVMF, sig)
			if err != nil {
				t.Fatal(err)
			}
			all, err := seed.Digests(tc.vcpus)
			if err != nil {
				t.Fatal(err)
			}
			got := all[tc.vcpus-1]
			if hex.EncodeToString(got[:]) != tc.want {
				t.Errorf("digest:\n got %x\nwant %s", got, tc.want)
			}
		})
	}
}
