package imagetool_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/keyprovider"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

// notInstalledError is why a test is skipped: Debian has the program in a
// package of the same name, and this machine has not.
type notInstalledError struct{ program string }

func (e *notInstalledError) Error() string {
	return fmt.Sprintf("%s is not installed (Debian package %[1]s)", e.program)
}

func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		err := &notInstalledError{name}
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
		}
		t.Skipf("not supported: %v", err)
	}
}

// tools runs other programs, which find our key provider.
type tools struct {
	dir, keyFile string
}

func newTools(t *testing.T) *tools {
	t.Helper()
	s := &tools{dir: t.TempDir()}
	s.keyFile = filepath.Join(s.dir, "key")
	if err := os.WriteFile(s.keyFile, testKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := keyprovider.New(keyprovider.Options{
		ReadKey: os.ReadFile, Keys: map[string]secret.Bytes{keyURI: secret.New(testKey())}, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := keyprovider.Listen(t.Context(), "127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	config, err := keyprovider.Configuration(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "ocicrypt.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *tools) run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "OCICRYPT_KEYPROVIDER_CONFIG="+filepath.Join(s.dir, "ocicrypt.json"), "HOME="+s.dir, "XDG_RUNTIME_DIR="+s.dir, "TMPDIR="+s.dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// encryptFor is the parameter of --encryption-key.
func (s *tools) encryptFor(algorithm string) string {
	return "provider:attestation-agent:keypath=" + s.keyFile + "::keyid=" + keyURI + "::algorithm=" + algorithm
}

// pulled unpacks an image the way a guest does.
func pulled(t *testing.T, name string, encrypted int, o run.ImageOptions) string {
	t.Helper()
	src := source(t, name, o)
	d, err := src.Resolve(t.Context(), src.Ref)
	if err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "rootfs")
	img, err := pull.Pull(t.Context(), pull.Options{
		Ref: src.Ref.WithDigest(d.Digest), Fetcher: src, Policy: signature.InsecureAcceptAnything(), Keys: keys{}, Dest: dest,
	})
	if err != nil {
		t.Fatalf("pull %s: %v", name, err)
	}
	if img.EncryptedLayers != encrypted {
		t.Errorf("%s: expected %d encrypted layers, got %d", name, encrypted, img.EncryptedLayers)
	}
	return dest
}

// tree describes the files below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		all[rel] = info.Mode().String() + " " + content
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameTree(t *testing.T, what, got, want string) {
	t.Helper()
	if diff := cmp.Diff(tree(t, want), tree(t, got)); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

// TestSkopeoEncrypts: what skopeo encrypts through our key provider, a guest's
// pull and our decrypt open.
func TestSkopeoEncrypts(t *testing.T) {
	t.Parallel()
	needProgram(t, "skopeo")
	s := newTools(t)
	plain := plainLayout(t, oci.Gzip)
	want := pulled(t, plain, 0, options(t))
	for _, algorithm := range []string{"A256GCM", "A256CTR"} {
		encrypted := "oci:" + filepath.Join(t.TempDir(), "encrypted") + ":v1"
		s.run(t, "skopeo", "--insecure-policy", "copy", "--encryption-key", s.encryptFor(algorithm), plain, encrypted)
		sameTree(t, algorithm+" pulled", pulled(t, encrypted, 2, options(t)), want)
		for _, l := range report(t, encrypted).Manifests[0].Layers {
			if !l.Encrypted || len(l.Keys) != 1 || l.Keys[0].KID != keyURI || l.Keys[0].Algorithm != algorithm {
				t.Errorf("%s: layer %+v", algorithm, l)
			}
		}
		decrypted := "oci:" + filepath.Join(t.TempDir(), "decrypted") + ":v1"
		decrypt(t, encrypted, decrypted)
		sameTree(t, algorithm+" decrypted", pulled(t, decrypted, 0, options(t)), want)
	}
}

// TestSkopeoDecrypts: what we encrypt, skopeo opens through our key provider;
// gzip only, since skopeo 1.9 knows no encrypted zstd.
func TestSkopeoDecrypts(t *testing.T) {
	t.Parallel()
	needProgram(t, "skopeo")
	s := newTools(t)
	for _, c := range []oci.Compression{oci.Gzip, oci.Uncompressed} {
		plain := plainLayout(t, c)
		encrypted := "oci:" + filepath.Join(t.TempDir(), "encrypted") + ":v1"
		encryptAll(t, plain, encrypted)
		opened := "oci:" + filepath.Join(t.TempDir(), "opened") + ":v1"
		s.run(t, "skopeo", "--insecure-policy", "copy", "--decryption-key", "provider:attestation-agent:any", encrypted, opened)
		sameTree(t, c.String(), pulled(t, opened, 0, options(t)), pulled(t, plain, 0, options(t)))
	}
}

// TestSkopeoReadsArchives: both kinds of archives that we write are ones.
func TestSkopeoReadsArchives(t *testing.T) {
	t.Parallel()
	needProgram(t, "skopeo")
	s := newTools(t)
	plain := plainLayout(t, oci.Gzip)
	want := pulled(t, plain, 0, options(t))
	for _, kind := range []string{"oci-archive", "docker-archive"} {
		file := filepath.Join(t.TempDir(), "a.tar")
		name := kind + ":" + file + ":v1"
		if kind == "docker-archive" {
			name = kind + ":" + file + ":localhost/app:v1"
		}
		copyImage(t, plain, name)
		out := "oci:" + filepath.Join(t.TempDir(), "out") + ":v1"
		s.run(t, "skopeo", "--insecure-policy", "copy", name, out)
		sameTree(t, kind, pulled(t, out, 0, options(t)), want)
	}
}

// TestUmociUnpacks: umoci makes of our image what we make of it, also after it
// was encrypted and decrypted.
func TestUmociUnpacks(t *testing.T) {
	t.Parallel()
	needProgram(t, "umoci")
	if os.Geteuid() != 0 {
		t.Skip("not supported: umoci makes other owners of files unless it is root")
	}
	s := newTools(t)
	plain := plainLayout(t, oci.Gzip)
	encrypted := "oci:" + filepath.Join(t.TempDir(), "encrypted") + ":v1"
	decrypted := "oci:" + filepath.Join(t.TempDir(), "decrypted") + ":v1"
	encryptAll(t, plain, encrypted)
	decrypt(t, encrypted, decrypted)
	bundle := filepath.Join(t.TempDir(), "bundle")
	s.run(t, "umoci", "unpack", "--image", strings.TrimPrefix(decrypted, "oci:"), bundle)
	sameTree(t, "umoci", filepath.Join(bundle, "rootfs"), pulled(t, plain, 0, options(t)))
}

// startRegistry runs Debian's registry until the test ends.
func startRegistry(t *testing.T, s *tools) string {
	t.Helper()
	needProgram(t, "docker-registry")
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", filepath.Join(s.dir, "registry"), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			return address
		}
		if time.Now().After(deadline) {
			t.Fatalf("the registry does not answer: %v", err)
		}
	}
}

// TestBuildahEncrypts: an image that buildah builds from scratch and pushes
// encrypted opens, also one that it keeps in Docker's format, and so does ours
// after it was in Debian's registry.
func TestBuildahEncrypts(t *testing.T) {
	t.Parallel()
	needProgram(t, "buildah")
	if os.Geteuid() != 0 {
		t.Skip("not supported: buildah needs user namespaces unless it is root")
	}
	s := newTools(t)
	address := startRegistry(t, s)
	o := options(t)
	o.PlainHTTP = []string{address}
	store := []string{"--storage-driver", "vfs", "--root", filepath.Join(s.dir, "store"), "--runroot", filepath.Join(s.dir, "run")}
	policy := filepath.Join(s.dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	buildah := func(args ...string) string { return s.run(t, "buildah", append(store, args...)...) }
	container := buildah("from", "scratch")
	content := filepath.Join(s.dir, "hello")
	if err := os.WriteFile(content, []byte(marker), 0o600); err != nil {
		t.Fatal(err)
	}
	buildah("copy", container, content, "/etc/hello")
	for _, format := range []string{"oci", "docker"} {
		id := buildah("commit", "--format", format, container)
		plain, encrypted := address+"/built/plain:"+format, address+"/built/encrypted:"+format
		buildah("push", "--signature-policy", policy, "--tls-verify=false", "--format", format, id, "docker://"+plain)
		buildah("push", "--signature-policy", policy, "--tls-verify=false", "--encryption-key", s.encryptFor("A256GCM"), id, "docker://"+encrypted)
		got := pulled(t, encrypted, 1, o)
		if data, err := os.ReadFile(filepath.Join(got, "etc/hello")); err != nil || string(data) != marker {
			t.Errorf("%s: %v", format, err)
		}
		sameTree(t, format, got, pulled(t, plain, 0, o))
		// The plain one, in Docker's types or OCI's, encrypted by us.
		ours := address + "/built/ours:" + format
		encryptWith(t, plain, ours, o)
		sameTree(t, format+" by us", pulled(t, ours, 1, o), got)
		out := "oci:" + filepath.Join(t.TempDir(), "out") + ":v1"
		s.run(t, "skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--decryption-key", "provider:attestation-agent:any", "docker://"+ours, out)
		sameTree(t, format+" by us, opened by skopeo", pulled(t, out, 0, options(t)), got)
	}
}

var errNone = errors.New("no such key")
