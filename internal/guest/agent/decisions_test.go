package agent_test

import (
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
)

// decision says what keeps a host from a call that the policy does not allow:
// the rule that refuses the call below, or why there is nothing to refuse.
type decision struct {
	rule string
	free string
	call func(ctx context.Context, h *host) error
}

// decisions has an entry for every call of the protocol. The policy is one that
// allows nothing, its container "web" runs.
func decisions() map[protoreflect.Name]decision {
	return map[protoreflect.Name]decision{
		"Hello": {free: "it tells what evidence tells anyway, before there is a policy"},
		"CreateSandbox": {rule: podpolicy.RuleSandboxOnce, call: func(ctx context.Context, h *host) error {
			_, err := h.CreateSandbox(ctx, &agentapi.CreateSandboxRequest{SandboxId: "another"})
			return err
		}},
		"UpdateNetwork": {rule: podpolicy.RuleNetworkDNS, call: func(ctx context.Context, h *host) error {
			_, err := h.UpdateNetwork(ctx, &agentapi.UpdateNetworkRequest{Network: &agentapi.Network{Dns: &agentapi.DNS{Servers: []string{"6.6.6.6"}}}})
			return err
		}},
		"CreateContainer": {rule: podpolicy.RuleContainerUnknown, call: func(ctx context.Context, h *host) error {
			_, err := h.CreateContainer(ctx, &agentapi.CreateContainerRequest{ContainerId: "c9", Name: "another"})
			return err
		}},
		"Start": {rule: podpolicy.RuleVolumeEmpty, call: func(ctx context.Context, h *host) error {
			_, err := h.Start(ctx, &agentapi.StartRequest{ContainerId: "late"})
			return err
		}},
		"Exec": {rule: podpolicy.RuleExecArgs, call: func(ctx context.Context, h *host) error {
			_, err := h.Exec(ctx, &agentapi.ExecRequest{ContainerId: "web", ExecId: "e", Args: []string{"/bin/true"}})
			return err
		}},
		"Signal": {rule: podpolicy.RuleSignal, call: func(ctx context.Context, h *host) error {
			_, err := h.Signal(ctx, &agentapi.SignalRequest{ContainerId: "web", Signal: 10, All: true})
			return err
		}},
		"Resize": {rule: podpolicy.RuleContainerTerminal, call: func(ctx context.Context, h *host) error {
			_, err := h.Resize(ctx, &agentapi.ResizeRequest{ContainerId: "web", Width: 80, Height: 24})
			return err
		}},
		"CloseStdin": {free: "what the host may not write has nothing to close, and ending its own input it could as well by writing nothing"},
		"Wait":       {free: "that a container has ended, and its exit code, is what a host must know to run a pod"},
		"Update": {rule: podpolicy.RuleContainerResources, call: func(ctx context.Context, h *host) error {
			_, err := h.Update(ctx, &agentapi.UpdateRequest{ContainerId: "web", Resources: &agentapi.Resources{MemoryBytes: 1 << 20}})
			return err
		}},
		"Stats":  {free: "the host measures the machine's memory and time itself"},
		"Delete": {free: "what runs is not deleted, and the history of what ended stays: a restart is decided by it"},
		"PutFiles": {rule: podpolicy.RuleFilesVolume, call: func(ctx context.Context, h *host) error {
			_, err := h.PutFiles(ctx, &agentapi.PutFilesRequest{Volume: "another", Version: 1})
			return err
		}},
		"AttachVolume": {rule: podpolicy.RuleVolumeAttach, call: func(ctx context.Context, h *host) error {
			_, err := h.AttachVolume(ctx, &agentapi.AttachVolumeRequest{Volume: "another", Disk: "disk1"})
			return err
		}},
		"TerminationMessage": {free: "where the policy does not let the host read logs the answer is empty, or a refusal if the container failed: TestTerminationMessageOfASealedPod"},
		"Shutdown":           {free: "the host can turn the machine off"},
	}
}

