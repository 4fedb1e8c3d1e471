//go:build kata_policy

package katapolicy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/katapolicy"
	"github.com/coffer-project/coffer/podpolicy"
)

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// rules is a policy as an owner writes one by hand. It lets one image run with
// one command line, once, in the sandbox that it saw first.
const rules = `package agent_policy

default AddARPNeighborsRequest := true
default UpdateInterfaceRequest := false
default UpdateRoutesRequest := true
default StartContainerRequest := true
default SignalProcessRequest := true
default WaitProcessRequest := true
default RemoveContainerRequest := true
default DestroySandboxRequest := true
default ReadStreamRequest := false
default CreateSandboxRequest := {"allowed": false}
default CreateContainerRequest := {"allowed": false}

CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/sandbox", "value": input.sandbox_id}]} if {
	print("sandbox", input.sandbox_id, "of host", input.hostname)
	input.hostname == "web"
	not data.pstate.sandbox
}

UpdateInterfaceRequest if {
	input.interface.name != "lo"
	every a in input.interface.IPAddresses { a.mask == "24" }
}

CreateContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": sprintf("/pstate/%s", [input.container_id]), "value": {"image": input.storages[0].source}},
]} if {
	print("container", input.container_id, "of", input.storages[0].source)
	data.pstate.sandbox == input.OCI.Annotations["io.kubernetes.cri.sandbox-id"]
	input.storages[0].source == "registry.example/web@` + digest + `"
	input.OCI.Process.Args == ["/web", "--port=8080"]
	"MODE=prod" in input.OCI.Process.Env
	input.OCI.Process.User.UID == 1000
	every m in input.OCI.Mounts { startswith(m.destination, "/data") }
	count(data.pstate) == 1
}

ExecProcessRequest if input.process.Args == ["/healthz"]

CopyFileRequest if {
	input.file_type == "Regular"
	startswith(input.path, "/run/kata-containers/shared/containers/config/")
	not contains(input.path, "..")
	input.file_size < 100
}

WriteStreamRequest if input.exec_id != ""
`

func compile(t testing.TB, text string) *katapolicy.Policy {
	t.Helper()
	p, err := katapolicy.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// blocked asserts a refusal by the policy that says all of parts.
func blocked(t testing.TB, err error, parts ...string) {
	t.Helper()
	r, isRefusal := errors.AsType[*podpolicy.Refusal](err)
	if !isRefusal || r.Rule != podpolicy.RuleDelegated {
		t.Fatalf("got %v, want a refusal by %s", err, podpolicy.RuleDelegated)
	}
	for _, part := range append(parts, "blocked by policy") {
		if !strings.Contains(r.Got, part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	if public := r.Public().Error(); strings.Contains(public, "blocked") {
		t.Errorf("a host is told %q", public)
	}
}

func proposal() podpolicy.ContainerProposal {
	return podpolicy.ContainerProposal{
		ID: "c1", Name: "web", Image: "registry.example/web@" + digest, Args: &[]string{"/web", "--port=8080"}, Env: &[]string{"MODE=prod", "KEY=sealed.a.b.c"},
		User: &podpolicy.User{UID: 1000, GID: 1000}, Mounts: []podpolicy.Mount{{Path: "/data", Volume: "scratch"}}, Stdin: true,
	}
}

func sandbox(t testing.TB, g *podpolicy.Guard) {
	t.Helper()
	_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s1", PodName: "web", Network: podpolicy.NetworkProposal{
		Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"10.0.2.15/24"}}},
		Routes:     []podpolicy.Route{{Gateway: "10.0.2.2", Interface: "eth0"}}, Neighbours: []podpolicy.Neighbour{{Address: "10.0.2.2", MAC: "52:55:0a:00:02:02", Interface: "eth0"}},
	}})
	ok(t, err)
}

func configure(t testing.TB, g *podpolicy.Guard, q podpolicy.ContainerProposal) error {
	t.Helper()
	a, err := g.Admit(q)
	ok(t, err)
	_, err = a.Configure(podpolicy.ImageConfig{Digest: digest, Env: []string{"PATH=/bin"}})
	return err
}

