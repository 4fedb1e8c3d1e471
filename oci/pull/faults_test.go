package pull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/registry"
)

// tmpfs mounts one for the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, options); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
			t.Skipf("not supported: tmpfs with %q cannot be mounted here: %v", options, err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	})
	return dir
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}

// An image that does not fit is refused before a layer is fetched or, where it
// could not be known, when it shows; the message says image, layer, needed and
// available, and nothing is left.
func TestPullDoesNotFit(t *testing.T) {
	t.Parallel()
	small := make([]tar.Header, 600)
	for i := range small {
		small[i] = file(fmt.Sprintf("f%d", i), "x")
	}
	first := tarOf(t, file("first", random(100<<10)))
	for name, tt := range map[string]struct {
		options string
		layers  [][]byte
		gzip    bool
		fetched bool
		want    []string
	}{
		"known before": {"size=1m", [][]byte{first, tarOf(t, file("f", random(2<<20)))}, false, false,
			[]string{"layer 2 of 2 (sha256:", "no space: the image needs at least 2", "bytes, 983040 bytes are available"}},
		"a file too large": {"size=1m", [][]byte{first, tarOf(t, file("zeros", strings.Repeat("\x00", 20<<20)))}, true, true,
			[]string{"layer 2 of 2 (sha256:", "no space: the image needs at least 20 MiB, 983040 bytes were available", `entry "zeros"`}},
		"many small files": {"size=1m", [][]byte{first, tarOf(t, small...)}, true, true,
			[]string{"layer 2 of 2 (sha256:", "no space: the image needs at least ", "983040 bytes were available", `entry "f`, "no space left on device"}},
		"inodes": {"size=16m,nr_inodes=300", [][]byte{first, tarOf(t, small...)}, true, true,
			[]string{"layer 2 of 2 (sha256:", "no space: the image needs at least 300 inodes, 299 inodes were available", "no space left on device"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tmpfs(t, tt.options)
			s := newStore()
			i := image{layers: tt.layers}
			if tt.gzip {
				i.compression = oci.Gzip
			}
			ref := i.push(t, s)
			o := options(t, s, ref)
			o.Dest = filepath.Join(dir, "root")
			o.Reserve = 64 << 10
			_, err := pull.Pull(t.Context(), o)
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("not ENOSPC: %v", err)
			}
			contains(t, name, err, append(tt.want, "pull "+ref.String())...)
			if fetched := len(s.fetched) > 2; fetched != tt.fetched {
				t.Errorf("fetched: %v", s.fetched)
			}
			gone(t, o)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
				t.Errorf("%d of %d blocks are free, %v", st.Bfree, st.Blocks, err)
			}
		})
	}
}

// faulty wraps a repository's layers.
type faulty struct {
	*store
	mu      sync.Mutex
	fetches map[oci.Digest]int
	wrap    func(d oci.Descriptor, fetch int, r io.ReadCloser) io.ReadCloser
}

func (f *faulty) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	rc, err := f.store.Fetch(ctx, d)
	if _, perr := oci.ParseLayerMediaType(d.MediaType); err != nil || perr != nil {
		return rc, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetches[d.Digest]++
	return f.wrap(d, f.fetches[d.Digest], rc), nil
}

// tap counts, and may stop, what is read.
type tap struct {
	io.ReadCloser
	gate chan struct{} // closed: go on
	n    int
	cut  int // 0: never
}

var errReset = errors.New("connection reset by a test")

func (r *tap) Read(p []byte) (int, error) {
	if r.gate != nil {
		<-r.gate
	}
	if r.cut > 0 {
		if r.n == r.cut {
			return 0, errReset
		}
		p = p[:min(len(p), r.cut-r.n)]
	}
	n, err := r.ReadCloser.Read(p)
	r.n += n
	return n, err
}

