package task

import (
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/podpolicy"
)

// ruleStream is the rule of a stream that the guest accepts and that carries
// nothing, so that no call fails of it (docs/agent-protocol.md).
const ruleStream = "stream.forbidden"

// closedStream says what a stream that carries nothing would have been, by its
// path in the policy.
func closedStream(path string) string {
	switch path {
	case "allow.logs":
		return "keeps the output of a container inside the guest: kubectl logs and attach show nothing of it, and its termination message is empty"
	case "allow.stdin":
		return "lets nobody write to a container's standard input: what kubectl attach sends is thrown away"
	case "allow.exec":
		return "keeps the input and output of a command inside the guest: kubectl exec and probes get its exit code only"
	case "allow.portForward":
		return "does not open a port that kubectl port-forward asked for: nothing comes from it"
	}
	return "does not open a stream (" + line(path, maxField) + "): it stays empty"
}

// tellRefusal has a person know what the guest has refused. Many a refusal is
// the answer to a call, too, and then in an event of the kubelet's; that of a
// stream, of a command or of a signal is nowhere else.
func (s *Service) tellRefusal(r *agentapi.Refusal) {
	switch {
	case s.o.Notice == nil:
	case r.GetRule() == podpolicy.RulePodSharePID:
		// Package pod asks for what the pod's bundle does not say; a refusal that
		// stays is the answer to a Create.
	case r.GetRule() == ruleStream:
		s.o.Notice(notice.Closed, "the pod's policy "+closedStream(r.GetPath())+
			" (the annotation coffer-project.io/allow.CONTAINER opens it when the pod is prepared)")
	case r.GetHelp() == "":
		s.o.Notice(notice.Refused, refusal(r)+"; coffer policy check compares a pod with its policy")
	default:
		s.o.Notice(notice.Refused, refusal(r))
	}
}
