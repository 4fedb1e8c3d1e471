package kube_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestCheckFindsAll: one run names everything in which a workload differs from a
// policy, about the pod, each container, volumes and what is permitted.
func TestCheckFindsAll(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: test, namespace: shop}
spec:
  enableServiceLinks: false
  initContainers:
  - {name: i, image: "registry.example/shop/app:1"}
  - {name: s, image: "registry.example/shop/app:1", restartPolicy: Always}
  containers:
  - {name: a, image: "registry.example/shop/app:1", env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}
`
	policy := one(t, text, kube.Options{}).Policy
	rules := func(g *kube.Generated, p *podpolicy.Policy) []string {
		t.Helper()
		findings, err := kube.Check(t.Context(), g, p)
		if err != nil {
			t.Fatal(err)
		}
		var rules []string
		for _, f := range findings {
			if f.String() == "" || f.Rule == "" {
				t.Errorf("a finding that says nothing: %+v", f)
			}
			rules = append(rules, strings.Trim(f.Container+" "+f.Rule, " "))
		}
		return rules
	}
	other := one(t, strings.ReplaceAll(text, "name: test, namespace: shop", "name: other, namespace: elsewhere")+`
  subdomain: x
  setHostnameAsFQDN: true
  shareProcessNamespace: true
  hostAliases: [{ip: 192.0.2.10, hostnames: [a.example]}]
  securityContext: {sysctls: [{name: net/ipv4/ip_forward, value: '1'}], fsGroup: 5}
`, kube.Options{Allow: map[string]podpolicy.Allow{"a": {Logs: true, Stdin: true, Exec: []podpolicy.ExecRule{{Args: []string{"id"}}}}}})
	want := []string{
		"pod.name", "pod.name", "pod.name", "pod.sharePID", "pod.sysctls", "network.hosts", "i container.user", "effective.volume", "s container.user",
		"a container.stdin", "a container.user", "a effective.allow.logs", "a exec.args",
	}
	if got := rules(other, policy); !slices.Equal(got, want) {
		t.Errorf("expected %q, got %q", want, got)
	}
	less := one(t, strings.Replace(text, `  - {name: s, image: "registry.example/shop/app:1", restartPolicy: Always}`+"\n", "", 1), kube.Options{})
	if got := rules(less, policy); !slices.Equal(got, []string{"a container.order", "s effective.containers"}) {
		t.Errorf("without the sidecar: %q", got)
	}
	more := one(t, text+"  - {name: b, image: \"registry.example/shop/app:1\"}\n", kube.Options{})
	if got := rules(more, policy); !slices.Equal(got, []string{"b container.unknown"}) {
		t.Errorf("with another container: %q", got)
	}
	if _, err := kube.Check(t.Context(), more, &podpolicy.Policy{}); err == nil {
		t.Error("a policy that is not valid was taken")
	}
}
