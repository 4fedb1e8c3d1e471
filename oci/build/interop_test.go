package build_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/ocicrypt/keywrap/keyprovider"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/archive"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

const keyProviderEnv = "COFFER_TEST_KEY_PROVIDER"

// TestMain lets skopeo run this program as its key provider.
func TestMain(m *testing.M) {
	if os.Getenv(keyProviderEnv) != "" {
		if err := keyProvider(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// keyProvider is an ocicrypt key provider of the kind "cmd".
func keyProvider() error {
	var in keyprovider.KeyProviderKeyWrapProtocolInput
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	var out keyprovider.KeyProviderKeyWrapProtocolOutput
	switch in.Operation {
	case keyprovider.OpKeyWrap:
		packet, err := encrypt.Wrap(in.KeyWrapParams.OptsData, recipients()[0], rand.Reader)
		if err != nil {
			return err
		}
		out.KeyWrapResults.Annotation = packet
	case keyprovider.OpKeyUnwrap:
		p, err := crypt.ParsePacket(in.KeyUnwrapParams.Annotation)
		if err != nil {
			return err
		}
		plain, err := p.Unwrap(secret.New(bytes.Clone(testKey)))
		if err != nil {
			return err
		}
		out.KeyUnwrapResults.OptsData = plain.Expose()
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, *signature.Policy) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := signature.SignedBy(publicPEM(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return key, p
}

func publicPEM(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func needTool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("not supported: %s is not installed (Debian package %[1]s)", name)
	}
	return p
}

func skopeo(t testing.TB, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "ocicrypt.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, `{"key-providers":{"attestation-agent":{"cmd":{"path":%q,"args":[]}}}}`, self), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), needTool(t, "skopeo"), args...)
	cmd.Env = append(os.Environ(), "OCICRYPT_KEYPROVIDER_CONFIG="+conf, keyProviderEnv+"=1", "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustSkopeo(t testing.TB, args ...string) {
	t.Helper()
	if out, err := skopeo(t, args...); err != nil {
		t.Fatalf("skopeo %v: %v\n%s", args, err, out)
	}
}

// only is the reference of the layout's only image.
func only(t testing.TB, dir string) (*layout.Layout, oci.Reference) {
	t.Helper()
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	d, err := l.Resolve(t.Context(), oci.Reference{})
	if err != nil {
		t.Fatal(err)
	}
	return l, oci.Reference{Registry: "reg.example", Repository: "shop/web", Digest: d.Digest}
}

// skopeo opens what this code encrypts, and the other way round.
func TestSkopeoEncryption(t *testing.T) {
	t.Parallel()
	needTool(t, "skopeo")
	dir := tree(t)
	want := describe(t, dir)
	l, plain := newLayout(t)
	ref := mustBuild(t, l, build.Options{Layers: []build.Tree{{Dir: dir}}, Compression: oci.Gzip})
	tag(t, l, ref, "plain")

	theirs := filepath.Join(t.TempDir(), "theirs")
	out, err := skopeo(t, "copy", "--insecure-policy", "--encryption-key", "provider:attestation-agent:x", "oci:"+plain+":plain", "oci:"+theirs+":t")
	if strings.Contains(out, "protocol not recognized") {
		t.Skip("not supported: this skopeo's ocicrypt is older than 1.1 and has no key providers")
	}
	if err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	tl, tref := only(t, theirs)
	root, img := pullTo(t, tl, tref, nil, keyMap{kid: testKey})
	if diff := cmp.Diff(want, describe(t, root)); diff != "" || img.EncryptedLayers != 1 {
		t.Errorf("encrypted by skopeo: %+v, tree (-want +got):\n%s", img, diff)
	}

	d, err := build.Encrypt(t.Context(), l, ref, oci.GuestPlatform(), l, recipients(), "", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tag(t, l, ref.WithDigest(d.Digest), "encrypted")
	ours := filepath.Join(t.TempDir(), "ours")
	mustSkopeo(t, "copy", "--insecure-policy", "--decryption-key", "provider:attestation-agent:x", "oci:"+plain+":encrypted", "oci:"+ours+":t")
	ol, oref := only(t, ours)
	root, img = pullTo(t, ol, oref, nil, nil)
	if diff := cmp.Diff(want, describe(t, root)); diff != "" || img.EncryptedLayers != 0 {
		t.Errorf("decrypted by skopeo: %+v, tree (-want +got):\n%s", img, diff)
	}
}

func tag(t testing.TB, l *layout.Layout, ref oci.Reference, name string) {
	t.Helper()
	d, err := l.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, name); err != nil {
		t.Fatal(err)
	}
}

// A Docker archive that skopeo writes is read.
func TestSkopeoDockerArchive(t *testing.T) {
	t.Parallel()
	needTool(t, "skopeo")
	dir := tree(t)
	l, plain := newLayout(t)
	ref := mustBuild(t, l, build.Options{Layers: []build.Tree{{Dir: dir}, {Dir: dir}}, Compression: oci.Gzip})
	tag(t, l, ref, "plain")
	file := filepath.Join(t.TempDir(), "image.tar")
	mustSkopeo(t, "copy", "--insecure-policy", "oci:"+plain+":plain", "docker-archive:"+file+":reg.example/shop/web:1")
	to, _ := newLayout(t)
	images, err := archive.Load(t.Context(), file, to, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 || len(images[0].Tags) != 1 || images[0].Tags[0].String() != "reg.example/shop/web:1" {
		t.Fatalf("%+v", images)
	}
	root, _ := pullTo(t, to, ref.WithDigest(images[0].Manifest.Digest), nil, nil)
	if diff := cmp.Diff(describe(t, dir), describe(t, root)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

// startRegistry runs Debian's docker-registry and returns its address.
func startRegistry(t testing.TB) string {
	t.Helper()
	program := needTool(t, "docker-registry")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	_ = ln.Close()
	config := filepath.Join(t.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", t.TempDir(), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		resp, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return address
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("docker-registry does not answer: %v", err)
		}
	}
}

// The whole way through a real registry.
func TestRegistry(t *testing.T) {
	t.Parallel()
	address := startRegistry(t)
	client, err := registry.New(registry.Options{PlainHTTP: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	name, err := oci.ParseReference(address + "/shop/web:1")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := client.Repository(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := tree(t)
	d, err := build.Build(t.Context(), repo, build.Options{Layers: []build.Tree{{Dir: dir}}, Compression: oci.Zstd, Recipients: recipients(), Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(t.Context(), d, "1"); err != nil {
		t.Fatal(err)
	}
	key, policy := newKey(t)
	ref := name.WithDigest(d.Digest)
	if _, err := signature.Sign(t.Context(), repo, ref, key, rand.Reader); err != nil {
		t.Fatal(err)
	}
	root, _ := pullTo(t, repo, ref, policy, keyMap{kid: testKey})
	if diff := cmp.Diff(describe(t, dir), describe(t, root)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	t.Run("skopeo", func(t *testing.T) { skopeoSignature(t, repo, name, dir, key) })
}

// skopeoSignature has containers/image accept the signature, and refuse it
// under another key.
func skopeoSignature(t *testing.T, repo *registry.Repository, name oci.Reference, dir string, key *ecdsa.PrivateKey) {
	needTool(t, "skopeo")
	address := name.Registry
	// zstd is too new for this skopeo: have it check a gzip image.
	gz, err := build.Build(t.Context(), repo, build.Options{Layers: []build.Tree{{Dir: dir}}, Compression: oci.Gzip})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(t.Context(), gz, "gz"); err != nil {
		t.Fatal(err)
	}
	if _, err := signature.Sign(t.Context(), repo, name.WithDigest(gz.Digest), key, rand.Reader); err != nil {
		t.Fatal(err)
	}
	other, _ := newKey(t)
	for who, k := range map[string]*ecdsa.PrivateKey{"signer": key, "other": other} {
		conf := t.TempDir()
		pub, policyFile := filepath.Join(conf, "key.pub"), filepath.Join(conf, "policy.json")
		write := func(name, text string) {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(pub, string(publicPEM(t, k)))
		write(policyFile, fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}]}}}`, address, pub))
		if err := os.Mkdir(filepath.Join(conf, "registries.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(conf, "registries.d", "x.yaml"), "docker:\n  "+address+":\n    use-sigstore-attachments: true\n")
		out, err := skopeo(t, "--policy", policyFile, "--registries.d", filepath.Join(conf, "registries.d"), "copy", "--remove-signatures", "--src-tls-verify=false",
			"docker://"+address+"/shop/web:gz", "oci:"+filepath.Join(conf, "out")+":x")
		if strings.Contains(out, "sigstore disabled") {
			t.Skip("not supported: Debian builds its skopeo with sigstore disabled")
		}
		if (err == nil) != (who == "signer") {
			t.Errorf("%s: %v\n%s", who, err, out)
		}
	}
}
