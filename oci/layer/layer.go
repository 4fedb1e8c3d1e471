// Package layer unpacks the tar stream of an image layer onto a directory.
package layer

import (
	"context"
	"errors"
	"io"
	"os"
)

// Limits bound what is unpacked. A zero field means its default.
type Limits struct {
	// Entries is the number of tar entries.
	Entries int64
	// Bytes is the sum of the sizes of files.
	Bytes int64
	// Depth is how many components a path may have.
	Depth int
}

// Stats count what has been unpacked.
type Stats struct {
	Entries, Bytes int64
}

// Unpack unpacks the layer r onto root.
func Unpack(ctx context.Context, root *os.File, r io.Reader, limits Limits) (Stats, error) {
	return Stats{}, errors.New("not written yet")
}
