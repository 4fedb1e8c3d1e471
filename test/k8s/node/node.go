// Package node runs a real Kubernetes on this machine, for tests: etcd, API
// server, controller manager, scheduler, containerd, CNI plugins, kubelet and
// kube-proxy, each the program that clusters run, as one node in namespaces of
// its own.
//
// [Start] makes the node's directory (certificates, configuration, disk), starts
// a process in new mount, PID, network, UTS and IPC namespaces and, through it,
// the programs; it returns when pods can be created. That process is the test
// program itself, started again: its TestMain (or main) calls [Init] first. It
// mounts, sets up the network, starts what it is told to and reaps; when it dies
// the kernel ends everything in its PID namespace, so nothing can outlive a node.
// Inside, /run, /var/log, /var/lib, /etc, /opt and /usr/local are the node's own,
// and so the usual paths can be used. [Node.Reboot] ends that process and starts
// another one on the same directory: what a node's disk would keep is kept.
//
// The API server is reached from outside through [Node.Config]; programs run
// inside with [Node.Command]; servers of the test process listen inside with
// [Node.Listen]. [Node.Close] ends everything and reports what is left.
// [Node.Inventory] is what a pod could leave behind on a running node.
//
// A node needs root, but neither systemd nor cgroup v2, and changes nothing of
// the machine outside its namespaces but cgroups below /coffer-node-*, which
// Close removes.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What a node is called and has for addresses, in its own network namespace.
const (
	Name = "coffer-node"
	// IP and IP6 are reached from pods, too; [Node.Listen] is mostly used with them.
	IP  = "192.168.77.1"
	IP6 = "fd77::1"
	// Domain is the cluster's.
	Domain = "cluster.local"
)

// Options is what a node is made of.
type Options struct {
	// Programs is the directory that `make k8s-node` fills: bin and containerd-*.
	Programs string
	// Containerd is the version of the daemon: "2.2", "2.4", or "1.6" for Debian's.
	Containerd string
	// Dir is where the node's directory is made; empty: the default for temporary
	// files. It must not be on an overlay file system.
	Dir string
	// Path is put before PATH of the node's programs: shims are looked for there.
	Path []string
	// Handlers are runtimes beside runc.
	Handlers []Handler
	// Files are written to the node's disk before it is started: path to text. They
	// lie in /etc, /opt, /var/lib or /usr/local. @CA@ in a text stands for [Node.CA].
	Files map[string]string
	// Prepare is called in each boot before containerd is started, and may run
	// commands inside. It may be nil.
	Prepare func(ctx context.Context, n *Node) error
	// DaemonOnly leaves Kubernetes out: there are containerd and CNI, for a client of
	// [Node.Socket], and neither Client nor Kubeconfig reach anything. Ready is not
	// called.
	DaemonOnly bool
	// Ready is called once, when pods of runc can be created. It may be nil.
	Ready func(ctx context.Context, n *Node) error
	// Logger gets a line for each step.
	Logger *slog.Logger
}

// Node is a running node. Its methods may be called concurrently, except Close
// and Reboot, which nothing else may accompany.
type Node struct {
	options Options
	dir     string
	id      string
	log     *slog.Logger
	daemon  daemon
	proxy   *proxy
	// Admin reaches the API server with every right.
	config *rest.Config
	client *kubernetes.Clientset

	mu        sync.Mutex
	machine   *machine
	listeners []*Listener
	dns       *resolver
}

// MissingError says what a node cannot be run without.
type MissingError struct{ What []string }

func (e *MissingError) Error() string {
	return "no Kubernetes node can be run here: " + strings.Join(e.What, "; ") + " (`make k8s-node` makes what can be made)"
}

// Start makes a node and waits until pods can be created. After an error nothing
// is left of it; the error has the ends of the logs. What the machine lacks is a
// [*MissingError].
func Start(ctx context.Context, o Options) (*Node, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d, err := findDaemon(o)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Dir, "coffer-node-")
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n := &Node{options: o, dir: dir, id: filepath.Base(dir), log: o.Logger, daemon: d}
	if err := n.start(ctx); err != nil {
		logs := n.LogTails(15)
		return nil, errors.Join(fmt.Errorf("node: %w\n%s", err, logs), n.Close())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	if err := n.makeDir(); err != nil {
		return err
	}
	if err := makeCgroups(n.id); err != nil {
		return err
	}
	if err := n.writePKI(); err != nil {
		return err
	}
	if err := n.writeConfig(); err != nil {
		return err
	}
	var err error
	if n.proxy, err = newProxy(n.dialAPI); err != nil {
		return err
	}
	if err := n.writeOuterKubeconfig(n.proxy.Address()); err != nil {
		return err
	}
	if n.config, err = clientcmd.BuildConfigFromFlags("", n.Kubeconfig()); err != nil {
		return err
	}
	n.config.QPS, n.config.Burst = 100, 200
	if n.client, err = kubernetes.NewForConfig(n.config); err != nil {
		return err
	}
	if err := n.boot(ctx); err != nil {
		return err
	}
	if n.options.DaemonOnly {
		return nil
	}
	if err := n.createClasses(ctx); err != nil {
		return err
	}
	if n.options.Ready == nil {
		return nil
	}
	return n.options.Ready(ctx, n)
}

