package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func describeContainer(p *Policy, c *Container) Section {
	n := &notes{path: keyPath("containers", c.Name)}
	n.role(c)
	n.image(c)
	n.process(c)
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		n.variable(name, c.Env[name])
	}
	if len(c.ServiceEnv) > 0 {
		n.add(FactOpen, "serviceEnv", "The host may add the address variables of the services %s.", quoteList(c.ServiceEnv))
	}
	n.rights(c)
	for _, m := range c.Mounts {
		n.mount(p, m)
	}
	for _, d := range c.Devices {
		n.add(FactFixed, keyPath("devices", d.Path), "Volume %s is the device %s%s.", d.Volume, d.Path, readOnly(d.ReadOnly))
	}
	if c.TerminationMessagePath != "" {
		n.add(FactFixed, "terminationMessagePath", "It leaves its last words in %s.", c.TerminationMessagePath)
	}
	n.allow(c)
	n.limits(c.Limits)
	return n.section("Container " + c.Name)
}

func (n *notes) role(c *Container) {
	text := map[Role]string{
		RoleApp:       "It starts after every init container and sidecar. The host may leave it out.",
		RoleInit:      "An init container: what follows it starts only when it has succeeded, and then it never runs again.",
		RoleSidecar:   "A sidecar: what follows it starts only when it has been started.",
		RoleEphemeral: "An ephemeral container: the host may start it once, at any time, or not at all.",
	}[orDefault(c.Role, RoleApp)]
	n.add(FactFixed, "role", "%s", text)
	if c.Target != "" {
		n.add(FactFixed, "target", "It sees the processes of container %s and is among them; with equal users it may signal and trace them, and sees their files and variables.", c.Target)
	}
	switch orDefault(c.Allow.Restarts, RestartNever) {
	case RestartAlways:
		n.add(FactAllowed, "allow.restarts", "The host may start it again whenever it has ended.")
	case RestartOnFailure:
		n.add(FactAllowed, "allow.restarts", "The host may start it again after a failure.")
	default:
		n.add(FactFixed, "allow.restarts", "It is started once.")
	}
}

func (n *notes) image(c *Container) {
	n.add(FactFixed, "image.digest", "It runs the image %s and no other.", c.Image.Digest)
	if len(c.Image.From) > 1 {
		n.add(FactOpen, "image.from", "The host chooses from where it is pulled: %s.", quoteList(c.Image.From))
	} else {
		n.add(FactFixed, "image.from", "It is pulled from %s.", quoteList(c.Image.From))
	}
	if c.Image.Stub != "" {
		n.add(FactFixed, "image.stub", "The host may call it %s, which is a name and not run.", c.Image.Stub)
	}
}

func (n *notes) process(c *Container) {
	if c.Args == nil {
		n.add(FactFixed, "args", "It runs the image's entrypoint and command.")
	} else {
		n.add(FactFixed, "args", "It runs %s.", quoteList(c.Args))
	}
	if c.ExpandArgs {
		n.add(FactFixed, "expandArgs", "$(NAME) in these arguments stands for a variable; open variables reach the command line by it.")
	}
	if c.Cwd != "" {
		n.add(FactFixed, "cwd", "Its working directory is %s.", c.Cwd)
	}
	switch {
	case c.User == nil:
		n.add(FactFixed, "user", "It runs as the image's user.")
	case c.User.UID == 0:
		n.add(FactFixed, "user", "It runs as root, group %d, groups %v.", c.User.GID, c.User.Groups)
	default:
		n.add(FactFixed, "user", "It runs as user %d, group %d, groups %v.", c.User.UID, c.User.GID, c.User.Groups)
	}
	if c.Terminal {
		n.add(FactFixed, "terminal", "It has a terminal.")
	}
}

func (n *notes) variable(name string, v EnvValue) {
	field := keyPath("env", name)
	switch {
	case v.Value != nil:
		n.add(FactFixed, field, "Variable %s is %s.", name, quote(*v.Value))
	case v.Expand != "":
		n.add(FactFixed, field, "Variable %s is %s with its references replaced.", name, quote(v.Expand))
	case v.Host != "":
		form := "a value in form"
		if spec := v.Host.spec(); spec != nil {
			form = spec.form
		}
		n.add(FactOpen, field, "The host chooses variable %s (%s): %s.", name, v.Host, form)
	case v.Match != "":
		n.add(FactOpen, field, "The host chooses variable %s, which must match %s.", name, quote(v.Match))
	case v.Sealed != "":
		n.add(FactSecret, field, "Variable %s is a sealed secret, opened inside the guest.", name)
	default:
		n.add(FactSecret, field, "Variable %s is %s, fetched inside the guest.", name, v.Resource)
	}
}

