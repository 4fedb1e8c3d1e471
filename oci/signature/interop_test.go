package signature_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/test/tools"
)

func needTool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
		}
		t.Skipf("not supported here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
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
	write(t, config, fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", t.TempDir(), address))
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

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// pushImage pushes a small image and returns its repository and reference.
func pushImage(t testing.TB, address, content string) (*registry.Repository, oci.Reference) {
	t.Helper()
	client, err := registry.New(registry.Options{PlainHTTP: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	name := mustRef(t, address+"/shop/web")
	repo, err := client.Repository(name)
	if err != nil {
		t.Fatal(err)
	}
	d := pushTo(t, repo, content)
	if err := repo.Tag(t.Context(), d, "1"); err != nil {
		t.Fatal(err)
	}
	return repo, name.WithDigest(d.Digest)
}

// pushTo pushes an image of one layer that nobody unpacks.
func pushTo(t testing.TB, p oci.Pusher, content string) oci.Descriptor {
	t.Helper()
	layer, err := oci.PushBytes(t.Context(), p, oci.MediaTypeLayer, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.PushBytes(t.Context(), p, oci.MediaTypeConfig, fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, layer.Digest))
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), p, oci.MediaTypeManifest, fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		oci.MediaTypeManifest, config.MediaType, config.Digest, config.Size, layer.MediaType, layer.Digest, layer.Size))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// cosignCmd runs cosign in a home of its own, without network.
func cosignCmd(t testing.TB, home string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tools.Cosign(t), args...)
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "COSIGN_PASSWORD=", "PATH=" + os.Getenv("PATH"), "HTTPS_PROXY=http://127.0.0.1:1"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustCosign(t testing.TB, home string, args ...string) {
	t.Helper()
	if out, err := cosignCmd(t, home, args...); err != nil {
		t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// keyPair writes a key for cosign, and returns it.
func keyPair(t testing.TB, home, name string, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(home, name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	mustCosign(t, home, "import-key-pair", "--key", name+".pem", "--output-key-prefix", name)
	pub := publicPEM(t, k)
	write(t, filepath.Join(home, name+".pub"), string(pub))
	return pub
}

// The forms in which cosign 3 writes signatures.
var cosignForms = map[string][]string{
	"bundle": {"--new-bundle-format=true"},
	"tag":    {"--new-bundle-format=false"},
}

// Signatures by the cosign command verify here, in each form and under each
// kind of key, and no others do.
func TestCosignSigned(t *testing.T) {
	address := startRegistry(t)
	home := t.TempDir()
	p256, _ := newKey(t)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, otherPEM := newKey(t)
	_ = other
	for name, k := range map[string]crypto.Signer{"p256": p256, "p384": p384, "p521": p521, "rsa": rsaKey} {
		pub := keyPair(t, home, name, k)
		for form, args := range cosignForms {
			repo, ref := pushImage(t, address, name+form)
			mustCosign(t, home, append([]string{"sign", "--key", name + ".key", "--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry", "-y", ref.String()}, args...)...)
			for who, public := range map[string][]byte{"signer": pub, "other": otherPEM} {
				p, err := signature.SignedBy(public)
				if err != nil {
					t.Fatal(err)
				}
				v, err := p.Verify(t.Context(), subject(ref), repo, nil)
				if (err == nil) != (who == "signer") {
					t.Errorf("%s, %s, %s: %+v, %v", name, form, who, v, err)
				}
				if err == nil && (v.Digest != ref.Digest || !strings.HasPrefix(v.Found, map[string]string{"bundle": "referrer ", "tag": "tag "}[form])) {
					t.Errorf("%s, %s: %+v", name, form, v)
				}
			}
		}
	}
}

// Our signatures verify in the cosign command, and under no other key.
func TestVerifiedByCosign(t *testing.T) {
	address := startRegistry(t)
	home := t.TempDir()
	k, pub := newKey(t)
	_, otherPEM := newKey(t)
	write(t, filepath.Join(home, "signer.pub"), string(pub))
	write(t, filepath.Join(home, "other.pub"), string(otherPEM))
	for form, args := range cosignForms {
		repo, ref := pushImage(t, address, "ours"+form)
		var err error
		if form == "bundle" {
			_, err = signature.SignBundle(t.Context(), repo, ref, k, rand.Reader)
		} else {
			_, err = signature.Sign(t.Context(), repo, ref, k, rand.Reader)
		}
		if err != nil {
			t.Fatal(err)
		}
		for who, ok := range map[string]bool{"signer": true, "other": false} {
			out, err := cosignCmd(t, home, append([]string{"verify", "--key", who + ".pub", "--insecure-ignore-tlog", "--allow-http-registry", ref.String()}, args...)...)
			if (err == nil) != ok {
				t.Errorf("%s, %s: %v\n%s", form, who, err, out)
			}
		}
	}
}
