package e2e

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// blobFiles lists the blobs of a cache.
func blobFiles(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && len(e.Name()) == 64 {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// flip changes a bit in the middle of a file.
func flip(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		data[len(data)/2] ^= 1
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBlobCache runs pods of one image with a cache on the host: the second
// downloads nothing; one whose cache was altered downloads everything again. What
// was read with credentials is not put there.
func TestBlobCache(t *testing.T) {
	s := need(t)
	t.Parallel()
	r, cache := s.registryFor(t), filepath.Join(t.TempDir(), "blobs")
	signKey, _ := signingKey(t, r)
	pushed, _ := s.program(t, "", "coffer", "image", "protect", s.local(t).layout, r.host()+"/public/cached:v1", "--registry-ca", r.ca, "--sign-key", signKey).expect(0)
	image := strings.TrimSpace(pushed)
	run := func(want string) (downloaded int) {
		t.Helper()
		before := r.guestBlobs("public/cached")
		stdout, stderr := s.run(t, "", "--registry-ca", r.ca, "--blob-cache", cache, image, "--", "cat /app/secret.txt").expect(0)
		if stdout != "a marker\n" {
			t.Errorf("got %q", stdout)
		}
		if says := strings.Contains(stderr, "blob cache wrong"); says != (want != "") {
			t.Errorf("expected stderr to say %q, got:\n%s", want, stderr)
		}
		return r.guestBlobs("public/cached") - before
	}
	first := run("")
	if first < 3 {
		t.Errorf("the first pod asked for %d blobs, expected its configuration and layers", first)
	}
	files := blobFiles(t, cache)
	if len(files) < first {
		t.Errorf("the cache has %d blobs of %d", len(files), first)
	}
	if again := run(""); again != 0 {
		t.Errorf("the second pod asked the registry for %d blobs", again)
	}
	t.Run("altered layer", func(t *testing.T) {
		flip(t, slices.MaxFunc(files, func(a, b string) int { return cmp.Compare(size(t, a), size(t, b)) }))
		if n := run("blob cache wrong"); n == 0 || n > first {
			t.Errorf("with an altered layer %d blobs were asked for, expected 1 to %d", n, first)
		}
	})
	t.Run("altered documents", func(t *testing.T) {
		for _, file := range blobFiles(t, cache) {
			if size(t, file) < 1<<14 {
				flip(t, file)
			}
		}
		if n := run("blob cache wrong"); n != first {
			t.Errorf("with an altered cache %d blobs were asked for, expected %d", n, first)
		}
	})
	t.Run("private", func(t *testing.T) {
		state, private := t.TempDir(), filepath.Join(t.TempDir(), "blobs")
		pushed, _ := s.program(t, state, "coffer", "image", "protect", s.local(t).layout, r.host()+"/private/cached:v1", "--registry-ca", r.ca, "--authfile", r.authFile, "--sign-key", signKey).expect(0)
		s.program(t, state, "coffer", "trustee", "secret", "set", "kbs:///shop/registry/auth", write(t, "auth", r.guestAuth)).expect(0)
		stdout, _ := s.run(t, state, "--registry-ca", r.ca, "--authfile", r.authFile, "--credentials", "kbs:///shop/registry/auth", "--blob-cache", private,
			strings.TrimSpace(pushed), "--", "cat /app/secret.txt").expect(0)
		if stdout != "a marker\n" {
			t.Errorf("got %q", stdout)
		}
		if n := r.guestBlobs("private/cached"); n < first {
			t.Errorf("the pod asked for %d blobs, expected %d", n, first)
		}
		if left := blobFiles(t, private); len(left) != 0 {
			t.Errorf("a private image is in the cache: %v", left)
		}
	})
}
