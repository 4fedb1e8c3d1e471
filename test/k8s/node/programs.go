package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// programs are those of a node in the order in which they are started.
func (n *Node) programs() []Program {
	pki := filepath.Join(n.dir, "pki")
	kubeconfig := func(user string) string { return filepath.Join(pki, user+".kubeconfig") }
	// Webhooks that ask the API server about callers need a kubeconfig of their own.
	component := func(user string) []string {
		return []string{"--kubeconfig=" + kubeconfig(user), "--authentication-kubeconfig=" + kubeconfig(user), "--authorization-kubeconfig=" + kubeconfig(user), "--leader-elect=false"}
	}
	list := []Program{
		{Name: "etcd", Path: "/usr/bin/etcd", Args: []string{
			"--data-dir=/var/lib/etcd/data", "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"}},
		{Name: "containerd", Path: filepath.Join(n.daemon.dir, "containerd"), Args: []string{"--config=/etc/containerd/config.toml"}},
		{Name: "kube-apiserver", Args: []string{
			"--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--advertise-address=" + IP,
			"--service-cluster-ip-range=10.96.0.0/16,fd96::/108", "--client-ca-file=" + pki + "/ca.crt",
			"--tls-cert-file=" + pki + "/apiserver.crt", "--tls-private-key-file=" + pki + "/apiserver.key",
			"--service-account-key-file=" + pki + "/sa.pub", "--service-account-signing-key-file=" + pki + "/sa.key",
			"--service-account-issuer=https://kubernetes.default.svc." + Domain,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--kubelet-client-certificate=" + pki + "/admin.crt", "--kubelet-client-key=" + pki + "/admin.key",
			"--kubelet-certificate-authority=" + pki + "/ca.crt", "--kubelet-preferred-address-types=InternalIP", "--profiling=false",
			// It asks etcd for what Debian's version of it cannot say, all the time.
			"--feature-gates=SizeBasedListCostEstimate=false"}},
		{Name: "kube-controller-manager", Args: append(component("kcm"),
			"--service-account-private-key-file="+pki+"/sa.key", "--root-ca-file="+pki+"/ca.crt",
			"--cluster-signing-cert-file="+pki+"/ca.crt", "--cluster-signing-key-file="+pki+"/ca.key", "--use-service-account-credentials=true")},
		{Name: "kube-scheduler", Args: component("scheduler")},
		{Name: "kubelet", Args: []string{
			"--config=/etc/coffer-node/kubelet.yaml", "--kubeconfig=" + kubeconfig("kubelet"), "--root-dir=/var/lib/kubelet",
			"--hostname-override=" + Name, "--node-ip=" + IP + "," + IP6, "-v=2"}},
		{Name: "kube-proxy", Args: []string{
			"--kubeconfig=" + kubeconfig("admin"), "--proxy-mode=nftables", "--hostname-override=" + Name,
			"--cluster-cidr=10.244.0.0/24,fd44::/64", "--conntrack-max-per-core=0",
			"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}},
	}
	for i := range list {
		p := &list[i]
		if p.Path == "" {
			p.Path = filepath.Join(n.options.Programs, "bin", p.Name)
		}
		p.Env, p.Log = n.environment(), n.logFile(p.Name)
	}
	return list
}

// program returns one of the node's programs by its name.
func (n *Node) program(name string) (Program, error) {
	for _, p := range n.programs() {
		if p.Name == name {
			return p, nil
		}
	}
	return Program{}, fmt.Errorf("node: no program is called %q", name)
}

// startPrograms starts all programs and waits until the node is ready for pods.
func (n *Node) startPrograms(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	steps := map[string]func(context.Context) error{
		"kube-apiserver": n.waitAPI,
		// The kubelet exits where it does not find containerd.
		"kube-scheduler": n.waitDaemon,
	}
	if n.options.DaemonOnly {
		p, err := n.program("containerd")
		if err == nil {
			err = n.StartProgram(ctx, p)
		}
		if err != nil {
			return err
		}
		return n.waitDaemon(ctx)
	}
	for _, p := range n.programs() {
		if err := n.StartProgram(ctx, p); err != nil {
			return err
		}
		if wait := steps[p.Name]; wait != nil {
			if err := wait(ctx); err != nil {
				return err
			}
		}
	}
	return n.waitReady(ctx)
}

// StartProgram starts a program inside the node; it ends with the node.
func (n *Node) StartProgram(_ context.Context, p Program) error {
	if p.Log == "" {
		p.Log = n.logFile(p.Name)
	}
	if p.Env == nil {
		p.Env = n.environment()
	}
	m, err := n.up()
	if err != nil {
		return err
	}
	var pid int
	if err := m.call("Init.Start", p, &pid); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	return nil
}

func (n *Node) up() (*machine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.machine == nil {
		return nil, errDown
	}
	return n.machine, nil
}

// Stop sends a signal to a program of the node and waits until it has ended.
func (n *Node) Stop(ctx context.Context, name string, signal syscall.Signal) (Exit, error) {
	m, err := n.up()
	if err != nil {
		return Exit{}, err
	}
	if err := m.call("Init.Signal", SignalArgs{Name: name, Signal: int(signal)}, &struct{}{}); err != nil {
		return Exit{}, err
	}
	type result struct {
		exit Exit
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.err = m.call("Init.Wait", name, &r.exit)
		done <- r
	}()
	select {
	case r := <-done:
		return r.exit, r.err
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("%s does not end on %s: %w", name, signal, ctx.Err())
	}
}

// Restart ends a program of the node by a signal and starts it again; of
// containerd and of the kubelet it waits until they serve.
func (n *Node) Restart(ctx context.Context, name string, signal syscall.Signal) error {
	p, err := n.program(name)
	if err != nil {
		return err
	}
	if _, err := n.Stop(ctx, name, signal); err != nil {
		return err
	}
	if err := n.StartProgram(ctx, p); err != nil {
		return err
	}
	switch name {
	case "containerd":
		return n.waitDaemon(ctx)
	case "kubelet":
		return n.waitKubelet(ctx)
	case "kube-apiserver":
		return n.waitAPI(ctx)
	}
	return nil
}

// poll calls f until it succeeds. It is for programs that have no other way to
// say that they serve.
func poll(ctx context.Context, what string, f func(context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), err)
		}
	}
}

