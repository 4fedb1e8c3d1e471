package kube_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestRows are the cases of Kata's k8s-policy-*.bats: a workload fits its own
// policy; changed, it is refused with the right rule, or already when its policy
// would be written.
func TestRows(t *testing.T) {
	t.Parallel()
	const pod = `
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: shop}
data: {KEY: value}
---
apiVersion: v1
kind: Pod
metadata: {name: test, namespace: shop}
spec:
  enableServiceLinks: false
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  runtimeClassName: coffer
  securityContext: {runAsUser: 1000}
  containers:
  - name: first
    image: registry.example/busybox:1
    command: ["/bin/sh", "-c", "sleep 1d"]
    envFrom:
    - configMapRef: {name: config}
    terminationMessagePath: /dev/termination-log
    securityContext: {privileged: false}
    lifecycle:
      postStart: {exec: {command: ["/bin/echo", "started"]}}
    volumeMounts:
    - {name: files, mountPath: /etc/files}
  - name: second
    image: registry.example/busybox:1
  volumes:
  - name: files
    configMap: {name: config}
`
	const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: test, namespace: shop}
spec:
  template:
    spec:
      restartPolicy: Never
      enableServiceLinks: false
      automountServiceAccountToken: false
      securityContext: {runAsUser: 1000}
      containers:
      - name: hello
        image: registry.example/busybox:1
        args: ["echo", "hello"]
        env:
        - {name: A, value: "1"}
        volumeMounts:
        - {name: work, mountPath: /work}
      volumes:
      - {name: work, emptyDir: {}}
`
	const rc = `
apiVersion: v1
kind: ReplicationController
metadata: {name: test, namespace: shop}
spec:
  template:
    spec:
      enableServiceLinks: false
      automountServiceAccountToken: false
      containers:
      - name: web
        image: registry.example/busybox:1
        command: ["/bin/web"]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: ["NET_RAW"]}}
        volumeMounts:
        - {name: data, mountPath: /data}
      volumes:
      - {name: data, emptyDir: {}}
`
	const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: test, namespace: shop}
spec:
  template:
    spec:
      enableServiceLinks: false
      automountServiceAccountToken: false
      securityContext: {runAsUser: 1000}
      containers:
      - {name: web, image: "registry.example/busybox:1"}
`
	const sc = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: test, namespace: shop}
spec:
  template:
    spec:
      enableServiceLinks: false
      automountServiceAccountToken: false
      securityContext: {runAsUser: 2000, runAsGroup: 3000, fsGroup: 1000, supplementalGroups: [50, 60]}
      containers:
      - {name: web, image: "registry.example/busybox:1"}
`
	const pvc = `
apiVersion: v1
kind: Pod
metadata:
  name: test
  namespace: shop
  annotations:
    coffer-project.io/secure-mount.data: '{"key": "kbs:///shop/test/disk"}'
    coffer-project.io/secure-mount.more: '{"key": "kbs:///shop/test/more"}'
spec:
  enableServiceLinks: false
  automountServiceAccountToken: false
  containers:
  - name: first
    image: registry.example/busybox:1
    volumeDevices:
    - {name: data, devicePath: /dev/xvda}
    #- {name: more, devicePath: /dev/xvdb}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: more, persistentVolumeClaim: {claimName: more}}
