package measure

import (
	"crypto/sha256"
	"encoding/binary"
)

// Sizes of the kernel hashes table (QEMU, target/i386/sev.c): a header and three
// entries, each a GUID, the 16-bit length of the whole and, in an entry, a
// SHA-256; padded to 16 bytes.
const (
	hashEntrySize  = 16 + 2 + sha256.Size
	hashesLength   = 16 + 2 + 3*hashEntrySize
	hashesSize     = (hashesLength + 15) &^ 15
	hashesHeadSize = 16 + 2
)

// hashesPage is the page with the table at offset; the rest of it is zero. The
// caller has checked that the table fits.
func hashesPage(l Launch, offset uint64) (page [pageSize]byte) {
	t := page[offset : offset+hashesSize]
	copy(t, guidHashesHeader[:])
	binary.LittleEndian.PutUint16(t[16:], hashesLength)
	// QEMU hashes the command line with its terminating NUL.
	for i, e := range []struct {
		id  guid
		sum [sha256.Size]byte
	}{
		{guidHashCmdline, sha256.Sum256(append([]byte(l.Cmdline), 0))},
		{guidHashInitrd, sha256.Sum256(l.Initrd)},
		{guidHashKernel, sha256.Sum256(l.Kernel)},
	} {
		b := t[hashesHeadSize+i*hashEntrySize:]
		copy(b, e.id[:])
		binary.LittleEndian.PutUint16(b[16:], hashEntrySize)
		copy(b[18:], e.sum[:])
	}
	return page
}