// boot starts the namespaces and everything in them.
func (n *Node) boot(ctx context.Context) error {
	began := time.Now()
	m, err := startMachine(n.setup(), filepath.Join(n.dir, "log", "init.log"))
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.machine = m
	listeners := append([]*Listener(nil), n.listeners...)
	n.mu.Unlock()
	for _, l := range listeners {
		if err := l.open(); err != nil {
			return err
		}
	}
	if err := n.startDNS(); err != nil {
		return err
	}
	if n.options.Prepare != nil {
		if err := n.options.Prepare(ctx, n); err != nil {
			return fmt.Errorf("preparing: %w", err)
		}
	}
	if err := n.startPrograms(ctx); err != nil {
		return err
	}
	n.log.InfoContext(ctx, "node is ready", "containerd", n.daemon.version, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// Reboot kills every process of the node at once and starts the node again with
// what its disk holds; it returns when the node is ready. Listeners listen again.
func (n *Node) Reboot(ctx context.Context) error {
	n.mu.Lock()
	m, dns := n.machine, n.dns
	n.machine, n.dns = nil, nil
	listeners := append([]*Listener(nil), n.listeners...)
	n.mu.Unlock()
	if m == nil {
		return errDown
	}
	for _, l := range listeners {
		l.shut()
	}
	if dns != nil {
		dns.Close()
	}
	m.kill()
	// What a power cut does to them: they are the kernel's memory.
	if err := removeCgroups(ctx, n.id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.dir, "run")); err != nil {
		return err
	}
	if err := n.makeDir(); err != nil {
		return err
	}
	if err := makeCgroups(n.id); err != nil {
		return err
	}
	return n.boot(ctx)
}

// Close ends the node and removes its directory. The error lists whatever could
// not be removed: there should be nothing. It may be called again.
func (n *Node) Close() error {
	n.mu.Lock()
	m, listeners, dns := n.machine, n.listeners, n.dns
	n.machine, n.listeners, n.dns = nil, nil, nil
	n.mu.Unlock()
	if dns != nil {
		dns.Close()
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	if n.proxy != nil {
		n.proxy.Close()
	}
	if m != nil {
		m.kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := []error{removeCgroups(ctx, n.id), leftOutside(n.dir)}
	// Last, since the file systems in it must have gone.
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(n.dir))
	}
	return errors.Join(errs...)
}

// Client reaches the API server with every right.
func (n *Node) Client() *kubernetes.Clientset { return n.client }

// Config is for other clients of the API server.
func (n *Node) Config() *rest.Config { return rest.CopyConfig(n.config) }

// Kubeconfig is the file that kubectl needs outside of the node.
func (n *Node) Kubeconfig() string { return filepath.Join(n.dir, "pki", "outside.kubeconfig") }

// Dir is the node's directory; it has the same path inside and outside.
func (n *Node) Dir() string { return n.dir }

// Socket is where containerd listens, as this process sees it: CRI and its own API.
func (n *Node) Socket() string { return filepath.Join(n.dir, "run/containerd/containerd.sock") }

// Daemon is the version of containerd, as Options had it.
func (n *Node) Daemon() string { return n.daemon.version }

// PID is that of the first process of the node's namespaces, as seen from here.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.machine == nil {
		return 0
	}
	return n.machine.cmd.Process.Pid
}

// Command is a program that runs inside the node when it is started, with the
// node's PATH and KUBECONFIG. It is killed when ctx ends, and with this process.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"-t", strconv.Itoa(n.PID()), "-m", "-p", "-n", "-u", "-i", "--", "setpriv", "--pdeathsig", "KILL", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = n.environment()
	cmd.Dir = n.dir
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a program inside the node and returns what it printed on standard
// output; an error has what it printed on standard error.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

func (n *Node) environment() []string {
	path := append(append([]string(nil), n.options.Path...), filepath.Join(n.options.Programs, "bin"), n.daemon.dir,
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	return []string{"PATH=" + strings.Join(path, ":"), "HOME=/root", "KUBECONFIG=" + filepath.Join(n.dir, "pki", "admin.kubeconfig")}
}

// dialAPI reaches the API server from outside.
func (n *Node) dialAPI(ctx context.Context) (net.Conn, error) {
	return n.Dial(ctx, "tcp", "127.0.0.1:6443")
}
