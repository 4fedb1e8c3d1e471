package k8s

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func podRows() []row {
	return []row{
		{id: "init-containers", core: true, on: onAll, asserts: "init containers run one after another before the others; a sidecar runs from then on and ends last", run: initContainers},
		{id: "init-containers/fail", on: onAll, asserts: "an init container that fails is started again, and with restartPolicy Never the pod fails", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: bad}\nspec: {restartPolicy: Never, initContainers: [{name: i, command: [sh, -c, exit 4]}], containers: [{name: a}]}\n")
			p := c.waitPod(t, "bad", "ended", ended)
			if end := container(p, "i").State.Terminated; p.Status.Phase != corev1.PodFailed || end == nil || end.ExitCode != 4 {
				t.Error(status(p))
			}
		}},
		{id: "k8s-liveness-probes", core: true, on: onAll, asserts: "exec, HTTP, TCP and gRPC probes; a failing liveness probe restarts the container", run: probes},
		{id: "lifecycle-hooks", on: onAll, asserts: "postStart runs at the start, preStop before the end", run: hooks},
		{id: "k8s-graceful-termination", core: true, on: onAll, asserts: "SIGTERM comes at once, the container has its grace period, and its exit code counts", run: graceful},
		{id: "k8s-graceful-termination/kill", on: onAll, asserts: "what ignores SIGTERM is killed when the grace period is over", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: deaf}\nspec: {terminationGracePeriodSeconds: 2, containers: [{name: a, command: [sh, -c, \"trap '' TERM; while true; do sleep 1; done\"]}]}\n")
			c.ready(t, "deaf")
			began := time.Now()
			c.remove(t, "deaf")
			if took := time.Since(began); took < 2*time.Second || took > time.Minute {
				t.Errorf("it ended after %s", took)
			}
		}},
		{id: "k8s-kill-all-process-in-container", on: onAll, asserts: "processes that a container has started end with it", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: many}\nspec: {containers: [{name: a, command: [sh, -c, \"for i in 1 2 3; do (while true; do sleep 1; done) & done; wait\"]}]}\n")
			c.ready(t, "many")
			c.remove(t, "many")
		}},
		{id: "restart-policy", on: onAll, asserts: "Always restarts after success, OnFailure after failure only, Never never", run: restarts},
		{id: "ephemeral-containers", on: onAll, asserts: "kubectl debug: a container is added to a running pod", run: ephemeral},
		{id: "ephemeral-containers/target", on: onAll, asserts: "kubectl debug --target: the container sees the processes of the one that it targets", run: targeted},
		{id: "k8s-pid-ns", core: true, on: onAll, asserts: "shareProcessNamespace: one container sees another's processes", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: pids}\nspec: {shareProcessNamespace: true, containers: [{name: a, command: [sleep, \"4242\"]}, {name: b}]}\n")
			c.ready(t, "pids")
			c.comes(t, "pids", "b", "ps -o args | grep -c '^sleep 4242'", "1")
		}},
		{id: "k8s-pid-ns/apart", on: onAll, asserts: "without it, a container is PID 1 and sees only itself", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "tr '\\0' ' ' </proc/1/cmdline", "/app serve")
		}},
		{id: "k8s-empty-image", on: onAll, asserts: "an image that does not exist: the pod's event names it", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: none}\nspec: {containers: [{name: a, image: \"192.168.77.1:5000/absent:1\"}]}\n")
			c.event(t, "none", "absent:1", "not found")
		}},
		{id: "refused/hostNetwork", core: true, on: onCoffer, asserts: "hostNetwork is refused, and the event says why", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: hn}\nspec: {hostNetwork: true, containers: [{name: a}]}\n")
			c.event(t, "hn", "hostNetwork")
		}},
		{id: "refused/hostPID", on: onCoffer, asserts: "hostPID is refused, and the event says why", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: hp}\nspec: {hostPID: true, containers: [{name: a}]}\n")
			c.event(t, "hp", "hostPID")
		}},
		{id: "no-program", on: onAll, asserts: "a program that the image lacks: the event names it", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: np}\nspec: {containers: [{name: a, command: [/no/such/program]}]}\n")
			c.event(t, "np", "/no/such/program")
		}},
	}
}

