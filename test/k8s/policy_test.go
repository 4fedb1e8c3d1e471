package k8s

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// tampering is what a host may change in a sealed container, and the rule that
// refuses it. Where rule is empty the change has no effect: check is a command
// whose output would show one.
type tampering struct {
	id, asserts string
	change      func(container, spec map[string]any)
	rule        string
	check, want string
}

func security(container map[string]any) map[string]any {
	s, ok := container["securityContext"].(map[string]any)
	if !ok {
		s = map[string]any{}
		container["securityContext"] = s
	}
	return s
}

func addVolume(spec, container map[string]any, source map[string]any, path string) {
	volumes, _ := spec["volumes"].([]any)
	source["name"] = fmt.Sprint("extra-", container["name"])
	spec["volumes"] = append(volumes, source)
	mounts, _ := container["volumeMounts"].([]any)
	container["volumeMounts"] = append(mounts, map[string]any{"name": source["name"], "mountPath": path})
}

// tamperings are the changes of Kata's tests of policies, each to a container of
// its own of one pod.
func tamperings() []tampering {
	capabilities := "awk '$1 == \"CapEff:\" {print $2}' /proc/1/status"
	return []tampering{
		{id: "image", asserts: "another image", rule: "container.image", change: func(c, _ map[string]any) { c["image"] = node.PauseImage }},
		{id: "command", asserts: "another command", rule: "container.args", change: func(c, _ map[string]any) { c["command"] = []any{"sh", "-c", "sleep 601"} }},
		{id: "argument", asserts: "one argument more", rule: "container.args", change: func(c, _ map[string]any) {
			c["command"] = append(append([]any(nil), c["command"].([]any)...), "more")
		}},
		{id: "env-name", asserts: "a variable more", rule: "container.env", change: func(c, _ map[string]any) {
			c["env"] = []any{map[string]any{"name": "FIXED", "value": "1"}, map[string]any{"name": "MORE", "value": "1"}}
		}},
		{id: "env-value", asserts: "another value of a variable", rule: "container.env", change: func(c, _ map[string]any) {
			c["env"] = []any{map[string]any{"name": "FIXED", "value": "2"}}
		}},
		{id: "uid", asserts: "another user", rule: "container.user", change: func(c, _ map[string]any) { security(c)["runAsUser"] = int64(0) }},
		{id: "gid", asserts: "another group", rule: "container.user", change: func(c, _ map[string]any) { security(c)["runAsGroup"] = int64(0) }},
		{id: "empty-dir", asserts: "an emptyDir more", rule: "container.mounts", change: func(c, s map[string]any) {
			addVolume(s, c, map[string]any{"emptyDir": map[string]any{}}, "/extra")
		}},
		{id: "host-path", asserts: "a directory of the node", rule: "", check: "ls /extra 2>/dev/null | wc -l", want: "0", change: func(c, s map[string]any) {
			addVolume(s, c, map[string]any{"hostPath": map[string]any{"path": "/etc"}}, "/extra")
		}},
		{id: "projected", asserts: "a projected volume more", rule: "files.volume", change: func(c, s map[string]any) {
			addVolume(s, c, map[string]any{"projected": map[string]any{"sources": []any{map[string]any{"downwardAPI": map[string]any{"items": []any{map[string]any{"path": "x", "fieldRef": map[string]any{"fieldPath": "metadata.name"}}}}}}}}, "/extra")
		}},
		{id: "mount-path", asserts: "another path of a volume", rule: "container.mounts", change: func(c, _ map[string]any) {
			c["volumeMounts"] = []any{map[string]any{"name": "work", "mountPath": "/elsewhere"}}
		}},
		{id: "cwd", asserts: "another working directory", rule: "container.cwd", change: func(c, _ map[string]any) { c["workingDir"] = "/etc" }},
		{id: "privileged", asserts: "privileged", check: capabilities, want: "0000000000000000", change: func(c, _ map[string]any) {
			security(c)["privileged"], security(c)["allowPrivilegeEscalation"] = true, true
		}},
		{id: "capability", asserts: "a capability more", check: capabilities, want: "0000000000000000", change: func(c, _ map[string]any) {
			security(c)["capabilities"] = map[string]any{"drop": []any{"ALL"}, "add": []any{"SYS_ADMIN"}}
		}},
		{id: "privilege-escalation", asserts: "allowPrivilegeEscalation", check: "grep NoNewPrivs /proc/1/status | tr -d '\\t '", want: "NoNewPrivs:1", change: func(c, _ map[string]any) {
			security(c)["allowPrivilegeEscalation"] = true
		}},
		{id: "read-only-root", asserts: "a writable root", check: "echo x 2>/dev/null >/home/file && echo written || echo refused", want: "refused", change: func(c, _ map[string]any) {
			security(c)["readOnlyRootFilesystem"] = false
		}},
		{id: "termination-message", asserts: "another terminationMessagePath", check: "ls /etc/passwd", want: "/etc/passwd", change: func(c, _ map[string]any) { c["terminationMessagePath"] = "/etc/passwd" }},
		{id: "terminal", asserts: "a terminal", rule: "container.terminal", change: func(c, _ map[string]any) { c["tty"], c["stdin"] = true, true }},
	}
}

