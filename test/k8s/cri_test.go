package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// criRow is one thing that must hold for a client of the CRI socket. Rows run one
// after another: those that are not alone in a sandbox that they share.
type criRow struct {
	id, asserts string
	on          kind
	// alone rows have sandboxes of their own, and nothing of them is left.
	alone bool
	// not says why a row cannot run with a daemon (its name in criDaemons).
	not map[string]string
	run func(t *testing.T, c *criClient)
}

func criRows() []criRow {
	return slices.Concat(criPodRows(), criContainerRows(), criStreamRows(), criLimitRows(), criWrongRows())
}

// criDaemon is one whose socket is spoken to.
type criDaemon struct{ name, version, sandboxer string }

func criDaemons() []criDaemon {
	return []criDaemon{
		{"2.2", "2.2", ""}, {"2.2-sandboxer-shim", "2.2", "shim"}, {"2.4", "2.4", ""}, {"2.4-sandboxer-shim", "2.4", "shim"}, {"1.6", "1.6", ""},
	}
}

// handlers are those to speak to a daemon of: the agent as a process always, and
// the others where this run has them.
func (d criDaemon) handlers() []string {
	list := []string{node.HandlerProcess}
	if the.core {
		return list
	}
	// With sandboxes of shims, runc is as without, and before 2.3 there are no
	// options for shims (see [node.Coffer.Apply]) and so no machines.
	if d.sandboxer == "" && slices.Contains(the.handlers, runc) {
		list = append([]string{runc}, list...)
	}
	if d.sandboxer+d.version != "shim2.2" && slices.Contains(the.handlers, node.HandlerSoft) {
		list = append(list, node.HandlerSoft)
	}
	return list
}

// TestCRI speaks CRI over the daemons' sockets as a kubelet does, without one.
func TestCRI(t *testing.T) {
	for _, d := range criDaemons() {
		if the.core && d.name != node.Daemons()[0] {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			n := criNode(t, d)
			for _, handler := range d.handlers() {
				t.Run(handler, func(t *testing.T) {
					needHandler(t, handler)
					newCRIClient(t, n, d, handler).all(t)
				})
			}
		})
	}
}

// criNode starts containerd with CNI, and nothing of Kubernetes.
func criNode(t *testing.T, d criDaemon) *node.Node {
	t.Helper()
	o := node.Options{Programs: the.programs, Containerd: d.version, DaemonOnly: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	product := the.coffer()
	product.Sandboxer = d.sandboxer
	product.Apply(&o)
	n, err := the.startWith(o)
	if missing := (*node.MissingError)(nil); errors.As(err, &missing) && os.Getenv("COFFER_REQUIRE_K8S") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := n.ServeImages(); err != nil {
		t.Fatal(err)
	}
	return n
}

// criClient speaks to a daemon's socket, about pods of one handler.
type criClient struct {
	n       *node.Node
	daemon  criDaemon
	name    string
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	shared  *criPod
	made    int
}

func newCRIClient(t *testing.T, n *node.Node, d criDaemon, handler string) *criClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &criClient{n: n, daemon: d, name: handler, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn)}
	c.eventually(t, "a daemon that is ready", c.serves)
	if _, err := c.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: criImage(appImage)}); err != nil {
		t.Fatal(err)
	}
	return c
}

// serves says whether runtime and network are ready.
func (c *criClient) serves(ctx context.Context) error {
	s, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range s.GetStatus().GetConditions() {
		if (condition.Type == runtimeapi.RuntimeReady || condition.Type == runtimeapi.NetworkReady) && !condition.Status {
			return fmt.Errorf("%s: %s %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	return nil
}

func (c *criClient) patience() time.Duration {
	if kindOf(c.name) == onMachine {
		return 5 * time.Minute
	}
	return time.Minute
}

// call is the context of one request.
func (c *criClient) call(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), c.patience())
	t.Cleanup(cancel)
	return ctx
}

func (c *criClient) eventually(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), c.patience())
	defer cancel()
	if err := until(ctx, what, func() error { return f(ctx) }); err != nil {
		t.Fatal(err)
	}
}

// all runs the rows, and counts what they leave.
func (c *criClient) all(t *testing.T) {
	before, err := c.n.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range criRows() {
		if !r.alone {
			c.row(t, r)
		}
	}
	if c.shared != nil {
		c.shared.end(t)
	}
	c.clean(t, before)
	for _, r := range criRows() {
		if r.alone {
			c.row(t, r)
		}
	}
}

