package podpolicy

import (
	"fmt"
	"slices"
)

// decideExec answers the proposal of a command in a running container.
func decideExec(p *Policy, s *state, id string, q ExecProposal) (*ExecConfig, *state, *Refusal) {
	i, ok := s.instance(id)
	if !ok || i.phase != phaseRunning {
		return nil, nil, badPhase(id, i, ok, phaseRunning)
	}
	if r := checkID("execID", q.ID); r != nil {
		return nil, nil, r
	}
	if _, ok := i.execs[q.ID]; ok {
		return nil, nil, refuse(RuleContainerID, "execID", "an id that is not in use", quote(q.ID), "delete that command first")
	}
	if len(i.execs) >= maxExecs {
		return nil, nil, refuse(RuleExecCount, "execID", fmt.Sprintf("fewer than %d commands in a container", maxExecs), fmt.Sprint(len(i.execs)), "delete ended commands")
	}
	rule, r := findExecRule(p, i.name, q)
	if r != nil {
		return nil, nil, r
	}
	c := i.config
	config := &ExecConfig{
		Container: id, ID: q.ID, Args: slices.Clone(rule.Args), Env: slices.Clone(c.Env), Cwd: c.Cwd,
		User: User{c.User.UID, c.User.GID, slices.Clone(c.User.Groups)}, Capabilities: slices.Clone(c.Capabilities),
		NoNewPrivileges: c.NoNewPrivileges, Terminal: q.Terminal, Stdin: q.Stdin, Output: rule.Output,
	}
	if q.Terminal && !slices.ContainsFunc(config.Env, func(v EnvVar) bool { return v.Name == "TERM" }) {
		config.Env = append(config.Env, EnvVar{Name: "TERM", Value: defaultTerm, optional: true})
	}
	if q.Env != nil {
		given, r := parseEnv("env", *q.Env)
		if r != nil {
			return nil, nil, r
		}
		if r := compareEnv(RuleExecEnv, config.Env, given); r != nil {
			return nil, nil, r
		}
	}
	if r := compareCwd(RuleExecCwd, config.Cwd, q.Cwd); r != nil {
		return nil, nil, r
	}
	return config.clone(), s.withExec(id, q.ID, execution{phase: phaseConfigured, config: config}), nil
}

// findExecRule takes a command that is listed as it is, whole, or one that
// copies files where the policy allows it.
func findExecRule(p *Policy, container string, q ExecProposal) (ExecRule, *Refusal) {
	c := findContainer(p, container)
	if c == nil {
		return ExecRule{}, refuse(RuleContainerUnknown, "id", "a container of the policy", quote(container), "")
	}
	if r := checkArgs("args", q.Args); r != nil {
		return ExecRule{}, r
	}
	var rule ExecRule
	if j := slices.IndexFunc(c.Allow.Exec, func(r ExecRule) bool { return slices.Equal(r.Args, q.Args) }); j >= 0 {
		rule = c.Allow.Exec[j]
	} else if copies, ok := copyCommand(c.Allow.Copy, q.Args); ok {
		rule = copies
	} else {
		expected := "no command: the policy allows none"
		if len(c.Allow.Exec) > 0 {
			expected = fmt.Sprintf("one of the %d commands in allow.exec", len(c.Allow.Exec))
		}
		return ExecRule{}, refuse(RuleExecArgs, "args", expected, quoteList(q.Args), `list the command in "allow": {"exec": […]} of the container, or the path of a kubectl cp in "allow": {"copy": …}`)
	}
	if q.Terminal && !rule.Terminal {
		return ExecRule{}, refuse(RuleExecTerminal, "terminal", "false", "true", "")
	}
	if q.Stdin && !rule.Stdin {
		return ExecRule{}, refuse(RuleExecStdin, "stdin", "false", "true", "")
	}
	return rule, nil
}

func (c *ExecConfig) clone() *ExecConfig {
	d := *c
	d.Args = slices.Clone(c.Args)
	d.Env = slices.Clone(c.Env)
	d.User.Groups = slices.Clone(c.User.Groups)
	d.Capabilities = slices.Clone(c.Capabilities)
	return &d
}

// decideStarted moves a container or command on to running.
func decideStarted(p *Policy, s *state, id, exec string) (*state, *Refusal) {
	i, ok := s.instance(id)
	if exec != "" {
		e, known := i.execs[exec]
		if !ok || !known || i.phase != phaseRunning || e.phase != phaseConfigured {
			return nil, badExecPhase(exec, e, known, phaseConfigured)
		}
		e.phase = phaseRunning
		return s.withExec(id, exec, e), nil
	}
	if !ok || i.phase != phaseConfigured {
		return nil, badPhase(id, i, ok, phaseConfigured)
	}
	for j, m := range i.config.Mounts {
		if _, complete := s.files[m.Volume]; m.Kind == VolumeFiles && !complete && fromHost(p.Volumes[m.Volume]) {
			return nil, refuse(RuleVolumeEmpty, indexPath("mounts", j), "the files of volume "+quote(m.Volume), nothing, "put the files of the volume before starting the container")
		}
	}
	i.phase = phaseRunning
	next := s.withInstance(id, i)
	h := s.history[i.name]
	h.starts++
	next.history = with(s.history, i.name, h)
	return next, nil
}

