package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/podpolicy"
)

// Finding is one way in which a workload does not fit a policy.
type Finding struct {
	// Rule of the guest by which it refuses the workload; for what the host
	// does not propose, and the guest silently has the policy's way with, a name
	// that begins with "effective.".
	Rule string `json:"rule"`
	// Container is empty for the pod.
	Container string `json:"container,omitempty"`
	Path      string `json:"path,omitempty"`
	// Expected is the policy's, Got the workload's.
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
	Help     string `json:"help,omitempty"`
}

// String is a line for a person.
func (f Finding) String() string {
	s := f.Rule
	if f.Container != "" {
		s += ": container " + f.Container
	}
	if f.Path != "" {
		s += ": " + f.Path
	}
	if f.Expected != "" {
		s += ": expected " + f.Expected
	}
	if f.Got != "" {
		s += ", got " + f.Got
	}
	if f.Help != "" {
		s += " (" + f.Help + ")"
	}
	return s
}

// maxSteps bounds how often one proposal is corrected and made again.
const maxSteps = 100

// Check says how a workload does not fit a policy: it plays a Kubernetes host
// that runs the workload before a guard with the policy, from the sandbox to the
// commands of probes. What the guard refuses is a finding, is made as the policy
// has it, and is tried again, so that all is found at once. No finding means
// that the guest takes the workload as it is.
func Check(ctx context.Context, g *Generated, policy *podpolicy.Policy) ([]Finding, error) {
	if err := policy.Validate(); err != nil {
		return nil, err
	}
	h := &host{ctx: ctx, want: g, policy: policy, guard: podpolicy.NewGuard(policy), put: map[string]uint64{}}
	if !h.sandbox() {
		return h.findings, h.err
	}
	h.disks()
	for i := range g.Policy.Containers {
		h.container(i)
	}
	for _, c := range policy.Containers {
		if h.find(g.Policy, c.Name) == nil {
			h.add(Finding{Rule: "effective.containers", Container: c.Name, Expected: "this container", Got: "none in the workload"})
		}
	}
	return h.findings, h.err
}

// host is the part that Check plays.
type host struct {
	ctx    context.Context
	want   *Generated
	policy *podpolicy.Policy
	guard  *podpolicy.Guard
	// put are the versions of volumes of files.
	put map[string]uint64
	// known are the values of slots.
	known    map[podpolicy.Slot]string
	findings []Finding
	err      error
}

func (h *host) add(f Finding) {
	if !slices.Contains(h.findings, f) {
		h.findings = append(h.findings, f)
	}
}

// refused notes a refusal; it is false without one.
func (h *host) refused(container string, err error) (*podpolicy.Refusal, bool) {
	if err == nil {
		return nil, false
	}
	r, ok := errors.AsType[*podpolicy.Refusal](err)
	if !ok {
		h.err = errors.Join(h.err, err)
		return &podpolicy.Refusal{}, true
	}
	h.add(Finding{r.Rule, container, r.Path, r.Expected, r.Got, r.Help})
	return r, true
}

// note is refused where it makes no difference.
func (h *host) note(container string, err error) { _, _ = h.refused(container, err) }

