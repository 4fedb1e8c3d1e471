package podpolicy

import "sync"

// Guard holds a policy and the pod's state, and answers the host's proposals.
// Every refusal it returns is a [*Refusal]. It is safe for concurrent use; each
// call is one step.
//
// A container's life is Admit, pull, Configure, Started, Exited, Deleted; a
// command's Exec, Started, Exited, Deleted. What is left out or out of order is
// refused.
type Guard struct {
	unsealed bool
	// decider is nil but for a delegated guard.
	decider Decider

	mu     sync.Mutex
	policy *Policy
	state  *state
	// broken refuses everything: the policy is not valid.
	broken *Refusal
}

// NewGuard holds the host to an owner's policy. With a policy that is not valid
// every proposal is refused.
func NewGuard(p *Policy) *Guard {
	g := &Guard{policy: &Policy{}, state: newState()}
	if p == nil {
		g.broken = refuse(RulePolicyInvalid, "", "a policy", nothing, "")
		return g
	}
	err := p.Validate()
	if err == nil {
		g.policy, err = p.clone()
	}
	if err != nil {
		g.broken = refuse(RulePolicyInvalid, "", "a valid policy", quote(err.Error()), "")
		return g
	}
	g.policy.normalise()
	g.state.env = make(map[string][]namedValue, len(g.policy.Containers))
	for _, c := range g.policy.Containers {
		g.state.env[c.Name] = sortedEnv(c.Env)
	}
	return g
}

// NewUnsealedGuard serves a pod for which no owner's policy is in force: from
// each proposal it derives the policy that permits it, and decides by that. Form
// and order are held to all the same.
func NewUnsealedGuard() *Guard {
	return &Guard{unsealed: true, policy: unsealedPolicy(), state: newState()}
}

// Sealed reports whether an owner's policy is in force.
func (g *Guard) Sealed() bool { return !g.unsealed || g.decider != nil }

// decide runs one decision under the lock. What a decision refuses has changed
// nothing; derive, for unsealed pods, gives the policy it is decided by.
func decide[T any](g *Guard, derive func(*Policy) (*Policy, *Refusal), f func(*Policy, *state) (T, *state, *Refusal)) (T, error) {
	var none T
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != nil {
		return none, new(*g.broken)
	}
	policy := g.policy
	if g.unsealed && derive != nil {
		derived, r := derive(policy)
		if r != nil {
			return none, r
		}
		policy = derived
	}
	effect, next, r := f(policy, g.state)
	if r != nil {
		return none, r
	}
	g.policy = policy
	if next != nil {
		g.state = next
	}
	return effect, nil
}

// step is decide for transitions without an effect.
func step(g *Guard, f func(*Policy, *state) (*state, *Refusal)) error {
	_, err := decide(g, nil, func(p *Policy, s *state) (struct{}, *state, *Refusal) {
		next, r := f(p, s)
		return struct{}{}, next, r
	})
	return err
}

// Sandbox decides the pod. The same proposal again gives the same answer; any
// other is refused.
func (g *Guard) Sandbox(q SandboxProposal) (*SandboxConfig, error) {
	return decide(g,
		func(p *Policy) (*Policy, *Refusal) { return deriveSandbox(p, g.state, q) },
		func(p *Policy, s *state) (*SandboxConfig, *state, *Refusal) {
			config, next, r := decideSandbox(p, s, q)
			if s.sandbox != nil {
				return config, next, r // it was decided
			}
			return consulted(g, config, next, next, r, func(c *SandboxConfig) Question { return Question{Kind: AskSandbox, Sandbox: c} })
		})
}

// UpdateNetwork decides a later network of the pod.
func (g *Guard) UpdateNetwork(q NetworkProposal) (*NetworkConfig, error) {
	return decide(g, nil, func(p *Policy, s *state) (*NetworkConfig, *state, *Refusal) {
		config, r := decideUpdateNetwork(p, s, q)
		return consulted(g, config, s, s, r, func(c *NetworkConfig) Question { return Question{Kind: AskNetwork, Network: c} })
	})
}

// Admission is a container that may be pulled and then configured.
type Admission struct {
	guard *Guard
	id    string
	// number of the admission: its id may be another's by the time it is used.
	number uint64
	ref    ImageRef
}

