package inflate_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	kgzip "github.com/klauspost/compress/gzip"
)

// compressors are programs that write gzip files. The command is followed by
// the level; levels are from first to last.
var compressors = []struct {
	command     []string
	first, last int
	// required is true for programs that a full test machine has.
	required bool
}{
	{[]string{"gzip", "-c"}, 1, 9, true},
	{[]string{"igzip", "-c"}, 0, 3, true},
	{[]string{"pigz", "-c"}, 1, 9, false},
	{[]string{"pigz", "-c", "-i", "-b", "128"}, 11, 11, false},
	{[]string{"libdeflate-gzip", "-c"}, 1, 12, false},
	{[]string{"zopfli", "-c", "/dev/stdin"}, 0, 0, false},
	{[]string{"python3", "-c", zlibPy}, 1, 9, false},
}

// zlibPy compresses with zlib, which gzip(1) and Go do without.
const zlibPy = `import sys, zlib
z = zlib.compressobj(-int(sys.argv[1]), zlib.DEFLATED, 31, 1 + -int(sys.argv[1]) % 9)
sys.stdout.buffer.write(z.compress(sys.stdin.buffer.read()) + z.flush())`

// Files of other programs are read.
func TestPrograms(t *testing.T) {
	var all []byte
	for _, data := range corpus() {
		all = append(all, data...)
	}
	for _, c := range compressors {
		name := c.command[0]
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(name)
			if err != nil && c.required && os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
				t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
			}
			if err != nil {
				t.Skip(err)
			}
			for content, data := range map[string][]byte{"empty": {}, "all": all} {
				for level := c.first; level <= c.last; level++ {
					args := c.command[1:]
					if name != "zopfli" {
						args = append(args[:len(args):len(args)], fmt.Sprintf("-%d", level))
					}
					cmd := exec.Command(path, args...)
					cmd.Stdin = bytes.NewReader(data)
					cmd.Stderr = os.Stderr
					stream, err := cmd.Output()
					if err != nil {
						t.Fatalf("%v: %v", cmd.Args, err)
					}
					got, err := gunzip(stream)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%d, %s: %d bytes, error %v; want %d", level, content, len(got), err, len(data))
					}
				}
			}
		})
	}
}

func TestKlauspost(t *testing.T) {
	for content, data := range corpus() {
		for level := kgzip.StatelessCompression; level <= kgzip.BestCompression; level++ {
			var b bytes.Buffer
			w, err := kgzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			for piece := range slices.Chunk(data, 30_000) {
				if _, err := w.Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := gunzip(b.Bytes())
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("level %d, %s: %d bytes, error %v; want %d", level, content, len(got), err, len(data))
			}
		}
		var b bytes.Buffer
		w, err := kflate.NewWriterWindow(&b, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := decode(b.Bytes()); err != nil || !bytes.Equal(got, data) {
			t.Errorf("window of 1 KiB, %s: %d bytes, error %v; want %d", content, len(got), err, len(data))
		}
	}
}

// Every size around the edges of the window, of what does not compress and of
// what compresses best.
func TestWindowEdges(t *testing.T) {
	data := corpus()["random"]
	for len(data) < 600_000 {
		data = append(data, data...)
	}
	zeros := make([]byte, 600_000)
	for _, edge := range []int{32 << 10, 64 << 10, 256 << 10, 256<<10 - 260, 480 << 10, 480<<10 - 260} {
		for n := edge - 3; n <= edge+3; n++ {
			for _, content := range [][]byte{data[:n], zeros[:n]} {
				got, err := gunzip(gzipped(t, content, gzip.BestSpeed))
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes: %d bytes, error %v", n, len(got), err)
				}
			}
		}
	}
}
