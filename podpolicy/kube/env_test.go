package kube_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestEnvironment is the environment as the kubelet makes it.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {A: from-c, B: $(A), name: 'x'}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {PLAIN: cGxhaW4=}
stringData: {SEALED: sealed.e30.e30.AAAA}
---
apiVersion: v1
kind: Service
metadata: {name: db-main}
spec: {ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 1}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: w}
spec:
  template:
    metadata:
      labels: {app: w}
    spec:
      serviceAccountName: robot
      automountServiceAccountToken: false
      containers:
      - name: a
        image: registry.example/a:1
        args: ["$(A)", "$(IP):$(DOLLARS)", "$$(A)", "$(IMAGE)", "$(unclosed", "$x $", "$(DB_MAIN_SERVICE_HOST)"]
        envFrom:
        - configMapRef: {name: c}
        - {prefix: P_, configMapRef: {name: c}}
        - secretRef: {name: s}
        - configMapRef: {name: missing, optional: true}
        env:
        - {name: A, value: from-env}
        - {name: LITERAL, value: "$(A) $(B) $$(A) $(NOPE) $(LATER)"}
        - {name: LATER, value: later}
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: URL, value: "https://$(IP)/$$(A)/$(A)/$"}
        - {name: NESTED, value: "<$(URL)>"}
        - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
        - {name: GENERATED, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
        - {name: NOLABEL, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['none']"}}}
        - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
        - {name: MILLI, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
        - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
        - {name: NONE, valueFrom: {resourceFieldRef: {resource: requests.ephemeral-storage}}}
        - {name: MISSING, valueFrom: {secretKeyRef: {name: s, key: none, optional: true}}}
        - {name: ONE, valueFrom: {secretKeyRef: {name: s, key: PLAIN}}}
        - {name: SEALED2, value: "$(SEALED)"}
        - {name: DOLLARS, value: "$$$$(A)"}
        - {name: EMPTY}
        resources: {limits: {cpu: 1200m, memory: 100.5Mi}}
`
	result, err := generate(t, text, kube.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := result.Workloads[0].Policy.Containers[0]
	sealed := podpolicy.EnvValue{Sealed: "sealed.e30.e30.AAAA"}
	want := map[string]podpolicy.EnvValue{
		"A": podpolicy.Literal("from-env"), "B": podpolicy.Literal("$(A)"), "name": podpolicy.Literal("x"),
		"P_A": podpolicy.Literal("from-c"), "P_B": podpolicy.Literal("$(A)"), "P_name": podpolicy.Literal("x"),
		"PLAIN": podpolicy.Literal("plain"), "SEALED": sealed,
		"LITERAL": podpolicy.Literal("from-env $(A) $(A) $(NOPE) $(LATER)"), "LATER": podpolicy.Literal("later"),
		"IP": {Host: podpolicy.SlotIP}, "URL": {Expand: "https://$(IP)/$$(A)/from-env/$$"}, "NESTED": {Expand: "<https://$(IP)/$$(A)/from-env/$>"},
		"LABEL": podpolicy.Literal("w"), "GENERATED": {Match: "*"}, "NOLABEL": podpolicy.Literal(""), "ACCOUNT": podpolicy.Literal("robot"),
		"CPU": podpolicy.Literal("2"), "MILLI": podpolicy.Literal("1200"), "MEM": podpolicy.Literal("101"), "NONE": podpolicy.Literal("0"),
		"ONE": podpolicy.Literal("plain"), "SEALED2": {Expand: "$(SEALED)"}, "DOLLARS": podpolicy.Literal("$$(A)"), "EMPTY": podpolicy.Literal(""),
	}
	if d := cmp.Diff(want, c.Env); d != "" {
		t.Errorf("environment (-want +got):\n%s", d)
	}
	// $(IMAGE) is a variable of the image, which the kubelet does not know.
	args := []string{"/entry", "from-env", "$(IP):$$$$(A)", "$$(A)", "$$(IMAGE)", "$$(unclosed", "$x $$", "$(DB_MAIN_SERVICE_HOST)"}
	if d := cmp.Diff(args, c.Args); d != "" || !c.ExpandArgs {
		t.Errorf("arguments (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"db-main", "kubernetes"}, c.ServiceEnv); d != "" {
		t.Errorf("services: %s", d)
	}
	warned := 0
	for _, n := range result.Notes {
		if strings.Contains(n.Problem, "PLAIN of Secret s is not sealed: the policy makes it public") && strings.Contains(n.Remedy, "coffer secret seal") && n.Line > 1 {
			warned++
		}
	}
	if warned != 2 {
		t.Errorf("expected a warning at both places that use the plain secret, got %v", result.Notes)
	}
	findings, err := kube.Check(t.Context(), &result.Workloads[0], result.Workloads[0].Policy)
	if err != nil || len(findings) > 0 {
		t.Errorf("it does not fit its own policy: %v %v", findings, err)
	}
}

// TestExpansionAgrees: what is expanded when the policy is written, and what is
// left to the guest and expanded there, come to the same.
func TestExpansionAgrees(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		"", "$", "$$", "$$$", "$(A)", "$$(A)", "$$$(A)", "$$$$(A)", "$(A)$(A)", "$(", "$()", "$(A", "a$(A)b$", "$(B)", "$A", "$(A)(A)", "$($(A))", "$$(", "é$(A)é", "$(A)$", "$(A)$(",
	} {
		expanded := func(kind, arg string) string {
			doc := map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{
				"automountServiceAccountToken": false,
				"containers": []any{map[string]any{"name": "a", "image": "registry.example/a:1", "command": []string{"x", arg},
					"env": []any{map[string]any{"name": "A", kind: map[string]any{
						"value": any("VALUE"), "valueFrom": map[string]any{"fieldRef": map[string]any{"fieldPath": "status.podIP"}},
					}[kind]}}}},
			}}
			data, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			c := one(t, string(data), kube.Options{}).Policy.Containers[0]
			if !c.ExpandArgs {
				return c.Args[1]
			}
			return podpolicy.Expand(c.Args[1], func(name string) (string, bool) { return "VALUE", name == "A" })
		}
		if a, b := expanded("value", value), expanded("valueFrom", value); a != b {
			t.Errorf("%q: literal gives %q, the guest %q", value, a, b)
		}
	}
}

// TestTrusteeInstead: a variable and a file that come from the trustee
// instead need no Secret at all.
func TestTrusteeInstead(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: Pod
metadata:
  name: x
  annotations:
    coffer-project.io/secret-env.a: '{"K": "kbs:///s/k/v", "L": "kbs://other/s/l/v"}'
    coffer-project.io/secret-files.f: '{"dir/key": "kbs:///s/f/v"}'
spec:
  automountServiceAccountToken: false
  containers:
  - name: a
    image: registry.example/a:1
    env: [{name: L, value: "kbs://other/s/l/v"}]
    volumeMounts: [{name: f, mountPath: /f}]
  volumes:
  - {name: f, secret: {secretName: nowhere, defaultMode: 0400}}
`
	g := one(t, text, kube.Options{SecretEnv: map[string]map[string]string{"a": {"M": "kbs:///s/m/v"}}})
	if d := cmp.Diff([]string{"kbs:///s/f/v", "kbs:///s/k/v", "kbs:///s/m/v", "kbs://other/s/l/v"}, g.Resources()); d != "" {
		t.Error(d)
	}
	if v := g.Policy.Volumes["f"]; v.Mode != "0400" || v.Resources["dir/key"] != "kbs:///s/f/v" || v.Host != nil {
		t.Errorf("volume: %+v", v)
	}
	findings, err := kube.Check(t.Context(), g, g.Policy)
	if err != nil || len(findings) > 0 {
		t.Errorf("it does not fit its own policy: %v %v", findings, err)
	}
}
