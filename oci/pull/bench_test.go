package pull_test

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/pull"
)

// BenchmarkPull pulls an image of 64 MiB in 2000 files whose content
// compresses about threefold; the figure is uncompressed bytes.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 512)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Uint64N(1<<32))
	}
	headers := make([]tar.Header, 2000)
	for i := range headers {
		content := make([]byte, 0, 33<<10)
		for len(content) < 32<<10 {
			content = append(content, words[r.IntN(len(words))]...)
		}
		headers[i] = file(fmt.Sprintf("d%d/f%d", i/50, i), string(content))
	}
	plain := tarOf(b, headers...)
	for _, c := range []oci.Compression{oci.Uncompressed, oci.Gzip, oci.Zstd} {
		for _, encrypted := range []bool{false, true} {
			b.Run(fmt.Sprintf("%v/encrypted=%v", c, encrypted), func(b *testing.B) {
				s := newStore()
				ref := image{layers: [][]byte{plain}, compression: c, encrypted: encrypted}.push(b, s)
				o := options(b, s, ref)
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := pull.Pull(b.Context(), o); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := os.RemoveAll(o.Dest); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}