func initContainers(t *testing.T, c *cluster) {
	c.apply(t, `
kind: Pod
metadata: {name: order}
spec:
  restartPolicy: Never
  volumes: [{name: d, emptyDir: {}}]
  initContainers:
  - {name: first, command: [sh, -c, "echo first >>/d/order"], volumeMounts: [{name: d, mountPath: /d}]}
  - name: side
    restartPolicy: Always
    command: [sh, -c, "echo side >>/d/order; touch /d/up; trap 'exit 0' TERM; while true; do sleep 1; done"]
    startupProbe: {exec: {command: [test, -f, /d/up]}, periodSeconds: 1}
    volumeMounts: [{name: d, mountPath: /d}]
  - {name: second, command: [sh, -c, "echo second >>/d/order"], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
  - {name: a, command: [cat, /d/order], volumeMounts: [{name: d, mountPath: /d}]}
`)
	p := c.succeeded(t, "order")
	if out := c.logs(t, "order", "a"); out != "first\nside\nsecond\n" {
		t.Errorf("they ran in the order %q", out)
	}
	if end := container(p, "side").State.Terminated; end == nil {
		t.Errorf("the sidecar goes on: %s", status(p))
	}
}

func probes(t *testing.T, c *cluster) {
	c.apply(t, `
kind: Pod
metadata: {name: probed}
spec:
  containers:
  - name: exec
    command: [sh, -c, "touch /tmp/well; sleep 600"]
    startupProbe: {exec: {command: [test, -f, /tmp/well]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 30}
    livenessProbe: {exec: {command: [test, -f, /tmp/well]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}
    readinessProbe: {exec: {command: [test, -f, /tmp/well]}, periodSeconds: 1, timeoutSeconds: 20}
  - name: http
    command: [/app, serve, "http=:8080"]
    readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
  - name: tcp
    command: [/app, serve, "tcp=:9000"]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, timeoutSeconds: 5}
  - name: grpc
    command: [/app, serve, "grpc=:9001"]
    readinessProbe: {grpc: {port: 9001}, periodSeconds: 1, timeoutSeconds: 5}
`)
	c.ready(t, "probed")
	c.exec(t, "probed", "http", "/app", "get", "http://127.0.0.1:8080/sick")
	c.waitPod(t, "probed", "not ready after /sick", func(p *corev1.Pod) (bool, error) { return !container(p, "http").Ready, nil })
	c.exec(t, "probed", "http", "/app", "get", "http://127.0.0.1:8080/healthy")
	c.ready(t, "probed")
	c.exec(t, "probed", "exec", "rm", "/tmp/well")
	c.waitPod(t, "probed", "restarted", func(p *corev1.Pod) (bool, error) { return container(p, "exec").RestartCount > 0, nil })
	c.ready(t, "probed")
}

func hooks(t *testing.T, c *cluster) {
	c.apply(t, `
kind: Pod
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 30
  volumes: [{name: d, emptyDir: {}}]
  containers:
  - name: a
    command: [/app, signals]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started >/d/post"]}}
      preStop: {exec: {command: [sh, -c, "echo stopping >/proc/1/fd/1"]}}
    volumeMounts: [{name: d, mountPath: /d}]
`)
	c.ready(t, "hooked")
	c.want(t, "hooked", "a", "cat /d/post", "started")
	follow := c.follow(t, "hooked", "a")
	c.remove(t, "hooked")
	out := <-follow
	stop, term := strings.Index(out, "stopping"), strings.Index(out, "signal SIGTERM")
	if stop < 0 || term < stop {
		t.Errorf("it printed %q; expected stopping and then SIGTERM", out)
	}
}

