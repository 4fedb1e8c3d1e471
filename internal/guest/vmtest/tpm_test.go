package vmtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// softwareTPM starts a TPM and returns QEMU's arguments for it.
func softwareTPM(t *testing.T) []string {
	t.Helper()
	path, err := exec.LookPath("swtpm")
	if err != nil {
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatal(err)
		}
		t.Skipf("not supported here: %v (Debian: swtpm)", err)
	}
	socket := filepath.Join(guesttest.ShortDir(t), "tpm")
	cmd := exec.Command(path, "socket", "--tpm2", "--tpmstate", "dir="+t.TempDir(), "--ctrl", "type=unixio,path="+socket, "--terminate")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for { // it makes its socket in its own time
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("swtpm made no socket")
		}
	}
	return []string{"-chardev", "socket,id=tpm0,path=" + socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0"}
}

// A guest with a TPM alone: nothing names its initdata before the agent does, in
// register 8, once.
func TestTPM(t *testing.T) {
	v := start(t, append(softwareTPM(t), "-append", strings.ReplaceAll(cmdline, "coffer.tee=none", "coffer.tee=tpm"))...)
	h := v.connect()
	ctx := t.Context()
	hello := must[*agentapi.HelloResponse](t)(h.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{1}}))
	if hello.GetTee() != string(tee.TPM) || hello.GetSimulated() || hello.GetSealed() || !bytes.Equal(hello.GetInitdataDigest(), make([]byte, 32)) {
		t.Fatalf("hello: %v", hello)
	}
	const policy = `{"apiVersion":"coffer/v1","kind":"PodPolicy","pod":{"name":"pod"},"containers":[{"name":"web","image":{"digest":"sha256:` +
		`aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","from":["registry.example/web"]},"args":["/web"]}]}`
	sandbox := func(algorithm string) (digest []byte, resp *agentapi.CreateSandboxResponse, err error) {
		raw := must[[]byte](t)((&initdata.Document{Version: initdata.Version, Algorithm: algorithm, Data: map[string]string{initdata.KeyPodPolicy: policy}}).Encode())
		if _, digest, err = initdata.Digest(raw); err != nil {
			t.Fatal(err)
		}
		resp, err = h.CreateSandbox(ctx, &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "pod", Initdata: must[[]byte](t)(initdata.Compress(raw))})
		return digest, resp, err
	}
	if _, _, err := sandbox(initdata.SHA384); err == nil {
		t.Error("initdata that no register can name was taken")
	}
	digest, resp, err := sandbox(initdata.SHA256)
	if err != nil || !resp.GetSealed() {
		t.Fatalf("%v, %v", resp, err)
	}
	want := tpm.Extended([32]byte(digest))
	hello = must[*agentapi.HelloResponse](t)(h.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{1}}))
	if !hello.GetSealed() || !bytes.Equal(hello.GetInitdataDigest(), want[:]) {
		t.Errorf("after initdata with digest %x: hello: %v", digest, hello)
	}
}

// The host's offer of a TPM is not taken by a guest of a hardware TEE.
func TestTPMUnasked(t *testing.T) {
	v := start(t, append(softwareTPM(t), "-append", strings.ReplaceAll(cmdline, "coffer.tee=none coffer.development", "coffer.tee=auto"))...)
	h := v.connect()
	_, err := h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}})
	if err == nil || !strings.Contains(err.Error(), "looked for tdx, sgx, snp, csv, cca, se, az-tdx-vtpm, az-snp-vtpm; ") {
		t.Errorf("hello: %v", err)
	}
}
