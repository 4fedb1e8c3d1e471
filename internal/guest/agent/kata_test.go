//go:build kata_policy

package agent_test

import (
	"fmt"
	"testing"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
)

// A pod under a policy of Kata's agent: what it allows runs, and nothing else.
func TestAKataPolicyIsEnforced(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	policy := fmt.Sprintf(`package agent_policy

default CreateSandboxRequest := true
default StartContainerRequest := true
default WaitProcessRequest := true
default ReadStreamRequest := true

CreateContainerRequest if {
	print("source", input.storages[0].source)
	input.storages[0].source == %q
	input.OCI.Process.Args == ["/bin/sh", "-c", "echo allowed"]
}
`, w.ref())
	h := w.sealKata(policy)
	create := w.shell("web", "echo evil")
	_, err := h.CreateContainer(t.Context(), create)
	refused(t, err, podpolicy.RuleDelegated)
	create.Args.Values[2] = "echo allowed"
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), create))
	out := h.stream(stdout, "web", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	if got := readAll(t, out); got != "allowed\n" {
		t.Errorf("output %q", got)
	}
	must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web"}))
	// What the policy has no rule for is denied.
	_, err = h.Stats(t.Context(), &agentapi.StatsRequest{ContainerId: "web"})
	refused(t, err, podpolicy.RuleDelegated)
	_, err = h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web"})
	refused(t, err, podpolicy.RuleDelegated)
	_, err = h.Shutdown(t.Context(), &agentapi.ShutdownRequest{})
	refused(t, err, podpolicy.RuleDelegated)
}

// sealKata launches the world with a policy of Kata's agent.
func (w *world) sealKata(policy string) *host {
	w.t.Helper()
	aa, cdh, err := guestconfig.Config{URL: "https://trustee.example:8080"}.TOML()
	if err != nil {
		w.t.Fatal(err)
	}
	doc := &initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{
		initdata.KeyAA: aa, initdata.KeyCDH: cdh, initdata.KeyPolicyRego: policy,
	}}
	raw, err := doc.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	gz, err := initdata.Compress(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, w.attester.initData, err = initdata.Digest(raw); err != nil {
		w.t.Fatal(err)
	}
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](w.t)(h.CreateSandbox(w.t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", PodName: "web", Initdata: gz}))
	return h
}