func (n *notes) rights(c *Container) {
	if len(c.Capabilities) == 0 {
		n.add(FactFixed, "capabilities", "It has no capabilities.")
	} else {
		n.add(FactFixed, "capabilities", "It has the capabilities %s.", strings.Join(c.Capabilities, ", "))
	}
	for _, strong := range []string{"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_NET_ADMIN"} {
		if slices.Contains(c.Capabilities, strong) {
			n.add(FactWarning, "capabilities", "With %s the container can reach beyond itself in the pod VM.", strong)
		}
	}
	if c.Seccomp == SeccompUnconfined {
		n.add(FactWarning, "seccomp", "No filter keeps it from any system call.")
	}
	if !c.NoNewPrivileges.On() {
		n.add(FactWarning, "noNewPrivileges", "Set-uid programs in it gain their owner's rights.")
	}
	if c.ReadOnlyRoot {
		n.add(FactFixed, "readOnlyRoot", "Its root file system is read-only, but for the volumes that its image declares.")
	}
}

func (n *notes) mount(p *Policy, m Mount) {
	what := "volume " + m.Volume
	v := p.Volumes[m.Volume]
	switch {
	case m.SubPath == "":
	case v.Kind == VolumeFiles:
		what = m.SubPath + " of " + what + ", as it is when the container is created"
	default:
		what = "directory " + m.SubPath + " of " + what
	}
	kind := FactFixed
	if v.Host != nil {
		kind = FactOpen
	}
	n.add(kind, keyPath("mounts", m.Path), "At %s is %s%s.", m.Path, what, readOnly(m.ReadOnly))
}

func readOnly(is bool) string {
	if is {
		return ", read-only"
	}
	return ""
}

func (n *notes) allow(c *Container) {
	a := c.Allow
	for _, r := range a.Exec {
		gets := []string{"the exit code"}
		for _, more := range []struct {
			has  bool
			what string
		}{{r.Output, "its output"}, {r.Stdin, "its input"}, {r.Terminal, "a terminal"}} {
			if more.has {
				gets = append(gets, more.what)
			}
		}
		field := keyPath("allow.exec", jsonText(r.Args))
		n.add(FactAllowed, field, "The host may run %s and has %s.", quoteList(r.Args), strings.Join(gets, ", "))
		if r.Stdin && r.Output && isShell(r.Args) {
			n.add(FactWarning, field, "A shell with input and output gives the host everything in the container.")
		}
	}
	switch {
	case a.Attach:
		n.add(FactAllowed, "allow.attach", "The host reads its output, and may attach again.")
	case a.Logs:
		n.add(FactAllowed, "allow.logs", "The host reads its output.")
	default:
		n.add(FactFixed, "allow.logs", "The host does not learn its output.")
	}
	if a.Stdin {
		n.add(FactAllowed, "allow.stdin", "The host writes its input.")
	}
	for _, dir := range a.Copy.From {
		n.add(FactAllowed, keyPath("allow.copy.from", dir), "The host may copy files out of %s.", dir)
	}
	for _, dir := range a.Copy.To {
		n.add(FactAllowed, keyPath("allow.copy.to", dir), "The host may copy files into %s, by the image's tar.", dir)
	}
	for _, port := range a.PortForward {
		n.add(FactAllowed, keyPath("allow.portForward", fmt.Sprint(port)), "The host may connect to port %d through the agent.", port)
	}
	stop := "KILL, TERM, INT and the image's stop signal"
	if len(a.Signals) > 0 {
		stop += ", and " + strings.Join(a.Signals, ", ")
	}
	n.add(FactAllowed, "allow.signals", "The host may send %s.", stop)
}

func isShell(args []string) bool {
	if len(args) == 0 {
		return false
	}
	name := args[0]
	return slices.Contains([]string{"sh", "bash", "ash", "dash", "zsh", "busybox"}, name[strings.LastIndexByte(name, '/')+1:])
}

func (n *notes) limits(l Limits) {
	for _, x := range []struct {
		field, what, value string
		host               Slot
		none               bool
	}{
		{"limits.memory", "memory", FormatBytes(l.Memory.Bytes), l.Memory.Host, l.Memory == Memory{}},
		{"limits.cpus", "CPUs", FormatCPUs(l.CPUs.Millis), l.CPUs.Host, l.CPUs == CPUs{}},
		{"limits.pids", "processes", fmt.Sprint(l.PIDs), "", l.PIDs == 0},
	} {
		switch {
		case x.host != "":
			n.add(FactOpen, x.field, "The host chooses the limit of %s.", x.what)
		case !x.none:
			n.add(FactFixed, x.field, "It has at most %s of %s.", x.value, x.what)
		}
	}
}