func graceful(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: gentle}\nspec: {terminationGracePeriodSeconds: 60, restartPolicy: Never, containers: [{name: a, command: [/app, signals, \"2\", \"7\"]}]}\n")
	c.ready(t, "gentle")
	c.printed(t, "gentle", "a", "waiting")
	follow := c.follow(t, "gentle", "a")
	codes := make(chan int32, 1)
	go func() {
		ctx := t.Context()
		p, err := c.watchPod(ctx, "gentle", "ended", func(p *corev1.Pod) (bool, error) { return container(p, "a").State.Terminated != nil, nil })
		if err != nil {
			codes <- -1
			return
		}
		codes <- container(p, "a").State.Terminated.ExitCode
	}()
	began := time.Now()
	c.remove(t, "gentle")
	if took := time.Since(began); took < 2*time.Second || took > 50*time.Second {
		t.Errorf("it ended after %s; it needs 2 s and has 60", took)
	}
	if out := <-follow; !strings.Contains(out, "signal SIGTERM\nending\n") {
		t.Errorf("it printed %q", out)
	}
	if code := <-codes; code != 7 {
		t.Errorf("exit code %d, expected 7", code)
	}
}

func restarts(t *testing.T, c *cluster) {
	for policy, command := range map[string]string{"Always": "exit 0", "OnFailure": "exit 1", "Never": "exit 1"} {
		c.apply(t, fmt.Sprintf("kind: Pod\nmetadata: {name: %s}\nspec: {restartPolicy: %s, containers: [{name: a, command: [sh, -c, %s]}]}\n", strings.ToLower(policy), policy, command))
	}
	for _, name := range []string{"always", "onfailure"} {
		c.waitPod(t, name, "restarted", func(p *corev1.Pod) (bool, error) { return container(p, "a").RestartCount > 0, nil })
	}
	p := c.waitPod(t, "never", "ended", ended)
	if container(p, "a").RestartCount != 0 || p.Status.Phase != corev1.PodFailed {
		t.Error(status(p))
	}
}

func ephemeral(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: debugged}\nspec: {containers: [{name: a}]}\n")
	c.ready(t, "debugged")
	patch := `{"spec":{"ephemeralContainers":[{"name":"dbg","image":"` + appImage + `","command":["sh","-c","echo debugging; sleep 600"]}]}}`
	_, err := c.n.Client().CoreV1().Pods(c.ns).Patch(t.Context(), "debugged", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "ephemeralcontainers")
	if err != nil {
		t.Fatal(err)
	}
	c.waitPod(t, "debugged", "debugged", func(p *corev1.Pod) (bool, error) { return container(p, "dbg").State.Running != nil, nil })
	c.printed(t, "debugged", "dbg", "debugging")
	c.want(t, "debugged", "dbg", "/app get http://127.0.0.1:8080/ | cut -d' ' -f1", "debugged")
}

func targeted(t *testing.T, c *cluster) {
	c.apply(t, "kind: Pod\nmetadata: {name: target}\nspec: {containers: [{name: a, command: [sh, -c, \"sleep 4242 & wait\"]}]}\n")
	c.ready(t, "target")
	patch := `{"spec":{"ephemeralContainers":[{"name":"dbg","image":"` + appImage + `","targetContainerName":"a","command":["sleep","600"]}]}}`
	_, err := c.n.Client().CoreV1().Pods(c.ns).Patch(t.Context(), "target", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "ephemeralcontainers")
	if err != nil {
		t.Fatal(err)
	}
	c.waitPod(t, "target", "debugged", func(p *corev1.Pod) (bool, error) { return container(p, "dbg").State.Running != nil, nil })
	c.want(t, "target", "dbg", "ps -o args | grep -c '^sleep 4242'", "1")
	c.want(t, "target", "dbg", "kill $(ps -o pid,args | awk '$2 == \"sleep\" && $3 == \"4242\" {print $1}') && echo killed", "killed")
	c.waitPod(t, "target", "ended", func(p *corev1.Pod) (bool, error) {
		s := container(p, "a")
		return s.RestartCount > 0 || s.State.Terminated != nil, nil
	})
}

func limitRows() []row {
	return []row{
		{id: "k8s-oom", core: true, on: onRunc | onMachine, asserts: "a container beyond its memory limit is OOMKilled, and only it", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: oom}\nspec: {restartPolicy: Never, containers: [{name: a, command: [/app, eat], resources: {limits: {memory: 64Mi}}}, {name: b}]}\n")
			p := c.waitPod(t, "oom", "out of memory", func(p *corev1.Pod) (bool, error) { return container(p, "a").State.Terminated != nil, nil })
			if end := container(p, "a").State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != 137 {
				t.Errorf("it ended with %s, %d; expected OOMKilled, 137", end.Reason, end.ExitCode)
			}
			c.want(t, "oom", "b", "echo alive", "alive")
		}},
		{id: "k8s-memory", on: onAll, asserts: "a container within its limit runs", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: fits}\nspec: {restartPolicy: Never, containers: [{name: a, command: [/app, eat, \"40\"], resources: {limits: {memory: 128Mi}}}]}\n")
			c.printed(t, "fits", "a", "has 40 MiB")
		}},
		{id: "k8s-number-cpus", on: onRunc | onMachine, asserts: "a CPU limit is the container's quota", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			out := s.sh(t, "vol", "a", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us")
			if !strings.HasPrefix(out, "25000") {
				t.Errorf("quota %q, expected 25000 of 100000", out)
			}
		}},
		{id: "k8s-sandbox-vcpus-allocation", on: onMachine, asserts: "a machine has the processors that its class, or the annotation, says", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: two, annotations: {coffer-project.io/vcpus: \"2\"}}\nspec: {containers: [{name: a}]}\n")
			c.ready(t, "two")
			c.want(t, "two", "a", "nproc", "2")
		}},
		{id: "k8s-limit-range", on: onAll, asserts: "limits of a LimitRange reach the container", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: LimitRange\nmetadata: {name: l}\nspec: {limits: [{type: Container, default: {memory: 72Mi}, defaultRequest: {memory: 32Mi}}]}\n---\nkind: Pod\nmetadata: {name: lim}\nspec: {containers: [{name: a, env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]}]}\n")
			c.ready(t, "lim")
			c.want(t, "lim", "a", "echo $LIMIT", "72")
			if kindOf(c.h.name) == onProcess {
				return // without cgroup v2 on the node, an agent that is a process limits nothing
			}
			c.want(t, "lim", "a", "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes", "75497472")
		}},
		{id: "k8s-qos-pods", on: onAll, asserts: "Guaranteed, Burstable and BestEffort pods run", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: g}\nspec: {restartPolicy: Never, containers: [{name: a, command: [\"true\"], resources: {limits: {cpu: 500m, memory: 64Mi}}}]}\n---\nkind: Pod\nmetadata: {name: b}\nspec: {restartPolicy: Never, containers: [{name: a, command: [\"true\"], resources: {requests: {cpu: 50m}}}]}\n---\nkind: Pod\nmetadata: {name: e}\nspec: {restartPolicy: Never, containers: [{name: a, command: [\"true\"]}]}\n")
			for name, class := range map[string]corev1.PodQOSClass{"g": corev1.PodQOSGuaranteed, "b": corev1.PodQOSBurstable, "e": corev1.PodQOSBestEffort} {
				if p := c.succeeded(t, name); p.Status.QOSClass != class {
					t.Errorf("pod %s is %s, expected %s", name, p.Status.QOSClass, class)
				}
			}
		}},
		{id: "k8s-pod-quota", on: onAll, asserts: "a quota of pods holds, overhead of the class included", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: ResourceQuota\nmetadata: {name: q}\nspec: {hard: {pods: \"1\"}}\n")
			// Until its controller has counted, a quota holds nobody up.
			c.eventually(t, "the quota's count", func() error {
				q, err := c.n.Client().CoreV1().ResourceQuotas(c.ns).Get(t.Context(), "q", metav1.GetOptions{})
				if err == nil && len(q.Status.Hard) == 0 {
					err = errors.New("nothing is counted yet")
				}
				return err
			})
			c.apply(t, "kind: Pod\nmetadata: {name: one}\nspec: {containers: [{name: a}]}\n")
			err := c.create(t.Context(), "kind: Pod\nmetadata: {name: two}\nspec: {containers: [{name: a}]}\n")
			if err == nil || !strings.Contains(err.Error(), "exceeded quota") {
				t.Errorf("a second pod: %v", err)
			}
		}},
		{id: "k8s-sandbox-cgroup", on: onAll, asserts: "the overhead of the RuntimeClass is in the pod and in its cgroup", run: overhead},
		{id: "k8s-sandbox-cgroup/processes", core: true, on: onCoffer, asserts: "shim and machine are in the pod's cgroup, which goes with the pod", run: inCgroup},
		{id: "k8s-sandbox-cgroup/full", on: onMachine, asserts: "a pod that uses the memory of its limit is not killed by it", run: fullMemory},
		{id: "k8s-sandbox-cgroup/killed", on: onMachine, asserts: "a machine that the kernel kills for the pod's limit is told as that, with what to raise", run: killedForMemory},
		{id: "stats", on: onRunc | onMachine, asserts: "the kubelet's statistics have the container's and the pod's memory and processor time", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.eventually(t, "statistics of the pod", func() error {
				b, err := s.n.Client().CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/coffer-node/proxy/stats/summary").DoRaw(t.Context())
				if err != nil {
					return err
				}
				return podStats(b, s.ns, "vol", "a")
			})
		}},
		{id: "pids-limit", on: onAll, not: "the kubelet's podPidsLimit is for all pods of a node; the limit of a container is tested where the agent is (internal/guest/container)", asserts: "a pods' processes are limited"},
	}
}
