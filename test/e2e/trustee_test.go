package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/secret"
)

// write puts a file of the tests into a directory of its own.
func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// signingKey makes an owner's key: the file of its private half, and the
// policy that demands its signatures from the registry.
func signingKey(t *testing.T, r *registryServer) (private, policy string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	keyData := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	document, err := json.Marshal(map[string]any{
		"default": []any{map[string]string{"type": "reject"}},
		"transports": map[string]any{"docker": map[string]any{
			net.JoinHostPort(run.HostName, strconv.Itoa(r.port)): []any{
				map[string]string{"type": "sigstoreSigned", "keyData": base64.StdEncoding.EncodeToString(keyData)},
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cosign.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), write(t, "policy.json", document)
}

// registryFor returns the registry of all tests.
func (s *suite) registryFor(t *testing.T) *registryServer {
	t.Helper()
	r, err := s.registry()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hideLayerKeys makes the keys of an image's layers secrets of the tests.
func (s *suite) hideLayerKeys(t *testing.T, image string, kek []byte) {
	t.Helper()
	dir, tag, _ := strings.Cut(strings.TrimPrefix(image, "oci:"), ":")
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, manifest, err := build.Inspect(t.Context(), l, oci.Reference{Registry: "localhost", Repository: "x", Tag: tag}, oci.GuestPlatform())
	if err != nil {
		t.Fatal(err)
	}
	for n, layer := range manifest.Layers {
		raw, err := base64.StdEncoding.DecodeString(layer.Annotations[crypt.AnnotationKeys])
		if err != nil {
			t.Fatal(err)
		}
		packet, err := crypt.ParsePacket(raw)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := packet.Unwrap(secret.New(kek))
		if err != nil {
			t.Fatal(err)
		}
		var private struct {
			SymKey []byte `json:"symkey"`
		}
		if err := json.Unmarshal(opened.Expose(), &private); err != nil || len(private.SymKey) == 0 {
			t.Fatalf("layer %d: no symmetric key: %v", n, err)
		}
		s.hide(fmt.Sprintf("the key of layer %d", n), string(private.SymKey))
	}
}

// newSecret makes a value that no program may print.
func (s *suite) newSecret(name string) string {
	value := rand.Text()
	s.hide(name, value)
	return value
}

// TestEncrypted takes an owner's whole way with the embedded trustee: protect,
// push, put secrets, run; and an unsealed pod gets none of it.
func TestEncrypted(t *testing.T) {
	s := need(t)
	t.Parallel()
	r, state := s.registryFor(t), t.TempDir()
	signKey, imagePolicy := signingKey(t, r)
	kek := make([]byte, crypt.KeySize)
	_, _ = rand.Read(kek)
	s.hide("the image's key", string(kek))
	password := s.newSecret("the database's password")
	coffer := func(args ...string) *command { return s.program(t, state, "coffer", append(args, "--debug")...) }

	encrypted := filepath.Join(t.TempDir(), "encrypted")
	coffer("image", "protect", s.local(t).layout, "oci:"+encrypted+":v1", "--key", "kbs:///shop/image/app", "--key-file", write(t, "kek", kek)).expect(0)
	s.hideLayerKeys(t, "oci:"+encrypted+":v1", kek)
	pushed, _ := coffer("image", "protect", "oci:"+encrypted+":v1", r.host()+"/private/app:v1", "--sign-key", signKey,
		"--authfile", r.authFile, "--registry-ca", r.ca).expect(0)
	image := strings.TrimSpace(pushed)
	coffer("trustee", "secret", "set", "kbs:///shop/registry/auth", write(t, "auth", r.guestAuth)).expect(0)
	coffer("trustee", "secret", "set", "kbs:///shop/db/password", write(t, "password", []byte(password))).expect(0)

	registry := []string{"--authfile", r.authFile, "--registry-ca", r.ca, "--credentials", "kbs:///shop/registry/auth", "--image-policy", imagePolicy}
	stdout, stderr := s.run(t, state, append(registry, "--debug", "--show-appraisal", "--secret-env", "PASSWORD=kbs:///shop/db/password",
		image, "--", "printf %s \"$PASSWORD\" | sha256sum; cat /app/secret.txt")...).expect(0)
	contains(t, "stdout", stdout, sha256Hex(password), "a marker")
	contains(t, "stderr", stderr, "granted: attestation (warning, simulated)", "granted: resource shop/image/app (warning, simulated)",
		"granted: resource shop/registry/auth (warning, simulated)", "granted: resource shop/db/password (warning, simulated)")

	t.Run("unsealed", func(t *testing.T) {
		stdout, stderr := s.run(t, state, "--debug", "--unsealed", "oci:"+encrypted+":v1", "--", "echo ran").expect(125)
		if stdout != "" {
			t.Errorf("expected no output, got %q", stdout)
		}
		contains(t, "stderr", stderr, "unsealed: no policy is in force; the host decides what runs, and no secret is given")
		contains(t, "stderr", stderr, "initdata.sealed")
	})
	t.Run("verdicts", func(t *testing.T) {
		stdout, _ := coffer("trustee", "verdicts").expect(0)
		contains(t, "verdicts", stdout, "granted", "shop/db/password")
	})
}

// TestUnsealed runs a plain image without a policy.
func TestUnsealed(t *testing.T) {
	s := need(t)
	t.Parallel()
	stdout, stderr := s.run(t, "", "--unsealed", "--env", "CHANGED=flag", "-u", "7", "-w", "/", s.local(t).layout, "--", "echo $FROM_IMAGE $CHANGED $(id -u) $(pwd); exit 9").expect(9)
	if want := "image flag 7 /\n"; stdout != want {
		t.Errorf("expected %q, got %q", want, stdout)
	}
	contains(t, "stderr", stderr, "unsealed: no policy is in force; the host decides what runs, and no secret is given")
}

// trusteeProcess is a trustee of its own.
type trusteeProcess struct {
	*command
	dir, ca, adminKey, hostURL, guestURL string
}

// startTrustee starts coffer-trustee; it accepts the software TEE of state. more is
// further configuration.
func (s *suite) startTrustee(t *testing.T, state string, more ...string) *trusteeProcess {
	t.Helper()
	if _, err := run.SoftTEE(filepath.Join(state, "coffer")); err != nil {
		t.Fatal(err)
	}
	p := &trusteeProcess{dir: filepath.Join(t.TempDir(), "state")}
	config := write(t, "trustee.toml", fmt.Appendf(nil, `
listen = "127.0.0.1:0"
state_dir = %q
[log]
level = "debug"
[tls]
names = ["127.0.0.1", %q]
[policy]
allow_simulated = true
[tee.snp]
development_roots = [%q]
[tee.tdx]
development_roots = [%q]
%s
`, p.dir, run.HostName, filepath.Join(state, "coffer", run.SoftTEERoot), filepath.Join(state, "coffer", run.SoftTDXRoot), strings.Join(more, "\n")))
	p.command = s.program(t, "", "coffer-trustee", "serve", "--config", config).start()
	p.until(&p.stderr, "trustee listens")
	_, address, _ := strings.Cut(p.stderr.String(), "address=127.0.0.1:")
	port, _, _ := strings.Cut(address, " ")
	p.ca, p.adminKey = filepath.Join(p.dir, "ca.pem"), filepath.Join(p.dir, "admin-key.pem")
	p.hostURL = "https://" + net.JoinHostPort("127.0.0.1", port)
	p.guestURL = "https://" + net.JoinHostPort(run.HostName, port)
	return p
}

// admin prepares a command that administers the trustee.
func (p *trusteeProcess) admin(t *testing.T, args ...string) *command {
	t.Helper()
	return the.program(t, "", "coffer", append(args, "--trustee", p.hostURL, "--trustee-ca", p.ca, "--admin-key", p.adminKey)...)
}

// TestTrustee has owner and host apart: the owner registers initdata with a
// trustee of theirs, the host runs it. Other initdata gets nothing.
func TestTrustee(t *testing.T) {
	s := need(t)
	t.Parallel()
	state, r := t.TempDir(), s.registryFor(t)
	trustee := s.startTrustee(t, state)
	password := s.newSecret("a password at the trustee")
	kek := make([]byte, crypt.KeySize)
	_, _ = rand.Read(kek)
	s.hide("a key at the trustee", string(kek))

	pushed, _ := trustee.admin(t, "image", "protect", s.local(t).layout, r.host()+"/public/encrypted:v1", "--registry-ca", r.ca,
		"--key", "kbs:///shop/image/app", "--key-file", write(t, "kek", kek)).expect(0)
	image := strings.TrimSpace(pushed)
	trustee.admin(t, "trustee", "secret", "set", "kbs:///shop/db/password", write(t, "password", []byte(password))).expect(0)
	pod := []string{"--trustee", trustee.guestURL, "--trustee-ca", trustee.ca, "--registry-ca", r.ca, "--debug"}
	flags := append(pod, "--secret-env", "PASSWORD=kbs:///shop/db/password", image, "--", "printf %s \"$PASSWORD\" | sha256sum")
	document, _ := s.run(t, state, append([]string{"--print-initdata"}, flags...)...).expect(0)
	again, _ := s.run(t, state, append([]string{"--print-initdata"}, flags...)...).expect(0)
	if document != again {
		t.Errorf("the same pod has different initdata:\n%s\n%s", document, again)
	}
	initdata := write(t, "initdata.toml", []byte(document))
	inspected, _ := s.program(t, "", "coffer", "initdata", "inspect", initdata, "--output", "json").expect(0)
	var id struct{ Digest string }
	if err := json.Unmarshal([]byte(inspected), &id); err != nil {
		t.Fatal(err)
	}

	// Nothing is registered yet: the guest is unknown.
	_, stderr := s.run(t, state, append(pod, "--initdata", initdata, image)...).expect(125)
	contains(t, "without a reference value", stderr, "snp.launch-measurement")

	trustee.admin(t, "guest", "measure", "--tee", "soft", "--guest-image", s.guest, "--register").expect(0)
	trustee.admin(t, "trustee", "bind", "kbs:///shop/image/app", id.Digest).expect(0)
	trustee.admin(t, "trustee", "bind", "kbs:///shop/db", id.Digest).expect(0)
	stdout, _ := s.run(t, state, append(pod, "--initdata", initdata, image)...).expect(0)
	contains(t, "stdout", stdout, sha256Hex(password))

	// The same image with another command is another pod.
	stdout, stderr = s.run(t, state, append(pod, image, "--", "echo ran")...).expect(125)
	if stdout != "" {
		t.Errorf("expected no output, got %q", stdout)
	}
	contains(t, "other initdata", stderr, "initdata.registered", id.Digest)
	verdicts, _ := trustee.admin(t, "trustee", "verdicts", "--output", "json").expect(0)
	contains(t, "verdicts", verdicts, `"rule": "initdata.registered"`, `"simulated": true`)

	trustee.signal(syscall.SIGTERM)
	if code := trustee.wait(); code != 0 {
		t.Errorf("coffer-trustee: expected exit code 0, got %d", code)
	}
	contains(t, "coffer-trustee's log", trustee.stderr.String(), "level=WARN", "allow_simulated")
}
