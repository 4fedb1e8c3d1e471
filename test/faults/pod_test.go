package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/host/hosttest"
)

const (
	podUID  = "3f0e2d1c-0000-4000-8000-0000000000f1"
	podName = "web"
)

// specOf is a bundle as containerd's CRI plugin writes it.
func (n *node) specOf(id, kind string) *specs.Spec {
	s := &specs.Spec{
		Version: "1.1.0", Root: &specs.Root{Path: "rootfs"}, Process: &specs.Process{Args: []string{"/pause"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Annotations: map[string]string{
			"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": n.pod, "io.kubernetes.cri.sandbox-name": podName,
			"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-uid": podUID,
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			{Type: specs.NetworkNamespace, Path: n.netns()},
		}},
	}
	if kind == "sandbox" {
		s.Hostname = podName
		return s
	}
	s.Annotations["io.kubernetes.cri.container-name"] = "app"
	s.Annotations["io.kubernetes.cri.image-name"] = n.image
	s.Process.Args = []string{"/bin/sh", "-c", "echo up; exec sleep 1000"}
	s.Mounts = []specs.Mount{{Destination: "/etc/hosts", Type: "bind", Source: n.hosts(), Options: []string{"rbind", "rw"}}}
	return s
}

// netns is the namespace's path for other processes.
func (n *node) netns() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.net.File().Fd())
}

// hosts is the file that the kubelet writes, with the registry's name in it.
func (n *node) hosts() string {
	dir := n.path("kubelet", "pods", podUID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	text := "127.0.0.1\tlocalhost\n\n# Entries added by HostAliases.\n" + n.reg.address + "\t" + registryName + "\n"
	if err := os.WriteFile(filepath.Join(dir, "etc-hosts"), []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return filepath.Join(dir, "etc-hosts")
}

// makeBundle writes a bundle; config is a *specs.Spec, or bytes.
func (n *node) makeBundle(id string, config any) {
	n.t.Helper()
	data, ok := config.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(config); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(n.bundle(id), "rootfs"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.bundle(id), "config.json"), data, 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.ids, n.names = append(n.ids, id), append(n.names, id)
}

// call bounds a call.
func (n *node) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(n.t.Context(), patience)
}

var errNoShim = errors.New("there is no connection with the shim")

// create makes a task of a bundle, with pipes for its output.
func (n *node) create(ctx context.Context, id string) error { return n.creation(id)(ctx) }

// creation is the call by the connection that there is now.
func (n *node) creation(id string) func(ctx context.Context) error {
	if n.api.sandbox && id == n.pod {
		return n.sandboxCreation()
	}
	r := &taskapi.CreateTaskRequest{ID: id, Bundle: n.bundle(id)}
	if id != n.pod {
		r.Stdout, r.Stderr = n.fifo(id+"-out"), n.fifo(id+"-err")
	}
	if n.stdin {
		r.Stdin = n.fifo(id + "-in")
	}
	client := n.task
	return func(ctx context.Context) error {
		if client == nil {
			return errNoShim
		}
		_, err := client.Create(ctx, r)
		return err
	}
}

// fifo makes a pipe, of which the test reads nothing.
func (n *node) fifo(name string) string {
	path := n.path("io", name)
	if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		n.t.Fatal(err)
	}
	return path
}

// boot starts the shim and boots the pod.
func (n *node) boot() {
	n.t.Helper()
	n.startPod(n.specOf(n.pod, "sandbox"))
	ctx, cancel := n.call()
	defer cancel()
	if err := n.create(ctx, n.pod); err != nil {
		n.t.Fatalf("sandbox: %v", err)
	}
	if err := n.begin(ctx, n.pod); err != nil {
		n.t.Fatalf("start the sandbox: %v", err)
	}
	n.noteSpaces()
}

