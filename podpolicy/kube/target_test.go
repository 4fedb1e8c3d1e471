package kube_test

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestTarget: the container that an ephemeral one looks into is the manifest's to
// say.
func TestTarget(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: test, namespace: shop}
spec:
  automountServiceAccountToken: false
  containers:
  - {name: app, image: "registry.example/app:1", terminationMessagePath: /tmp/last/../words}
  ephemeralContainers:
  - {name: debug, image: "registry.example/app:1", targetContainerName: app}
`
	w := one(t, text, kube.Options{Ephemeral: true})
	app, debug := w.Policy.Containers[0], w.Policy.Containers[1]
	if debug.Target != "app" || debug.Role != podpolicy.RoleEphemeral || app.Target != "" || app.TerminationMessagePath != "/tmp/words" {
		t.Errorf("%+v\n%+v", app, debug)
	}
	without := one(t, strings.Replace(text, ", targetContainerName: app", "", 1), kube.Options{Ephemeral: true})
	findings, err := kube.Check(t.Context(), without, w.Policy)
	if err != nil || len(findings) != 1 || findings[0].Rule != "effective.target" || findings[0].Container != "debug" {
		t.Errorf("another target: %v, %v", findings, err)
	}
	if findings, err := kube.Check(t.Context(), w, w.Policy); err != nil || len(findings) != 0 {
		t.Errorf("its own policy: %v, %v", findings, err)
	}
	shared := one(t, strings.Replace(text, "spec:", "spec:\n  shareProcessNamespace: true", 1), kube.Options{Ephemeral: true})
	if got := shared.Policy.Containers[1].Target; got != "" {
		t.Errorf("where all share their processes: %q", got)
	}
	_, err = generate(t, strings.Replace(text, "targetContainerName: app", "targetContainerName: other", 1), kube.Options{Ephemeral: true})
	if err == nil || !strings.Contains(err.Error(), "ephemeralContainers[0].targetContainerName") {
		t.Errorf("an unknown container: %v", err)
	}
}