func TestAPolicyDecides(t *testing.T) {
	t.Parallel()
	g := podpolicy.NewDelegatedGuard(compile(t, rules))
	_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s1", PodName: "other"})
	blocked(t, err, "CreateSandboxRequest", "sandbox s1 of host other")
	sandbox(t, g)
	_, err = g.UpdateNetwork(podpolicy.NetworkProposal{Interfaces: []podpolicy.Interface{{MAC: "52:54:00:12:34:56", Name: "eth0", Addresses: []string{"10.0.2.15/8"}}}})
	blocked(t, err, "UpdateInterfaceRequest")

	for name, change := range map[string]func(*podpolicy.ContainerProposal){
		"args":  func(q *podpolicy.ContainerProposal) { (*q.Args)[1] = "--port=80" },
		"image": func(q *podpolicy.ContainerProposal) { q.Image = "registry.example/evil@" + digest },
		"env":   func(q *podpolicy.ContainerProposal) { *q.Env = nil },
		"user":  func(q *podpolicy.ContainerProposal) { q.User.UID = 0 },
		"mount": func(q *podpolicy.ContainerProposal) { q.Mounts[0].Path = "/etc" },
	} {
		q := proposal()
		change(&q)
		err := configure(t, g, q)
		blocked(t, err, "CreateContainerRequest", "container c1 of registry.example/")
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		ok(t, g.Deleted("c1", ""))
	}
	ok(t, configure(t, g, proposal()))
	ok(t, g.Started("c1", ""))
	// The state remembers the first container, and lets no second one in.
	q := proposal()
	q.ID, q.Name = "c2", "web2"
	blocked(t, configure(t, g, q), "CreateContainerRequest")

	if g.Stream("c1", "", podpolicy.Stdout) || g.Stream("c1", "", podpolicy.Stdin) {
		t.Error("a stream that the policy denies is open")
	}
	_, err = g.Exec("c1", podpolicy.ExecProposal{ID: "e1", Args: []string{"/bin/sh"}})
	blocked(t, err, "ExecProcessRequest")
	_, err = g.Exec("c1", podpolicy.ExecProposal{ID: "e1", Args: []string{"/healthz"}, Stdin: true})
	ok(t, err)
	ok(t, g.Started("c1", "e1"))
	if !g.Stream("c1", "e1", podpolicy.Stdin) {
		t.Error("a stream that the policy allows is closed")
	}
	ok(t, g.Signal("c1", "", 15))
	ok(t, g.Ask(podpolicy.AskWait, "c1", ""))
	ok(t, g.Ask(podpolicy.AskDelete, "c1", "e1"))
	ok(t, g.Ask(podpolicy.AskShutdown, "", ""))
	// No rule is no permission, and neither is a question that Kata's protocol
	// does not have.
	blocked(t, g.Ask(podpolicy.AskStats, "c1", ""), "StatsContainerRequest", "no rule")
	blocked(t, g.Ask(podpolicy.AskCloseStdin, "c1", ""), "no rule")
	_, err = g.Update("c1", podpolicy.Resources{})
	blocked(t, err, "UpdateContainerRequest", "no rule")
	if g.PodPort(80) {
		t.Error("a port is open")
	}

	u, err := g.PutFiles("config", 1)
	ok(t, err)
	_, err = u.File("app.conf", 10)
	ok(t, err)
	_, err = u.File("large", 100)
	blocked(t, err, "CopyFileRequest")
	u, err = g.PutFiles("other", 1)
	ok(t, err)
	_, err = u.File("app.conf", 10)
	blocked(t, err, "CopyFileRequest")
}

// A sealed secret is not opened for a policy, and what the host writes into a
// process is not shown to it.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	p := compile(t, `package agent_policy
CreateSandboxRequest := true
CreateContainerRequest if { print(input.OCI.Process.Env); false }
`)
	g := podpolicy.NewDelegatedGuard(p)
	_, err := g.Sandbox(podpolicy.SandboxProposal{ID: "s1", PodName: "web"})
	ok(t, err)
	blocked(t, configure(t, g, proposal()), "KEY=sealed.a.b.c")
}

// Policies of before Rego v1 have no "if".
func TestOldSyntax(t *testing.T) {
	t.Parallel()
	p := compile(t, `package agent_policy
import future.keywords.in
import future.keywords.every
default CreateSandboxRequest := false
CreateSandboxRequest {
	input.sandbox_id == "s1"
	every s in input.storages { s.driver == "none" }
}
`)
	ok(t, p.Decide(podpolicy.Question{Kind: podpolicy.AskSandbox, SandboxID: "s1", Sandbox: &podpolicy.SandboxConfig{}}))
	if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskSandbox, SandboxID: "s2", Sandbox: &podpolicy.SandboxConfig{}}); err == nil {
		t.Error("accepted")
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"empty":            {"", "empty"},
		"other package":    {"package other\nx := 1", "agent_policy"},
		"no Rego":          {"package agent_policy\nx :=", "rego_parse_error"},
		"too long":         {"package agent_policy\n# " + strings.Repeat("x", katapolicy.MaxText), "at most"},
		"lets all through": {"package agent_policy\nAllowRequestsFailingPolicy := true", "AllowRequestsFailingPolicy"},
		"lets through by an object": {`package agent_policy
AllowRequestsFailingPolicy := {"allowed": true}`, "AllowRequestsFailingPolicy"},
		"network": {`package agent_policy
