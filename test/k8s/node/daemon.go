package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// daemon is a containerd that can be chosen.
type daemon struct {
	version string
	// dir has containerd, ctr and containerd-shim-runc-v2.
	dir string
	// format is that of its configuration: 2 or 3.
	format int
}

// Daemons are the versions of containerd that a node can have, the usual one first.
func Daemons() []string { return []string{"2.2", "2.4", "1.6"} }

// findDaemon finds the programs of a node, or says which are missing.
func findDaemon(o Options) (daemon, error) {
	d := daemon{version: o.Containerd, format: 3, dir: filepath.Join(o.Programs, "containerd-"+o.Containerd)}
	switch o.Containerd {
	case "2.2", "2.4":
	case "1.6":
		d.format, d.dir = 2, "/usr/bin"
	default:
		return d, fmt.Errorf("node: containerd is %q; expected one of %s", o.Containerd, strings.Join(Daemons(), ", "))
	}
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "only root may make namespaces, and this process runs as user "+fmt.Sprint(os.Geteuid()))
	}
	files := []string{filepath.Join(d.dir, "containerd"), filepath.Join(d.dir, "containerd-shim-runc-v2"), "/usr/lib/cni/bridge"}
	for _, p := range programNames(o.DaemonOnly) {
		files = append(files, filepath.Join(o.Programs, "bin", p))
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			missing = append(missing, f+" is missing")
		}
	}
	tools := []string{"runc", "iptables", "nsenter", "setpriv"}
	if !o.DaemonOnly {
		tools = append(tools, "etcd", "nft", "conntrack")
	}
	for _, p := range tools {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p+" is not on PATH")
		}
	}
	if missing != nil {
		return d, &MissingError{What: missing}
	}
	return d, nil
}

// programNames are those of the directory of programs that a node needs.
func programNames(daemonOnly bool) []string {
	if daemonOnly {
		return []string{"app"} // of the tests' images
	}
	return []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}
}
