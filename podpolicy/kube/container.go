package kube

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/podpolicy"
)

// containers makes the policy's containers in the order in which they start.
func (g *generator) containers() {
	for i := range g.spec.InitContainers {
		c := &g.spec.InitContainers[i]
		role := podpolicy.RoleInit
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			role = podpolicy.RoleSidecar
		}
		g.container(element("initContainers", i), c, role)
	}
	for i := range g.spec.Containers {
		g.container(element("containers", i), &g.spec.Containers[i], podpolicy.RoleApp)
	}
	for i := range g.spec.EphemeralContainers {
		field := element("ephemeralContainers", i)
		if !g.o.Ephemeral {
			g.bad(field, "remove it, or give --ephemeral", "an ephemeral container is a way into a running pod")
			continue
		}
		e := &g.spec.EphemeralContainers[i]
		c := corev1.Container(e.EphemeralContainerCommon)
		before := len(g.policy.Containers)
		g.container(field, &c, podpolicy.RoleEphemeral)
		if len(g.policy.Containers) > before && !g.policy.Pod.SharePID {
			g.policy.Containers[before].Target = e.TargetContainerName
		}
	}
	if len(g.spec.Containers) == 0 {
		g.bad("containers", "", "the pod has no container")
	}
}

func (g *generator) container(field string, c *corev1.Container, role podpolicy.Role) {
	g.places = append(g.places, field)
	if c.Image == "" {
		g.bad(field+".image", "", "the container has no image")
		return
	}
	img, err := g.images.image(g.ctx, c.Image)
	if err != nil {
		g.bad(field+".image", "is the reference right, and does the registry want credentials?", "%s", err)
		return
	}
	g.used[c.Image] = img
	env := g.environment(c, field)
	out := podpolicy.Container{
		Name: c.Name, Role: role, Image: podpolicy.Image{Digest: img.Digest, From: slices.Clone(img.From)},
		Cwd: c.WorkingDir, Env: env.policy(), ServiceEnv: slices.Clone(g.services), Terminal: c.TTY,
		Limits: g.limits(field, c),
	}
	out.Args, out.ExpandArgs = g.args(field, c, img, env)
	g.security(field, c, img, &out)
	g.mounts(field, c, env, &out)
	if p := c.TerminationMessagePath; p != "" && p != podpolicy.DefaultTerminationPath {
		out.TerminationMessagePath = path.Clean(p)
	}
	out.Allow = g.allow(field, c, role)
	g.policy.Containers = append(g.policy.Containers, out)
}

// args follow Kubernetes' documentation, "Define a Command and Arguments".
func (g *generator) args(field string, c *corev1.Container, img *Image, env *environment) (args []string, expanded bool) {
	var all [][]part
	add := func(list []string, lookup func(string) ([]part, bool)) {
		for _, s := range list {
			if lookup != nil {
				all = append(all, expand(s, lookup))
			} else {
				all = append(all, join(nil, part{text: s}))
			}
		}
	}
	if len(c.Command) > 0 {
		add(c.Command, env.lookup)
	} else {
		add(img.Config.Entrypoint, nil)
	}
	switch {
	case len(c.Args) > 0:
		add(c.Args, env.lookup)
	case len(c.Command) == 0:
		add(img.Config.Cmd, nil)
	}
	if len(all) == 0 {
		g.bad(field, "write command", "neither the container nor its image %s has a command", clip(c.Image))
		return nil, false
	}
	for _, parts := range all {
		if _, ok := literal(parts); !ok {
			expanded = true
		}
	}
	for _, parts := range all {
		text, _ := literal(parts)
		if expanded {
			text = written(parts)
		}
		args = append(args, text)
	}
	return args, expanded
}

func (g *generator) limits(field string, c *corev1.Container) podpolicy.Limits {
	var l podpolicy.Limits
	for _, name := range slices.Sorted(maps.Keys(c.Resources.Limits)) {
		q := c.Resources.Limits[name]
		at := member(field+".resources.limits", string(name))
		switch name {
		case corev1.ResourceMemory:
			if q.Sign() < 0 {
				g.bad(at, "", "expected a positive quantity")
			}
			l.Memory.Bytes = uint64(max(q.Value(), 0))
		case corev1.ResourceCPU:
			if m := q.MilliValue(); m < 0 || m > maxMillis {
				g.bad(at, "", "expected at most %d CPUs", maxMillis/1000)
			} else {
				l.CPUs.Millis = uint32(m)
			}
		case corev1.ResourceEphemeralStorage:
		default:
			g.bad(at, "remove it", "the guest has no %s: devices and huge pages are the host's", clip(string(name)))
		}
	}
	return l
}

