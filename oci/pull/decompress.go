package pull

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/internal/inflate"
)

// maxZstdWindow is how far back a zstd frame may refer, in bytes, which is what
// a decoder has to keep (RFC 8878, 3.1.1.1.2, asks for 8 MiB at least).
const maxZstdWindow = 32 << 20

// decompress opens a compressed stream. The returned function frees what the
// decoder holds.
func decompress(r io.Reader, c oci.Compression) (io.Reader, func(), error) {
	switch c {
	case oci.Uncompressed:
		return r, func() {}, nil
	case oci.Gzip:
		// It reads all members, and refuses anything but zeros behind the last.
		z, err := inflate.NewGzipReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		return named{z, "gzip"}, func() {}, nil
	case oci.Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return named{z, "zstd"}, z.Close, nil
	default:
		return nil, nil, fmt.Errorf("compression %v", c)
	}
}

// named says whose error it is.
type named struct {
	r    io.Reader
	name string
}

// Read implements io.Reader.
func (n named) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return k, err
}
