package signature_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/lookaside"
)

// gpgCmd runs Debian's GnuPG in a home of its own.
func gpgCmd(t testing.TB, home string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), needTool(t, "gpg"), append([]string{"--homedir", home, "--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gpg %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

func gpgHome(t testing.TB) string {
	t.Helper()
	needTool(t, "gpg")
	home, err := os.MkdirTemp("", "gpg") // short: a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		_ = os.RemoveAll(home)
	})
	return home
}

func skopeo(t testing.TB, home string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), needTool(t, "skopeo"), args...)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+home, "HOME="+home, "XDG_RUNTIME_DIR="+home)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Simple signing by skopeo, with a lookaside in files and behind HTTP, verifies
// here; by another key, and of another image, it does not.
func TestSkopeoSigned(t *testing.T) {
	address := startRegistry(t)
	home, conf := gpgHome(t), t.TempDir()
	gpgCmd(t, home, "--quick-generate-key", "signer@example.com", "rsa2048", "sign,cert", "1y")
	gpgCmd(t, home, "--quick-generate-key", "other@example.com", "ed25519", "sign,cert", "1y")
	keys := map[string][]byte{"signer": gpgCmd(t, home, "--armor", "--export", "signer@example.com"), "other": gpgCmd(t, home, "--export", "other@example.com")}
	store := filepath.Join(conf, "store")
	config := fmt.Sprintf("docker:\n  %s:\n    lookaside: file://%s\n", address, store)
	older := strings.ReplaceAll(config, "lookaside:", "sigstore:") // skopeo 1.9 knows both
	write(t, filepath.Join(conf, "registries.d", "x.yaml"), older)
	write(t, filepath.Join(conf, "policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	repo, ref := pushImage(t, address, "skopeo")
	out, err := skopeo(t, home, "--policy", filepath.Join(conf, "policy.json"), "--registries.d", filepath.Join(conf, "registries.d"), "copy", "--sign-by", "signer@example.com",
		"--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+address+"/shop/web:1", "docker://"+address+"/shop/web:signed")
	if err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	files, err := os.OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	server := &http.Server{Handler: http.FileServer(http.Dir(store))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	overHTTP := strings.Replace(config, "file://"+store, "http://"+ln.Addr().String(), 1)
	_, otherRef := pushImage(t, address, "another image")
	moveStore(t, store, ref, otherRef)
	for where, text := range map[string]string{"file": config, "older name": older, "http": overHTTP} {
		c, err := lookaside.ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		l, err := lookaside.New(lookaside.Options{Config: c, Files: files, Client: &http.Client{}})
		if err != nil {
			t.Fatal(err)
		}
		for name, tt := range map[string]struct {
			key, identity string
			ref           oci.Reference
			want          string
		}{
			"by digest":      {"signer", "", ref, ""},
			"by tag":         {"signer", "", withTag(ref, "signed"), ""},
			"tag swapped":    {"signer", "", withTag(ref, "1"), "it is for " + address + "/shop/web:signed, not for"},
			"any tag":        {"signer", `{"type":"matchRepository"}`, withTag(ref, "1"), ""},
			"wrong key":      {"other", "", ref, "not in the keyring"},
			"another digest": {"signer", "", otherRef, "the signature is good, but for another image"},
			"unsigned":       {"signer", "", ref.WithDigest(digestA), "the image is not signed"},
			"repository":     {"signer", `{"type":"exactRepository","dockerRepository":"other.example/web"}`, ref, "not for other.example/web"},
			"remapped":       {"signer", `{"type":"remapIdentity","prefix":"mirror.example","signedPrefix":"` + address + `"}`, mirrored(ref, "mirror.example"), "the image is not signed"},
		} {
			digest := tt.ref.Digest
			if tt.ref.Tag != "" {
				tt.ref.Digest = ""
			}
			identity := ""
			if tt.identity != "" {
				identity = `,"signedIdentity":` + tt.identity
			}
			p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"`+keyData(keys[tt.key])+`"`+identity+`}]}`), signature.WithLookaside(l))
			if err != nil {
				t.Fatal(err)
			}
			v, err := p.Verify(t.Context(), signature.Subject{Ref: tt.ref, Digests: []oci.Digest{digest}}, repo, nil)
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s, %s: want %q, got %+v, %v", where, name, tt.want, v, err)
			}
		}
	}
}

// TestSkopeoStandalone verifies what skopeo standalone-sign made.
func TestSkopeoStandalone(t *testing.T) {
	home := gpgHome(t)
	gpgCmd(t, home, "--quick-generate-key", "signer@example.com", "nistp256", "sign,cert", "1y")
	fingerprint := ""
	for line := range strings.Lines(string(gpgCmd(t, home, "--with-colons", "--list-keys"))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" && fingerprint == "" {
			fingerprint = f[9]
		}
	}
	store := newStore(t)
	d := pushTo(t, store, "standalone")
	manifest, err := oci.ReadAll(t.Context(), store, d, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "manifest.json"), string(manifest))
	if out, err := skopeo(t, home, "standalone-sign", filepath.Join(dir, "manifest.json"), "reg.example/shop/web:1", fingerprint, "--output", filepath.Join(dir, "signature")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	message, err := os.ReadFile(filepath.Join(dir, "signature"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"`+keyData(gpgCmd(t, home, "--export"))+`"}]}`), signature.WithLookaside(fixed{message}))
	if err != nil {
		t.Fatal(err)
	}
	ref := mustRef(t, "reg.example/shop/web:1")
	v, err := p.Verify(t.Context(), signature.Subject{Ref: ref, Digests: []oci.Digest{d.Digest}}, store, nil)
	if err != nil || v.KeyID != strings.ToLower(fingerprint) || v.Requirement != "signedBy" {
		t.Errorf("%+v, %v", v, err)
	}
}

// fixed is a lookaside that has the same signatures for every image.
type fixed [][]byte

func (f fixed) Signatures(context.Context, oci.Reference, oci.Digest) ([][]byte, error) {
	return f, nil
}

func withTag(ref oci.Reference, tag string) oci.Reference { ref.Tag = tag; return ref }

func mirrored(ref oci.Reference, host string) oci.Reference { ref.Registry = host; return ref }

// moveStore copies the signatures of one image to where those of another are.
func moveStore(t testing.TB, store string, from, to oci.Reference) {
	t.Helper()
	at := func(r oci.Reference) string {
		return filepath.Join(store, "shop", "web@sha256="+r.Digest.Hex(), "signature-1")
	}
	data, err := os.ReadFile(at(from))
	if err != nil {
		t.Fatal(err)
	}
	write(t, at(to), string(data))
}