func (n *Node) waitAPI(ctx context.Context) error {
	return poll(ctx, "the API server does not serve", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return n.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (n *Node) waitDaemon(ctx context.Context) error {
	return poll(ctx, "containerd does not serve", func(ctx context.Context) error {
		if _, err := os.Stat(n.Socket()); err != nil {
			return err
		}
		_, err := n.Run(ctx, "ctr", "version")
		return err
	})
}

func (n *Node) waitKubelet(ctx context.Context) error {
	return poll(ctx, "the kubelet does not serve", func(ctx context.Context) error {
		return n.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + Name + "/proxy/healthz").Do(ctx).Error()
	})
}

// waitReady waits, by watching, for a Ready node that has been heard of in this
// boot, and for the account that pods have.
func (n *Node) waitReady(ctx context.Context) error {
	if err := n.waitKubelet(ctx); err != nil {
		return err
	}
	began := time.Now().Add(-10 * time.Second)
	if err := n.watchFor(ctx, "node", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return n.client.CoreV1().Nodes().Watch(ctx, o)
	}, Name, func(e watch.Event) bool {
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			return false
		}
		for _, t := range node.Spec.Taints {
			if t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable {
				return false
			}
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionTrue && c.LastHeartbeatTime.After(began)
			}
		}
		return false
	}); err != nil {
		return err
	}
	return n.watchFor(ctx, "service account", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return n.client.CoreV1().ServiceAccounts("default").Watch(ctx, o)
	}, "default", func(e watch.Event) bool { return e.Type == watch.Added || e.Type == watch.Modified })
}

func (n *Node) watchFor(ctx context.Context, what string, start func(context.Context, metav1.ListOptions) (watch.Interface, error), name string, done func(watch.Event) bool) error {
	for {
		// From the API server's cache, first what is there: Debian's etcd cannot say how
		// far a watch has come, which a watch from "now" waits for.
		w, err := start(ctx, metav1.ListOptions{ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
		if err == nil {
			for e := range w.ResultChan() {
				if done(e) {
					w.Stop()
					return nil
				}
			}
		}
		// The API server may end a watch at any time.
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the %s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}

// LogTails is the ends of all programs' logs.
func (n *Node) LogTails(lines int) string {
	files, err := filepath.Glob(filepath.Join(n.dir, "log", "*.log"))
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, f := range files {
		text := n.tail(f, lines)
		if text != "" {
			fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), text)
		}
	}
	return b.String()
}

func (n *Node) tail(file string, lines int) string {
	const most = 64 << 10
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, 2)
	if err != nil {
		return ""
	}
	buf := make([]byte, min(size, most))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(buf), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// LogTail is the end of the log of one of the node's programs.
func (n *Node) LogTail(program string, lines int) string { return n.tail(n.logFile(program), lines) }