// maxMillis is the policy's bound on processor time.
const maxMillis = 1024 * 1000

// mounts are the container's, with the service account's token and the file
// systems of block volumes.
func (g *generator) mounts(field string, c *corev1.Container, env *environment, out *podpolicy.Container) {
	for i, m := range c.VolumeMounts {
		at := element(field+".volumeMounts", i)
		v := g.volumes[m.Name]
		switch {
		case v == nil:
			g.bad(at+".name", "", "the pod has no volume %s", clip(m.Name))
			continue
		case v.unset:
			continue
		case v.Kind == podpolicy.VolumeBlock:
			g.bad(at, "write volumeDevices with this name, and mount in the annotation "+AnnotationMount+m.Name, "a claim with volumeMode Block has no file system that Kubernetes could mount")
			continue
		}
		v.used = true
		sub := g.subPath(at, &m, env)
		if v.Kind == podpolicy.VolumeFiles && sub != "" && !v.Holds(sub) {
			// Kubernetes would make an empty directory of this name, which is hardly meant.
			g.bad(at+".subPath", "name one of its files, or a directory of them", "volume %s has no file %s", clip(m.Name), clip(sub))
			continue
		}
		out.Mounts = append(out.Mounts, podpolicy.Mount{
			Path: path.Join("/", m.MountPath), Volume: m.Name, SubPath: sub, ReadOnly: m.ReadOnly || v.Kind == podpolicy.VolumeFiles,
		})
	}
	g.devices(field, c, out)
	if v := g.volumes[tokenVolume]; v != nil && out.Role != podpolicy.RoleEphemeral && g.findsToken(v) &&
		!slices.ContainsFunc(out.Mounts, func(m podpolicy.Mount) bool { return m.Path == tokenPath }) {
		v.used = true
		out.Mounts = append(out.Mounts, podpolicy.Mount{Path: tokenPath, Volume: tokenVolume, ReadOnly: true})
	}
}

// findsToken: the volume is the one that findVolumes made, not one of the
// manifest's with its name.
func (g *generator) findsToken(v *volume) bool { return v.field == "serviceAccountName" }

func (g *generator) subPath(at string, m *corev1.VolumeMount, env *environment) string {
	switch {
	case m.SubPath != "" && m.SubPathExpr != "":
		g.bad(at, "remove one of them", "subPath and subPathExpr")
	case m.SubPathExpr != "":
		text, ok := literal(expand(m.SubPathExpr, env.lookup))
		if !ok {
			g.bad(at+".subPathExpr", "use what the manifest knows", "the host would choose the directory: %s", clip(m.SubPathExpr))
		}
		return strings.TrimPrefix(path.Join("/", text), "/")
	}
	return strings.TrimPrefix(path.Join("/", m.SubPath), "/")
}

func (g *generator) devices(field string, c *corev1.Container, out *podpolicy.Container) {
	for i, d := range c.VolumeDevices {
		at := element(field+".volumeDevices", i)
		v := g.volumes[d.Name]
		switch {
		case v == nil:
			g.bad(at+".name", "", "the pod has no volume %s", clip(d.Name))
		case v.unset:
		case v.Kind != podpolicy.VolumeBlock:
			g.bad(at, "use volumeMounts", "volume %s is no block device", clip(d.Name))
		case v.mount != "":
			v.used = true
			out.Mounts = append(out.Mounts, podpolicy.Mount{Path: v.mount, Volume: d.Name, ReadOnly: v.readOnly})
		default:
			v.used = true
			out.Devices = append(out.Devices, podpolicy.Device{Path: d.DevicePath, Volume: d.Name, ReadOnly: v.readOnly})
		}
	}
}

