package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

// lying is a fetcher over a cache that gives something else for layers until it
// has been caught.
type lying struct {
	oci.Fetcher
	lies int
	mu   sync.Mutex
	told int
}

func (l *lying) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	rc, err := l.Fetcher.Fetch(ctx, d)
	if _, perr := oci.ParseLayerMediaType(d.MediaType); err != nil || perr != nil {
		return rc, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told == l.lies {
		return rc, nil
	}
	l.told++
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, 3), iotest.ErrReader(fmt.Errorf("the host's blob cache: %w", oci.ErrLied))), rc}, nil
}

// A pull that a lying cache has spoilt starts again: the fetcher has left the cache
// then. Mirrors behind it may lie, too, and the registry is asked in the end; but a
// fetcher that never leaves them is not asked for ever.
func TestPullStartsAgainWithoutALyingCache(t *testing.T) {
	env.Need(t)
	dir := guesttest.Tmpfs(t)
	s, err := image.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 3)
	good := req.Fetcher
	req.Fetcher = &lying{Fetcher: good, lies: 5}
	if _, err := s.Pull(t.Context(), req); !errors.Is(err, oci.ErrLied) {
		t.Errorf("lied to five times: want ErrLied, got %v", err)
	}
	empty(t, dir)
	req.Fetcher = &lying{Fetcher: good, lies: 3}
	img, err := s.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(img.Root, "file")); err != nil || string(b) != "xxx" {
		t.Errorf("file %q, %v", b, err)
	}
}

// empty checks that nothing is left of what was tried.
func empty(t *testing.T, dir string) {
	t.Helper()
	for _, sub := range []string{"images", "spool", "containers"} {
		if left, err := os.ReadDir(filepath.Join(dir, sub)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", sub, left, err)
		}
	}
}

// stuck is a fetcher whose layers do not come.
type stuck struct {
	oci.Fetcher
	asked chan struct{}
	once  sync.Once
}

func (s *stuck) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if _, err := oci.ParseLayerMediaType(d.MediaType); err != nil {
		return s.Fetcher.Fetch(ctx, d)
	}
	s.once.Do(func() { close(s.asked) })
	<-ctx.Done()
	return nil, ctx.Err()
}

// A pull that is given up leaves nothing, whoever waits for it goes on, and
// those who wait can give up too.
func TestPullCancelled(t *testing.T) {
	env.Need(t)
	dir := guesttest.Tmpfs(t)
	s, err := image.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 3)
	good := req.Fetcher
	slow := &stuck{Fetcher: good, asked: make(chan struct{})}
	first := req
	first.Fetcher = slow
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 3)
	go func() { _, err := s.Pull(ctx, first); results <- err }()
	<-slow.asked
	given, give := context.WithCancel(t.Context())
	give()
	if _, err := s.Pull(given, req); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v", err)
	}
	var images [2]*image.Image
	for i := range images {
		go func() {
			var err error
			images[i], err = s.Pull(t.Context(), req)
			results <- err
		}()
	}
	cancel()
	failed := 0
	for range 3 {
		if err := <-results; errors.Is(err, context.Canceled) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 1 || images[0] == nil || images[0] != images[1] {
		t.Errorf("%d failed; images %v", failed, images)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "images")); err != nil || len(left) != 1 {
		t.Errorf("images: %v, %v", left, err)
	}
}

// counting counts what is fetched.
type counting struct {
	oci.Fetcher
	mu     sync.Mutex
	layers int
}

func (c *counting) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	if _, err := oci.ParseLayerMediaType(d.MediaType); err == nil {
		c.mu.Lock()
		c.layers++
		c.mu.Unlock()
	}
	return c.Fetcher.Fetch(ctx, d)
}

type keyMap map[string][]byte

func (m keyMap) Key(_ context.Context, kid string) (secret.Bytes, error) {
	k, ok := m[kid]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("no resource %s", kid)
	}
	return secret.New(bytes.Clone(k)), nil
}

// An image that is here already is judged anew, by the policy and the keys of
// the request, and its layers are not fetched again.
func TestCachedImageIsJudgedAnew(t *testing.T) {
	env.Need(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("xxx"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const kid = "kbs:///default/key/1"
	key := bytes.Repeat([]byte{7}, 32)
	desc, err := build.Build(t.Context(), l, build.Options{Layers: []build.Tree{{Dir: dir}},
		Recipients: []encrypt.Recipient{{KID: kid, Key: secret.New(bytes.Clone(key))}}, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference("registry.example/test/file@" + string(desc.Digest))
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.NewStore(guesttest.Tmpfs(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &counting{Fetcher: l}
	req := image.Request{Ref: ref, Fetcher: f, Policy: signature.InsecureAcceptAnything(), Keys: keyMap{kid: key}}
	img, err := s.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	strict, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*image.Request)
		want   string
	}{
		"the same":             {func(*image.Request) {}, ""},
		"another repository":   {func(r *image.Request) { r.Ref.Repository = "other/file" }, ""},
		"policy refuses":       {func(r *image.Request) { r.Policy = strict }, "reject"},
		"no policy":            {func(r *image.Request) { r.Policy = nil }, "no signature policy"},
		"key is not given out": {func(r *image.Request) { r.Keys = keyMap{} }, "layer 1 of 1 (sha256:"},
		"no keys":              {func(r *image.Request) { r.Keys = nil }, "no source of keys"},
		"another key":          {func(r *image.Request) { r.Keys = keyMap{kid: make([]byte, 32)} }, "layer 1 of 1"},
	} {
		changed := req
		tt.change(&changed)
		got, err := s.Pull(t.Context(), changed)
		switch {
		case tt.want == "" && (err != nil || got != img):
			t.Errorf("%s: %v, %v", name, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "image "+changed.Ref.String())):
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
	if f.layers != 1 {
		t.Errorf("layers were fetched %d times", f.layers)
	}
}

// A store that is full says what is needed, what there is, and what to do.
func TestFullStore(t *testing.T) {
	env.Need(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "size=17m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something is left in use: %v", err)
		}
	}()
	s, err := image.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 8<<20)
	_, err = s.Pull(t.Context(), req)
	for _, want := range []string{req.Ref.String(), "layer 1 of 1 (sha256:", "no space: the image needs at least 83", " bytes, 1048576 bytes are available", "give the pod more of it, or a scratch disk"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("not ENOSPC: %v", err)
	}
	empty(t, dir)
}

// Device nodes of an image are there and do nothing.
func TestDeviceNodesDoNothing(t *testing.T) {
	env.Need(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666})
	_ = w.Close()
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(oci.ImageConfig{OS: "linux", Architecture: runtime.GOARCH, RootFS: oci.RootFS{Type: "layers", DiffIDs: []oci.Digest{oci.FromBytes(b.Bytes())}}})
	if err != nil {
		t.Fatal(err)
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Layers: make([]oci.Descriptor, 1)}
	if m.Config, err = oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, config); err != nil {
		t.Fatal(err)
	}
	if m.Layers[0], err = oci.PushBytes(t.Context(), l, oci.MediaTypeLayer, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "size=64m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	s, err := image.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Pull(t.Context(), image.Request{Ref: oci.Reference{Registry: "r.example", Repository: "x", Digest: d.Digest}, Fetcher: l, Policy: signature.InsecureAcceptAnything()})
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(img, "c")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Unmount("c") }()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "dev/null"), &st); err != nil || st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("mode %o, device %#x, %v", st.Mode, st.Rdev, err)
	}
	if _, err := os.Open(filepath.Join(root, "dev/null")); !errors.Is(err, unix.EACCES) {
		t.Errorf("the device was opened: %v", err)
	}
}
