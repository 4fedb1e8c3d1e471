// Package deploy_test holds what is deployed to Kubernetes against the API's
// types, against the programs, and the chart against the plain manifests.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/coffer-project/coffer/internal/cli"
	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
)

// kinds are the types that objects are read into.
func kinds() map[string]func() any {
	return map[string]func() any{
		"v1/Namespace": func() any { return &corev1.Namespace{} }, "v1/ServiceAccount": func() any { return &corev1.ServiceAccount{} },
		"v1/ConfigMap": func() any { return &corev1.ConfigMap{} }, "v1/Pod": func() any { return &corev1.Pod{} },
		"v1/Service": func() any { return &corev1.Service{} }, "v1/Secret": func() any { return &corev1.Secret{} },
		"v1/PersistentVolumeClaim": func() any { return &corev1.PersistentVolumeClaim{} },
		"apps/v1/DaemonSet":        func() any { return &appsv1.DaemonSet{} }, "apps/v1/Deployment": func() any { return &appsv1.Deployment{} },
		"apps/v1/StatefulSet": func() any { return &appsv1.StatefulSet{} },
		"batch/v1/Job":        func() any { return &batchv1.Job{} }, "batch/v1/CronJob": func() any { return &batchv1.CronJob{} },
		"node.k8s.io/v1/RuntimeClass": func() any { return &nodev1.RuntimeClass{} }, "networking.k8s.io/v1/NetworkPolicy": func() any { return &networkingv1.NetworkPolicy{} },
		"rbac.authorization.k8s.io/v1/Role": func() any { return &rbacv1.Role{} }, "rbac.authorization.k8s.io/v1/RoleBinding": func() any { return &rbacv1.RoleBinding{} },
		"rbac.authorization.k8s.io/v1/ClusterRole": func() any { return &rbacv1.ClusterRole{} }, "rbac.authorization.k8s.io/v1/ClusterRoleBinding": func() any { return &rbacv1.ClusterRoleBinding{} },
		"admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy":        func() any { return &admissionv1.ValidatingAdmissionPolicy{} },
		"admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding": func() any { return &admissionv1.ValidatingAdmissionPolicyBinding{} },
	}
}

// decode reads objects strictly, by kind and name.
func decode(t *testing.T, text []byte) map[string]any {
	t.Helper()
	out := make(map[string]any)
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var doc map[string]any
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if len(doc) == 0 {
			continue
		}
		kind := fmt.Sprint(doc["apiVersion"], "/", doc["kind"])
		make, ok := kinds()[kind]
		if !ok {
			t.Fatalf("unknown kind %s", kind)
		}
		data, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		object := make()
		strict := json.NewDecoder(bytes.NewReader(data))
		strict.DisallowUnknownFields()
		if err := strict.Decode(object); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		meta, _ := doc["metadata"].(map[string]any)
		key := fmt.Sprint(doc["kind"], "/", meta["name"])
		if _, twice := out[key]; twice {
			t.Fatalf("%s is there twice", key)
		}
		out[key] = object
	}
}

// manifests are the plain ones.
func manifests(t *testing.T) map[string]any {
	t.Helper()
	files, err := filepath.Glob("manifests/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	out := make(map[string]any)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(out, decode(t, text))
	}
	return out
}

// object returns one of a type.
func object[T any](t *testing.T, all map[string]any, key string) T {
	t.Helper()
	o, ok := all[key].(T)
	if !ok {
		t.Fatalf("no %s", key)
	}
	return o
}

// TestRuntimeClasses: each handler has a class with its overhead, and asks for
// labels that the agent sets.
func TestRuntimeClasses(t *testing.T) {
	t.Parallel()
	all := manifests(t)
	for _, h := range install.Handlers() {
		if h.Development() {
			continue
		}
		class := object[*nodev1.RuntimeClass](t, all, "RuntimeClass/"+h.Name)
		pod, guest := h.Overhead()
		memory := class.Overhead.PodFixed.Memory()
		if class.Handler != h.Name || memory.Value() != int64(pod)<<20 || guest >= pod {
			t.Errorf("%s: handler %s, overhead %s, expected %d MiB of which %d are the guest's", h.Name, class.Handler, memory, pod, guest)
		}
		most := map[bool]int{true: 384, false: 512}[h.TEE == "soft"]
		if pod > most {
			t.Errorf("%s: overhead of %d MiB, expected at most %d", h.Name, pod, most)
		}
		want := map[string]string{doctor.LabelPrefix + "runtime": "true", doctor.LabelPrefix + h.TEE: "true"}
		if !maps.Equal(class.Scheduling.NodeSelector, want) {
			t.Errorf("%s: %v", h.Name, class.Scheduling.NodeSelector)
		}
		for label := range want {
			if !slices.Contains(doctor.LabelNames(), label) {
				t.Errorf("%s: nobody sets the label %s", h.Name, label)
			}
		}
	}
}

// TestDaemonSet: the program takes its arguments.
func TestDaemonSet(t *testing.T) {
	t.Parallel()
	all := manifests(t)
	set := object[*appsv1.DaemonSet](t, all, "DaemonSet/coffer-node")
	taken(t, set)
	if set.Spec.Template.Spec.ServiceAccountName != object[*corev1.ServiceAccount](t, all, "ServiceAccount/coffer-node").Name {
		t.Error("another service account")
	}
	if !maps.Equal(set.Spec.Selector.MatchLabels, map[string]string{"app.kubernetes.io/name": set.Spec.Template.Labels["app.kubernetes.io/name"]}) {
		t.Errorf("%v", set.Spec.Selector)
	}
	role := object[*rbacv1.Role](t, all, "Role/coffer-node")
	if !slices.Contains(role.Rules[0].ResourceNames, set.Name) {
		t.Errorf("the role is of %v", role.Rules[0].ResourceNames)
	}
	for _, name := range []string{"coffer-node", "coffer-node-events"} {
		if policy := object[*admissionv1.ValidatingAdmissionPolicy](t, all, "ValidatingAdmissionPolicy/"+name); !strings.Contains(
			policy.Spec.MatchConditions[0].Expression, "system:serviceaccount:"+set.Namespace+":"+set.Spec.Template.Spec.ServiceAccountName) {
			t.Errorf("the admission policy %s is about somebody else", name)
		}
	}
}

