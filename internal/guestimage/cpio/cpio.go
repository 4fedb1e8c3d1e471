// Package cpio writes archives in the "newc" format that the Linux kernel
// unpacks as its initial root file system (Documentation/driver-api/
// early-userspace/buffer-format.rst of the kernel).
//
// The archive's bytes depend on the entries and their order alone: inode numbers
// count up from 1, owner is root, times and the archive's device numbers are
// zero.
package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// File type bits of a mode, as stat(2) has them.
const (
	TypeMask    = 0o170000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeRegular = 0o100000
	TypeLink    = 0o120000
)

const (
	magic   = "070701"
	trailer = "TRAILER!!!"
	// maxName is what the kernel takes at most (N_ALIGN(PATH_MAX)), less the
	// terminating zero byte.
	maxName = 4095
)

// Entry is one object of the archive.
type Entry struct {
	// Name is the path without a leading slash.
	Name string
	// Mode is type and permission bits.
	Mode uint32
	// Data is a regular file's content, or a symbolic link's target.
	Data []byte
	// Major and Minor number a character device.
	Major, Minor uint32
}

// Writer writes an archive. It is not safe for concurrent use.
type Writer struct {
	w     io.Writer
	inode uint32
	seen  map[string]bool
	err   error
}

// NewWriter returns a writer whose archive goes to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, seen: map[string]bool{}}
}

// Add appends an entry. Its parent directory must have been added before: the
// kernel drops what it cannot place, without a word. After an error the archive
// is useless and every further call returns that error.
func (w *Writer) Add(e Entry) error {
	if w.err == nil {
		w.err = w.add(e)
	}
	return w.err
}

// Close writes the archive's end. It does not close the underlying writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if err := w.header(header{name: trailer, nlink: 1}, nil); err != nil {
		w.err = err
		return err
	}
	w.err = errors.New("cpio: the archive is closed")
	return nil
}

// Join puts archives one behind the other. The kernel unpacks all of them, what
// is in a later one replaces what was there; each may be compressed. An archive
// begins at a multiple of four, and behind a compressed one at least four zero bytes
// are needed: they are all that ends the frames of LZ4 (lib/decompress_unlz4.c).
func Join(archives ...[]byte) []byte {
	var b bytes.Buffer
	for i, a := range archives {
		if i > 0 {
			b.Write(make([]byte, 4+-b.Len()&3))
		}
		b.Write(a)
	}
	return b.Bytes()
}

func (w *Writer) add(e Entry) error {
	if err := w.check(e); err != nil {
		return err
	}
	w.seen[e.Name] = e.Mode&TypeMask == TypeDir
	w.inode++
	h := header{name: e.Name, inode: w.inode, mode: e.Mode, nlink: 1, major: e.Major, minor: e.Minor}
	if e.Mode&TypeMask == TypeDir {
		h.nlink = 2
	}
	return w.header(h, e.Data)
}

func (w *Writer) check(e Entry) error {
	name := e.Name
	switch {
	case name == "" || name == trailer || len(name) > maxName:
		return fmt.Errorf("cpio: %q is no usable name", name)
	case strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0):
		return fmt.Errorf("cpio: %q: names are relative and have no zero byte", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("cpio: %q: the part %q is not allowed", name, part)
		}
	}
	if _, ok := w.seen[name]; ok {
		return fmt.Errorf("cpio: %q occurs twice", name)
	}
	if i := strings.LastIndexByte(name, '/'); i >= 0 && !w.seen[name[:i]] {
		return fmt.Errorf("cpio: %q: its directory has not been added before", name)
	}
	if e.Mode&^uint32(TypeMask|0o7777) != 0 {
		return fmt.Errorf("cpio: %q: mode %o has bits that mean nothing", name, e.Mode)
	}
	switch e.Mode & TypeMask {
	case TypeDir, TypeChar:
		if len(e.Data) != 0 {
			return fmt.Errorf("cpio: %q: only regular files and links have data", name)
		}
	case TypeRegular:
	case TypeLink:
		if len(e.Data) == 0 || len(e.Data) > maxName {
			return fmt.Errorf("cpio: %q: a link's target has 1 to %d bytes, got %d", name, maxName, len(e.Data))
		}
	default:
		return fmt.Errorf("cpio: %q: mode %o is of no supported type", name, e.Mode)
	}
	if int64(len(e.Data)) > math.MaxUint32 {
		return fmt.Errorf("cpio: %q: %d bytes do not fit the format", name, len(e.Data))
	}
	return nil
}

type header struct {
	name                             string
	inode, mode, nlink, major, minor uint32
}

// header writes one header, name and data, the last two padded to 4 bytes.
func (w *Writer) header(h header, data []byte) error {
	var b bytes.Buffer
	b.WriteString(magic)
	for _, v := range []uint32{
		h.inode, h.mode,
		0, 0, // uid, gid
		h.nlink,
		0, // mtime
		uint32(len(data)),
		0, 0, // device of the archive's file system
		h.major, h.minor,
		uint32(len(h.name) + 1),
		0, // check sum: not used by this format
	} {
		fmt.Fprintf(&b, "%08X", v)
	}
	b.WriteString(h.name)
	b.WriteByte(0)
	pad(&b, b.Len())
	if _, err := w.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("cpio: write %q: %w", h.name, err)
	}
	if _, err := w.w.Write(data); err != nil {
		return fmt.Errorf("cpio: write %q: %w", h.name, err)
	}
	b.Reset()
	pad(&b, len(data))
	if _, err := w.w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("cpio: write %q: %w", h.name, err)
	}
	return nil
}

func pad(b *bytes.Buffer, n int) {
	b.Write(make([]byte, -n&3))
}
