package faults

import (
	"context"
	"net"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// api is how a containerd talks with the shim.
type api struct {
	name string
	// task is the name of the Task service that it calls.
	task string
	// sandbox: the pod is made by the Sandbox API (sandboxer = "shim"), without
	// a bundle's description and without a pause container.
	sandbox bool
}

const (
	taskV2 = "containerd.task.v2.Task"
	taskV3 = "containerd.task.v3.Task"
)

var apis = []api{{"v3", taskV3, false}, {"v2", taskV2, false}, {"sandbox", taskV3, true}}

// dial connects with the shim. The messages of the two Task services are the
// same, field for field; only the service's name differs.
func (n *node) dial(conn net.Conn) {
	n.client = ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(
		func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
			if req.Service == taskV3 {
				req.Service = n.api.task
			}
			return invoke(ctx, req, resp)
		}))
	n.task = taskapi.NewTTRPCTaskClient(n.client)
	n.box = sandboxapi.NewTTRPCSandboxClient(n.client)
}

// describe makes the pod known to the shim, by the Sandbox API.
func (n *node) describe(ctx context.Context, client sandboxapi.TTRPCSandboxService) error {
	_, err := client.CreateSandbox(ctx, &sandboxapi.CreateSandboxRequest{
		SandboxID: n.pod, BundlePath: n.bundle(n.pod), NetnsPath: n.netns(),
		Options: &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: podConfig(n.annotations)},
	})
	return err
}

// sandboxCreation makes and boots the pod, as far as it is not done.
func (n *node) sandboxCreation() func(ctx context.Context) error {
	client, described := n.box, n.described
	return func(ctx context.Context) error {
		if client == nil {
			return errNoShim
		}
		if !described {
			if err := n.describe(ctx, client); err != nil {
				return err
			}
		}
		_, err := client.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: n.pod})
		return err
	}
}

// podConfig is runtime.v1.PodSandboxConfig (k8s.io/cri-api, api.proto): name,
// namespace, annotations, and a PID namespace for each container.
func podConfig(annotations map[string]string) []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	metadata := field(field(field(nil, 1, []byte(podName)), 2, []byte(podUID)), 3, []byte("default"))
	config := field(field(nil, 1, metadata), 2, []byte(podName))
	for name, value := range annotations {
		config = field(config, 7, field(field(nil, 1, []byte(name)), 2, []byte(value)))
	}
	const container = 1 // NamespaceMode
	pid := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), container)
	return field(config, 8, field(nil, 2, field(nil, 1, pid)))
}

// stopSandbox ends and awaits the pod by the Sandbox API.
func (n *node) stopSandbox(ctx context.Context) {
	n.t.Helper()
	if _, err := n.box.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: n.pod}); err != nil && !gone(err) {
		n.t.Errorf("stop the sandbox: %v", err)
	}
	if _, err := n.box.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: n.pod}); err != nil && !gone(err) {
		n.t.Errorf("wait for the sandbox: %v", err)
	}
}

// shutdown has the shim end.
func (n *node) shutdown(ctx context.Context) error {
	if n.api.sandbox {
		_, err := n.box.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: n.pod})
		return err
	}
	_, err := n.task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: n.pod, Now: true})
	return err
}

// exitOf waits for the end of a container, or of the pod.
func (n *node) exitOf(ctx context.Context, id string) (uint32, error) {
	if n.api.sandbox && id == n.pod {
		r, err := n.box.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: id})
		return r.GetExitStatus(), err
	}
	r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: id})
	return r.GetExitStatus(), err
}
