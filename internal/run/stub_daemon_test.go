package run

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// daemons are the containerd programs of this machine: Debian's, and those of
// `make k8s-node`.
func daemons(t *testing.T) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("runs containerd, which needs root")
	}
	found, err := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("COFFER_K8S_PROGRAMS"), "../../build/k8s"), "containerd-*/containerd"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := exec.LookPath("containerd"); err == nil {
		found = append(found, p)
	}
	if len(found) == 0 {
		if os.Getenv("COFFER_REQUIRE_K8S") != "" {
			t.Fatal("no containerd, and COFFER_REQUIRE_K8S is set")
		}
		t.Skip("no containerd: install it, or run `make k8s-node`")
	}
	return found
}

// TestStubAtContainerd: stock containerd pulls and unpacks the stub of an image
// whose layers it cannot.
func TestStubAtContainerd(t *testing.T) {
	t.Parallel()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	host := registryWith(t, oci.ContainerConfig{User: "65532:65532", Cmd: []string{"/bin/app"}}, encrypt.Recipient{KID: "kbs:///shop/image/app", Key: secret.New(key)})
	w := openImages(t, host)
	img, err := w.Image(t.Context(), host+"/shop/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := w.PushStub(t.Context(), host+"/shop/app:v1", img, []uint32{65532})
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range daemons(t) {
		t.Run(filepath.Base(filepath.Dir(program)), func(t *testing.T) {
			t.Parallel()
			pull := containerd(t, program)
			if out, err := pull(stub.Reference); err != nil {
				t.Errorf("the stub: %v\n%s", err, out)
			}
			if out, err := pull(host + "/shop/app@" + img.Digest); err == nil {
				t.Errorf("the encrypted image was unpacked, so that the test is of nothing:\n%s", out)
			}
		})
	}
}

// containerd starts a daemon with a state of its own, and returns how it pulls.
func containerd(t *testing.T, program string) func(reference string) ([]byte, error) {
	t.Helper()
	// Sockets have short names.
	dir, err := os.MkdirTemp("", "c-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = %q\n",
		dir+"/root", dir+"/state", dir+"/s", dir+"/t", dir+"/opt")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command(program, "--config", dir+"/config.toml")
	daemon.Stdout, daemon.Stderr = &log, &log
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("%s", log.String())
		}
	})
	ctr := filepath.Join(filepath.Dir(program), "ctr")
	for range 200 {
		if exec.CommandContext(t.Context(), ctr, "-a", dir+"/s", "version").Run() == nil {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	args := []string{"-a", dir + "/s", "images", "pull", "--plain-http", "--snapshotter", "native"}
	// The transfer service unpacks with snapshotters that its configuration lists
	// only; the CRI plugin does not use it.
	if help, err := exec.CommandContext(t.Context(), ctr, "images", "pull", "--help").CombinedOutput(); err == nil && bytes.Contains(help, []byte("--local")) {
		args = append(args, "--local")
	}
	return func(reference string) ([]byte, error) {
		return exec.CommandContext(t.Context(), ctr, append(args, reference)...).CombinedOutput()
	}
}