// decideExited notes the end of a container or command; the guest itself tells.
func decideExited(s *state, id, exec string, code int) (*state, *Refusal) {
	i, ok := s.instance(id)
	if exec != "" {
		e, known := i.execs[exec]
		if !known || e.phase != phaseRunning {
			return nil, badExecPhase(exec, e, known, phaseRunning)
		}
		e.phase = phaseExited
		return s.withExec(id, exec, e), nil
	}
	if !ok || i.phase != phaseRunning {
		return nil, badPhase(id, i, ok, phaseRunning)
	}
	i.phase = phaseExited
	next := s.withInstance(id, i)
	h := s.history[i.name]
	h.exitCode = code
	h.succeeded = h.succeeded || code == 0
	next.history = with(s.history, i.name, h)
	return next, nil
}

// decideDeleted forgets a container or command that does not run.
func decideDeleted(s *state, id, exec string) (*state, *Refusal) {
	i, ok := s.instance(id)
	if exec != "" {
		e, known := i.execs[exec]
		if !known || e.phase == phaseRunning && i.phase == phaseRunning {
			return nil, badExecPhase(exec, e, known, phaseExited)
		}
		i.execs = without(i.execs, exec)
		return s.withInstance(id, i), nil
	}
	if !ok || i.phase == phaseRunning {
		return nil, badPhase(id, i, ok, phaseExited)
	}
	next := s.clone()
	next.instances = without(s.instances, id)
	return next, nil
}

func badExecPhase(exec string, e execution, known bool, want phase) *Refusal {
	got := nothing
	if known {
		got = quote(exec) + ", which is " + e.phase.String()
	}
	return refuse(RuleContainerState, "execID", "a command that is "+want.String()+" in a running container", got, "")
}

// decideSignal: the stop signals that every policy has, and the listed ones.
func decideSignal(p *Policy, s *state, id, exec string, signal uint32) *Refusal {
	i, ok := s.instance(id)
	if !ok || i.phase != phaseRunning {
		return badPhase(id, i, ok, phaseRunning)
	}
	if e, known := i.execs[exec]; exec != "" && (!known || e.phase != phaseRunning) {
		return badExecPhase(exec, e, known, phaseRunning)
	}
	allowed := []uint32{sigKILL, sigTERM, sigINT}
	if i.stopSignal != 0 {
		allowed = append(allowed, i.stopSignal)
	}
	if c := findContainer(p, i.name); c != nil {
		for _, name := range c.Allow.Signals {
			allowed = append(allowed, signalNumber(name))
		}
	}
	if signal != 0 && slices.Contains(allowed, signal) {
		return nil
	}
	return refuse(RuleSignal, "signal", fmt.Sprintf("one of %v", allowed), fmt.Sprint(signal), `list the signal in "allow": {"signals": […]} of the container`)
}

// decideResize: only what has a terminal has a size.
func decideResize(s *state, id, exec string) *Refusal {
	i, ok := s.instance(id)
	if !ok || i.config == nil {
		return badPhase(id, i, ok, phaseRunning)
	}
	rule, terminal := RuleContainerTerminal, i.config.Terminal
	if exec != "" {
		e, known := i.execs[exec]
		if !known {
			return badExecPhase(exec, e, known, phaseRunning)
		}
		rule, terminal = RuleExecTerminal, e.config.Terminal
	}
	if !terminal {
		return refuse(rule, "terminal", "a process with a terminal", "one without", "")
	}
	return nil
}

// decideUpdate answers a proposal for other limits of a container.
func decideUpdate(p *Policy, s *state, id string, q Resources) (*Resources, *state, *Refusal) {
	i, ok := s.instance(id)
	if !ok || i.config == nil || i.phase == phaseExited {
		return nil, nil, badPhase(id, i, ok, phaseRunning)
	}
	c := findContainer(p, i.name)
	if c == nil {
		return nil, nil, refuse(RuleContainerUnknown, "id", "a container of the policy", quote(i.name), "")
	}
	limits, r := resolveLimits(c.Limits, i.config.Limits, q, false)
	if r != nil {
		return nil, nil, r
	}
	i.config = i.config.clone()
	i.config.Limits = limits
	return &limits, s.withInstance(id, i), nil
}

// StreamKind is a standard stream of a process.
type StreamKind int

// The standard streams.
const (
	Stdin StreamKind = iota + 1
	Stdout
	Stderr
)

// decideStream says whether the host may have a stream. There is no reason to
// be told: one that is not allowed is drained.
func decideStream(p *Policy, s *state, id, exec string, kind StreamKind) (*state, bool) {
	i, ok := s.instance(id)
	if !ok || i.config == nil {
		return s, false
	}
	c := findContainer(p, i.name)
	if c == nil {
		return s, false
	}
	if exec == "" {
		switch {
		case kind == Stdout, kind == Stderr:
			return s, c.Allow.Logs || c.Allow.Attach
		case kind != Stdin || !i.config.Stdin || !c.Allow.Stdin || i.stdinOpened && !c.Allow.Attach:
			return s, false
		}
		i.stdinOpened = true
		return s.withInstance(id, i), true
	}
	e, ok := i.execs[exec]
	switch {
	case !ok:
		return s, false
	case kind == Stdout, kind == Stderr:
		return s, e.config.Output
	case kind != Stdin || !e.config.Stdin || e.stdinOpened:
		return s, false
	}
	e.stdinOpened = true
	return s.withExec(id, exec, e), true
}