func (n *node) startPod(config any) {
	n.t.Helper()
	n.makeBundle(n.pod, config)
	if n.api.sandbox { // its bundle describes nothing
		if err := os.Remove(filepath.Join(n.bundle(n.pod), "config.json")); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := n.start(n.pod); err != nil {
		n.t.Fatalf("start: %v", err)
	}
}

// container makes the bundle of a container and connects it with the pod's shim.
func (n *node) container(change func(*specs.Spec)) string {
	n.t.Helper()
	id := newID(n.t)
	s := n.specOf(id, "container")
	if change != nil {
		change(s)
	}
	n.makeBundle(id, s)
	if n.api.sandbox {
		return id // containerd knows where its pod's shim is
	}
	if err := n.start(id); err != nil {
		n.t.Fatalf("start of a container: %v", err)
	}
	return id
}

// run creates and starts a container.
func (n *node) run(id string) {
	n.t.Helper()
	ctx, cancel := n.call()
	defer cancel()
	if err := n.create(ctx, id); err != nil {
		n.t.Fatalf("container: %v", err)
	}
	if _, err := n.task.Start(ctx, &taskapi.StartRequest{ID: id}); err != nil {
		n.t.Fatalf("start the container: %v", err)
	}
	n.noteSpaces()
}

// exec starts a process in a container.
func (n *node) exec(id, exec string, args ...string) error {
	spec, err := json.Marshal(&specs.Process{Args: args, Cwd: "/", Env: n.execEnv})
	if err != nil {
		return err
	}
	ctx, cancel := n.call()
	defer cancel()
	r := &taskapi.ExecProcessRequest{ID: id, ExecID: exec, Stdout: n.fifo(exec + "-out"), Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec}}
	if _, err := n.task.Exec(ctx, r); err != nil {
		return err
	}
	_, err = n.task.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: exec})
	return err
}

// alive tells whether the daemon runs.
func (n *node) alive() bool {
	return n.shim != 0 && !zombie(n.shim) && strings.Contains(proc(n.shim, "cmdline"), shimName)
}

// conclude is what containerd does with a pod that is not wanted any more: it
// ends what the shim knows, containers before their sandbox, has the shim end,
// and calls `delete` for every bundle.
func (n *node) conclude() {
	n.t.Helper()
	if n.task != nil && n.alive() {
		for i := len(n.ids) - 1; i >= 0; i-- {
			n.finish(n.ids[i])
		}
		ctx, cancel := n.call()
		if err := n.shutdown(ctx); err != nil && n.alive() && !broken(err) {
			n.t.Errorf("shutdown: %v", err)
		}
		cancel()
	}
	n.abandon()
}

// abandon is what containerd does with a shim that it has lost.
func (n *node) abandon() {
	n.t.Helper()
	n.disconnect()
	for i := len(n.ids) - 1; i >= 0; i-- {
		if err := n.delete(n.ids[i]); err != nil {
			n.t.Error(err)
		}
		if err := os.RemoveAll(n.bundle(n.ids[i])); err != nil {
			n.t.Error(err)
		}
	}
	n.ids = nil
}

// finish ends and deletes a task, if the shim knows it.
func (n *node) finish(id string) {
	n.t.Helper()
	ctx, cancel := n.call()
	defer cancel()
	if n.api.sandbox && id == n.pod {
		n.stopSandbox(ctx)
		return
	}
	if _, err := n.task.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(syscall.SIGKILL), All: true}); err != nil && !gone(err) {
		n.t.Errorf("kill: %v", err)
	}
	if _, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: id}); err != nil && !gone(err) {
		n.t.Errorf("wait: %v", err)
	}
	if _, err := n.task.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil && !gone(err) {
		n.t.Errorf("delete: %v", err)
	}
}

// broken tells a lost connection.
func broken(err error) bool {
	return strings.Contains(err.Error(), "ttrpc: closed") || strings.Contains(err.Error(), "EOF")
}

// gone tells that the shim does not know what was asked for, or not any more.
func gone(err error) bool {
	text := err.Error()
	return broken(err) || strings.Contains(text, "is not known to this shim") || strings.Contains(text, "has ended") ||
		strings.Contains(text, "was not created") || strings.Contains(text, "is gone") || strings.Contains(text, "is not of this shim") || strings.Contains(text, "not found")
}

// until waits until something is so.
func (n *node) until(what string, is func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); !is(); wait(20 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// address is where the daemon listens.
func (n *node) address() string {
	data, err := os.ReadFile(filepath.Join(n.bundle(n.pod), "address"))
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimPrefix(string(data), "unix://")
}

// begin starts a container, or the pause container.
func (n *node) begin(ctx context.Context, id string) error {
	if n.api.sandbox && id == n.pod {
		return nil // there is none
	}
	_, err := n.task.Start(ctx, &taskapi.StartRequest{ID: id})
	return err
}

// bare gives the pod an interface without addresses, and takes those of the
// loopback device away, as a CNI plugin does that has none left.
func (n *node) bare() {
	n.peer = hosttest.NewNamespace(n.t)
	n.net.Veth("eth0", n.peer, "host0", 1500)
}

// gateway is the node's address on the pod's network.
const gateway = "192.0.2.1"

// veth gives the pod an interface as CNI plugins do.
func (n *node) veth() {
	n.bare()
	n.net.Address("eth0", "192.0.2.2/24")
	n.net.Route("eth0", "0.0.0.0/0", gateway)
	n.peer.Address("host0", gateway+"/24")
}

// wait is for what tells nobody of itself: other processes.
func wait(d time.Duration) { <-time.After(d) }
