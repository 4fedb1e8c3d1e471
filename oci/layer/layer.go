// Package layer unpacks the tar stream of an image layer onto a root file
// system, the way "OCI image layer filesystem changeset" (image specification
// v1.1) has it, applying whiteouts at once: the result is one flat directory.
//
// Streams come from a registry that is not trusted. No path is judged as a
// string alone: parents are opened with openat2(RESOLVE_IN_ROOT), so that links
// of earlier layers lead to where they lead in the container and never out of
// the root; last components are never followed. Counts, sizes and depths are
// bounded.
//
// Device nodes are made where the root's file system is mounted nodev, as in the
// guest, and refused elsewhere. Everything that depends on names happens in the
// order of the entries on the caller's goroutine; the files' content is written
// by others meanwhile.
package layer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Defaults of [Limits].
const (
	DefaultEntries = 500_000
	DefaultBytes   = 64 << 30
	DefaultDepth   = 128
)

// Limits bound what is unpacked. A zero or negative field means its default,
// never "no limit". They hold for all layers of an [Unpacker] together.
type Limits struct {
	// Entries is the number of tar entries.
	Entries int64
	// Bytes is the sum of the sizes of files, holes included.
	Bytes int64
	// Depth is how many components a path may have.
	Depth int
}

// WithDefaults replaces the fields that are not set.
func (l Limits) WithDefaults() Limits {
	if l.Entries <= 0 {
		l.Entries = DefaultEntries
	}
	if l.Bytes <= 0 {
		l.Bytes = DefaultBytes
	}
	if l.Depth <= 0 {
		l.Depth = DefaultDepth
	}
	return l
}

// Stats count what has been unpacked.
type Stats struct {
	// Entries and Bytes are counted as [Limits] count them.
	Entries, Bytes int64
	// Allocated is the sum of the sizes of files in whole blocks of 4 KiB,
	// with that of a file that did not fit any more.
	Allocated int64
	// SkippedXattrs is the number of extended attributes that were not set,
	// because they mean nothing in the guest (security.selinux, most of trusted.…) or
	// because the file system has no user.… attributes.
	SkippedXattrs int64
}

// ErrLimit is wrapped by errors about a layer that is beyond its limits.
var ErrLimit = errors.New("beyond the limit")

// SizeError is a file that goes beyond [Limits].Bytes; it wraps [ErrLimit].
type SizeError struct {
	// Limit is the limit, Size the file's and Before that of the files before it.
	Limit, Size, Before int64
}

// Error implements error.
func (e *SizeError) Error() string {
	return fmt.Sprintf("%v of %d bytes unpacked: the file has %d, %d were unpacked before it", ErrLimit, e.Limit, e.Size, e.Before)
}

// Unwrap gives [ErrLimit].
func (e *SizeError) Unwrap() error { return ErrLimit }

// Error is a layer that was refused or could not be unpacked.
type Error struct {
	// Entry is the name of the tar entry as it stands in the layer; empty if
	// the stream itself is broken.
	Entry string
	Err   error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Entry == "" {
		return "tar stream: " + e.Err.Error()
	}
	return fmt.Sprintf("entry %q: %v", clip(e.Entry), e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Unpack unpacks the single layer r onto root; see [Unpacker].
func Unpack(ctx context.Context, root *os.File, r io.Reader, limits Limits) (Stats, error) {
	u, err := NewUnpacker(root, limits)
	if err != nil {
		return Stats{}, err
	}
	defer u.Close()
	err = u.Apply(ctx, bufio.NewReaderSize(r, 64<<10))
	return u.Stats(), err
}

func clip(s string) string {
	const most = 256
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
