package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/host/volumes"
	"github.com/coffer-project/coffer/podpolicy"
)

// Create makes a container in the guest, with its volumes. It may take as long as
// a pull takes, and ends when ctx ends; then nothing of the container is left, and
// it can be tried again.
func (p *Pod) Create(ctx context.Context, c *cri.Container) (err error) {
	m, err := p.running()
	if err != nil {
		return err
	}
	ctx, limit, cancel := within(ctx, p.o.Config.CreateTimeout.D(), fmt.Sprintf("container %s was not created", c.Name))
	defer cancel()
	defer func() {
		if err != nil {
			p.releaseVolumes(c.ID)
			p.unscoreContainer(ctx, c.ID)
			err = p.explain(limit.explain(ctx, err))
		}
	}()
	for _, w := range c.Warnings {
		p.warn(ctx, notice.NoEffect, "container %s: %s", c.Name, w)
	}
	joins, err := p.createSandbox(ctx, c.SharePID)
	if err != nil {
		return err
	}
	p.scoreContainer(ctx, c.ID, c.Spec.Process.OOMScoreAdj)
	req := c.Proposal()
	req.JoinPids = joins
	if err := p.leaveToPolicy(req, c); err != nil {
		return err
	}
	v, err := p.volumes.Prepare(ctx, m, volumesOf(c))
	if err != nil {
		return err
	}
	if err := p.addHosts(ctx, m, v.Hosts); err != nil {
		return err
	}
	req.Mounts, req.Volumes, req.Devices = v.Mounts, v.Volumes, v.Devices
	if v.TerminationPath != "" {
		req.TerminationMessagePath = v.TerminationPath
	}
	_, err = m.Agent().CreateContainer(ctx, req)
	return err
}

// The smallest quota that the kubelet writes, and its period
// (kubernetes@v1.35.4 pkg/kubelet/cm/helpers_linux.go, MinQuotaPeriod and
// QuotaPeriod): any limit of less than a hundredth of a CPU becomes this.
const (
	leastQuota  = 1000
	quotaPeriod = 100_000
)

// leaveToPolicy takes out of a proposal what the node's software does not know
// exactly, where a policy does.
func (p *Pod) leaveToPolicy(req *agentapi.CreateContainerRequest, c *cri.Container) error {
	sealed := p.Sandbox().Initdata != nil
	if strings.HasPrefix(req.GetImage(), "sha256:") {
		if !sealed {
			return fmt.Errorf("image %.80s: the container runtime knows it by its id only, by which the guest cannot pull it: write the image's registry, repository and tag", req.GetImage())
		}
		req.Image = ""
	}
	if r := c.Spec.Linux.Resources; sealed && r != nil && r.CPU != nil && r.CPU.Quota != nil && r.CPU.Period != nil &&
		*r.CPU.Quota == leastQuota && *r.CPU.Period == quotaPeriod {
		req.Resources.CpuMillis = 0
	}
	return nil
}

// volumesOf is the container as far as its volumes matter.
func volumesOf(c *cri.Container) volumes.Container {
	vc := volumes.Container{ID: c.ID, Name: c.Name, Mounts: c.Spec.Mounts, Devices: c.Spec.Linux.Devices, Privileged: c.Privileged}
	if r := c.Spec.Linux.Resources; r != nil {
		vc.DeviceRules = r.Devices
	}
	return vc
}