// closed seals a world with a policy that allows nothing but to run web, and
// has a container whose files have not come.
func closed(w *world) *host {
	h := w.seal(func(p *podpolicy.Policy) {
		p.Containers[0].Args = []string{"/bin/sh", "-c", "echo secret; exec sleep 600"}
		late := p.Containers[0]
		late.Name = "late"
		late.Mounts = []podpolicy.Mount{{Path: "/files", Volume: "files", ReadOnly: true}}
		p.Containers = append(p.Containers, late)
		p.Volumes = map[string]podpolicy.Volume{"files": {Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{Names: []string{"a"}, MaxBytes: 1}}}
	})
	for _, name := range []string{"web", "late"} {
		must[*agentapi.CreateContainerResponse](w.t)(h.CreateContainer(w.t.Context(), &agentapi.CreateContainerRequest{ContainerId: name, Name: name}))
	}
	must[*agentapi.StartResponse](w.t)(h.Start(w.t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	return h
}

// Every call of the protocol, as its own description lists them, has a decision:
// a call that is added without one fails here.
func TestEveryCallIsDeniedByDefault(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := closed(w)
	methods := agentapi.File_agent_proto.Services().ByName("Agent").Methods()
	known := decisions()
	for i := range methods.Len() {
		name := methods.Get(i).Name()
		d, ok := known[name]
		switch {
		case !ok:
			t.Errorf("nobody has decided what keeps a host from %s", name)
		case (d.rule == "") == (d.free == "") || (d.rule == "") != (d.call == nil):
			t.Errorf("%s: expected a rule and a call that it refuses, or a reason", name)
		case d.call != nil:
			t.Run(string(name), func(t *testing.T) { refused(t, d.call(t.Context(), h), d.rule) })
		}
		delete(known, name)
	}
	for name := range known {
		t.Errorf("the protocol has no call %s", name)
	}
}

// Every kind of stream has a decision, too. A stream that the policy forbids is
// accepted and carries nothing, so that a host learns nothing and the workload
// never blocks; or it is refused outright where there is nothing to learn.
func TestEveryStreamIsClosedByDefault(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := closed(w)
	silent := func(t *testing.T, header *agentapi.StreamHeader) {
		conn, err := h.session.Open(t.Context(), header)
		if err != nil {
			return // refused: nothing was carried
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		if b, err := io.ReadAll(conn); len(b) != 0 || err == nil && header.GetKind() != agentapi.StreamHeader_PORT_FORWARD {
			t.Errorf("%v carried %q, %v", header, b, err)
		}
	}
	streams := map[agentapi.StreamHeader_Kind]struct {
		free   string
		header *agentapi.StreamHeader
	}{
		agentapi.StreamHeader_KIND_UNSPECIFIED: {header: &agentapi.StreamHeader{}},
		agentapi.StreamHeader_CONTROL:          {free: "every call on it has its own decision"},
		agentapi.StreamHeader_STDIN:            {header: &agentapi.StreamHeader{ContainerId: "web"}},
		agentapi.StreamHeader_STDOUT:           {header: &agentapi.StreamHeader{ContainerId: "web"}},
		agentapi.StreamHeader_STDERR:           {header: &agentapi.StreamHeader{ContainerId: "web"}},
		agentapi.StreamHeader_EVENTS:           {free: "what is told on it was made to be told: ends, pulls, and refusals by rule and path"},
		agentapi.StreamHeader_FILES:            {free: "without PutFiles, which has its own decision, nobody reads it"},
		agentapi.StreamHeader_BLOBS:            {free: "the guest asks for encrypted or public blobs only, and checks each by its digest"},
		agentapi.StreamHeader_PORT_FORWARD:     {header: &agentapi.StreamHeader{ContainerId: "web", Port: 80}},
	}
	kinds := agentapi.StreamHeader_CONTROL.Descriptor().Values()
	for i := range kinds.Len() {
		kind := agentapi.StreamHeader_Kind(kinds.Get(i).Number())
		d, ok := streams[kind]
		if !ok || (d.free == "") == (d.header == nil) {
			t.Errorf("nobody has decided about streams of kind %s", kind)
			continue
		}
		if d.header != nil {
			d.header.Kind = kind
			t.Run(kind.String(), func(t *testing.T) { silent(t, d.header) })
		}
		delete(streams, kind)
	}
	for kind := range streams {
		t.Errorf("the protocol has no stream %s", kind)
	}
}

// Before there is a sandbox there is a policy all the same: none, that allows
// nothing.
func TestNothingBeforeTheSandbox(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.connect()
	for name, d := range decisions() {
		if d.call == nil || name == "CreateSandbox" {
			continue
		}
		if err := d.call(t.Context(), h); err == nil {
			t.Errorf("%s was accepted", name)
		} else if code := status.Code(err); code != codes.PermissionDenied && code != codes.NotFound && code != codes.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
}
