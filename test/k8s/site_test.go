package k8s

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// trusteeAddress is where pods find the trustee.
const trusteeAddress = node.IP + ":8443"

// site is an owner's: a trustee on the node's network, and their files.
type site struct {
	n   *node.Node
	dir string
	mu  sync.Mutex
}

// owner returns the site of all rows; its trustee knows the node's software TEE,
// whose key is there when the first pod has run.
func (c *cluster) owner(t *testing.T) *site {
	t.Helper()
	c.shared(t, "io")
	h := c.h
	h.siteOnce.Do(func() { h.site, h.siteErr = startSite(c.n) })
	if h.siteErr != nil {
		t.Fatal(h.siteErr)
	}
	return h.site
}

func startSite(n *node.Node) (*site, error) {
	s := &site{n: n, dir: filepath.Join(n.Dir(), "owner")}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("listen = %q\nstate_dir = %q\n[tls]\nnames = [%q]\n[policy]\nallow_simulated = true\n[tee.snp]\ndevelopment_roots = [%q]\n",
		trusteeAddress, filepath.Join(s.dir, "state"), node.IP, "/var/lib/coffer/softtee/softtee-root.pem")
	file := filepath.Join(s.dir, "trustee.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := n.StartProgram(ctx, node.Program{Name: "trustee", Path: filepath.Join(the.bin, "coffer-trustee"), Args: []string{"serve", "--config", file}})
	if err != nil {
		return nil, err
	}
	if err := until(ctx, "the trustee", func() error {
		c, err := n.Dial(ctx, "tcp", trusteeAddress)
		if err == nil {
			err = c.Close()
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, n.LogTail("trustee", 20))
	}
	_, err = s.admin(ctx, "guest", "measure", "--tee", "soft", "--guest-image", the.guest, "--register")
	return s, err
}

// closeSite ends the trustee, if there is one; a reboot may have ended it.
func (h *handler) closeSite(t *testing.T) {
	t.Helper()
	if h.site == nil {
		return
	}
	if _, err := h.n.Stop(t.Context(), "trustee", unix.SIGTERM); err != nil {
		t.Log(err)
	}
}

// ways are the flags that find the trustee.
func (s *site) ways(prefix string) []string {
	return []string{"--" + prefix, "https://" + trusteeAddress, "--" + prefix + "-ca", filepath.Join(s.dir, "state/ca.pem")}
}

// admin runs a command of the owner's program that asks the trustee.
func (s *site) admin(ctx context.Context, args ...string) (string, error) {
	return s.coffer(ctx, append(append(args, s.ways("trustee")...), "--admin-key", filepath.Join(s.dir, "state/admin-key.pem"))...)
}

func (s *site) coffer(ctx context.Context, args ...string) (string, error) {
	return s.n.Run(ctx, filepath.Join(the.bin, "coffer"), args...)
}

// do is admin for commands that must succeed.
func (s *site) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.admin(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// file writes a file of the owner's.
func (s *site) file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(s.dir, strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())+"-"+name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// put makes a random secret of the trustee's and returns it.
func (s *site) put(t *testing.T, uri string) string {
	t.Helper()
	value := rand.Text()
	s.do(t, "trustee", "secret", "set", uri, s.file(t, "secret", []byte(value)))
	return value
}

// seal prepares manifests as their owner does, and registers what they need.
func (c *cluster) seal(t *testing.T, manifest string, flags ...string) string {
	t.Helper()
	s := c.owner(t)
	c.own(t)
	objects, err := decode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, o := range objects {
		c.complete(o.Object)
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n" + string(text))
	}
	args := append([]string{"prepare", s.file(t, "manifest.yaml", []byte(b.String())), "--runtime-class", c.h.name, "--tee", "soft", "--guest-image", the.guest,
		"--trustee-admin-key", filepath.Join(s.dir, "state/admin-key.pem"), "--register", "--registry-ca", c.n.CA()}, s.ways("trustee")...)
	// One at a time: each reads what is registered.
	s.mu.Lock()
	defer s.mu.Unlock()
	out, err := s.coffer(t.Context(), append(args, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// signer is a key that signs images.
type signer struct{ private, keyData string }

func (s *site) signer(t *testing.T, name string) signer {
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
	data := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	return signer{
		private: s.file(t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		keyData: base64.StdEncoding.EncodeToString(data),
	}
}

// imagePolicy demands a signature below a repository, and none elsewhere.
func imagePolicy(t *testing.T, repository string, by signer) []byte {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"default": []any{map[string]string{"type": "insecureAcceptAnything"}},
		"transports": map[string]any{"docker": map[string]any{
			repository: []any{map[string]string{"type": "sigstoreSigned", "keyData": by.keyData}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// hostHas finds a text in the files that a machine of the node has open on the
// node's disk.
func (s *space) hostHas(t *testing.T, program, text string) bool {
	t.Helper()
	processes, err := s.n.Processes()
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, p := range processes {
		if p.Name() != program {
			continue
		}
		descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range descriptors {
			info, err := os.Stat(d)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			f, err := os.Open(d)
			if err != nil {
				continue // not a file of a disk
			}
			has := fileHas(f, text)
			_ = f.Close()
			if has {
				return true
			}
			if info.Size() == 512<<20 {
				looked++ // the scratch disk
			}
		}
	}
	if looked == 0 {
		t.Fatalf("no process %s has the scratch disk open", program)
	}
	return false
}

// fileHas reads the parts of a sparse file that are there.
func fileHas(f *os.File, text string) bool {
	const seekData, seekHole = 3, 4
	buf := make([]byte, 1<<20)
	keep := len(text) - 1
	for at := int64(0); ; {
		start, err := f.Seek(at, seekData)
		if err != nil {
			return false
		}
		end, err := f.Seek(start, seekHole)
		if err != nil {
			return false
		}
		held := 0
		for start < end {
			n, err := f.ReadAt(buf[held:held+int(min(int64(len(buf)-held), end-start))], start)
			if n == 0 && err != nil {
				return false
			}
			if strings.Contains(string(buf[:held+n]), text) {
				return true
			}
			start += int64(n)
			rest := min(keep, held+n)
			copy(buf, buf[held+n-rest:held+n])
			held = rest
		}
		at = end
	}
}