// A layer whose turn has not come is fetched as far as the window reaches, or
// into the spool; what has been unpacked is where nobody may look; a connection
// that broke because nothing was read from it is opened again.
func TestPullWindow(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const large = 3 << 20
	for name, tt := range map[string]struct {
		spool bool
		cut   int
	}{"memory": {}, "disk": {spool: true}, "connection breaks": {cut: 256 << 10}, "connection breaks later": {cut: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				var second oci.Digest
				ref := image{layers: [][]byte{tarOf(t, file("a", "1")), tarOf(t, file("b", random(large)))},
					manifest: func(m *oci.Manifest) { second = m.Layers[1].Digest }}.push(t, s)
				gate := make(chan struct{})
				var later *tap
				f := &faulty{store: s, fetches: map[oci.Digest]int{}}
				f.wrap = func(d oci.Descriptor, fetch int, rc io.ReadCloser) io.ReadCloser {
					if d.Digest != second {
						return &tap{ReadCloser: rc, gate: gate}
					}
					later = &tap{ReadCloser: rc}
					if fetch == 1 {
						later.cut = tt.cut
					}
					return later
				}
				o := options(t, s, ref)
				o.Fetcher, o.Limits.Window = f, 1
				if !tt.spool {
					o.Spool = ""
				}
				result := make(chan error, 1)
				go func() { _, err := pull.Pull(t.Context(), o); result <- err }()
				synctest.Wait() // the first layer does not come
				want := 2 * (128 << 10)
				if tt.spool {
					want = later.n
					if later.n < large {
						t.Errorf("%d bytes of the second layer were fetched, want all", later.n)
					}
				}
				if later.n != want {
					t.Errorf("%d bytes of the second layer were fetched, want %d", later.n, want)
				}
				entries, err := os.ReadDir(filepath.Dir(o.Dest))
				if err != nil || len(entries) != 1 {
					t.Fatalf("want one staging directory, got %v, %v", entries, err)
				}
				if fi, err := entries[0].Info(); err != nil || fi.Mode() != os.ModeDir|0o700 {
					t.Errorf("staging directory: %v, %v", fi.Mode(), err)
				}
				close(gate)
				if err := <-result; err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(filepath.Join(o.Dest, "b")); err != nil || string(got) != random(large) {
					t.Errorf("b: %d bytes, %v", len(got), err)
				}
				if want := 1 + min(tt.cut, 1); f.fetches[second] != want {
					t.Errorf("the second layer was fetched %d times, want %d", f.fetches[second], want)
				}
			})
		})
	}
}

// A connection that breaks by itself is the registry's business.
func TestPullConnectionBreaks(t *testing.T) {
	t.Parallel()
	s := newStore()
	ref := image{layers: [][]byte{tarOf(t, file("b", random(1<<20)))}}.push(t, s)
	o := options(t, s, ref)
	f := &faulty{store: s, fetches: map[oci.Digest]int{}, wrap: func(_ oci.Descriptor, _ int, rc io.ReadCloser) io.ReadCloser {
		return &tap{ReadCloser: rc, cut: 1000}
	}}
	o.Fetcher = f
	_, err := pull.Pull(t.Context(), o)
	contains(t, "break", err, "pull "+ref.String(), "layer 1 of 1", errReset.Error())
	for _, n := range f.fetches {
		if n != 1 {
			t.Errorf("fetched %d times", n)
		}
	}
	gone(t, o)
}

// Real connections: a registry that stalls, cuts off, says another length, or
// answers something else.
func TestPullFromBadRegistries(t *testing.T) {
	t.Parallel()
	body := tarOf(t, file("b", random(3<<20)))
	other := bytes.Clone(body)
	other[1<<20] ^= 1
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	for name, tt := range map[string]struct {
		blob func(w http.ResponseWriter, r *http.Request)
		want string
	}{
		"stalls": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:1<<20])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-stop:
			case <-r.Context().Done():
			}
		}, "the registry sent nothing"},
		"cuts off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:1<<20])
		}, "fetch: "},
		"says that it is shorter": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(body[:1000])
		}, ""},
		"sends more": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(body)
			_, _ = w.Write(body)
		}, ""},
		"sends something else": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(other) }, "digest differs"},
		"fails":                {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "403"},
		"redirects in circles": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) }, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			ref := image{layers: [][]byte{body}}.push(t, s)
			layerDigest := oci.FromBytes(body)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				d := oci.Digest(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
				if d == layerDigest && r.Method == http.MethodGet {
					tt.blob(w, r)
					return
				}
				data, known := s.blobs[d]
				if !known && r.URL.Path != "/v2/" {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Content-Type", s.types[d])
				w.Header().Set("Docker-Content-Digest", string(d))
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data)
			}))
			t.Cleanup(server.Close)
			ref.Registry = strings.TrimPrefix(server.URL, "http://")
			client, err := registry.New(registry.Options{PlainHTTP: []string{ref.Registry}, StallTimeout: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			repo, err := client.Repository(ref)
			if err != nil {
				t.Fatal(err)
			}
			o := options(t, s, ref)
			o.Fetcher = repo
			_, err = pull.Pull(t.Context(), o)
			contains(t, name, err, "pull "+ref.String(), "layer 1 of 1 ("+string(layerDigest)+")", tt.want)
			gone(t, o)
		})
	}
}