// Image is what to pull. Nothing else may be run in the container's name.
func (a *Admission) Image() ImageRef { return a.ref }

// Admit decides a container before its image is pulled: that the policy knows
// it, that it is its turn, and all that does not depend on the image. When the
// pull fails, the caller ends the admission by Deleted.
func (g *Guard) Admit(q ContainerProposal) (*Admission, error) {
	return decide(g,
		func(p *Policy) (*Policy, *Refusal) { return deriveContainer(p, g.state, q) },
		func(p *Policy, s *state) (*Admission, *state, *Refusal) {
			if g.decider != nil && q.JoinPIDs {
				// It would not be asked about a container that gets more than it says.
				return nil, nil, refuse(RuleContainerTarget, "joinPIDs", "false: the policy has no word for the processes of another container", "true", "leave --target out")
			}
			if g.unsealed {
				q = leaveToDerived(q)
			}
			ref, next, r := decideAdmit(p, s, q)
			if r != nil {
				return nil, nil, r
			}
			return &Admission{g, q.ID, next.admissions, ref}, next, nil
		})
}

// Configure decides the container with the image that was pulled, once. What it
// returns is the caller's.
func (a *Admission) Configure(img ImageConfig) (*ContainerConfig, error) {
	return decide(a.guard, nil, func(p *Policy, s *state) (*ContainerConfig, *state, *Refusal) {
		config, next, r := decideConfigure(p, s, a.id, a.number, img)
		return consulted(a.guard, config, s, next, r, func(c *ContainerConfig) Question {
			return Question{Kind: AskContainer, Container: a.id, Sandbox: s.sandbox.config, Config: c}
		})
	})
}

// Exec decides a command in a running container.
func (g *Guard) Exec(container string, q ExecProposal) (*ExecConfig, error) {
	return decide(g,
		func(p *Policy) (*Policy, *Refusal) { return deriveExec(p, g.state, container, q), nil },
		func(p *Policy, s *state) (*ExecConfig, *state, *Refusal) {
			if g.unsealed {
				q.Env, q.Cwd = nil, nil
			}
			config, next, r := decideExec(p, s, container, q)
			return consulted(g, config, s, next, r, func(c *ExecConfig) Question {
				return Question{Kind: AskExec, Container: container, Exec: q.ID, Command: c}
			})
		})
}

// Started is to be called before a container (exec empty) or command is
// started; only when it returns nil, it may be. If the start then fails, the
// caller reports that by Exited with a code that is not 0.
func (g *Guard) Started(container, exec string) error {
	return step(g, func(p *Policy, s *state) (*state, *Refusal) {
		next, r := decideStarted(p, s, container, exec)
		if r == nil && exec == "" {
			r = g.consult(s, Question{Kind: AskStart, Container: container})
		}
		return next, r
	})
}

// Exited tells that a container (exec empty) or command has ended. The exit
// code is the guest's own knowledge, 128 + signal for a signal.
func (g *Guard) Exited(container, exec string, code int) error {
	return step(g, func(_ *Policy, s *state) (*state, *Refusal) { return decideExited(s, container, exec, code) })
}

// Deleted forgets a container (exec empty) or command that does not run: one
// that has ended, was never started, or whose admission failed.
func (g *Guard) Deleted(container, exec string) error {
	return step(g, func(_ *Policy, s *state) (*state, *Refusal) { return decideDeleted(s, container, exec) })
}

// Signal decides a signal (Linux number) to a running container or command.
func (g *Guard) Signal(container, exec string, signal uint32) error {
	return step(g, func(p *Policy, s *state) (*state, *Refusal) {
		if r := decideSignal(p, s, container, exec, signal); r != nil {
			return nil, r
		}
		return s, g.consult(s, Question{Kind: AskSignal, Container: container, Exec: exec, Signal: signal})
	})
}

// Resize decides a change of a terminal's size.
func (g *Guard) Resize(container, exec string) error {
	return step(g, func(_ *Policy, s *state) (*state, *Refusal) {
		if r := decideResize(s, container, exec); r != nil {
			return nil, r
		}
		return s, g.consult(s, Question{Kind: AskResize, Container: container, Exec: exec})
	})
}

