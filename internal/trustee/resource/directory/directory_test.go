package directory

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/backendtest"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// box is AES-256-GCM with the name as associated data.
type box struct{ aead cipher.AEAD }

func newBox(t testing.TB) box {
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return box{aead}
}

func (b box) Seal(name string, plain []byte) ([]byte, error) {
	return b.aead.Seal(nil, nil, plain, []byte(name)), nil
}

func (b box) Open(name string, sealed []byte) (secret.Bytes, error) {
	plain, err := b.aead.Open(nil, nil, sealed, []byte(name))
	return secret.New(plain), err
}

func open(t testing.TB, dir string) *Backend {
	t.Helper()
	b, err := New(Options{Dir: dir, Box: newBox(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func put(t testing.TB, b *Backend, p resource.Path, content string) int64 {
	t.Helper()
	v, err := b.Put(t.Context(), backendtest.TenantA, p, secret.New([]byte(content)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var key = resource.Path{Repository: "repo", Type: "key", Tag: "one"}

const keyDir = "default/repo/key/one"

func TestBackend(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, backendtest.Options{Rounds: 40}, func(t testing.TB) resource.Backend { return open(t, t.TempDir()) })
}

// Two backends on one directory stand for two replicas: flock excludes open
// files, not processes.
func TestReplicas(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, backendtest.Options{Writers: 8}, func(t testing.TB) resource.Backend {
		dir := t.TempDir()
		return &alternating{resource.Backend(open(t, dir)), open(t, dir), atomic.Int64{}}
	})
}

// alternating sends each call to the other one of two backends.
type alternating struct {
	resource.Backend
	other resource.Backend
	n     atomic.Int64
}

func (a *alternating) pick() resource.Backend {
	if a.n.Add(1)%2 == 0 {
		return a.other
	}
	return a.Backend
}

func (a *alternating) Put(ctx context.Context, t tenant.Name, p resource.Path, c secret.Bytes) (int64, error) {
	return a.pick().Put(ctx, t, p, c)
}

func (a *alternating) Get(ctx context.Context, t tenant.Name, p resource.Path, v int64) (secret.Bytes, int64, error) {
	return a.pick().Get(ctx, t, p, v)
}

func (a *alternating) Delete(ctx context.Context, t tenant.Name, p resource.Path) (bool, error) {
	return a.pick().Delete(ctx, t, p)
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "resources")
	b := open(t, dir)
	put(t, b, key, "marker-of-content")
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, []byte("marker")) {
			t.Errorf("%s holds the content in the clear", p)
		}
		if strings.Contains(p, temp) {
			t.Errorf("%s was left behind", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Another backend, as after a restart, reads it.
	if got, v, err := open(t, dir).Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "marker-of-content" {
		t.Errorf("after reopening: version %d, %v", v, err)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	b, err := New(Options{Dir: t.TempDir(), Box: newBox(t), Versions: 2, MaxContent: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for range 5 {
		put(t, b, key, "content")
	}
	infos, err := b.Versions(t.Context(), "default", key)
	if err != nil || len(infos) != 2 || infos[0].Version != 5 || infos[1].Version != 4 {
		t.Errorf("got %+v, %v", infos, err)
	}
	if _, err := b.Put(t.Context(), "default", key, secret.New(make([]byte, 9))); err == nil || !strings.Contains(err.Error(), "at most 8 bytes") {
		t.Errorf("too long a content: %v", err)
	}
}

// A writer that holds the lock delays others only as long as they wait.
func TestLockIsBoundedByContext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := open(t, dir)
	put(t, b, key, "one")
	holder, err := os.Open(filepath.Join(dir, keyDir))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if err := unix.Flock(int(holder.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := b.Put(ctx, "default", key, secret.New([]byte("two"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
	if got, v, err := b.Get(t.Context(), "default", key, 0); err != nil || v != 1 || string(got.Expose()) != "one" {
		t.Errorf("readers do not wait for writers: version %d, %v", v, err)
	}
}

// hangingBox stands for a disk that does not answer.
type hangingBox struct {
	box
	release chan struct{}
}

func (h hangingBox) Open(name string, sealed []byte) (secret.Bytes, error) {
	<-h.release
	return h.box.Open(name, sealed)
}

func TestHangingDisk(t *testing.T) {
	t.Parallel()
	h := hangingBox{newBox(t), make(chan struct{})}
	b, err := New(Options{Dir: t.TempDir(), Box: h})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	put(t, b, key, "one")
	for range defaultConcurrent + 1 { // the last ones do not even get a slot
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, _, err := b.Get(ctx, "default", key, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get: %v", err)
		}
		cancel()
	}
	close(h.release)
	if _, _, err := b.Get(t.Context(), "default", key, 0); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no directory": {Box: newBox(t)}, "no box": {Dir: t.TempDir()}, "writable by others": {Dir: open, Box: newBox(t)},
		"a file": {Dir: file, Box: newBox(t)}, "negative": {Dir: t.TempDir(), Box: newBox(t), Versions: -1},
	} {
		if b, err := New(o); err == nil {
			t.Errorf("%s: want an error", name)
			b.Close()
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	if err := classify(&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}); !errors.Is(err, resource.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := classify(errors.New("x")); errors.Is(err, resource.ErrUnavailable) {
		t.Errorf("any error: %v", err)
	}
}

func TestRandFails(t *testing.T) {
	t.Parallel()
	b, err := New(Options{Dir: t.TempDir(), Box: newBox(t), Rand: strings.NewReader("short")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Put(t.Context(), "default", key, secret.New([]byte("x"))); err == nil {
		t.Error("want an error")
	}
	if _, _, err := b.Get(t.Context(), "default", key, 0); !errors.Is(err, resource.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(header(time.UnixMilli(1), 2))
	f.Add([]byte("CFR1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		created, size, err := parseHeader(data)
		if err == nil && !bytes.Equal(header(created, size), data[:headerSize]) {
			t.Errorf("%x reads as %v, %d", data, created, size)
		}
	})
}

func FuzzNumber(f *testing.F) {
	f.Add("1")
	f.Add("01")
	f.Add("999999999999999999")
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := number(s); ok && (fileName(n) != s || n < 1) {
			t.Errorf("%q reads as %d", s, n)
		}
	})
}