// taken runs the agent's command line, but for one value that is refused after
// all flags have been read.
func taken(t *testing.T, set *appsv1.DaemonSet) {
	t.Helper()
	args := slices.Clone(set.Spec.Template.Spec.Containers[0].Args)
	at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--containerd-restart=") })
	if at < 0 || !slices.Contains(args, "--stay") {
		t.Fatalf("%q", args)
	}
	args[at] = "--containerd-restart=nobody"
	args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--settings=") })
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	code := cli.Main(t.Context(), cli.Env{Args: args, Stdin: os.Stdin, Stdout: stderr, Stderr: stderr})
	text, err := os.ReadFile(stderr.Name())
	if err != nil || code != cli.ExitUsage || !strings.Contains(string(text), `--containerd-restart: expected none or systemd, got "nobody"`) {
		t.Errorf("%q: exit code %d, %v\n%s", args, code, err, text)
	}
}

// helmVariable names the helm program (tools/helm); without it that of
// build/tools is used.
const helmVariable = "COFFER_HELM"

// render renders the chart.
func render(t *testing.T, args ...string) map[string]any {
	t.Helper()
	helm := os.Getenv(helmVariable)
	if helm == "" {
		helm = "../build/tools/helm"
	}
	if _, err := os.Stat(helm); err != nil {
		if os.Getenv("COFFER_REQUIRE_K8S") != "" {
			t.Fatalf("no helm (make build/tools/helm, or set %s), and COFFER_REQUIRE_K8S is set", helmVariable)
		}
		t.Skip("no helm: run `make build/tools/helm`, or set " + helmVariable)
	}
	home := t.TempDir()
	cmd := exec.Command(helm, append([]string{"template", "coffer", "charts/coffer", "--kube-version", "1.35.0"}, args...)...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%v\n%s", err, e.Stderr)
		}
		t.Fatal(err)
	}
	return decode(t, out)
}

// TestChartIsTheManifests: with default values the chart is the plain manifests.
func TestChartIsTheManifests(t *testing.T) {
	t.Parallel()
	chart := render(t, "--namespace", "coffer-system", "--set", "image.repository=registry.example/coffer-node", "--set", "uninstallHook=false")
	plain := manifests(t)
	delete(plain, "Namespace/coffer-system") // helm makes it
	object[*appsv1.DaemonSet](t, plain, "DaemonSet/coffer-node").Spec.Template.Spec.Containers[0].ImagePullPolicy = corev1.PullIfNotPresent
	if diff := cmp.Diff(plain, chart); diff != "" {
		t.Errorf("manifests and chart differ:\n%s", diff)
	}
}

// TestChartValues sets every value to something else.
func TestChartValues(t *testing.T) {
	t.Parallel()
	values := filepath.Join(t.TempDir(), "values.yaml")
	digest := "sha256:" + strings.Repeat("a", 64)
	text := `
image: {repository: r.example/x, digest: "` + digest + `", pullPolicy: Always, pullSecrets: [{name: s}]}
settings: |
  scratch = 8589934592
containerdRestart: none
sandboxer: shim
handlers: [coffer-qemu-soft]
firmware: {snp: /a, tdx: /b}
nodeSelector: {pool: cvm}
tolerations: []
admissionPolicy: false
runtimeClasses: {coffer-qemu-tdx: {enabled: false}}
`
	if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := render(t, "--namespace", "other", "-f", values)
	set := object[*appsv1.DaemonSet](t, all, "DaemonSet/coffer-node")
	taken(t, set)
	pod := set.Spec.Template.Spec
	for _, want := range []string{"--sandboxer=shim", "--handler=coffer-qemu-soft", "--snp-firmware=/a", "--tdx-firmware=/b", "--settings=/settings/settings.toml", "--containerd-restart=none"} {
		if !slices.Contains(pod.Containers[0].Args, want) {
			t.Errorf("no %s in %q", want, pod.Containers[0].Args)
		}
	}
	if pod.Containers[0].Image != "r.example/x@"+digest || pod.NodeSelector["pool"] != "cvm" || pod.Tolerations != nil || pod.ImagePullSecrets[0].Name != "s" {
		t.Errorf("%+v", pod)
	}
	if c := object[*corev1.ConfigMap](t, all, "ConfigMap/coffer-settings"); c.Data["settings.toml"] != "scratch = 8589934592\n" {
		t.Errorf("%q", c.Data)
	}
	job := object[*batchv1.Job](t, all, "Job/coffer-uninstall")
	if got := job.Spec.Template.Spec.Containers[0].Args; !slices.Equal(got, []string{"uninstall", "--daemonset", "other/coffer-node"}) {
		t.Errorf("%q", got)
	}
	for _, gone := range []string{"RuntimeClass/coffer-qemu-tdx", "ValidatingAdmissionPolicy/coffer-node", "ValidatingAdmissionPolicy/coffer-node-events"} {
		if all[gone] != nil {
			t.Errorf("%s is there", gone)
		}
	}
}
