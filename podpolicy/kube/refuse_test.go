package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/podpolicy/kube"
)

// sampleAt makes a document of maps with a value at a path of leaves.
func sampleAt(doc map[string]any, path, leaf string) {
	name, rest, more := strings.Cut(path, ".")
	list := strings.HasSuffix(name, "[]")
	object := strings.HasSuffix(name, "{}")
	name = strings.TrimSuffix(strings.TrimSuffix(name, "[]"), "{}")
	var value any = leaf
	switch leaf {
	case "bool":
		value = true
	case "int32", "int64":
		value = 7
	case "resource.Quantity":
		value = "7"
	}
	if more {
		inner := map[string]any{}
		sampleAt(inner, rest, leaf)
		value = inner
	}
	switch {
	case list:
		value = []any{value}
	case object:
		value = map[string]any{"cpu": value}
	}
	doc[name] = value
}

// leafType is the type of the leaf at a path.
func leafType(t reflect.Type, path string) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if path == "" || t.Kind() != reflect.Struct {
		return t
	}
	name, rest, _ := strings.Cut(path, ".")
	name = strings.TrimSuffix(strings.TrimSuffix(name, "[]"), "{}")
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "" {
			if inner := leafType(f.Type, path); inner != nil {
				return inner
			}
		}
		if tag == name {
			return leafType(f.Type, rest)
		}
	}
	return nil
}

// TestRefusedFieldsAreRefused puts a value into every field that Fields refuses,
// or takes some values of only.
func TestRefusedFieldsAreRefused(t *testing.T) {
	t.Parallel()
	spec := reflect.TypeFor[corev1.PodSpec]()
	all := leaves("", spec)
	tried := 0
	for _, f := range kube.Fields() {
		if f.Decision != kube.Refused && len(f.Only) == 0 {
			continue
		}
		path := ""
		for _, leaf := range all {
			if leaf == f.Path || strings.HasPrefix(leaf, f.Path+".") || strings.HasPrefix(leaf, f.Path+"[") || strings.HasPrefix(leaf, f.Path+"{") {
				path = leaf
				break
			}
		}
		if path == "" {
			t.Errorf("%s: no such field", f.Path)
			continue
		}
		doc := map[string]any{}
		leaf := leafType(spec, path)
		if leaf == nil {
			t.Fatalf("%s: no type", path)
		}
		kind := leaf.Kind().String()
		if leaf.Name() == "Quantity" {
			kind = "resource.Quantity"
		}
		sampleAt(doc, path, kind)
		if leaf.Name() == "LabelSelector" {
			continue // below one that is refused as a whole, which the other leaves show
		}
		data, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "x"}, "spec": doc})
		if err != nil {
			t.Fatal(err)
		}
		_, err = generate(t, string(data), kube.Options{})
		invalid, ok := errors.AsType[*kube.InputError](err)
		if !ok {
			t.Errorf("%s: expected a refusal of %s, got %v", f.Path, data, err)
			continue
		}
		found := false
		for _, p := range invalid.Problems {
			if strings.Contains(p.Problem, "is refused: "+strings.ReplaceAll(f.How, "`", "")) && p.Remedy == f.Remedy && p.Line == 1 && p.Column > 1 {
				found = true
			}
		}
		if !found {
			t.Errorf("%s: expected its refusal, got %v", f.Path, err)
		}
		tried++
	}
	if tried < 40 {
		t.Errorf("only %d fields were tried", tried)
	}
}

