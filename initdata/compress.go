package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// annotationEncoding is strict: one text per value, no line breaks.
var annotationEncoding = base64.StdEncoding.Strict()

// Compress packs a document with gzip. Equal documents give equal bytes (of
// one build of this program): the header has no name and no time.
func Compress(raw []byte) ([]byte, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("initdata: document has %d bytes, the limit is %d", len(raw), MaxBytes)
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Decompress unpacks gzip data that must be exactly one member and unpack to
// at most maxRaw bytes. It allocates in proportion to what it has unpacked,
// never to what the data claims.
func Decompress(gz []byte, maxRaw int) ([]byte, error) {
	if limit := maxRaw + maxRaw/64 + 4096; len(gz) > limit {
		return nil, fmt.Errorf("initdata: gzip data has %d bytes, the limit is %d", len(gz), limit)
	}
	in := bytes.NewReader(gz)
	r, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("initdata: not gzip data: %w", err)
	}
	r.Multistream(false)
	raw, err := io.ReadAll(io.LimitReader(r, int64(maxRaw)+1))
	if err != nil {
		return nil, fmt.Errorf("initdata: gzip data: %w", err)
	}
	if len(raw) > maxRaw {
		return nil, fmt.Errorf("initdata: gzip data unpacks to more than %d bytes", maxRaw)
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("initdata: gzip data is followed by %d more bytes", in.Len())
	}
	return raw, nil
}

// EncodeAnnotation is the form of a document in a pod annotation
// (io.katacontainers.config.hypervisor.cc_init_data): standard base64 of
// gzip.
func EncodeAnnotation(raw []byte) (string, error) {
	gz, err := Compress(raw)
	if err != nil {
		return "", err
	}
	return annotationEncoding.EncodeToString(gz), nil
}

// DecodeAnnotation is the inverse of [EncodeAnnotation]. It does not parse
// the document.
func DecodeAnnotation(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		// The decoder would skip these.
		return nil, errors.New("initdata: annotation has a line break: encode it with base64 -w0")
	}
	if n := annotationEncoding.DecodedLen(len(s)); n > 2*MaxBytes {
		return nil, fmt.Errorf("initdata: annotation has %d characters, which is more than a document of %d bytes can need", len(s), MaxBytes)
	}
	gz, err := annotationEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("initdata: annotation is not standard base64: %w", err)
	}
	return Decompress(gz, MaxBytes)
}
