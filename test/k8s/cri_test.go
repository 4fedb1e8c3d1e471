package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