x := http.send({"method": "get", "url": "http://example.com"})`, "http.send"},
		"clock":       {"package agent_policy\nx := time.now_ns()", "time.now_ns"},
		"environment": {"package agent_policy\nx := opa.runtime()", "opa.runtime"},
	} {
		if _, err := katapolicy.Compile(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"a string": `"yes"`, "a number": `1`, "null": `null`, "an array": `[true]`, "an object without allowed": `{}`, "another type": `{"allowed": "true"}`,
		"ops of another type": `{"allowed": true, "ops": 1}`, "no operation": `{"allowed": true, "ops": [{"op": "eval", "path": "/pstate/a"}]}`,
		"ops outside": `{"allowed": true, "ops": [{"op": "add", "path": "/other", "value": 1}]}`, "the root": `{"allowed": true, "ops": [{"op": "replace", "path": "", "value": 1}]}`,
		"no pointer": `{"allowed": true, "ops": [{"op": "add", "path": "pstate/a", "value": 1}]}`, "no place": `{"allowed": true, "ops": [{"op": "replace", "path": "/pstate/a", "value": 1}]}`,
		"the state itself": `{"allowed": true, "ops": [{"op": "remove", "path": "/pstate"}]}`, "false": `false`, "denied": `{"allowed": false}`,
		"a failed test": `{"allowed": true, "ops": [{"op": "test", "path": "/pstate", "value": {"a": 1}}]}`,
		"too deep":      `{"allowed": true, "ops": [{"op": "add", "path": "/pstate` + strings.Repeat("/a", 20) + `", "value": 1}]}`,
		"an error":      `json.unmarshal("{")`,
	} {
		p := compile(t, "package agent_policy\nStartContainerRequest := "+answer+"\n")
		if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskStart, Container: "c"}); err == nil {
			t.Errorf("%s: accepted", name)
		} else if !strings.Contains(err.Error(), "blocked by policy") || len(err.Error()) > 4096 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStateIsPatched(t *testing.T) {
	t.Parallel()
	p := compile(t, `package agent_policy
StartContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": "/pstate/list", "value": [1, 3]},
	{"op": "add", "path": "/pstate/list/1", "value": 2},
	{"op": "add", "path": "/pstate/list/-", "value": {"a/b": "~"}},
	{"op": "test", "path": "/pstate/list/3/a~1b", "value": "~"},
	{"op": "copy", "from": "/pstate/list/3", "path": "/pstate/copy"},
	{"op": "move", "from": "/pstate/list/0", "path": "/pstate/moved"},
	{"op": "replace", "path": "/pstate/copy/a~1b", "value": "new"},
	{"op": "remove", "path": "/pstate/list/1"},
]} if input.container_id == "good"
StartContainerRequest := {"allowed": true, "ops": [
	{"op": "add", "path": "/pstate/half", "value": 1},
	{"op": "remove", "path": "/pstate/nothing"},
]} if input.container_id == "bad"
WaitProcessRequest if data.pstate == {"list": [2, {"a/b": "~"}], "copy": {"a/b": "new"}, "moved": 1}
`)
	start := func(id string) error { return p.Decide(podpolicy.Question{Kind: podpolicy.AskStart, Container: id}) }
	ok(t, start("good"))
	ok(t, p.Decide(podpolicy.Question{Kind: podpolicy.AskWait}))
	if err := start("bad"); err == nil {
		t.Error("a patch that cannot be applied was")
	}
	ok(t, p.Decide(podpolicy.Question{Kind: podpolicy.AskWait})) // nothing of it
}

func TestLimits(t *testing.T) {
	t.Parallel()
	// An evaluation that does not end, one that prints too much, and a state
	// that grows.
	p := compile(t, `package agent_policy
numbers := [n | some a in input_digits; some b in input_digits; some c in input_digits; n := ((a * 100) + (b * 10)) + c]
input_digits := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
StartContainerRequest if {
	some a in numbers
	some b in numbers
	some c in numbers
	a + b + c == -1
}
WaitProcessRequest if { every n in numbers { print("line", n) }; false }
StatsContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/x", "value": concat("", [data.pstate.x, data.pstate.x])}]} if data.pstate.x
StatsContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/x", "value": "0123456789abcdef"}]} if not data.pstate.x
`)
	began := time.Now()
	if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskStart}); err == nil || !strings.Contains(err.Error(), "took more than") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskWait}); err == nil || !strings.Contains(err.Error(), "line 999") || len(err.Error()) > 4096 {
		t.Errorf("got %v", err)
	}
	for i := range 32 {
		if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskStats}); err != nil {
			if !strings.Contains(err.Error(), "the limit is") || i < 8 {
				t.Errorf("after %d: %v", i, err)
			}
			return
		}
	}
	t.Error("the state grows without end")
}

func BenchmarkDecide(b *testing.B) {
	g := podpolicy.NewDelegatedGuard(compile(b, rules))
	sandbox(b, g)
	ok(b, configure(b, g, proposal()))
	ok(b, g.Started("c1", ""))
	for n := 0; b.Loop(); n++ {
		id := fmt.Sprint("e", n)
		if _, err := g.Exec("c1", podpolicy.ExecProposal{ID: id, Args: []string{"/healthz"}}); err != nil {
			b.Fatal(err)
		}
		ok(b, g.Deleted("c1", id))
	}
}
