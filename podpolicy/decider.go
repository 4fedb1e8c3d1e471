package podpolicy

import (
	"strconv"
	"strings"
)

// maxReason bounds a decider's reason, in bytes.
const maxReason = 1536

// Decider is an owner's policy of another kind, for a guard that was made by
// [NewDelegatedGuard].
type Decider interface {
	// Decide returns nil to allow what is asked, or why it is not allowed. It
	// is called one question at a time, after everything else about the
	// proposal was found right and before anything has changed: what it allows
	// happens. It must not keep or change what the question points to.
	Decide(q Question) error
}

// QuestionKind is what a [Decider] is asked.
type QuestionKind string

// Questions. The fields of [Question] that each has stand beside it, besides
// Container and Exec, the ids of what it is about.
const (
	AskSandbox     QuestionKind = "sandbox"     // Sandbox
	AskNetwork     QuestionKind = "network"     // Network
	AskContainer   QuestionKind = "container"   // Sandbox, Config
	AskStart       QuestionKind = "start"       //
	AskExec        QuestionKind = "exec"        // Command
	AskSignal      QuestionKind = "signal"      // Signal
	AskResize      QuestionKind = "resize"      //
	AskUpdate      QuestionKind = "update"      // Limits
	AskStream      QuestionKind = "stream"      // Stream
	AskFile        QuestionKind = "file"        // Volume, File, Mode, Size
	AskAttach      QuestionKind = "attach"      // Volume
	AskPortForward QuestionKind = "portForward" // Port
	AskDelete      QuestionKind = "delete"      //
	AskWait        QuestionKind = "wait"        //
	AskStats       QuestionKind = "stats"       //
	AskCloseStdin  QuestionKind = "closeStdin"  //
	AskShutdown    QuestionKind = "shutdown"    //
)

// Question is one thing that a host wants, as the guest would do it.
type Question struct {
	Kind QuestionKind
	// SandboxID is the pod's, once it has one.
	SandboxID       string
	Container, Exec string
	Sandbox         *SandboxConfig
	Network         *NetworkConfig
	Config          *ContainerConfig
	Command         *ExecConfig
	Signal          uint32
	Limits          *Resources
	Stream          StreamKind
	Volume, File    string
	Mode            uint32
	Size            int64
	Port            uint16
}

// NewDelegatedGuard holds the host to a policy of another kind: form and order
// of proposals are decided as for an unsealed pod, and then the decider is
// asked. The pod counts as sealed.
func NewDelegatedGuard(d Decider) *Guard {
	g := NewUnsealedGuard()
	g.decider = d
	if d == nil {
		g.broken = refuse(RulePolicyInvalid, "", "a policy", nothing, "")
	}
	return g
}

// Ask decides what is the host's right under every pod policy, and may not be
// under a policy of another kind: AskDelete, AskWait, AskStats, AskCloseStdin
// and AskShutdown.
func (g *Guard) Ask(kind QuestionKind, container, exec string) error {
	if g.decider == nil {
		return nil
	}
	return step(g, func(_ *Policy, s *state) (*state, *Refusal) {
		return s, g.consult(s, Question{Kind: kind, Container: container, Exec: exec})
	})
}

// consult asks the decider, if there is one. The lock is held.
func (g *Guard) consult(s *state, q Question) *Refusal {
	if g.decider == nil {
		return nil
	}
	if s.sandbox != nil {
		q.SandboxID = s.sandbox.proposal.ID
	}
	if err := g.decider.Decide(q); err != nil {
		// Longer than a value that is quoted: it has what the policy printed.
		why := err.Error()
		if len(why) > maxReason {
			why = strings.ToValidUTF8(why[:maxReason], "") + "…"
		}
		return refuse(RuleDelegated, string(q.Kind), "what the owner's policy allows", strconv.QuoteToGraphic(why), "")
	}
	return nil
}

// consulted ends a decision: what the guard itself refuses, or has no effect, is
// not asked about.
func consulted[T any](g *Guard, effect T, s, next *state, r *Refusal, q func(T) Question) (T, *state, *Refusal) {
	var none T
	if r == nil && g.decider != nil {
		r = g.consult(s, q(effect))
	}
	if r != nil {
		return none, nil, r
	}
	return effect, next, nil
}