func (h *host) find(p *podpolicy.Policy, name string) *podpolicy.Container {
	i := slices.IndexFunc(p.Containers, func(c podpolicy.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Containers[i]
}

func (h *host) sandbox() bool {
	q, fit := h.proposal(h.want.Policy), h.proposal(h.policy)
	if q.PodNamespace == samples()[podpolicy.SlotPodNamespace] && h.want.Workload.Namespace == "" {
		q.PodNamespace = fit.PodNamespace // left to kubectl
	}
	q.Hostname = cmp.Or(q.Hostname, fit.Hostname)
	for range maxSteps {
		config, err := h.guard.Sandbox(q)
		r, refused := h.refused("", err)
		if !refused {
			h.known = samples()
			h.known[podpolicy.SlotPodName], h.known[podpolicy.SlotHostname] = config.Name, config.Hostname
			h.known[podpolicy.SlotPodNamespace] = cmp.Or(config.Namespace, q.PodNamespace)
			if len(h.policy.Pod.Sysctls) > 0 && len(h.want.Policy.Pod.Sysctls) == 0 {
				h.add(Finding{Rule: "effective.sysctls", Expected: fmt.Sprint(h.policy.Pod.Sysctls), Got: "none"})
			}
			return true
		}
		switch {
		case r.Path == "podName":
			q.PodName = fit.PodName
		case r.Path == "podNamespace":
			q.PodNamespace = fit.PodNamespace
		case r.Path == "hostname":
			q.Hostname = fit.Hostname
		case r.Path == "sharePID":
			q.SharePID = fit.SharePID
		case strings.HasPrefix(r.Path, "sysctls"):
			q.Sysctls = nil
		case strings.HasPrefix(r.Path, "network"), strings.HasPrefix(r.Path, "dns"), strings.HasPrefix(r.Path, "hosts"):
			q.Network = fit.Network
		default:
			return false
		}
	}
	return false
}

// disks attaches the workload's block volumes, and those of the policy that it
// does not have, so that its containers are looked at all the same.
func (h *host) disks() {
	attach := func(p *podpolicy.Policy, note bool) {
		for i, name := range slices.Sorted(maps.Keys(p.Volumes)) {
			if p.Volumes[name].Kind != podpolicy.VolumeBlock {
				continue
			}
			err := h.guard.Attach(name, "disk-"+strconv.Itoa(i))
			if note {
				h.note("", err)
			}
		}
	}
	attach(h.want.Policy, true)
	attach(h.policy, false)
}

// container plays one container, from its proposal to its probes.
func (h *host) container(i int) {
	c := &h.want.Policy.Containers[i]
	own := h.find(h.policy, c.Name)
	id := "c" + strconv.Itoa(i)
	if own == nil {
		_, err := h.guard.Admit(podpolicy.ContainerProposal{ID: id, Name: c.Name})
		h.note(c.Name, err)
		return
	}
	img := h.image(c)
	if img == nil || !h.admit(id, c, own, img) {
		return
	}
	h.compare(c, own)
	for _, m := range c.Mounts {
		h.files(c, m.Volume)
	}
	for _, m := range own.Mounts {
		h.fillFiles(m.Volume)
	}
	if _, refused := h.refused(c.Name, h.guard.Started(id, "")); refused {
		return
	}
	for n, rule := range c.Allow.Exec {
		q := podpolicy.ExecProposal{ID: "exec" + strconv.Itoa(n), Args: rule.Args, Terminal: rule.Terminal, Stdin: rule.Stdin}
		if _, err := h.guard.Exec(id, q); err == nil {
			h.note(c.Name, h.guard.Deleted(id, q.ID))
		} else {
			h.note(c.Name, err)
		}
	}
	if c.Role == podpolicy.RoleInit {
		h.note(c.Name, h.guard.Exited(id, "", 0))
	}
}

// image is that of a container of the workload.
func (h *host) image(c *podpolicy.Container) *Image {
	for _, i := range h.want.Images {
		if i.Digest == c.Image.Digest && slices.Equal(i.From, c.Image.From) {
			return i
		}
	}
	h.err = errors.Join(h.err, fmt.Errorf("container %s: its image is not known", c.Name))
	return nil
}

// admit proposes a container until the guard takes it, each time as the policy
// has what was refused.
func (h *host) admit(id string, c, own *podpolicy.Container, img *Image) bool {
	config := img.Config
	config.Digest = own.Image.Digest
	if img.Accounts != nil && (own.User == nil || c.User == nil) {
		config.Passwd, config.Group, _ = img.Accounts(h.ctx) // without them, numbers still do
	}
	q := h.containerProposal(id, c, config)
	env := h.environ(c, config)
	for range maxSteps {
		list := lines(env)
		q.Env = &list
		a, err := h.guard.Admit(q)
		if err == nil {
			_, err = a.Configure(config)
			if err == nil {
				return true
			}
			if e := h.guard.Deleted(id, ""); e != nil {
				h.err = errors.Join(h.err, e)
				return false
			}
		}
		r, _ := h.refused(c.Name, err)
		if !h.correct(&q, env, h.environ(own, config), own, r) {
			return false
		}
	}
	return false
}

// correct makes what was refused as the policy has it.
func (h *host) correct(q *podpolicy.ContainerProposal, env, fit map[string]string, own *podpolicy.Container, r *podpolicy.Refusal) bool {
	before := *q
	switch {
	case r.Rule == podpolicy.RuleImageConfig || r.Rule == podpolicy.RuleContainerOrder:
		return false
	case strings.HasPrefix(r.Path, "args"):
		q.Args = nil
	case strings.HasPrefix(r.Path, "user"):
		q.User = nil
	case r.Path == "cwd":
		q.Cwd = nil
	case strings.HasPrefix(r.Path, "mounts"):
		q.Mounts = nil
	case strings.HasPrefix(r.Path, "resources"):
		q.Resources = podpolicy.Resources{}
	case strings.HasPrefix(r.Path, "security."):
		return correctSecurity(q, own, r.Path)
	case r.Path == "image":
		q.Image = ""
	case r.Path == "terminationMessagePath":
		q.TerminationPath = ""
		return before.TerminationPath != ""
	case r.Path == "terminal":
		q.Terminal = own.Terminal
		return before.Terminal != q.Terminal
	case r.Path == "stdin":
		q.Stdin = false
		return before.Stdin
	case strings.HasPrefix(r.Path, "env"):
		return correctEnv(env, fit, r.Path)
	default:
		return false
	}
	return true
}

// correctSecurity makes one field as the policy has it, so that the others are
// looked at, too.
func correctSecurity(q *podpolicy.ContainerProposal, own *podpolicy.Container, path string) bool {
	s := *q.Security
	switch path {
	case "security.capabilities":
		s.Capabilities = own.Capabilities
	case "security.noNewPrivileges":
		s.NoNewPrivileges = own.NoNewPrivileges.On()
	case "security.readOnlyRoot":
		s.ReadOnlyRoot = own.ReadOnlyRoot
	case "security.seccompUnconfined":
		s.SeccompUnconfined = own.Seccomp == podpolicy.SeccompUnconfined
	default:
		return false
	}
	q.Security = &s
	return true
}

func correctEnv(env, fit map[string]string, path string) bool {
	for _, name := range slices.Concat(slices.Collect(maps.Keys(env)), slices.Collect(maps.Keys(fit))) {
		if path != "env."+name && path != "env["+strconv.QuoteToASCII(name)+"]" {
			continue
		}
		had, was := env[name]
		if value, ok := fit[name]; ok {
			env[name] = value
			return !was || had != value
		}
		delete(env, name)
		return was
	}
	return false
}
