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
	"strings"
	"syscall"
	"testing"
	"time"

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

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGzip decodes layers with this package, with others, and with
// programs that read a file and write to /dev/null. MB/s are of decoded bytes
// and of the clock; cpu-MB/s are of processor time, in the fastest round, which
// tells more on a machine with other work.
func BenchmarkGzip(b *testing.B) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("go", func(b *testing.B) { benchmarkGzip(b, filepath.Join(strings.TrimSpace(string(root)), "src")) })
	b.Run("debian", func(b *testing.B) { benchmarkGzip(b, "/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share", "/etc") })
}

func benchmarkGzip(b *testing.B, dirs ...string) {
	plain, packed := layer(b, dirs...)
	// run measures f, which returns processor time that is not this process's.
	run := func(name string, f func() (int64, time.Duration, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			best := time.Duration(1 << 62)
			for b.Loop() {
				start := cpuTime(b)
				n, child, err := f()
				if err != nil || n != int64(len(plain)) {
					b.Fatalf("%d bytes, error %v; want %d", n, err, len(plain))
				}
				if child == 0 {
					child = cpuTime(b) - start
				}
				best = min(best, child)
			}
			b.ReportMetric(float64(len(plain))/1e6/best.Seconds(), "cpu-MB/s")
		})
	}
	run("inflate", func() (int64, time.Duration, error) {
		z, err := inflate.NewGzipReader(bytes.NewReader(packed))
		if err != nil {
			return 0, 0, err
		}
		n, err := z.WriteTo(io.Discard)
		return n, 0, err
	})
	run("compress-gzip", func() (int64, time.Duration, error) {
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return 0, 0, err
		}
		n, err := io.Copy(io.Discard, z)
		return n, 0, err
	})
	run("klauspost", func() (int64, time.Duration, error) {
		z, err := kgzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return 0, 0, err
		}
		n, err := io.Copy(io.Discard, z)
		return n, 0, err
	})
	file := filepath.Join(b.TempDir(), "layer.gz")
	if err := os.WriteFile(file, packed, 0o600); err != nil {
		b.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for _, program := range []string{"igzip", "gzip"} {
		path, err := exec.LookPath(program)
		if err != nil {
			continue
		}
		run(program, func() (int64, time.Duration, error) {
			cmd := exec.Command(path, "-dc", file)
			cmd.Stdout = null
			err := cmd.Run()
			return int64(len(plain)), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
		})
	}
}
