package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Registry is the address of the node's image registry: [Node.ServeImages] makes
// it answer. containerd trusts it with the node's own authority.
const Registry = IP + ":5000"

// PauseImage is what containerd runs for pod sandboxes of podsandbox mode.
const PauseImage = Registry + "/pause:1"

// Handler is a runtime that RuntimeClasses can name. A RuntimeClass of the same
// name is made.
type Handler struct {
	Name string
	// Type is containerd's runtime_type, e.g. io.containerd.coffer.v2.
	Type string
	// ConfigPath goes to the shim as an option, if there is one.
	ConfigPath string
	// Sandboxer is "podsandbox" or "shim"; empty: the daemon's default. Daemons
	// before 2.0 know only the former, and it is left out for them.
	Sandboxer string
	// PodAnnotations are passed on to the shim: names, or patterns with *.
	PodAnnotations []string
	// Overhead is added to pods of the class: resource name to quantity.
	Overhead map[string]string
}

// writeConfig writes the files that programs of the node read.
func (n *Node) writeConfig() error {
	files := map[string]string{
		"/etc/containerd/config.toml":                         n.containerdConfig(),
		"/etc/containerd/certs.d/" + Registry + "/hosts.toml": fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n", Registry, Registry, n.CA()),
		"/etc/cni/net.d/10-node.conflist":                     cniConfig,
		"/etc/coffer-node/kubelet.yaml":                       n.kubeletConfig(),
		"/etc/coffer-node/resolv.conf":                        "nameserver " + IP + "\n",
	}
	maps.Copy(files, n.options.Files)
	for path, text := range files {
		if err := n.writeInside(path, strings.ReplaceAll(text, "@CA@", n.CA())); err != nil {
			return err
		}
	}
	// Where a node's programs look for it, and what asks for its version.
	link := n.disk("/usr/local/bin/containerd")
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	return os.Symlink(filepath.Join(n.daemon.dir, "containerd"), link)
}