// Update decides other limits of a container, and returns all of them.
func (g *Guard) Update(container string, q Resources) (*Resources, error) {
	derive := func(p *Policy) (*Policy, *Refusal) { return deriveLimits(p, g.state, container, q) }
	return decide(g, derive, func(p *Policy, s *state) (*Resources, *state, *Refusal) {
		limits, next, r := decideUpdate(p, s, container, q)
		return consulted(g, limits, s, next, r, func(l *Resources) Question {
			return Question{Kind: AskUpdate, Container: container, Limits: l}
		})
	})
}

// Stream decides whether the host may have a stream that it opens, and counts
// it. A stream that is not allowed is to be accepted and drained, so that the
// host learns nothing and the process never blocks.
func (g *Guard) Stream(container, exec string, kind StreamKind) bool {
	allowed, err := decide(g, nil, func(p *Policy, s *state) (bool, *state, *Refusal) {
		next, ok := decideStream(p, s, container, exec, kind)
		if !ok {
			return false, s, nil
		}
		return consulted(g, true, s, next, nil, func(bool) Question {
			return Question{Kind: AskStream, Container: container, Exec: exec, Stream: kind}
		})
	})
	return err == nil && allowed
}

// TerminationMessage reports whether the host may read the last words of a
// container: whether it may read its output. A host that may not is to be told
// that there are none.
func (g *Guard) TerminationMessage(container string) bool {
	allowed, err := decide(g, nil, func(p *Policy, s *state) (bool, *state, *Refusal) {
		if !decideTermination(p, s, container) {
			return false, s, nil
		}
		return consulted(g, true, s, s, nil, func(bool) Question { return Question{Kind: AskStream, Container: container, Stream: Stderr} })
	})
	return err == nil && allowed
}

// PortForward reports whether the host may connect to a port of the container
// through the agent.
func (g *Guard) PortForward(container string, port uint16) bool {
	return g.portForward(port, func(id string) bool { return id == container })
}

// PodPort is PortForward for a network namespace that all containers share:
// some container that runs opens the port.
func (g *Guard) PodPort(port uint16) bool {
	return g.portForward(port, func(string) bool { return true })
}

func (g *Guard) portForward(port uint16, which func(id string) bool) bool {
	allowed, err := decide(g, nil, func(p *Policy, s *state) (bool, *state, *Refusal) {
		if !decidePortForward(p, s, g.unsealed, port, which) {
			return false, s, nil
		}
		return consulted(g, true, s, s, nil, func(bool) Question { return Question{Kind: AskPortForward, Port: port} })
	})
	return err == nil && allowed
}

// Volume describes a volume of the policy, or of what an unsealed pod has been
// asked for.
func (g *Guard) Volume(name string) (VolumeConfig, error) {
	return decide(g, nil, func(p *Policy, s *state) (VolumeConfig, *state, *Refusal) {
		config, r := describeVolume(p, s, name)
		return config, s, r
	})
}

// Attach decides which disk of the machine (its serial number, 1 to 20
// characters of [a-zA-Z0-9_-]) is a block volume of the policy: one disk for a
// volume and one volume for a disk, in the life of the pod. The same pair again
// is no error. Whether the disk is authentic is not decided here: its key tells.
// When it cannot be opened, the caller says so by AttachFailed.
func (g *Guard) Attach(volume, disk string) error {
	_, err := decide(g, func(p *Policy) (*Policy, *Refusal) { return deriveAttach(p, volume) }, func(p *Policy, s *state) (struct{}, *state, *Refusal) {
		next, r := decideAttach(p, s, volume, disk)
		if r == nil {
			r = g.consult(s, Question{Kind: AskAttach, Volume: volume})
		}
		return struct{}{}, next, r
	})
	return err
}

// AttachFailed takes an Attach back: the disk could not be opened as the volume,
// and another may be. A volume that a container was admitted with stays.
func (g *Guard) AttachFailed(volume, disk string) error {
	return step(g, func(p *Policy, s *state) (*state, *Refusal) { return decideAttachFailed(p, s, volume, disk) })
}
