package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/network"
)

// pluginDirs are where distributions and Kubernetes put CNI plugins.
var pluginDirs = []string{"/usr/lib/cni", "/opt/cni/bin"}

// plugin runs a CNI plugin in the node's namespace, by the CNI specification
// (version 1.0.0: parameters in the environment, configuration on stdin).
func (w *world) plugin(command, ifname string, config map[string]any) error {
	t := w.t
	t.Helper()
	program, dir := "", ""
	for _, d := range pluginDirs {
		if p, err := exec.LookPath(filepath.Join(d, config["type"].(string))); err == nil {
			program, dir = p, d
		}
	}
	if program == "" {
		t.Skipf("not supported here: no CNI plugin %s in %q", config["type"], pluginDirs)
	}
	stdin, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return w.node.Do(func() error {
		cmd := exec.Command(program)
		cmd.Stdin = bytes.NewReader(stdin)
		cmd.Env = []string{
			"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=network-test", "CNI_IFNAME=" + ifname, "CNI_PATH=" + dir,
			fmt.Sprintf("CNI_NETNS=/proc/%d/fd/%d", os.Getpid(), w.pod.File().Fd()),
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("plugin %s %s: %w: %s", config["type"], command, err, out)
		}
		return nil
	})
}

// TestPlugins has the plugins of the CNI project set up the pod, each in its own
// way: the guest reaches the node through what they have made.
func TestPlugins(t *testing.T) {
	ipam := func(t *testing.T, ranges ...string) map[string]any {
		var list [][]map[string]string
		for _, r := range ranges {
			list = append(list, []map[string]string{{"subnet": r}})
		}
		return map[string]any{
			"type": "host-local", "dataDir": t.TempDir(), "ranges": list,
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
		}
	}
	for _, tc := range []struct {
		name   string
		config map[string]any
		ranges []string
		// gateways answer the guest.
		gateways []string
	}{
		{"bridge", map[string]any{"type": "bridge", "bridge": "cni9", "isGateway": true, "mtu": 1400}, []string{"10.9.0.0/24", "fd00:9::/64"}, []string{"10.9.0.1", "fd00:9::1"}},
		{"ptp", map[string]any{"type": "ptp", "mtu": 1400}, []string{"10.8.0.0/24", "fd00:8::/64"}, []string{"10.8.0.1", "fd00:8::1"}},
		{"macvlan", map[string]any{"type": "macvlan", "master": "up0", "mode": "bridge"}, []string{"10.7.0.0/24"}, []string{"10.7.0.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &world{t: t, node: hosttest.NewNamespace(t), pod: hosttest.NewNamespace(t), guest: hosttest.NewNamespace(t)}
			// The node's addresses are usable at once.
			w.node.Sysctl("ipv6.conf.default.accept_dad", "0")
			gateway := w.node
			if tc.name == "macvlan" {
				// macvlan does not speak with its own node: the gateway is elsewhere.
				gateway = hosttest.NewNamespace(t)
				w.node.Veth("up0", gateway, "eth0", 1500)
				gateway.Address("eth0", "10.7.0.1/24")
			}
			tc.config["cniVersion"], tc.config["name"], tc.config["ipam"] = "1.0.0", "test", ipam(t, tc.ranges...)
			if err := w.plugin("ADD", "eth0", tc.config); err != nil {
				if tc.name == "macvlan" {
					t.Skipf("not supported here: %v", err)
				}
				t.Fatal(err)
			}
			var err error
			if w.attached, err = network.Attach(t.Context(), w.pod.Path(), network.Options{}); err != nil {
				t.Fatal(err)
			}
			t.Logf("the guest is told: %v", w.attached.Guest)
			w.boot()
			for _, address := range tc.gateways {
				conn, err := w.dial(w.guest, address, w.serve(gateway, address), limit)
				if err != nil {
					t.Errorf("%s: %v", address, err)
					continue
				}
				_ = conn.Close()
				ping(t, w.guest, address)
			}
			if err := w.attached.Close(); err != nil {
				t.Error(err)
			}
			w.clean()
			if err := w.plugin("DEL", "eth0", tc.config); err != nil {
				t.Error(err)
			}
		})
	}
}
