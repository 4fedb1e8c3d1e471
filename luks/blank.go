package luks

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// Where Blank looks: at all of the disk's beginning and end, and at places in
// between.
const (
	blankStart   = NewDataOffset + 1<<20
	blankEnd     = 1 << 20
	blankSample  = 4096
	blankSamples = 256
)

// NotBlankError says that a disk holds something.
type NotBlankError struct {
	// Offset is of the first byte found that is not zero.
	Offset int64
	// What is recognised: for example "ext4". It may be empty.
	What string
}

// Error implements error.
func (e *NotBlankError) Error() string {
	what := "data"
	if e.What != "" {
		what = e.What
	}
	return fmt.Sprintf("the disk is not blank: it has %s (byte %d is not zero)", what, e.Offset)
}

// Blank returns nil for a disk of size bytes that provably may be formatted: its
// first 17 MiB, its last 1 MiB and 256 blocks evenly in between can be read and
// are zero. That covers the signature of every file system, partition table
// and volume manager in use. A byte that is not zero is a [NotBlankError]; a
// disk that cannot be read is a [ReadError], never a blank one.
func Blank(r io.ReaderAt, size int64) error {
	if err := zero(r, 0, min(size, blankStart)); err != nil {
		return err
	}
	if size <= blankStart {
		return nil
	}
	end := max(size-blankEnd, blankStart)
	for i := range int64(blankSamples) {
		at := blankStart + (end-blankStart)/blankSamples*i
		if err := zero(r, at, min(at+blankSample, end)); err != nil {
			return err
		}
	}
	return zero(r, end, size)
}

// zero checks the bytes from, to.
func zero(r io.ReaderAt, from, to int64) error {
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for from < to {
		b := buf[:min(to-from, int64(len(buf)))]
		if err := readFull(r, b, from); err != nil {
			return err
		}
		if !bytes.Equal(b, zeros[:len(b)]) {
			i := slices.IndexFunc(b, func(c byte) bool { return c != 0 })
			return &NotBlankError{Offset: from + int64(i), What: recognise(r)}
		}
		from += int64(len(b))
	}
	return nil
}

// recognise names what is on the disk, for a message.
func recognise(r io.ReaderAt) string {
	for _, s := range []struct {
		at   int64
		text string
		name string
	}{
		{0, "LUKS\xba\xbe\x00\x01", "a LUKS1 volume"},
		{0, "LUKS\xba\xbe", "a LUKS2 header"},
		{0x4000, "SKUL\xba\xbe", "a LUKS2 header whose first copy is damaged"},
		{512, "EFI PART", "a GPT partition table"},
		{0, "XFSB", "an XFS file system"},
		{0x438, "\x53\xef", "an ext2, ext3 or ext4 file system"},
		{0x10040, "_BHRfS_M", "a btrfs file system"},
		{512, "LABELONE", "an LVM physical volume"},
		{0, "integrt\x00", "a dm-integrity volume"},
		{510, "\x55\xaa", "a boot sector or partition table"},
	} {
		b := make([]byte, len(s.text))
		if readFull(r, b, s.at) == nil && string(b) == s.text {
			return s.name
		}
	}
	return ""
}