// Both address families; pods reach the node and each other, and nothing else.
const cniConfig = `{"cniVersion": "1.0.0", "name": "node", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks",
            "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd44::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// containerdConfig is the daemon's, in the format that it understands.
func (n *Node) containerdConfig() string {
	runtime, images := "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"
	pin := "  [plugins.'io.containerd.cri.v1.images'.pinned_images]\n    sandbox = \"" + PauseImage + "\"\n"
	snapshotters, moreRuntime := "", ""
	if n.daemon.format == 2 {
		runtime, images = "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"
		pin = ""
		moreRuntime = "  sandbox_image = \"" + PauseImage + "\"\n"
	}
	for _, s := range []string{"btrfs", "zfs", "devmapper", "aufs", "blockfile", "erofs"} {
		snapshotters += fmt.Sprintf("%q, ", "io.containerd.snapshotter.v1."+s)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version = %d\n", n.daemon.format)
	if n.daemon.format > 2 {
		// As in the daemon's own default; Debian's imports nothing.
		fmt.Fprintf(&b, "imports = [\"/etc/containerd/conf.d/*.toml\"]\n")
	}
	fmt.Fprintf(&b, "root = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n")
	fmt.Fprintf(&b, "disabled_plugins = [%s\"io.containerd.nri.v1.nri\", \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.tracing\"]\n", snapshotters)
	fmt.Fprintf(&b, "[grpc]\n  address = \"/run/containerd/containerd.sock\"\n")
	fmt.Fprintf(&b, "[plugins.'%s'.registry]\n  config_path = \"/etc/containerd/certs.d\"\n%s", images, pin)
	// Without CAP_SYS_RESOURCE no process may be made less likely to be killed.
	fmt.Fprintf(&b, "[plugins.'%s']\n  restrict_oom_score_adj = true\n%s", runtime, moreRuntime)
	fmt.Fprintf(&b, "[plugins.'%s'.cni]\n", runtime)
	if n.daemon.format == 2 {
		fmt.Fprintf(&b, "  bin_dir = \"/usr/lib/cni\"\n")
	} else {
		fmt.Fprintf(&b, "  bin_dirs = [\"/usr/lib/cni\"]\n")
	}
	fmt.Fprintf(&b, "  conf_dir = \"/etc/cni/net.d\"\n")
	table := "plugins.'" + runtime + "'.containerd"
	fmt.Fprintf(&b, "[%s]\n  default_runtime_name = \"runc\"\n", table)
	fmt.Fprintf(&b, "[%s.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n[%s.runtimes.runc.options]\n  BinaryName = \"/usr/sbin/runc\"\n  SystemdCgroup = false\n", table, table)
	for _, h := range n.options.Handlers {
		b.WriteString(h.toml(table, n.daemon.format))
	}
	return b.String()
}

func (h Handler) toml(table string, format int) string {
	var b strings.Builder
	table += ".runtimes." + h.Name
	fmt.Fprintf(&b, "[%s]\n  runtime_type = %q\n  privileged_without_host_devices = true\n", table, h.Type)
	if len(h.PodAnnotations) > 0 {
		var quoted []string
		for _, a := range h.PodAnnotations {
			quoted = append(quoted, strconv.Quote(a))
		}
		fmt.Fprintf(&b, "  pod_annotations = [%s]\n", strings.Join(quoted, ", "))
	}
	if h.Sandboxer != "" && format > 2 {
		fmt.Fprintf(&b, "  sandboxer = %q\n", h.Sandboxer)
	}
	if h.ConfigPath != "" {
		fmt.Fprintf(&b, "[%s.options]\n  ConfigPath = %q\n", table, h.ConfigPath)
	}
	return b.String()
}

// kubeletConfig: see k8s.io/kubelet/config/v1beta1.KubeletConfiguration.
func (n *Node) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
# A test reads a log whole: the kubelet would begin another file at 10 MiB.
containerLogMaxSize: 200Mi
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%[1]s
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: false}
  x509: {clientCAFile: %[2]s/pki/ca.crt}
authorization: {mode: AlwaysAllow}
tlsCertFile: %[2]s/pki/kubelet-server.crt
tlsPrivateKeyFile: %[2]s/pki/kubelet-server.key
volumePluginDir: %[2]s/volumeplugins
imagePullCredentialsVerificationPolicy: NeverVerify
clusterDNS: [%[3]s]
clusterDomain: %[4]s
resolvConf: /etc/coffer-node/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
nodeStatusUpdateFrequency: 5s
syncFrequency: 5s
runtimeRequestTimeout: 15m
fileCheckFrequency: 10s
configMapAndSecretChangeDetectionStrategy: Watch
allowedUnsafeSysctls: ["net.core.somaxconn", "kernel.msg*"]
serializeImagePulls: false
maxPods: 100
`, n.id, n.dir, IP, Domain)
}

// createClasses makes a RuntimeClass for each handler.
func (n *Node) createClasses(ctx context.Context) error {
	handlers := append([]Handler{{Name: "runc"}}, n.options.Handlers...)
	sort.Slice(handlers, func(i, j int) bool { return handlers[i].Name < handlers[j].Name })
	for _, h := range handlers {
		class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: h.Name}, Handler: h.Name}
		if len(h.Overhead) > 0 {
			list := corev1.ResourceList{}
			for name, quantity := range h.Overhead {
				q, err := resource.ParseQuantity(quantity)
				if err != nil {
					return fmt.Errorf("overhead of %s: %w", h.Name, err)
				}
				list[corev1.ResourceName(name)] = q
			}
			class.Overhead = &nodev1.Overhead{PodFixed: list}
		}
		_, err := n.client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// logFile is where a program's output goes.
func (n *Node) logFile(program string) string { return filepath.Join(n.dir, "log", program+".log") }
