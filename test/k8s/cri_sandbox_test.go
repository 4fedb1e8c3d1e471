package k8s

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// criPod is a sandbox.
type criPod struct {
	c      *criClient
	id     string
	config *runtimeapi.PodSandboxConfig
}

// sandbox is the description of a sandbox as a kubelet makes it.
func (c *criClient) sandbox(name string) *runtimeapi.PodSandboxConfig {
	c.made++
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", c.made)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "cri", Uid: uid},
		Hostname: name, LogDirectory: "/var/log/pods/cri_" + name + "_" + uid,
		DnsConfig:   &runtimeapi.DNSConfig{Servers: []string{node.IP}, Searches: []string{node.Domain}},
		Labels:      map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "cri", "io.kubernetes.pod.uid": uid},
		Annotations: map[string]string{"example.org/note": "kept"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + filepath.Base(c.n.Dir()) + "/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

// start makes a sandbox run; when that fails, nothing is left of what a kubelet
// makes itself.
func (c *criClient) start(ctx context.Context, handler string, config *runtimeapi.PodSandboxConfig) (*criPod, error) {
	p := &criPod{c: c, config: config}
	if err := p.makeCgroups(); err != nil {
		return nil, err
	}
	r, err := c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, errors.Join(err, p.removeOwn(ctx))
	}
	p.id = r.GetPodSandboxId()
	return p, nil
}

// pod makes a sandbox that is ended with the test.
func (c *criClient) pod(t *testing.T, name string) *criPod {
	t.Helper()
	p, err := c.start(c.call(t), c.name, c.sandbox(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(t) })
	return p
}

// common is the sandbox that rows share.
func (c *criClient) common(t *testing.T) *criPod {
	t.Helper()
	if c.shared == nil {
		p, err := c.start(c.call(t), c.name, c.sandbox("shared"))
		if err != nil {
			t.Fatal(err)
		}
		c.shared = p
	}
	return c.shared
}

// end stops and removes a sandbox, if it is still there, and what a kubelet removes.
func (p *criPod) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), p.c.patience())
	defer cancel()
	_, err := p.c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
	// To containerd 1.6 a removed sandbox is not a stopped one.
	if err != nil && (p.c.daemon.version != "1.6" || grpcstatus.Code(err) != codes.NotFound) {
		t.Errorf("stopping the sandbox: %v", err)
	}
	if _, err := p.c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("removing the sandbox: %v", err)
	}
	if err := p.removeOwn(ctx); err != nil {
		t.Error(err)
	}
}

// cgroups are the pod's, one in each hierarchy of this machine.
func (p *criPod) cgroups() []string {
	parents, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(p.c.n.Dir()))
	if err != nil {
		return nil
	}
	for i := range parents {
		parents[i] = filepath.Join(parents[i], filepath.Base(p.config.Linux.CgroupParent))
	}
	return parents
}

func (p *criPod) makeCgroups() error {
	for _, dir := range p.cgroups() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// removeOwn removes cgroups and logs, as a kubelet does after the sandbox.
func (p *criPod) removeOwn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := until(ctx, "the end of the pod's cgroups", func() error {
		var errs []error
		for _, dir := range p.cgroups() {
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, os.RemoveAll(p.logDir()))
}

// logDir is where the sandbox's logs lie, as this process sees them.
func (p *criPod) logDir() string {
	return filepath.Join(p.c.n.Dir(), "log/var", strings.TrimPrefix(p.config.LogDirectory, "/var/log"))
}