// createSandbox tells the guest which pod it is, once. A call that comes later is
// told by the guest's answer to the first; a container that is to see processes of
// others in a pod that does not share them joins those of another container
// (kubectl debug --target). Of which, containerd says by the id of a process, and
// that is the machine's for all of them.
func (p *Pod) createSandbox(ctx context.Context, sharePID bool) (joins bool, err error) {
	select {
	case <-p.turn:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	defer func() { p.turn <- struct{}{} }()
	if p.exists {
		return sharePID && !p.shares, nil
	}
	p.mu.Lock()
	m, s := p.machine, p.sandbox
	p.mu.Unlock()
	req := p.sandboxRequest(m, s, sharePID)
	_, err = m.Agent().CreateSandbox(ctx, req)
	if r := refusal(err); r != nil && r.GetRule() == podpolicy.RulePodSharePID && !s.SharePIDKnown {
		// The pod's bundle does not tell, but its policy does.
		req.SharePid = !req.SharePid
		_, err = m.Agent().CreateSandbox(ctx, req)
	}
	if err != nil {
		return false, fmt.Errorf("the guest did not take the pod: %w", err)
	}
	p.exists, p.shares = true, req.SharePid
	return false, nil
}

// sandboxRequest is the pod as the guest is told of it.
func (p *Pod) sandboxRequest(m Machine, s *cri.Sandbox, sharePID bool) *agentapi.CreateSandboxRequest {
	c := p.o.Config
	req := &agentapi.CreateSandboxRequest{
		SandboxId: p.o.ID, Initdata: s.Initdata, PodName: s.Name, PodNamespace: s.Namespace, PodUid: s.UID, Hostname: s.Hostname,
		NodeName: c.NodeName, Network: p.guestNetwork(m, s), SharePid: sharePID,
	}
	if c.Scratch > 0 && c.Driver == runtimeconfig.DriverQEMU {
		req.ScratchDisk = scratchSerial
	}
	if s.Initdata == nil {
		// A sealed pod's are in its policy; what container runtimes add to them
		// would only be compared.
		req.Sysctls = s.Sysctls
		if t := p.trustee; t != nil {
			req.UnsealedTrustee = t
		}
		req.UnsealedRegistries = p.registries
	}
	return req
}

// guestNetwork is the machine's network with the pod's DNS and hosts.
func (p *Pod) guestNetwork(m Machine, s *cri.Sandbox) *agentapi.Network {
	n := m.Network()
	if n == nil {
		n = &agentapi.Network{}
	}
	if s.DNS != nil {
		n.Dns = s.DNS
	}
	return n
}

// addHosts tells the guest of the entries that the pod's owner adds to
// /etc/hosts, which come with the first container. A sealed pod has them in its
// policy.
func (p *Pod) addHosts(ctx context.Context, m Machine, hosts []*agentapi.HostEntry) error {
	p.mu.Lock()
	s, known := p.sandbox, p.hosts
	p.mu.Unlock()
	if known || len(hosts) == 0 || s.Initdata != nil {
		return nil
	}
	n := p.guestNetwork(m, s)
	n.Hosts = append(n.Hosts, hosts...)
	if _, err := m.Agent().UpdateNetwork(ctx, &agentapi.UpdateNetworkRequest{Network: n}); err != nil {
		return fmt.Errorf("hostAliases: %w", err)
	}
	p.mu.Lock()
	p.hosts = true
	p.mu.Unlock()
	return nil
}

// Bounds of the time that is left to the caller for our own answer: whoever gives
// up first says why.
const (
	leastMargin = 100 * time.Millisecond
	mostMargin  = 2 * time.Second
)

// within bounds ctx by a limit and to end a little before its own deadline, with
// a cause that says what was not done.
func within(ctx context.Context, limit time.Duration, what string) (context.Context, *timeoutError, context.CancelFunc) {
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		left -= min(max(left/20, leastMargin), mostMargin)
		limit = min(limit, max(left, 0))
	}
	cause := &timeoutError{what, limit}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, cause)
	return ctx, cause, cancel
}

// timeoutError is a limit that was reached.
type timeoutError struct {
	what  string
	limit time.Duration
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("%s within %s, which is create_timeout or what the caller waits (kubelet: runtimeRequestTimeout); it will be tried again", e.what, e.limit.Round(time.Millisecond))
}

func (e *timeoutError) Unwrap() error { return context.DeadlineExceeded }

// explain says which limit was reached, if one was. The guest is told of the
// limit and may notice first.
func (e *timeoutError) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	cause, text := context.Cause(ctx), err.Error()
	if st, _ := answer(err); st != nil {
		text = "the guest: " + st.Message()
		if cause == nil && st.Code() == codes.DeadlineExceeded {
			cause = e
		}
	}
	if _, dead := errors.AsType[*vmm.End](err); dead || cause == nil || errors.Is(err, cause) {
		return err // a machine's end says everything
	}
	return fmt.Errorf("%w (%s)", cause, printable(text))
}