// TestProblems are inputs that no policy can be written for: each is named with
// line and column, and all at once.
func TestProblems(t *testing.T) {
	t.Parallel()
	pod := func(spec string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n" + spec
	}
	app := pod("  containers:\n  - name: a\n    image: registry.example/a:1\n")
	for name, x := range map[string]struct{ text, want string }{
		"no object":        {"- a", "in.yaml:1:1: expected a Kubernetes object"},
		"no kind":          {"apiVersion: v1", "in.yaml:1:1: this object has no apiVersion or no kind"},
		"not YAML":         {"a: [", "in.yaml:1:1: "},
		"later line":       {"a: b\nc: :d: [\n", "in.yaml:"},
		"old API version":  {"apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: x}", "in.yaml:1:1: Deployment/x: apiVersion: Deployment is not served as extensions/v1beta1 (write apiVersion: apps/v1)"},
		"list of a kind":   {"apiVersion: apps/v1\nkind: DeploymentList\nitems: []", "in.yaml:1:1: DeploymentList: kind: DeploymentList is not taken (write apiVersion: v1 and kind: List)"},
		"unknown field":    {app + "  contaners: []", "in.yaml:8:3: Pod/x: spec.contaners: unknown field"},
		"letter case":      {app + "  hostnetwork: true", "spec.hostnetwork: unknown field (did you mean hostNetwork?)"},
		"duplicate key":    {app + "  containers: []", "in.yaml:8:3: Pod/x: spec.containers: duplicate key: it is in line 5, too"},
		"number":           {app + "    env: [{name: A, value: 1}]", "spec.containers[0].env[0].value: expected a string, got 1, which YAML reads as something else (put it in quotation marks)"},
		"old boolean":      {app + "    env: [{name: A, value: yes}]", "expected a string, got yes"},
		"boolean":          {app + "  hostNetwork: \"true\"", "in.yaml:8:16: Pod/x: spec.hostNetwork: expected true or false"},
		"integer":          {app + "  securityContext: {runAsUser: app}", "expected an integer, got a str"},
		"large integer":    {app + "  priority: 9999999999", "9999999999 does not fit"},
		"quantity":         {app + "    resources: {limits: {memory: lots}}", `"lots" is not a quantity`},
		"null element":     {app + "    args: [null]", "spec.containers[0].args[0]: an element without a value"},
		"merge key":        {app + "  <<: {}", "merge keys (<<) are not taken"},
		"tag":              {app + "  hostname: !!str x", "tags such as !!str are not taken"},
		"mapping":          {pod("  containers: {}"), "spec.containers: expected a sequence, got a mapping"},
		"twice":            {app + "---\n" + app, "in.yaml:11:12: Pod/x: metadata.name: this object is in the input twice, see in.yaml:3"},
		"no workload":      {"apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {}", "the input has no workload"},
		"no image":         {pod("  containers: [{name: a}]"), "the container has no image"},
		"absent image":     {pod("  containers: [{name: a, image: absent}]"), "in.yaml:5:26: Pod/x: spec.containers[0].image: there is no such image"},
		"no container":     {pod("  containers: []"), "the pod has no container"},
		"volume":           {app + "    volumeMounts: [{name: v, mountPath: /v}]", "the pod has no volume v"},
		"no source":        {app + "  volumes: [{name: v}]", "volume v has no source (write emptyDir: {})"},
		"claim":            {app + "    volumeDevices: [{name: v, devicePath: /dev/x}]\n  volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]", "in.yaml:9:13: Pod/x: spec.volumes[0]: volume v is a claim without a key"},
		"mount of /proc":   {app + "    volumeMounts: [{name: v, mountPath: /proc/x}]\n  volumes: [{name: v, emptyDir: {}}]", "spec.containers[0].volumeMounts: the policy could not be valid"},
		"file of a volume": {app + "    volumeMounts: [{name: v, mountPath: /etc/a, subPath: b}]\n  volumes: [{name: v, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.labels}}]}}]", "spec.containers[0].volumeMounts[0].subPath: volume v has no file b (name one of its files"},
		"host's directory": {app + "    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n    volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(NAME)}]\n  volumes: [{name: v, emptyDir: {}}]", "the host would choose the directory: $(NAME)"},
		"config map":       {app + "    envFrom: [{configMapRef: {name: c}}]", "ConfigMap c is not in the input (add its manifest to the files)"},
		"key":              {app + "    env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: b}}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}", "there is no key b"},
		"variable's name":  {app + "    envFrom: [{configMapRef: {name: c}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {1a: b}", "key 1a makes no name of a variable in every version of Kubernetes"},
		"node's resources": {app + "    env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]", "container a has no such limit, and the value would be the node's (write resources.limits.cpu)"},
		"field":            {app + "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]", "spec.x is no field that the environment can have"},
		"redefined":        {app + "    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, value: $(A)}, {name: A, value: x}]", "variable A is defined again after $(A) was used"},
		"huge pages":       {app + "    resources: {limits: {hugepages-2Mi: 2Mi}}", "the guest has no hugepages-2Mi"},
		"all capabilities": {app + "    securityContext: {capabilities: {add: [ALL]}}", "a container with all capabilities has its machine"},
		"root":             {app + "    securityContext: {runAsNonRoot: true, runAsUser: 0}", "the user is root"},
		"perhaps root":     {app + "    securityContext: {runAsNonRoot: true}", `the image's user is "", which is not known to be another than root`},
		"sysctl":           {app + "  securityContext: {sysctls: [{name: kernel.panic, value: '1'}]}", "in.yaml:8:21: Pod/x: spec.securityContext.sysctls: the policy could not be valid: pod.sysctls"},
		"mode":             {app + "    volumeMounts: [{name: v, mountPath: /v}]\n  volumes: [{name: v, configMap: {name: c, defaultMode: 0777}}]\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}", "in.yaml:9:13: Pod/x: spec.volumes[0]: the policy could not be valid: volumes.v.mode"},
		"DNS":              {app + "  dnsPolicy: None", "dnsPolicy None without name servers"},
		"ephemeral":        {app + "  ephemeralContainers: [{name: e, image: registry.example/a:1}]", "an ephemeral container is a way into a running pod (remove it, or give --ephemeral)"},
		"annotation":       {strings.Replace(app, "{name: x}", "{name: x, annotations: {coffer-project.io/what: x}}", 1), `in.yaml:3:35: Pod/x: metadata.annotations["coffer-project.io/what"]: unknown annotation`},
		"processors":       {strings.Replace(app, "{name: x}", "{name: x, annotations: {coffer-project.io/vcpus: '0'}}", 1), `in.yaml:3:35: Pod/x: metadata.annotations["coffer-project.io/vcpus"]: expected a number from 1 to 255, got "0"`},
		"memory":           {strings.Replace(app, "{name: x}", "{name: x, annotations: {coffer-project.io/memory: 2Gi}}", 1), `metadata.annotations["coffer-project.io/memory"]: expected a number from 1 to 1048576, got "2Gi"`},
		"annotated JSON":   {strings.Replace(app, "{name: x}", "{name: x, annotations: {coffer-project.io/allow.a: '{\"logs\": 1}'}}", 1), `in.yaml:3:35: Pod/x: metadata.annotations["coffer-project.io/allow.a"]: `},
		"annotated none":   {strings.Replace(app, "{name: x}", "{name: x, annotations: {coffer-project.io/allow.b: '{}'}}", 1), "the pod has no container b"},
		"secret's value":   {strings.Replace(app, "{name: x}", `{name: x, annotations: {coffer-project.io/secret-env.a: '{"K": "kbs:///a/b/c"}'}}`, 1) + "    env: [{name: K, value: other}]", "variable K has a value of its own in the manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := generate(t, x.text, kube.Options{})
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("expected %q, got %v", x.want, err)
			}
		})
	}
	_, err := generate(t, pod("  hostNetwork: true\n  hostPID: true\n  containers: [{name: a, image: absent}]\n")+"---\n"+strings.Replace(app, "{name: x}", "{name: z}", 1)+"  hostIPC: true", kube.Options{})
	if invalid, ok := errors.AsType[*kube.InputError](err); !ok || len(invalid.Problems) != 4 {
		t.Errorf("expected four problems, got %v", err)
	}
}

