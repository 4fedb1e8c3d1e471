package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
)

var env guesttest.Env

func TestMain(m *testing.M) { guesttest.Main(m, &env) }

func request(t *testing.T, size int) image.Request {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(strings.Repeat("x", size)), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	desc, err := build.Build(t.Context(), l, build.Options{Layers: []build.Tree{{Dir: dir}}})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference("registry.example/test/file@" + string(desc.Digest))
	if err != nil {
		t.Fatal(err)
	}
	return image.Request{Ref: ref, Fetcher: l, Policy: signature.InsecureAcceptAnything()}
}

func TestContainersDoNotSeeEachOther(t *testing.T) {
	env.Need(t)
	s, err := image.NewStore(guesttest.Tmpfs(t))
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 3)
	img, err := s.Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Pull(t.Context(), req); err != nil || again != img {
		t.Errorf("second pull: %v, %v, want the same image", again, err)
	}
	if img.Digest != req.Ref.Digest || img.ManifestDigest != req.Ref.Digest {
		t.Errorf("digests %s, %s, want %s", img.Digest, img.ManifestDigest, req.Ref.Digest)
	}
	read := func(root string) string {
		b, err := os.ReadFile(filepath.Join(root, "file"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	one, err := s.Mount(img, "one")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(one, &st); err != nil || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %#x, %v: device nodes work in it", st.Flags, err)
	}
	if err := os.WriteFile(filepath.Join(one, "file"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	two, err := s.Mount(img, "two")
	if err != nil {
		t.Fatal(err)
	}
	if read(one) != "changed" || read(two) != "xxx" || read(img.Root) != "xxx" {
		t.Errorf("files %q, %q, %q", read(one), read(two), read(img.Root))
	}
	if _, err := s.Mount(img, "one"); err == nil {
		t.Error("the same root was made twice")
	}
	for _, id := range []string{"one", "two", "two", "never"} {
		if err := s.Unmount(id); err != nil {
			t.Errorf("unmount %s: %v", id, err)
		}
	}
	// A restarted container starts from the image.
	one, err = s.Mount(img, "one")
	if err != nil {
		t.Fatal(err)
	}
	if read(one) != "xxx" {
		t.Errorf("file %q after a restart", read(one))
	}
	if err := s.Unmount("one"); err != nil {
		t.Error(err)
	}
}

// A policy's demands go by repository: what was accepted from one where nothing
// is demanded is not accepted from another that demands a signature.
func TestSameDigestFromAnotherRepositoryIsVerifiedAnew(t *testing.T) {
	env.Need(t)
	s, err := image.NewStore(guesttest.Tmpfs(t))
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 3)
	if req.Policy, err = signature.ParsePolicy([]byte(`{"default":[{"type":"insecureAcceptAnything"}],
		"transports":{"docker":{"registry.example/strict":[{"type":"reject"}]}}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	req.Ref.Repository = "strict/file"
	if _, err := s.Pull(t.Context(), req); err == nil || !strings.Contains(err.Error(), "registry.example/strict") {
		t.Fatalf("expected the refusal of scope registry.example/strict, got %v", err)
	}
}

func TestPullFailsAndCanBeRepeated(t *testing.T) {
	env.Need(t)
	dir := guesttest.Tmpfs(t)
	s, err := image.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	req := request(t, 3)
	good := req.Fetcher
	req.Fetcher = request(t, 4).Fetcher // another repository
	if _, err := s.Pull(t.Context(), req); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("error = %v, want not found", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "images")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	req.Fetcher = good
	if _, err := s.Pull(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestTmpfsSize(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for memory, want := range map[uint64]uint64{1024 * mib: 768 * mib, 256 * mib: 160 * mib, 64 * mib: 48 * mib} {
		if got := image.TmpfsSize(memory); got != want {
			t.Errorf("TmpfsSize(%d MiB) = %d MiB, want %d", memory/mib, got/mib, want/mib)
		}
	}
}
