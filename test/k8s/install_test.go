package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// installed are the directories in which an installation writes.
func installed() []string { return []string{"/etc/containerd", "/etc/coffer", "/opt", "/usr/local"} }

const dropIn = "/etc/containerd/conf.d/coffer.toml"

// hello prints a line in a pod of the runtime, and ends.
const hello = "kind: Pod\nmetadata: {name: %[1]s}\nspec: {runtimeClassName: %[2]s, restartPolicy: Never, containers: [{name: a, command: [sh, -c, \"echo hello from $HOSTNAME\"]}]}\n"

// TestInstall installs to running nodes of each version of containerd with the
// product's command, as an administrator does, runs a pod, and takes all away
// again: then the node's disk is as it was, byte for byte.
func TestInstall(t *testing.T) {
	for _, version := range node.Daemons() {
		onNode(t, row{id: "install/" + version, asserts: "coffer install, a pod, coffer uninstall: refused under the pod, and then the node is as it was"}, version, nil, func(t *testing.T, c *cluster, _ *node.Images) {
			n := c.n
			before := c.written(t)
			product := the.coffer()
			if err := product.Install(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			c.restartDaemon(t)
			if err := product.Admit(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if after := c.written(t); after[dropIn] == "" {
				t.Errorf("there is no %s", dropIn)
			}
			c.apply(t, fmt.Sprintf("kind: Pod\nmetadata: {name: stays}\nspec: {runtimeClassName: %s, containers: [{name: a}]}\n", node.HandlerSoft))
			c.ready(t, "stays")
			if out, err := n.Run(t.Context(), "/opt/coffer/bin/coffer", "uninstall"); err == nil || !strings.Contains(err.Error(), "pods of this runtime are running") {
				t.Errorf("uninstalled under a pod: %v: %s", err, out)
			}
			// The containers of a pod are found again by a containerd that is started anew.
			c.restartDaemon(t)
			c.comes(t, "stays", "a", "hostname", "stays")
			if p, err := n.Client().CoreV1().Pods(c.ns).Get(t.Context(), "stays", metav1.GetOptions{}); err != nil || container(p, "a").RestartCount != 0 {
				t.Errorf("after the restart of containerd: %v: %s", err, status(p))
			}
			c.remove(t, "stays")
			if err := until(t.Context(), "the removal", func() error {
				_, err := n.Run(t.Context(), "/opt/coffer/bin/coffer", "uninstall")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			c.restored(t, before)
		})
	}
}

// TestInstallDaemonSet does the same by what deploy/ has for clusters.
func TestInstallDaemonSet(t *testing.T) {
	onNode(t, row{id: "install/daemonset", asserts: "the DaemonSet of deploy/manifests installs and labels, a pod runs in a machine, its event says that it is unsealed, another pod of it changes nothing, and deleting it takes all away"}, the.containerd, []string{nodeImage()}, func(t *testing.T, c *cluster, images *node.Images) {
		c.own(t)
		before := c.written(t)
		image := c.nodeImage(t, images)
		manifests := c.manifests(t, image)
		// The handler has no settings there: guests trust what the node trusts.
		if _, err := c.n.Run(t.Context(), "sh", "-c", "cat "+c.n.CA()+" >>/etc/ssl/certs/ca-certificates.crt"); err != nil {
			t.Fatal(err)
		}
		c.kubectl(t, "-n", system, "apply", "-f", manifests)
		c.rolledOut(t)
		// A pod that comes before the restart waits for it.
		c.apply(t, fmt.Sprintf(hello, "machine", node.HandlerSoft))
		c.event(t, "machine", fmt.Sprintf("no runtime for %q is configured", node.HandlerSoft))
		c.restartDaemon(t)
		c.succeeded(t, "machine")
		if out := c.logs(t, "machine", "a"); out != "hello from machine\n" {
			t.Errorf("it printed %q", out)
		}
		// The agent posts what the pod's shim says of it.
		c.event(t, "machine", "Unsealed", "unsealed: this pod has no initdata")
		c.remove(t, "machine")
		// Another pod of the DaemonSet, as with an upgrade: what is installed stays.
		during := c.written(t)
		c.kubectl(t, "-n", system, "delete", "pod", "-l", "app.kubernetes.io/name=coffer-node")
		c.rolledOut(t)
		c.same(t, during, c.written(t))
		c.kubectl(t, "-n", system, "delete", "daemonset", "coffer-node", "--cascade=foreground", "--timeout=3m")
		if labels := c.labels(t); len(labels) > 0 {
			t.Errorf("the node is still labelled: %v", labels)
		}
		c.kubectl(t, "-n", system, "delete", "-f", manifests, "--ignore-not-found")
		c.restored(t, before)
	})
	onNode(t, row{id: "install/helm", asserts: "the same by the chart, with settings for handlers; its hook waits until the nodes are as they were"}, the.containerd, []string{nodeImage(), helm()}, func(t *testing.T, c *cluster, images *node.Images) {
		c.own(t)
		before := c.written(t)
		repository, tag, _ := strings.Cut(strings.TrimPrefix(c.nodeImage(t, images), node.Registry), ":")
		c.helm(t, "install", "coffer", filepath.Join(the.manifests, "../charts/coffer"), "--create-namespace", "--set", "image.repository="+node.Registry+repository, "--set", "image.tag="+tag,
			"--set", "containerdRestart=none", "--set-string", "settings=default_memory = 333")
		c.rolledOut(t)
		if out, err := c.n.Run(t.Context(), "cat", "/opt/coffer/etc/"+node.HandlerSoft+".toml"); err != nil || !strings.Contains(out, "default_memory = 333") {
			t.Errorf("the handler's configuration: %v: %s", err, out)
		}
		c.helm(t, "uninstall", "coffer", "--timeout", "4m")
		if labels := c.labels(t); len(labels) > 0 {
			t.Errorf("the node is still labelled: %v", labels)
		}
		c.restored(t, before)
	})
}

// onNode runs a test, which needs files, on a node of its own, to which nothing is
// installed.
func onNode(t *testing.T, r row, version string, needs []string, run func(*testing.T, *cluster, *node.Images)) {
	t.Helper()
	t.Run(strings.TrimPrefix(r.id, "install/"), func(t *testing.T) {
		if the.core {
			t.Skip("COFFER_K8S=core")
		}
		if !slices.Contains(the.handlers, node.HandlerSoft) {
			t.Skip("COFFER_K8S_HANDLERS has not " + node.HandlerSoft)
		}
		needHandler(t, node.HandlerSoft)
		needFiles(t, needs)
		o := node.Options{Programs: the.programs, Containerd: version, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
		the.coffer().AddSettings(&o)
		n, err := the.startWith(o)
		if missing := (*node.MissingError)(nil); errors.As(err, &missing) && os.Getenv("COFFER_REQUIRE_K8S") == "" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		h := newHandler(n, node.HandlerSoft)
		began := time.Now()
		defer func() {
			what := passed
			if t.Failed() {
				what = failed
			}
			the.report.add(r, h.name+" on containerd "+version, what, "", time.Since(began))
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}()
		images, err := n.ServeImages()
		if err != nil {
			t.Fatal(err)
		}
		t.Run("node", func(t *testing.T) { run(t, h.cluster(t, r.id), images) })
	})
}

func (c *cluster) written(t *testing.T) map[string]string {
	t.Helper()
	files, err := c.n.Written(installed()...)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (c *cluster) same(t *testing.T, before, after map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if before[name] != after[name] {
			t.Errorf("%s is %q, and was %q", name, after[name], before[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if after[name] == "" {
			t.Errorf("%s is gone", name)
		}
	}
}

// restored compares the node's disk with what it was, and looks whether
// containerd works as before.
func (c *cluster) restored(t *testing.T, before map[string]string) {
	t.Helper()
	c.same(t, before, c.written(t))
	c.restartDaemon(t)
	c.apply(t, fmt.Sprintf(hello, "plain", runc))
	c.succeeded(t, "plain")
	c.remove(t, "plain")
}

func (c *cluster) restartDaemon(t *testing.T) {
	t.Helper()
	if err := c.n.Restart(t.Context(), "containerd", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// labels are the product's of the node.
func (c *cluster) labels(t *testing.T) map[string]string {
	t.Helper()
	n, err := c.n.Client().CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(n.Labels, func(name, _ string) bool { return !strings.HasPrefix(name, "coffer-project.io/") })
	return n.Labels
}

// rolledOut waits for the DaemonSet's pod, which has installed and labelled, and
// has said that containerd is to be restarted.
func (c *cluster) rolledOut(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	err := until(ctx, "the DaemonSet's pod", func() error {
		pods, err := c.n.Client().CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=coffer-node"})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 || pods.Items[0].DeletionTimestamp != nil {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		p := &pods.Items[0]
		out, err := c.n.Client().CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if is, _ := ready(p); err != nil || !is || !strings.Contains(string(out), "the node is ready") {
			return fmt.Errorf("%s: %w: %s", status(p), err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	labels := c.labels(t)
	for _, name := range []string{"runtime", "soft"} {
		if labels["coffer-project.io/"+name] != "true" {
			t.Errorf("the node's labels are %v; expected coffer-project.io/%s", labels, name)
		}
	}
	if c.written(t)[dropIn] == "" {
		t.Errorf("there is no %s", dropIn)
	}
	for _, class := range []string{"coffer-qemu-snp", "coffer-qemu-tdx", node.HandlerSoft} {
		if _, err := c.n.Client().NodeV1().RuntimeClasses().Get(ctx, class, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
}