// tamperedPod has a container for each tampering, as its owner wrote it.
func tamperedPod() string {
	var b strings.Builder
	b.WriteString("kind: Pod\nmetadata:\n  name: tampered\n  annotations:\n")
	list := tamperings()
	for _, x := range list {
		if x.rule == "" {
			fmt.Fprintf(&b, "    coffer-project.io/allow.%s: '{\"exec\": [{\"args\": [\"sh\", \"-c\", %s], \"output\": true}]}'\n", x.id, strings.ReplaceAll(quote(x.check), "'", "''"))
		}
	}
	b.WriteString("spec:\n  restartPolicy: Never\n  volumes: [{name: work, emptyDir: {}}]\n  containers:\n")
	for _, x := range append(list, tampering{id: "untouched"}) {
		fmt.Fprintf(&b, "  - {name: %s, command: [sh, -c, \"while true; do echo $FIXED; sleep 1; done\"], env: [{name: FIXED, value: \"1\"}], volumeMounts: [{name: work, mountPath: /scratch}], securityContext: {runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}}\n", x.id)
	}
	return b.String()
}

// quote is text as a JSON string.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

func policyRows() []row {
	return []row{
		{id: "k8s-policy-pod", core: true, on: onMachine, asserts: "what a host changes in a sealed pod is refused by its rule, or has no effect: image, command, arguments, variables, users, mounts, rights (also k8s-policy-job, -rc, -deployment, -deployment-sc)", run: policyPod},
		{id: "k8s-policy-hard-coded", on: onMachine, not: "the rule that exec is refused is in k8s-policy-logs; AllowRequestsFailingPolicy is refused by the guest (pod-policy.md)", asserts: "exec is refused; AllowRequestsFailingPolicy"},
		{id: "k8s-policy-logs", core: true, on: onMachine, asserts: "without permission logs are empty, exec, attach and port-forward are refused, the pod's notices say so, and the container does not block on its output", run: policyStreams},
		{id: "k8s-policy-pod/config", on: onMachine, asserts: "another content of a pinned ConfigMap: the pod does not start, and the event names the file", run: func(t *testing.T, c *cluster) {
			sealed := c.seal(t, "kind: ConfigMap\nmetadata: {name: pinned}\ndata: {color: blue}\n---\nkind: Pod\nmetadata: {name: conf}\nspec: {volumes: [{name: conf, configMap: {name: pinned}}], containers: [{name: a, volumeMounts: [{name: conf, mountPath: /conf}]}]}\n")
			c.apply(t, strings.ReplaceAll(sealed, "color: blue", "color: red"))
			c.event(t, "conf", "color")
		}},
		{id: "k8s-policy-pvc", on: onMachine, asserts: "a claim with a key: encrypted on the node, there for the next pod; an unexpected device is refused", run: encryptedVolume},
		{id: "initdata/broken", on: onMachine, asserts: "an annotation that is no initdata: the event says so", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: broken, annotations: {io.katacontainers.config.hypervisor.cc_init_data: bm90IGd6aXA=}}\nspec: {containers: [{name: a}]}\n")
			c.event(t, "broken", "cc_init_data")
		}},
	}
}

