package inflate_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"testing"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

func gunzip(stream []byte) ([]byte, error) {
	z, err := inflate.NewGzipReader(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func gzipped(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGzip(t *testing.T) {
	for name, data := range corpus() {
		for level := range 10 {
			t.Run(fmt.Sprintf("%s/%d", name, level), func(t *testing.T) {
				stream := gzipped(t, data, level)
				got, err := gunzip(stream)
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("got %d bytes, error %v; want %d", len(got), err, len(data))
				}
			})
		}
	}
}