// allow is what Kubernetes itself does with the container, and what annotations
// and options permit.
func (g *generator) allow(field string, c *corev1.Container, role podpolicy.Role) podpolicy.Allow {
	a := podpolicy.Allow{Stdin: c.Stdin, Restarts: g.restarts(field, c, role)}
	for _, p := range []struct {
		name string
		*corev1.Probe
	}{{"livenessProbe", c.LivenessProbe}, {"readinessProbe", c.ReadinessProbe}, {"startupProbe", c.StartupProbe}} {
		if p.Probe != nil && p.Exec != nil {
			a.Exec = addExec(a.Exec, podpolicy.ExecRule{Args: g.probe(field+"."+p.name+".exec.command", c, p.Exec.Command)})
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil && h.Exec != nil {
				a.Exec = addExec(a.Exec, podpolicy.ExecRule{Args: slices.Clone(h.Exec.Command)})
			}
		}
		if l.StopSignal != nil {
			a.Signals = append(a.Signals, string(*l.StopSignal))
		}
	}
	for _, more := range []podpolicy.Allow{g.marks.allow[c.Name], g.o.Allow["*"], g.o.Allow[c.Name]} {
		a = merge(a, more)
	}
	return a
}

// probe is a probe's command as the kubelet runs it: expanded with the values that
// env writes down, and with nothing for what comes from elsewhere.
func (g *generator) probe(field string, c *corev1.Container, command []string) []string {
	values := map[string]corev1.EnvVar{}
	for _, v := range c.Env {
		values[v.Name] = v
	}
	var out []string
	for i, s := range command {
		parts := expand(s, func(name string) ([]part, bool) {
			v, ok := values[name]
			if v.ValueFrom != nil {
				g.note(element(field, i), "let the command read its environment", "the kubelet puts nothing in for $(%s) in a probe", clip(name))
			}
			return []part{{text: v.Value}}, ok
		})
		text, _ := literal(parts)
		out = append(out, text)
	}
	return out
}

// addExec adds a command; one that is there already opens what either opens.
func addExec(rules []podpolicy.ExecRule, r podpolicy.ExecRule) []podpolicy.ExecRule {
	for i := range rules {
		if o := &rules[i]; slices.Equal(o.Args, r.Args) {
			o.Output, o.Stdin, o.Terminal = o.Output || r.Output, o.Stdin || r.Stdin, o.Terminal || r.Terminal
			return rules
		}
	}
	return append(rules, r)
}

// merge is what either permits.
func merge(a, b podpolicy.Allow) podpolicy.Allow {
	for _, r := range b.Exec {
		a.Exec = addExec(a.Exec, r)
	}
	a.Logs, a.Attach, a.Stdin = a.Logs || b.Logs, a.Attach || b.Attach, a.Stdin || b.Stdin
	a.PortForward = union(a.PortForward, b.PortForward)
	a.Copy.From, a.Copy.To = union(a.Copy.From, b.Copy.From), union(a.Copy.To, b.Copy.To)
	a.Signals = union(a.Signals, b.Signals)
	return a
}

func union[T cmp.Ordered](a, b []T) []T {
	if len(b) == 0 {
		return a
	}
	u := slices.Concat(a, b)
	slices.Sort(u)
	return slices.Compact(u)
}

func (g *generator) restarts(field string, c *corev1.Container, role podpolicy.Role) podpolicy.Restarts {
	p := g.spec.RestartPolicy
	if c.RestartPolicy != nil && role == podpolicy.RoleApp {
		p = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch role {
	case podpolicy.RoleSidecar:
		return podpolicy.RestartAlways
	case podpolicy.RoleEphemeral:
		return podpolicy.RestartNever
	case podpolicy.RoleInit:
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyNever || c.RestartPolicy == nil && p == corev1.RestartPolicyNever {
			return podpolicy.RestartNever
		}
		return podpolicy.RestartOnFailure
	}
	switch p {
	case "", corev1.RestartPolicyAlways:
		return podpolicy.RestartAlways
	case corev1.RestartPolicyOnFailure:
		return podpolicy.RestartOnFailure
	case corev1.RestartPolicyNever:
		return podpolicy.RestartNever
	}
	g.bad("restartPolicy", "", "expected Always, OnFailure or Never, got %s", clip(string(p)))
	return ""
}