func policyPod(t *testing.T, c *cluster) {
	sealed := c.seal(t, tamperedPod())
	var pod map[string]any
	if err := yaml.Unmarshal([]byte(sealed), &pod); err != nil {
		t.Fatal(err)
	}
	spec := pod["spec"].(map[string]any)
	containers := spec["containers"].([]any)
	list := tamperings()
	for i, x := range list {
		x.change(containers[i].(map[string]any), spec)
	}
	text, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, string(text))
	why := c.refusals(t, "tampered")
	if reason, refused := why["untouched"]; refused {
		t.Errorf("the container that nobody touched: %s", reason)
	}
	for _, x := range list {
		reason, refused := why[x.id]
		switch {
		case x.rule != "" && !strings.Contains(reason, x.rule):
			t.Errorf("%s: %q; expected a refusal by %s", x.asserts, reason, x.rule)
		case x.rule == "" && !refused:
			c.want(t, "tampered", x.id, x.check, x.want)
		}
	}
}

func policyStreams(t *testing.T, c *cluster) {
	c.apply(t, c.seal(t, `
kind: Pod
metadata:
  name: quiet
  annotations:
    coffer-project.io/allow.a: '{"exec": [{"args": ["cat", "/scratch/done"], "output": true}], "portForward": [8081]}'
spec:
  volumes: [{name: work, emptyDir: {}}]
  containers:
  - {name: a, command: [sh, -c, "/app flood 8388608; echo yes >/scratch/done; exec /app serve http=:8080 http=:8081"], volumeMounts: [{name: work, mountPath: /scratch}]}
`))
	c.ready(t, "quiet")
	// It has written more than every buffer on the way holds.
	c.eventually(t, "the end of the output", func() error {
		out, code, err := c.attempt(t, "quiet", "a", "cat", "/scratch/done")
		if err == nil && (code != 0 || out != "yes\n") {
			err = fmt.Errorf("exit code %d: %q", code, out)
		}
		return err
	})
	if out := c.logs(t, "quiet", "a"); len(out) > 300 || !strings.Contains(out, "the pod's policy keeps this output in the guest (refused by rule stream.forbidden, allow.logs)") {
		t.Errorf("the host reads %q", clip(out))
	}
	if out, code, err := c.attempt(t, "quiet", "a", "sh", "-c", "id"); err == nil && code == 0 {
		t.Errorf("a command that is not allowed: %q", out)
	}
	c.noticed(t, "quiet", "StreamClosed", "kubectl logs and attach show nothing of it")
	c.noticed(t, "quiet", "Refused", "exec.args", "list the command")
	// What the guest drains stays silent for as long as somebody listens.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if out, _ := c.kubectlUntil(ctx, "attach", "quiet", "-c", "a"); out != "" {
		t.Errorf("attach reads %q", out)
	}
	// Two ports of one server: the policy opens the second.
	address := c.forward(t, "quiet", 8080)
	if out, err := ask(t.Context(), "http://"+address+"/"); err == nil || out != "" || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a port that is not opened answers %q, %v; expected that the connection is broken", out, err)
	}
	c.noticed(t, "quiet", "StreamClosed", "a port that kubectl port-forward asked for")
	address = c.forward(t, "quiet", 8081)
	if out, err := ask(t.Context(), "http://"+address+"/"); err != nil || out == "" {
		t.Errorf("the port that is opened: %q, %v", out, err)
	}
}
