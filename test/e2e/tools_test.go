package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool finds a program of others that makes images.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("COFFER_REQUIRE_SERVERS") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

// tooling runs such a program with directories of its own.
func tooling(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(tool(t, name), args...)
	dir := t.TempDir()
	// Root's programs would share what they know of registries, in /var/lib: with
	// another run's registry on the same port, too (containers/image v5.22,
	// pkg/blobinfocache). As somebody else's they keep it in their home.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + dir, "XDG_DATA_HOME=" + dir}, env...)
	if name == "skopeo" {
		cmd.Env = append(cmd.Env, "_CONTAINERS_ROOTLESS_UID=1")
	}
	out, err := cmd.Output()
	if err != nil {
		complaint := ""
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output does not wrap it
			complaint = string(exit.Stderr)
		}
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, complaint)
	}
	return strings.TrimSpace(string(out))
}

// TestTools runs images as skopeo and buildah write them.
func TestTools(t *testing.T) {
	s := need(t)
	t.Parallel()
	r := s.registryFor(t)
	certs := t.TempDir()
	authority, err := os.ReadFile(r.ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(certs, "ca.crt"), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	// One after the other: skopeo remembers which blobs a registry has, and would
	// take the other's layer for its own, however it is compressed.
	for _, tt := range []struct {
		name, mediaType string
		flags           []string
	}{
		{"zstd", "application/vnd.oci.image.layer.v1.tar+zstd", []string{"--dest-compress-format", "zstd"}},
		{"docker", "application/vnd.docker.image.rootfs.diff.tar", []string{"--format", "v2s2"}},
	} {
		t.Run("skopeo "+tt.name, func(t *testing.T) {
			image, source := r.host()+"/public/skopeo-"+tt.name+":v1", s.local(t).layout
			if tt.name == "zstd" {
				// Compressed on the way to a directory: a registry that already has a layer
				// in another form would be taken at its word.
				compressed := "oci:" + t.TempDir() + ":v1"
				tooling(t, nil, "skopeo", append(append([]string{"copy", "--insecure-policy"}, tt.flags...), source, compressed)...)
				source = compressed
			}
			tooling(t, nil, "skopeo", append(append([]string{"copy", "--insecure-policy", "--dest-cert-dir", certs}, tt.flags...), source, "docker://"+image)...)
			manifest := tooling(t, nil, "skopeo", "inspect", "--raw", "--cert-dir", certs, "docker://"+image)
			contains(t, "the manifest", manifest, tt.mediaType)
			stdout, _ := s.run(t, "", "-q", "--registry-ca", r.ca, image, "--", "cat /app/secret.txt; id -un").expect(0)
			if stdout != "a marker\napp\n" {
				t.Errorf("got %q", stdout)
			}
		})
	}
	t.Run("buildah", func(t *testing.T) {
		t.Parallel()
		store := t.TempDir()
		accept := write(t, "policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
		buildah := func(command string, args ...string) string {
			t.Helper()
			all := append([]string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs", command}, args...)
			return tooling(t, []string{"BUILDAH_ISOLATION=chroot"}, "buildah", all...)
		}
		container := buildah("from", "--signature-policy", accept, s.local(t).layout)
		buildah("copy", "--chmod", "0644", container, write(t, "added", []byte("by buildah\n")), "/srv/added")
		buildah("config", "--env", "BUILT=yes", "--workingdir", "/srv", "--cmd", "'cat added; echo $BUILT $FROM_IMAGE'", container)
		for _, format := range []string{"docker", "oci"} {
			archive := filepath.Join(store, format+".tar")
			buildah("commit", "--signature-policy", accept, "--format", format, container, fmt.Sprintf("%s-archive:%s:e2e:v1", format, archive))
			stdout, _ := s.run(t, "", "-q", format+"-archive:"+archive).expect(0)
			if want := "by buildah\nyes image\n"; stdout != want {
				t.Errorf("%s: expected %q, got %q", format, want, stdout)
			}
		}
		buildah("rm", container)
	})
}
