package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// recorded are bundles that containerd 2.2 wrote for a pod; see the README there.
const recorded = "internal/host/cri/testdata/2.2"

// podSpec names what a pod's bundles share.
type podSpec struct {
	id, uid, netns string
	image          string
}

func load(name string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(recorded, name))
	if err != nil {
		return nil, fmt.Errorf("%w (run it in the repository's root)", err)
	}
	s := new(specs.Spec)
	return s, json.Unmarshal(data, s)
}

// groupOf is the control group of a pod or container.
func groupOf(id string) string { return "/coffer-bench/" + id }

// common makes a recorded bundle one of this machine: ids and paths are the
// pod's, resources are gone (limits, whose controllers may belong to the other
// version of cgroups here, and device rules, which crun cannot set everywhere), and
// so are annotations that only one of the shims knows.
func (p podSpec) common(s *specs.Spec, kind, id string) {
	s.Version = "1.0.2" // crun 1.8 knows no later one
	s.Process.Args = []string{"/bin/sleep", "100000"}
	s.Process.User = specs.User{}
	s.Process.Cwd = "/"
	s.Process.OOMScoreAdj = nil
	s.Linux.CgroupsPath = groupOf(id)
	s.Linux.Sysctl = nil
	s.Linux.Resources = nil
	s.Annotations = map[string]string{
		"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": p.id, "io.kubernetes.cri.sandbox-name": p.id,
		"io.kubernetes.cri.sandbox-namespace": "bench", "io.kubernetes.cri.sandbox-uid": p.uid,
	}
}

// sandbox writes the bundle of the pod's pause container.
func (p podSpec) sandbox() (string, error) {
	s, err := load("web-sandbox.json")
	if err != nil {
		return "", err
	}
	p.common(s, "sandbox", p.id)
	s.Mounts = withoutBinds(s.Mounts)
	for i, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = p.netns
		}
	}
	return write(p.id, s)
}

// container writes the bundle of a container of the pod whose first process,
// as the shim says, is pid. It has what every pod's containers have: hosts,
// hostname, resolv.conf, shared memory and a termination log.
func (p podSpec) container(id string, pid uint32) (string, error) {
	s, err := load("web-app.json")
	if err != nil {
		return "", err
	}
	p.common(s, "container", id)
	s.Annotations["io.kubernetes.cri.container-name"] = "app"
	s.Annotations["io.kubernetes.cri.image-name"] = p.image
	for i, n := range s.Linux.Namespaces {
		if n.Path != "" {
			s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, map[specs.LinuxNamespaceType]string{
				specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
			}[n.Type])
		}
	}
	s.Mounts = withoutBinds(s.Mounts)
	// The kubelet's files, and containerd's.
	kubelet, engine := filepath.Join(kubeletRoot, "pods", p.uid), filepath.Join(workDir, "io.containerd.grpc.v1.cri/sandboxes", p.id)
	for _, m := range []struct{ to, from, content string }{
		{"/etc/hosts", filepath.Join(kubelet, "etc-hosts"), "127.0.0.1\tlocalhost\n"},
		{"/dev/termination-log", filepath.Join(kubelet, "containers/app", id), ""},
		{"/etc/hostname", filepath.Join(engine, "hostname"), p.id + "\n"},
		{"/etc/resolv.conf", filepath.Join(engine, "resolv.conf"), "nameserver " + nodeAddress + "\n"},
	} {
		if err := os.MkdirAll(filepath.Dir(m.from), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(m.from, []byte(m.content), 0o644); err != nil {
			return "", err
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.to, Type: "bind", Source: m.from, Options: []string{"rbind", "rprivate", "rw"}})
	}
	return write(id, s)
}

func withoutBinds(mounts []specs.Mount) []specs.Mount {
	var kept []specs.Mount
	for _, m := range mounts {
		if m.Type != "bind" {
			kept = append(kept, m)
		}
	}
	return kept
}

func write(id string, s *specs.Spec) (string, error) {
	dir := filepath.Join(workDir, "bundles", id)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		return "", err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}
