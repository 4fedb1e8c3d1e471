package task

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/podpolicy"
)

// What the guest tells of its refusals becomes notices, whatever it is.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		w := newWorld(t, func(o *Options) {
			o.Notice = func(r notice.Reason, message string) { got = append(got, fmt.Sprintf("%s: %s", r, message)) }
		})
		defer w.close()
		w.sandbox()
		for i, tc := range []struct {
			refusal *agentapi.Refusal
			want    string
		}{
			{&agentapi.Refusal{Rule: ruleStream, Path: "allow.logs", Got: "STDOUT of c1", Help: "h"}, "StreamClosed: the pod's policy keeps the output of a container inside the guest"},
			{&agentapi.Refusal{Rule: ruleStream, Path: "allow.stdin"}, "StreamClosed: the pod's policy lets nobody write to a container's standard input"},
			{&agentapi.Refusal{Rule: ruleStream, Path: "allow.exec"}, "StreamClosed: the pod's policy keeps the input and output of a command inside the guest"},
			{&agentapi.Refusal{Rule: ruleStream, Path: "allow.portForward"}, "StreamClosed: the pod's policy does not open a port that kubectl port-forward asked for"},
			{&agentapi.Refusal{Rule: ruleStream, Path: "\x1b[2Jnew\n" + strings.Repeat("x", 10000)}, "StreamClosed: the pod's policy does not open a stream (\uFFFD[2Jnew xx"},
			{&agentapi.Refusal{Rule: podpolicy.RuleExecArgs, Path: "args", Expected: "e", Got: "g", Help: "list the command"}, "Refused: the guest refused it (rule exec.args): args: expected e, got g; list the command"},
			{&agentapi.Refusal{Rule: podpolicy.RuleExecArgs, Path: "args"}, "Refused: the guest refused it (rule exec.args): args; coffer policy check compares"},
			{&agentapi.Refusal{}, "Refused: the guest refused it (rule ); coffer"},
			{nil, "Refused: the guest refused it"},
			{&agentapi.Refusal{Rule: podpolicy.RulePodSharePID, Path: "sharePID"}, ""},
		} {
			got = nil
			w.pod.events <- &agentapi.Event{Sequence: uint64(i + 1), Body: &agentapi.Event_Refusal{Refusal: tc.refusal}}
			synctest.Wait()
			if all := strings.Join(got, "\n"); len(got) > 1 || tc.want == "" != (len(got) == 0) || !strings.HasPrefix(all, tc.want) || len(all) > 3000 {
				t.Errorf("%v: %q, want %q", tc.refusal, all, tc.want)
			}
		}
	})
}
