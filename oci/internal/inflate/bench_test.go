package inflate_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/coffer-project/coffer/oci/internal/inflate"
)

// layerBytes is how large a layer is made for a benchmark.
const layerBytes = 64 << 20

// layer makes a tar of the files below the directories, as gzip -6 writes it.
func layer(b *testing.B, dirs ...string) (plain, packed []byte) {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range dirs {
		limit := buf.Len() + layerBytes/len(dirs)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // what cannot be read is not needed
			}
			data, err := os.ReadFile(path)
			if err != nil || len(data) > 4<<20 {
				return nil //nolint:nilerr // as before
			}
			if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data))}); err != nil {
				return err
			}
			if _, err := w.Write(data); err != nil {
				return err
			}
			if buf.Len() > limit {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("gzip", "-6")
	cmd.Stdin = bytes.NewReader(buf.Bytes())
	packed, err := cmd.Output()
	if err != nil {
		b.Skipf("gzip(1): %v", err)
	}
	return buf.Bytes(), packed
}

// BenchmarkGzip decodes layers with this package and with others, and with
// programs that read a file and write to /dev/null. MB/s are of decoded bytes.
func BenchmarkGzip(b *testing.B) {
	layers := map[string][]string{
		"go":     {runtime.GOROOT() + "/src"},
		"debian": {"/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/etc"},
	}
	for _, name := range []string{"go", "debian"} {
		plain, packed := layer(b, layers[name]...)
		check := func(b *testing.B, n int64, err error) {
			if err != nil || n != int64(len(plain)) {
				b.Fatalf("%d bytes, error %v; want %d", n, err, len(plain))
			}
		}
		run := func(decoder string, f func(b *testing.B)) {
			b.Run(name+"/"+decoder, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				for b.Loop() {
					f(b)
				}
			})
		}
		run("inflate", func(b *testing.B) {
			z, err := inflate.NewGzipReader(bytes.NewReader(packed))
			if err != nil {
				b.Fatal(err)
			}
			n, err := z.WriteTo(io.Discard)
			check(b, n, err)
		})
		run("compress-gzip", func(b *testing.B) {
			z, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, z)
			check(b, n, err)
		})
		run("klauspost", func(b *testing.B) {
			z, err := kgzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, z)
			check(b, n, err)
		})
		for _, program := range []string{"igzip", "gzip"} {
			path, err := exec.LookPath(program)
			if err != nil {
				continue
			}
			file := filepath.Join(b.TempDir(), "layer.gz")
			if err := os.WriteFile(file, packed, 0o600); err != nil {
				b.Fatal(err)
			}
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			run(program, func(b *testing.B) {
				cmd := exec.Command(path, "-dc", file)
				cmd.Stdout = null
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			})
			null.Close()
		}
	}
}
