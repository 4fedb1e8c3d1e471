package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"
)

// PageOrder is the order in which a VMM adds and measures pages. MRTD depends on it.
type PageOrder string

const (
	// PageOrderInterleaved measures each page right after it was added: QEMU 9
	// and newer with KVM_TDX_INIT_MEM_REGION, and GCE.
	PageOrderInterleaved PageOrder = "interleaved"
	// PageOrderTwoPass adds all pages of a section, then measures them all: the
	// patched QEMU 7 and 8 of Intel's TDX stacks.
	PageOrderTwoPass PageOrder = "two-pass"
)

// mrtd is MRTD under construction: SHA-384 over what TDH.MEM.PAGE.ADD and
// TDH.MR.EXTEND feed to it (Intel TDX Module Base Architecture Specification,
// 348549, §"Measurement and Attestation"; TDX Module ABI, TDH.MEM.PAGE.ADD and
// TDH.MR.EXTEND).
type mrtd struct {
	h   hash.Hash
	add [128]byte
	// page has room for what one page feeds to the hash, so that it is
	// written in one go.
	page [pageSize / chunkSize * (128 + chunkSize)]byte
}

// chunkSize is what one TDH.MR.EXTEND measures.
const chunkSize = 256

func newMRTD() *mrtd {
	m := &mrtd{h: sha512.New384()}
	copy(m.add[:], "MEM.PAGE.ADD")
	for off := 0; off < len(m.page); off += 128 + chunkSize {
		copy(m.page[off:], "MR.EXTEND")
	}
	return m
}

func (m *mrtd) pageAdd(gpa uint64) {
	binary.LittleEndian.PutUint64(m.add[16:], gpa)
	_, _ = m.h.Write(m.add[:])
}

// extend measures the content of the page at gpa; missing bytes are zero.
func (m *mrtd) extend(gpa uint64, data []byte) {
	var full [pageSize]byte
	if len(data) < pageSize {
		copy(full[:], data)
		data = full[:]
	}
	for i := range pageSize / chunkSize {
		b := m.page[i*(128+chunkSize):]
		binary.LittleEndian.PutUint64(b[16:], gpa+uint64(i*chunkSize))
		copy(b[128:128+chunkSize], data[i*chunkSize:])
	}
	_, _ = m.h.Write(m.page[:])
}

// section adds the pages of s.
func (m *mrtd) section(image []byte, s TDVFSection, order PageOrder) {
	data := s.data(image)
	page := func(off uint64) {
		if s.Attributes&TDVFExtend != 0 {
			m.extend(s.Address+off, data[min(off, uint64(len(data))):min(off+pageSize, uint64(len(data)))])
		}
	}
	if s.Attributes&TDVFAug != 0 {
		return
	}
	for off := uint64(0); off < s.MemorySize; off += pageSize {
		m.pageAdd(s.Address + off)
		if order != PageOrderTwoPass {
			page(off)
		}
	}
	if order == PageOrderTwoPass {
		for off := uint64(0); off < s.MemorySize; off += pageSize {
			page(off)
		}
	}
}

func (m *mrtd) sum() (out [48]byte) {
	m.h.Sum(out[:0])
	return out
}
