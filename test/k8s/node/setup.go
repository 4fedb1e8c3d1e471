package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Setup is what the first process of a node makes of its namespaces.
type Setup struct {
	// Dir is the node's directory.
	Dir string
}

// overlaid are directories of which the node has a writable view of its own; what
// it writes stays over a reboot.
func overlaid() []string { return []string{"/etc", "/opt", "/var/lib", "/usr/local"} }

// bound are directories that are the node's own, and where they lie in Dir.
// Overlays cannot lie on overlays, and so those of containerd and of the kubelet
// must not be in /var/lib's.
func bound() [][2]string {
	return [][2]string{
		{"run", "/run"}, {"log/var", "/var/log"},
		{"disk/containerd", "/var/lib/containerd"}, {"disk/kubelet", "/var/lib/kubelet"}, {"disk/etcd", "/var/lib/etcd"},
	}
}

// makeDir makes what is missing of the node's directory.
func (n *Node) makeDir() error {
	dirs := []string{"pki", "log", "run/lock", "volumeplugins", "sysctl"}
	for _, b := range bound() {
		dirs = append(dirs, b[0])
	}
	for _, o := range overlaid() {
		dirs = append(dirs, "disk/overlay"+o+"/upper", "disk/overlay"+o+"/work")
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// disk is where a path below one of the overlaid directories lies outside.
func (n *Node) disk(path string) string {
	for _, o := range overlaid() {
		if rest, err := filepath.Rel(o, path); err == nil && filepath.IsLocal(rest) {
			return filepath.Join(n.dir, "disk/overlay", o, "upper", rest)
		}
	}
	return ""
}

// writeInside writes a file of the node's disk; it may be called before boot.
func (n *Node) writeInside(path, text string) error {
	file := n.disk(path)
	if file == "" {
		return fmt.Errorf("%s is not on the node's disk", path)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

func (n *Node) setup() Setup { return Setup{Dir: n.dir} }

func (s Setup) mounts() error {
	// First nothing may reach the machine's own mounts; then mounts have to pass
	// between the node and its containers (mountPropagation).
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making mounts shared: %w", err)
	}
	for _, o := range overlaid() {
		dir := filepath.Join(s.Dir, "disk/overlay"+o)
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", o, dir, dir)
		if err := unix.Mount("overlay", o, "overlay", 0, options); err != nil {
			return fmt.Errorf("mounting an overlay on %s (is %s on one?): %w", o, s.Dir, err)
		}
	}
	for _, b := range bound() {
		if err := os.MkdirAll(b[1], 0o755); err != nil {
			return err
		}
		if err := bind(filepath.Join(s.Dir, b[0]), b[1]); err != nil {
			return err
		}
	}
	// The kubelet sets these three, and they are the machine's: it finds what it
	// wants (k8s.io/kubernetes pkg/util/sysctl) and writes nothing.
	for path, value := range map[string]string{
		"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	} {
		file := filepath.Join(s.Dir, "sysctl", filepath.Base(path))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(file, "/proc/sys/"+path); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, to, err)
	}
	return nil
}

// network makes the node's interface: a veth pair with both ends here, since not
// every kernel has dummy interfaces, with addresses and default routes.
func (s Setup) network() error {
	if err := unix.Sethostname([]byte(Name)); err != nil {
		return err
	}
	for path, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/default/forwarding": "1",
		"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1",
	} {
		if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "node1"}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("making a veth pair: %w", err)
	}
	for _, name := range []string{"lo", "node1", "node0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting %s up: %w", name, err)
		}
	}
	link, err := netlink.LinkByName("node0")
	if err != nil {
		return err
	}
	for _, a := range []struct{ address, gateway string }{{IP + "/24", "192.168.77.254"}, {IP6 + "/64", "fd77::fe"}} {
		address, err := netlink.ParseAddr(a.address)
		if err != nil {
			return err
		}
		address.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address %s: %w", a.address, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(a.gateway)}); err != nil {
			return fmt.Errorf("default route by %s: %w", a.gateway, err)
		}
	}
	return nil
}
