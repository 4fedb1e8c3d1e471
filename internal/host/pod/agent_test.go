package pod

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/process/hosttest"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// bundle writes a recorded bundle of containerd 2.4, changed, into a directory.
func bundle(t *testing.T, name, id string, change func(s *specs.Spec)) *cri.Bundle {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "cri", "testdata", "2.4", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	s := new(specs.Spec)
	if err := json.Unmarshal(data, s); err != nil {
		t.Fatal(err)
	}
	change(s)
	if data, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := cri.ReadBundle(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// kubelet makes what the kubelet has made of the pod "shared", and points a
// bundle's mounts there.
func kubelet(t *testing.T, root string, s *specs.Spec) (lastWords string) {
	t.Helper()
	const recorded = "/var/lib/kubelet/"
	for i, m := range s.Mounts {
		rel, ok := strings.CutPrefix(m.Source, recorded)
		if !ok {
			continue
		}
		file := filepath.Join(root, rel)
		s.Mounts[i].Source = file
		text := ""
		if m.Destination == "/etc/hosts" {
			text = "127.0.0.1\tlocalhost\n\n# Entries added by HostAliases.\n203.0.113.9\tdb.internal\tdb\n"
		} else {
			lastWords = file
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return lastWords
}

// hostsMachine knows where the test's registry is.
type hostsMachine struct {
	Machine
	net *hosttest.Net
}

func (m hostsMachine) Network() *agentapi.Network { return m.net.Network() }

// TestRealAgent: bundles as containerd writes them become a pod with the real
// agent, as a process, and a container that runs and says so.
func TestRealAgent(t *testing.T) {
	n := hosttest.NewNet(t)
	image := n.Image(t)
	root := t.TempDir()
	resolv := filepath.Join(root, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("search shop.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := runtimeconfig.Default()
	c.Driver, c.TEE, c.Agent, c.Development = runtimeconfig.DriverProcess, "none", hosttest.Agent(t), true
	c.KubeletRoot, c.StateDir, c.BlobCache = root, filepath.Join(root, "run"), filepath.Join(root, "blobs")
	p := New(Options{
		ID: "pod-real", Namespace: "k8s.io", Config: c, Logger: slog.New(slog.DiscardHandler),
		Launch: func(ctx context.Context, plan *Plan) (Machine, error) {
			m, err := launchMachine(ctx, plan)
			return hostsMachine{m, n}, err
		},
	})
	box := bundle(t, "shared-sandbox", "pod-real", func(s *specs.Spec) {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = n.Path
			}
		}
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/etc/resolv.conf" {
				s.Mounts[i].Source = resolv
			}
		}
		// A process shares the sysctls of its host.
		s.Linux.Sysctl = nil
	})
	if err := p.Boot(t.Context(), box.Sandbox); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	var lastWords string
	shell := bundle(t, "shared-shell", "c-1", func(s *specs.Spec) {
		lastWords = kubelet(t, root, s)
		s.Annotations["io.kubernetes.cri.image-name"] = image
		s.Process.Args = []string{"/bin/sh", "-c", "id; hostname; cat /etc/resolv.conf; grep db.internal /etc/hosts; tr '\\0' ' ' </proc/1/cmdline; echo; echo farewell >/dev/termination-log"}
		s.Process.User, s.Process.Terminal, s.Process.Cwd = specs.User{}, false, "/"
	}).Container
	if !shell.SharePID {
		t.Error("the container does not share PIDs")
	}
	if err := p.Create(t.Context(), shell); err != nil {
		t.Fatal(err)
	}
	m := p.Machine()
	out, err := m.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDOUT, ContainerId: "c-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := m.Agent().Start(t.Context(), &agentapi.StartRequest{ContainerId: "c-1"}); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := m.Agent().Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "c-1"})
	if err != nil || exit.GetExitCode() != 0 {
		t.Errorf("it ended with %v, %v", exit, err)
	}
	for _, want := range []string{"uid=0", "\nshared\n", "nameserver 10.96.0.10", "search shop.svc.cluster.local", "ndots:5", "203.0.113.9"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("expected %q in what the container said:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "/bin/sh -c") {
		t.Errorf("the container is the first process of a namespace that it is to share:\n%s", text)
	}
	if err := p.Exited(t.Context(), "c-1"); err != nil {
		t.Error(err)
	}
	if words, err := os.ReadFile(lastWords); err != nil || string(words) != "farewell\n" {
		t.Errorf("last words %q, %v", words, err)
	}
	if err := p.Delete(t.Context(), "c-1", ""); err != nil {
		t.Error(err)
	}
}

// TestRealRefusal: what a real agent refuses reaches the caller as one sentence.
func TestRealRefusal(t *testing.T) {
	n := hosttest.NewNet(t)
	c := runtimeconfig.Default()
	c.Driver, c.TEE, c.Agent, c.Development, c.KubeletRoot, c.StateDir = runtimeconfig.DriverProcess, "none", hosttest.Agent(t), true, t.TempDir(), t.TempDir()
	p := New(Options{ID: "pod-refused", Config: c})
	defer func() { _ = p.Close(context.WithoutCancel(t.Context())) }()
	s := &cri.Sandbox{ID: "pod-refused", Name: "No DNS name", Hostname: "web", NetNS: n.Path, SharePIDKnown: true}
	err := p.Boot(t.Context(), s)
	if err == nil || !strings.HasPrefix(err.Error(), "the guest did not take the pod: the guest: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if p.Machine().End() == nil {
		t.Error("the process is left running")
	}
}