// TestLimits: what is too large is refused before it is worked on.
func TestLimits(t *testing.T) {
	t.Parallel()
	alias := "a: &a [1,2,3,4,5,6,7,8,9]\n"
	for i := range 8 {
		alias += fmt.Sprintf("b%d: &b%d [%s]\n", i, i, strings.Repeat(map[bool]string{true: "*a", false: fmt.Sprintf("*b%d", i-1)}[i == 0]+",", 9))
	}
	for name, x := range map[string]struct{ text, want string }{
		"bytes":     {strings.Repeat(" ", kube.MaxFileBytes+1), "larger than"},
		"documents": {strings.Repeat("apiVersion: v1\nkind: X\n---\n", 1100), "more than 1024 documents"},
		"depth":     {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: " + strings.Repeat("[", 60) + strings.Repeat("]", 60), "expected a mapping"},
		"aliases": {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - name: a\n    args: &a [x, x, x, x, x, x, x, x, x, x]\n" +
			"  - &c {name: c, command: *a, args: *a}\n" + strings.Repeat("  - *c\n", 20000), "more than 200000 values"},
		"self": {"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {matchExpressions: &s [*s]}}]}}\n", "expected a mapping"},
		"many": {alias + "apiVersion: v1\nkind: Pod\n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := generate(t, x.text, kube.Options{})
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("expected %q, got %.300v", x.want, err)
			}
		})
	}
}