`
	const atGeneration = "at generation: "
	for _, row := range []struct {
		file, name, text string
		// replace changes the workload: old and new, in turn.
		replace []string
		// want are the rules, or where the workload is refused at once.
		want []string
	}{
		{"k8s-policy-pod", "config map in the environment", pod, nil, nil},
		{"k8s-policy-pod", "run as the image's user", pod, []string{"{runAsUser: 1000}", "{runAsUser: 1000, runAsGroup: 1001}"}, nil},
		{"k8s-policy-pod", "another image", pod, []string{"busybox:1\n    command", "busybox:2\n    command"}, []string{podpolicy.RuleContainerImage}},
		{"k8s-policy-pod", "privileged", pod, []string{"privileged: false", "privileged: true"}, []string{atGeneration + "securityContext.privileged"}},
		{"k8s-policy-pod", "termination message path", pod, []string{"/dev/termination-log", "/tmp/words"}, []string{podpolicy.RuleContainerTermination}},
		{"k8s-policy-pod", "the same termination message path", pod, []string{"/dev/termination-log", `""`}, nil},
		{"k8s-policy-pod", "termination message path that is a device's", pod, []string{"/dev/termination-log", "/dev/other"}, []string{atGeneration + "terminationMessagePath"}},
		{"k8s-policy-pod", "host path", pod, []string{"configMap: {name: config}\n", "hostPath: {path: /etc}\n"}, []string{atGeneration + "hostPath"}},
		{"k8s-policy-pod", "contents of a config map", pod, []string{"{KEY: value}", "{KEY: other}"}, []string{podpolicy.RuleContainerEnv, podpolicy.RuleFilesDigest}},
		{"k8s-policy-pod", "post start command", pod, []string{"started", "other"}, []string{podpolicy.RuleExecArgs}},
		{"k8s-policy-pod", "user 0", pod, []string{"runAsUser: 1000", "runAsUser: 0"}, []string{podpolicy.RuleContainerUser, podpolicy.RuleContainerUser}},
		{"k8s-policy-pod", "user 1234", pod, []string{"runAsUser: 1000", "runAsUser: 1234"}, []string{podpolicy.RuleContainerUser, podpolicy.RuleContainerUser}},
		{"k8s-policy-pod", "another name", pod, []string{"{name: test", "{name: other"}, []string{podpolicy.RulePodName, podpolicy.RulePodName}},

		{"k8s-policy-job", "as it is", job, nil, nil},
		{"k8s-policy-job", "another variable", job, []string{`- {name: A, value: "1"}`, `- {name: A, value: "1"}` + "\n        - {name: B, value: x}"}, []string{podpolicy.RuleContainerEnv}},
		{"k8s-policy-job", "another value", job, []string{`value: "1"`, `value: "2"`}, []string{podpolicy.RuleContainerEnv}},
		{"k8s-policy-job", "another argument", job, []string{`"hello"]`, `"hello", "x"]`}, []string{podpolicy.RuleContainerArgs}},
		{"k8s-policy-job", "another emptyDir", job, []string{"- {name: work, emptyDir: {}}", "- {name: work, emptyDir: {}}\n      - {name: more, emptyDir: {}}", "/work}", "/work}\n        - {name: more, mountPath: /more}"}, []string{podpolicy.RuleContainerMounts}},
		{"k8s-policy-job", "another projected volume", job, []string{"- {name: work, emptyDir: {}}", "- {name: work, emptyDir: {}}\n      - {name: more, projected: {sources: [{serviceAccountToken: {path: token}}]}}", "/work}", "/work}\n        - {name: more, mountPath: /more}"}, []string{podpolicy.RuleContainerMounts}},
		{"k8s-policy-job", "read-only root", job, []string{"args:", "securityContext: {readOnlyRootFilesystem: true}\n        args:"}, []string{"container.readOnlyRoot"}},
		{"k8s-policy-job", "user 222", job, []string{"runAsUser: 1000", "runAsUser: 222"}, []string{podpolicy.RuleContainerUser}},

		{"k8s-policy-rc", "as it is", rc, nil, nil},
		{"k8s-policy-rc", "command", rc, []string{"/bin/web", "/bin/other"}, []string{podpolicy.RuleContainerArgs}},
		{"k8s-policy-rc", "mount path", rc, []string{"mountPath: /data", "mountPath: /other"}, []string{podpolicy.RuleContainerMounts}},
		{"k8s-policy-rc", "host device", rc, []string{"emptyDir: {}", "hostPath: {path: /dev/sda, type: BlockDevice}"}, []string{atGeneration + "hostPath"}},
		{"k8s-policy-rc", "privilege escalation", rc, []string{"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"}, []string{"container.noNewPrivileges"}},
		{"k8s-policy-rc", "capability", rc, []string{`{drop: ["NET_RAW"]}`, `{add: ["SYS_ADMIN"]}`}, []string{"container.capabilities"}},
		{"k8s-policy-rc", "another user", rc, []string{"securityContext: {", "securityContext: {runAsUser: 1001, "}, []string{podpolicy.RuleContainerUser}},
		{"k8s-policy-rc", "the image's own user", rc, []string{"securityContext: {", "securityContext: {runAsUser: 1000, "}, nil},

		{"k8s-policy-deployment", "as it is", deployment, nil, nil},
		{"k8s-policy-deployment", "user 0", deployment, []string{"runAsUser: 1000", "runAsUser: 0"}, []string{podpolicy.RuleContainerUser}},

		{"k8s-policy-deployment-sc", "all of it", sc, nil, nil},
		{"k8s-policy-deployment-sc", "the same groups in another order", sc, []string{"[50, 60]", "[60, 50]"}, nil},
		{"k8s-policy-deployment-sc", "the primary group among them", sc, []string{"[50, 60]", "[50, 60, 3000]"}, nil},
		{"k8s-policy-deployment-sc", "the group of volumes among them", sc, []string{"[50, 60]", "[50, 60, 1000]"}, nil},
		{"k8s-policy-deployment-sc", "group 0", sc, []string{"runAsGroup: 3000", "runAsGroup: 0"}, []string{podpolicy.RuleContainerUser}},
		// A runtime may list group 0 for a user that the image does not know: the
		// guard takes it for a habit, and the container does not get it.
		{"k8s-policy-deployment-sc", "group 0 among the others", sc, []string{"[50, 60]", "[0, 50, 60]"}, []string{"effective.user"}},
		{"k8s-policy-deployment-sc", "another group", sc, []string{"[50, 60]", "[50, 60, 70]"}, []string{podpolicy.RuleContainerUser}},

		{"k8s-policy-pvc", "as it is", pvc, nil, nil},
		{"k8s-policy-pvc", "another device", pvc, []string{"#-", "-"}, []string{podpolicy.RuleVolumeAttach, podpolicy.RuleContainerMounts}},
	} {
		t.Run(row.file+"/"+row.name, func(t *testing.T) {
			t.Parallel()
			images := images{"registry.example/busybox:1": {Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}, User: "1000"}}
			policy := one(t, row.text, kube.Options{Images: images}).Policy
			text := row.text
			for i := 0; i+1 < len(row.replace); i += 2 {
				if !strings.Contains(text, row.replace[i]) {
					t.Fatalf("nothing to replace: %q", row.replace[i])
				}
				text = strings.ReplaceAll(text, row.replace[i], row.replace[i+1])
			}
			result, err := generate(t, text, kube.Options{Images: images})
			if len(row.want) == 1 && strings.HasPrefix(row.want[0], atGeneration) {
				if field := strings.TrimPrefix(row.want[0], atGeneration); err == nil || !strings.Contains(err.Error(), field) || !strings.HasPrefix(err.Error(), "in.yaml:") {
					t.Fatalf("expected %s to be refused, got %v", field, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			findings, err := kube.Check(t.Context(), &result.Workloads[0], policy)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range findings {
				got = append(got, f.Rule)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("expected %v, got %v", row.want, findings)
			}
		})
	}
}

// TestExecMatrix is the exec part of k8s-policy-pod: only what is listed, and
// only as it is listed.
func TestExecMatrix(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: Pod
metadata:
  name: test
  annotations:
    coffer-project.io/allow.app: '{"exec": [["ls"], {"args": ["sh", "-c", "date"], "output": true}]}'
spec:
  automountServiceAccountToken: false
  containers:
  - name: app
    image: registry.example/app:1
    env: [{name: DIR, value: /srv}]
    livenessProbe: {exec: {command: ["/probe", "$(DIR)", "$$(DIR)"]}}
    lifecycle: {preStop: {exec: {command: ["/stop", "$(DIR)"]}}}
`
	guard, id := running(t, one(t, text, kube.Options{}))
	for _, x := range []struct {
		args []string
		ok   bool
	}{
		{[]string{"ls"}, true},
		{[]string{"sh", "-c", "date"}, true},
		{[]string{"/probe", "/srv", "$(DIR)"}, true},
		// The kubelet does not expand commands of lifecycle hooks.
		{[]string{"/stop", "$(DIR)"}, true},
		{[]string{"/stop", "/srv"}, false},
		{[]string{"ls", "-l"}, false},
		{[]string{"sh", "-c", "id"}, false},
		{[]string{"sh"}, false},
		{nil, false},
	} {
		_, err := guard.Exec(id, podpolicy.ExecProposal{ID: "x", Args: x.args})
		if (err == nil) != x.ok {
			t.Errorf("exec %q: %v", x.args, err)
		}
		if err == nil {
			if err := guard.Deleted(id, "x"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLogsRow is k8s-policy-logs: output that is not permitted is not given out.
func TestLogsRow(t *testing.T) {
	t.Parallel()
	const text = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "test"}, "spec": {"automountServiceAccountToken": false,
		"containers": [{"name": "app", "image": "registry.example/app:1"}]}}`
	for _, allowed := range []bool{false, true} {
		guard, id := running(t, one(t, text, kube.Options{Allow: map[string]podpolicy.Allow{"*": {Logs: allowed}}}))
		if got := guard.Stream(id, "", podpolicy.Stdout); got != allowed {
			t.Errorf("logs %v: a stream of standard output is given: %v", allowed, got)
		}
	}
}

// running is a guard before which the one container of a workload runs.
func running(t *testing.T, g *kube.Generated) (*podpolicy.Guard, string) {
	t.Helper()
	guard := podpolicy.NewGuard(g.Policy)
	if _, err := guard.Sandbox(podpolicy.SandboxProposal{ID: "s", PodName: "test", PodNamespace: "shop"}); err != nil {
		t.Fatal(err)
	}
	c := g.Policy.Containers[0]
	a, err := guard.Admit(podpolicy.ContainerProposal{ID: "c", Name: c.Name})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Configure(podpolicy.ImageConfig{Digest: c.Image.Digest}); err != nil {
		t.Fatal(err)
	}
	if err := guard.Started("c", ""); err != nil {
		t.Fatal(err)
	}
	return guard, "c"
}

// TestRuntimeClassFilter is the rest of k8s-policy-pod: only workloads of a
// runtime class get a policy; and each image is asked for once.
func TestRuntimeClassFilter(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {runtimeClassName: coffer, containers: [{name: a, image: "registry.example/app:1"}, {name: b, image: "registry.example/app:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec: {containers: [{name: a, image: "registry.example/absent:1"}]}
`
	counter := &counting{ImageSource: images{}}
	result, err := generate(t, text, kube.Options{RuntimeClasses: []string{"coffer"}, Images: counter})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Workloads) != 1 || result.Workloads[0].Workload.Name != "one" {
		t.Errorf("expected one alone, got %v", result.Workloads)
	}
	if counter.asked != 1 {
		t.Errorf("the image was asked for %d times", counter.asked)
	}
	result, err = generate(t, text, kube.Options{RuntimeClasses: []string{"other"}})
	if err != nil || len(result.Workloads) != 0 {
		t.Errorf("expected no policy, got %v, %v", result, err)
	}
}

// TestSize: what a workload asks of its machine is told, and is no part of its
// policy.
func TestSize(t *testing.T) {
	t.Parallel()
	const manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers: [{name: a, image: registry.example/a:1}]\n"
	plain, err := generate(t, manifest, kube.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if g := plain.Workloads[0]; g.VCPUs != 0 || g.MemoryMiB != 0 {
		t.Errorf("without annotations: %d processors, %d MiB", g.VCPUs, g.MemoryMiB)
	}
	text := strings.Replace(manifest, "{name: x}",
		"{name: x, annotations: {coffer-project.io/vcpus: '3', coffer-project.io/memory: '2048', coffer-project.io/volumes: /dev/data=data}}", 1)
	sized, err := generate(t, text, kube.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if g := sized.Workloads[0]; g.VCPUs != 3 || g.MemoryMiB != 2048 {
		t.Errorf("%d processors, %d MiB", g.VCPUs, g.MemoryMiB)
	}
	before, err := plain.Workloads[0].Policy.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if after, err := sized.Workloads[0].Policy.Digest(); err != nil || after != before {
		t.Errorf("the policy is another one, %v", err)
	}
}
