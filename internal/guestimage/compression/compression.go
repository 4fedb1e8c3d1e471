// Package compression packs an initrd in the formats that the kernel unpacks.
//
// [Compress] gives the same bytes for the same data on every machine: what it
// returns is measured. [Decompress] is for those who look into a built image.
package compression

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// Compress packs data in one of the manifest's formats. It works on one core: the
// output of several depends on how they are scheduled.
func Compress(data []byte, format string) ([]byte, error) {
	switch format {
	case manifest.None:
		return data, nil
	case manifest.LZ4:
		return compressLZ4(data)
	case manifest.Zstd:
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return enc.EncodeAll(data, nil), enc.Close()
	}
	return nil, unknown(format)
}

// compressLZ4 makes the legacy frames, which are all that the kernel reads
// (lib/decompress_unlz4.c). They have no end mark: see [cpio.Join].
func compressLZ4(data []byte) ([]byte, error) {
	var out bytes.Buffer
	enc := lz4.NewWriter(&out)
	if err := enc.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9), lz4.ConcurrencyOption(1)); err != nil {
		return nil, err
	}
	if _, err := enc.Write(data); err != nil {
		return nil, err
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Decompress unpacks what [Compress] has packed. More than limit bytes are an
// error.
func Decompress(data []byte, format string, limit int64) ([]byte, error) {
	var in io.Reader
	switch format {
	case manifest.None:
		return data, nil
	case manifest.LZ4:
		in = lz4.NewReader(bytes.NewReader(data))
	case manifest.Zstd:
		dec, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(max(limit, zstd.MinWindowSize))))
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		in = dec
	default:
		return nil, unknown(format)
	}
	out, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", format, err)
	}
	if int64(len(out)) > limit {
		return nil, fmt.Errorf("decompress %s: expected at most %d bytes, got more", format, limit)
	}
	return out, nil
}

func unknown(format string) error {
	return fmt.Errorf("compression: expected one of %q, got %q", manifest.Compressions(), format)
}