func (c *criClient) row(t *testing.T, r criRow) {
	if r.on&kindOf(c.name) == 0 {
		return
	}
	as := row{id: "cri/" + r.id, asserts: r.asserts, core: c.daemon.name == node.Daemons()[0] && c.name == node.HandlerProcess}
	label := c.name + " on containerd " + c.daemon.name
	if why := r.not[c.daemon.name]; why != "" {
		the.report.add(as, label, notApplicable, why, 0)
		return
	}
	t.Run(r.id, func(t *testing.T) {
		began := time.Now()
		defer func() {
			result := passed
			if t.Failed() {
				result = failed
				t.Log(c.n.LogTail("containerd", 12))
			}
			the.report.add(as, label, result, "", time.Since(began))
		}()
		if !r.alone {
			r.run(t, c)
			return
		}
		before, err := c.n.Inventory()
		if err != nil {
			t.Fatal(err)
		}
		// Cleaning up by those that the row starts comes first.
		t.Run("pods", func(t *testing.T) { r.run(t, c) })
		c.clean(t, before)
	})
}

// clean looks for what pods have left, on the node and in the daemon.
func (c *criClient) clean(t *testing.T, before node.Inventory) {
	t.Helper()
	if err := c.n.Settle(t.Context(), before, time.Minute); err != nil {
		t.Error(err)
	}
	pods, err := c.runtime.ListPodSandbox(c.call(t), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.GetItems()) > 0 {
		t.Errorf("sandboxes %v, %v; expected none", pods.GetItems(), err)
	}
	containers, err := c.runtime.ListContainers(c.call(t), &runtimeapi.ListContainersRequest{})
	if err != nil || len(containers.GetContainers()) > 0 {
		t.Errorf("containers %v, %v; expected none", containers.GetContainers(), err)
	}
	for _, of := range []string{"tasks", "containers"} {
		if out, err := c.n.Run(t.Context(), "ctr", "-n", "k8s.io", of, "ls", "-q"); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("containerd has %s %q, %v; expected none", of, out, err)
		}
	}
}

// criPod is a sandbox.
type criPod struct {
	c      *criClient
	id     string
	config *runtimeapi.PodSandboxConfig
}

// sandbox is the description of a sandbox as a kubelet makes it.
func (c *criClient) sandbox(name string) *runtimeapi.PodSandboxConfig {
	c.made++
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", c.made)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "cri", Uid: uid},
		Hostname: name, LogDirectory: "/var/log/pods/cri_" + name + "_" + uid,
		DnsConfig:   &runtimeapi.DNSConfig{Servers: []string{node.IP}, Searches: []string{node.Domain}},
		Labels:      map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "cri", "io.kubernetes.pod.uid": uid},
		Annotations: map[string]string{"example.org/note": "kept"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + filepath.Base(c.n.Dir()) + "/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

// start makes a sandbox run; when that fails, nothing is left of what a kubelet
// makes itself.
func (c *criClient) start(ctx context.Context, handler string, config *runtimeapi.PodSandboxConfig) (*criPod, error) {
	p := &criPod{c: c, config: config}
	if err := p.makeCgroups(); err != nil {
		return nil, err
	}
	r, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, errors.Join(err, p.removeOwn(ctx))
	}
	p.id = r.GetPodSandboxId()
	return p, nil
}

// pod makes a sandbox that is ended with the test.
func (c *criClient) pod(t *testing.T, name string) *criPod {
	t.Helper()
	p, err := c.start(c.call(t), c.name, c.sandbox(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t) })
	return p
}

// common is the sandbox that rows share.
func (c *criClient) common(t *testing.T) *criPod {
	t.Helper()
	if c.shared == nil {
		p, err := c.start(c.call(t), c.name, c.sandbox("shared"))
		if err != nil {
			t.Fatal(err)
		}
		c.shared = p
	}
	return c.shared
}

// end stops and removes a sandbox, if it is still there, and what a kubelet removes.
func (p *criPod) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), p.c.patience())
	defer cancel()
	_, err := p.c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	// To containerd 1.6 a removed sandbox is not a stopped one.
	if err != nil && (p.c.daemon.version != "1.6" || grpcstatus.Code(err) != codes.NotFound) {
		t.Errorf("stopping the sandbox: %v", err)
	}
	if _, err := p.c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("removing the sandbox: %v", err)
	}
	if err := p.removeOwn(ctx); err != nil {
		t.Error(err)
	}
}

// cgroups are the pod's, one in each hierarchy of this machine.
func (p *criPod) cgroups() []string {
	parents, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(p.c.n.Dir()))
	if err != nil {
		return nil
	}
	for i := range parents {
		parents[i] = filepath.Join(parents[i], filepath.Base(p.config.Linux.CgroupParent))
	}
	return parents
}

func (p *criPod) makeCgroups() error {
	for _, dir := range p.cgroups() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeOwn removes cgroups and logs, as a kubelet does after the sandbox.
func (p *criPod) removeOwn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := until(ctx, "the end of the pod's cgroups", func() error {
		var errs []error
		for _, dir := range p.cgroups() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, os.RemoveAll(p.logDir()))
}

// logDir is where the sandbox's logs lie, as this process sees them.
func (p *criPod) logDir() string {
	return filepath.Join(p.c.n.Dir(), "log/var", strings.TrimPrefix(p.config.LogDirectory, "/var/log"))
}
