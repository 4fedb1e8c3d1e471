package measure

import (
	"crypto/sha512"
	"encoding/binary"
)

const (
	pageSize = 4096
	fourGiB  = uint64(1) << 32
)

// Page types of SNP_LAUNCH_UPDATE (56860, §8.17, table of PAGE_TYPE values).
const (
	pageNormal     = 1
	pageVMSA       = 2
	pageZero       = 3
	pageUnmeasured = 4
	pageSecrets    = 5
	pageCPUID      = 6
)

// vmsaGPA is the address under which KVM adds VMSA pages: an address no guest
// page has, page-aligned and cut to 52 bits.
const vmsaGPA = 0xFFFFFFFFF000

// digest is a launch digest under construction (56860, §8.17.2). The zero
// value is the digest of SNP_LAUNCH_START.
type digest struct{ ld [sha512.Size384]byte }

// page chains one 4 KiB page: the new digest is the SHA-384 of a 0x70-byte
// PAGE_INFO structure that begins with the old one.
func (d *digest) page(kind byte, gpa uint64, contents [sha512.Size384]byte) {
	var info [0x70]byte
	copy(info[0x00:], d.ld[:])
	copy(info[0x30:], contents[:])
	binary.LittleEndian.PutUint16(info[0x60:], uint16(len(info)))
	info[0x62] = kind
	// 0x63 IMI_PAGE, 0x64..0x66 permissions of VMPL 3..1, 0x67 reserved: zero.
	binary.LittleEndian.PutUint64(info[0x68:], gpa)
	d.ld = sha512.Sum384(info[:])
}

// normalPages adds data, whole pages, at gpa.
func (d *digest) normalPages(gpa uint64, data []byte) {
	for off := 0; off < len(data); off += pageSize {
		d.page(pageNormal, gpa+uint64(off), sha512.Sum384(data[off:off+pageSize]))
	}
}

// unreadPages adds pages whose content is not hashed: zero, unmeasured, secrets
// and CPUID.
func (d *digest) unreadPages(kind byte, gpa, size uint64) {
	for off := uint64(0); off < size; off += pageSize {
		d.page(kind, gpa+off, [sha512.Size384]byte{})
	}
}

// apContents is the digest of the save area of every CPU but the first.
func (s Seed) apContents() [sha512.Size384]byte { return sha512.Sum384(s.ap[:]) }

func (d *digest) vmsa(page *[pageSize]byte) {
	d.page(pageVMSA, vmsaGPA, sha512.Sum384(page[:]))
}
