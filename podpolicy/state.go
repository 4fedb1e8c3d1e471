package podpolicy

import "maps"

// state is all that decisions depend on besides the policy. A decision never
// changes the state it is given; it returns another.
type state struct {
	sandbox *sandboxState
	// slots holds the one value that a slot has in this pod, once it has one.
	slots map[Slot]string
	// instances by container id, until they are deleted. None is ever changed:
	// another takes its place.
	instances map[string]*instance
	// history by container name; it is never forgotten.
	history map[string]history
	// admissions counts them, so that each has a number.
	admissions uint64
	// files holds the version of each files volume that is complete.
	files map[string]uint64
	// disks holds the disk of each block volume that was attached.
	disks map[string]string
	// env holds, by container, the policy's variables, sorted; nil where the
	// policy is not fixed.
	env map[string][]namedValue
}

type sandboxState struct {
	proposal SandboxProposal
	config   *SandboxConfig
}

// phase of a container or command. It only grows.
type phase int

const (
	phaseAdmitted phase = iota
	phaseConfigured
	phaseRunning
	phaseExited
)

func (p phase) String() string {
	switch p {
	case phaseAdmitted:
		return "admitted"
	case phaseConfigured:
		return "created"
	case phaseRunning:
		return "running"
	default:
		return "exited"
	}
}

type instance struct {
	// admission tells this instance from an earlier one with its id.
	admission uint64
	name      string
	phase     phase
	image     ImageRef
	proposal  ContainerProposal
	// given is the proposal's environment; nil if it has none.
	given map[string]string
	// config and stopSignal are set when it is configured.
	config      *ContainerConfig
	stopSignal  uint32
	stdinOpened bool
	execs       map[string]execution
}

type execution struct {
	phase       phase
	config      *ExecConfig
	stdinOpened bool
}

// history of a container's name.
type history struct {
	starts int
	// exitCode of the last run that ended; succeeded: of any, it was 0.
	exitCode  int
	succeeded bool
}

func newState() *state {
	return &state{slots: map[Slot]string{}, instances: map[string]*instance{}, history: map[string]history{}, files: map[string]uint64{}, disks: map[string]string{}}
}

// clone copies the state but for its maps, which are never written to: whoever
// changes one puts a copy in its place first.
func (s *state) clone() *state { return new(*s) }

// instance returns a copy of the instance with an id.
func (s *state) instance(id string) (instance, bool) {
	if i, ok := s.instances[id]; ok {
		return *i, true
	}
	return instance{}, false
}

// withInstance returns the state in which id is i.
func (s *state) withInstance(id string, i instance) *state {
	c := s.clone()
	c.instances = with(s.instances, id, &i)
	return c
}

func (s *state) withExec(id, exec string, e execution) *state {
	i, _ := s.instance(id)
	i.execs = with(i.execs, exec, e)
	return s.withInstance(id, i)
}

// with copies a map with one entry changed.
func with[K comparable, V any](m map[K]V, key K, value V) map[K]V {
	c := make(map[K]V, len(m)+1)
	maps.Copy(c, m)
	c[key] = value
	return c
}

// without copies a map but for one entry.
func without[K comparable, V any](m map[K]V, key K) map[K]V {
	c := maps.Clone(m)
	delete(c, key)
	return c
}
