package blobcache_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/oci"
)

func open(t *testing.T, dir string, o blobcache.Options) *blobcache.Store {
	t.Helper()
	s, err := blobcache.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *blobcache.Store, data []byte) oci.Digest {
	t.Helper()
	d := oci.FromBytes(data)
	if err := s.Put(d, int64(len(data)), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return d
}

func get(s *blobcache.Store, d oci.Digest) ([]byte, error) {
	rc, _, err := s.Get(d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// files lists what is in a directory, without the lock.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" {
			out = append(out, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPutGet(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "cache")
	s := open(t, dir, blobcache.Options{})
	d := put(t, s, []byte("content"))
	if got, err := get(s, d); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := get(s, oci.FromBytes(nil)); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("want ErrNotFound, got %v", err)
	}
	if err := s.Put(d, 7, strings.NewReader("content")); !errors.Is(err, blobcache.ErrUnwanted) {
		t.Errorf("again: want ErrUnwanted, got %v", err)
	}
	for _, bad := range []oci.Digest{"", "sha256:../../x", "md5:00"} {
		if err := s.Put(bad, 1, strings.NewReader("x")); err == nil {
			t.Errorf("%q was stored", bad)
		}
		if _, _, err := s.Get(bad); err == nil || errors.Is(err, oci.ErrNotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, p := range []string{"", "sha256", "tmp"} {
		if info, err := os.Stat(filepath.Join(dir, p)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%q: %v, %v, want 0700", p, info.Mode(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "sha256", d.Hex())); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("blob: %v, %v, want 0600", info.Mode(), err)
	}
}

// TestPutVerifies: nothing appears that is not what its digest says, and
// nothing stays of what was refused.
func TestPutVerifies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, blobcache.Options{})
	d := oci.FromBytes([]byte("content"))
	for name, r := range map[string]io.Reader{
		"other":  strings.NewReader("c0ntent"),
		"short":  strings.NewReader("conten"),
		"failed": io.MultiReader(strings.NewReader("con"), failing{}),
	} {
		if err := s.Put(d, 7, r); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("failed") }

// TestSpoiltBlobIsRemoved: what the disk has changed is not given out as good,
// and makes room for a good copy.
func TestSpoiltBlobIsRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "c")
	s := open(t, dir, blobcache.Options{})
	d := put(t, s, []byte("content"))
	if err := os.WriteFile(filepath.Join(dir, "sha256", d.Hex()), []byte("c0ntent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := get(s, d); err == nil {
		t.Error("a spoilt blob was read without an error")
	}
	if got := put(t, s, []byte("content")); got != d {
		t.Error("not stored again")
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	s := open(t, filepath.Join(t.TempDir(), "c"), blobcache.Options{MaxBytes: 250, Now: func() time.Time { now = now.Add(time.Second); return now }})
	data := func(c byte) []byte { return bytes.Repeat([]byte{c}, 100) }
	a, b := put(t, s, data('a')), put(t, s, data('b'))
	if _, err := get(s, a); err != nil {
		t.Fatal(err)
	}
	c := put(t, s, data('c'))
	if _, err := get(s, b); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("b: want it dropped, got %v", err)
	}
	var have []oci.Digest
	for _, e := range s.List() {
		have = append(have, e.Digest)
	}
	if fmt.Sprint(have) != fmt.Sprint([]oci.Digest{c, a}) {
		t.Errorf("have %v, want c and a", have)
	}
	if err := s.Put(oci.FromBytes(bytes.Repeat([]byte("x"), 126)), 126, strings.NewReader("")); !errors.Is(err, blobcache.ErrUnwanted) {
		t.Errorf("more than half: %v", err)
	}
	if dropped, err := s.Prune(0); err != nil || len(dropped) != 2 || len(s.List()) != 0 {
		t.Errorf("prune: %v, %v", dropped, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := blobcache.Open(dir, blobcache.Options{}); err == nil || !strings.Contains(err.Error(), "mode 0700") {
		t.Errorf("others can read it: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blobcache.Open(file, blobcache.Options{}); err == nil {
		t.Error("a file was opened as a cache")
	}
	if _, err := blobcache.Open(dir, blobcache.Options{MaxBytes: -1}); err == nil {
		t.Error("a negative size was accepted")
	}
}

// childDir makes the test program a process that dies while it stores a blob.
const childDir = "COFFER_BLOBCACHE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		s, err := blobcache.Open(dir, blobcache.Options{})
		if err != nil {
			panic(err)
		}
		_ = s.Put(oci.FromBytes(bytes.Repeat([]byte("z"), 1<<20)), 1<<20, io.MultiReader(bytes.NewReader(bytes.Repeat([]byte("z"), 1<<19)), dying{}))
		panic("not reached")
	}
	os.Exit(m.Run())
}

type dying struct{}

func (dying) Read([]byte) (int, error) {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// TestCrashLeavesNoPartialBlob: a process that is killed in the middle of a Put
// leaves nothing that can be read, and the next one cleans up, but not what
// another is still writing.
func TestCrashLeavesNoPartialBlob(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "c")
	s := open(t, dir, blobcache.Options{})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	if err := cmd.Run(); err == nil {
		t.Fatal("the child was to die")
	}
	if left := files(t, dir); len(left) != 1 || !strings.HasPrefix(left[0], "tmp/") {
		t.Fatalf("left %v, want one partial blob", left)
	}
	if len(s.List()) != 0 {
		t.Error("a partial blob is listed")
	}
	// A second Put is under way while a third process opens the cache.
	data := bytes.Repeat([]byte("y"), 1000)
	middle, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.Put(oci.FromBytes(data), 1000, io.MultiReader(bytes.NewReader(data[:500]), &pausing{middle: middle, goOn: goOn, r: bytes.NewReader(data[500:])}))
	}()
	<-middle
	open(t, dir, blobcache.Options{})
	if left := files(t, dir); len(left) != 1 {
		t.Errorf("left %v, want only the one that is being written", left)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Errorf("the Put that was under way: %v", err)
	}
	if got, err := get(s, oci.FromBytes(data)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v", err)
	}
}

type pausing struct {
	once         sync.Once
	middle, goOn chan struct{}
	r            io.Reader
}

func (p *pausing) Read(b []byte) (int, error) {
	p.once.Do(func() { close(p.middle); <-p.goOn })
	return p.r.Read(b)
}

// TestSharedDirectory: several stores on one directory, at once.
func TestSharedDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "c")
	var wg sync.WaitGroup
	for range 4 {
		s := open(t, dir, blobcache.Options{MaxBytes: 40_000})
		wg.Go(func() {
			for i := range 30 {
				data := bytes.Repeat([]byte{byte(i)}, 4000)
				if err := s.Put(oci.FromBytes(data), 4000, bytes.NewReader(data)); err != nil && !errors.Is(err, blobcache.ErrUnwanted) {
					t.Errorf("put %d: %v", i, err)
				}
				if got, err := get(s, oci.FromBytes(data)); err == nil && !bytes.Equal(got, data) || err != nil && !errors.Is(err, oci.ErrNotFound) {
					t.Errorf("get %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	total := int64(0)
	for _, e := range open(t, dir, blobcache.Options{}).List() {
		total += e.Size
	}
	if total > 40_000 || total == 0 {
		t.Errorf("%d bytes in the cache, at most 40000 were wanted", total)
	}
	for _, f := range files(t, dir) {
		if strings.HasPrefix(f, "tmp/") {
			t.Errorf("left %s", f)
		}
	}
}

// Guests that offer much at once and send little must not fill the node's disk: what
// is on its way has its room, and is bounded as what is there.
func TestPartialBlobsAreBounded(t *testing.T) {
	t.Parallel()
	const max, size = 4 << 20, 1 << 20
	dir := filepath.Join(t.TempDir(), "cache")
	s := open(t, dir, blobcache.Options{MaxBytes: max})
	results := make(chan error)
	var guests []*io.PipeWriter
	for i := range 8 {
		r, w := io.Pipe()
		guests = append(guests, w)
		go func() { results <- s.Put(oci.FromBytes([]byte{byte(i)}), size, r) }()
	}
	// Four are waited for; the others are refused at once.
	for range 4 {
		select {
		case err := <-results:
			if !errors.Is(err, blobcache.ErrUnwanted) {
				t.Errorf("want ErrUnwanted, got %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("more than the cache holds is on its way into it")
		}
	}
	var held int64
	for _, name := range files(t, dir) {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		held += st.Size
	}
	if held != max {
		t.Errorf("%d bytes are kept for what is on its way, want %d", held, max)
	}
	for _, w := range guests {
		_ = w.CloseWithError(io.ErrUnexpectedEOF)
	}
	for range 4 {
		if err := <-results; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("want ErrUnexpectedEOF, got %v", err)
		}
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	put(t, s, []byte("there is room again"))
}
