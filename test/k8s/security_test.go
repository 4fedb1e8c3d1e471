package k8s

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const securityFixture = `
kind: Pod
metadata: {name: sec}
spec:
  securityContext:
    fsGroup: 3333
    supplementalGroups: [4444, 5555]
    sysctls: [{name: net.ipv4.ip_local_port_range, value: "30000 40000"}, {name: net.core.somaxconn, value: "777"}]
  volumes: [{name: d, emptyDir: {}}]
  containers:
  - {name: plain}
  - name: user
    command: [/app, pause]
    securityContext: {runAsUser: 1234, runAsGroup: 2345, runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
    volumeMounts: [{name: d, mountPath: /d}]
  - name: readonly
    command: [/app, pause]
    securityContext: {readOnlyRootFilesystem: true}
    volumeMounts: [{name: d, mountPath: /d}]
  - name: caps
    command: [/app, pause]
    securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN, SYS_TIME]}}
  - name: open
    command: [/app, pause]
    securityContext: {seccompProfile: {type: Unconfined}, capabilities: {add: [SYS_ADMIN]}}
  - name: filtered
    command: [/app, pause]
    securityContext: {seccompProfile: {type: RuntimeDefault}}
  - name: privileged
    command: [/app, pause]
    securityContext: {privileged: true}
`

func securityRows() []row {
	effective := "awk '$1 == \"CapEff:\" {print $2}' /proc/1/status"
	return []row{
		{id: "k8s-security-context", core: true, on: onAll, asserts: "user, groups, fsGroup, no new privileges, read-only root", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			s.want(t, "sec", "user", "id -u; id -g; id -G", "1234\n2345\n2345 3333 4444 5555")
			s.want(t, "sec", "user", "grep NoNewPrivs /proc/1/status | tr -d '\\t '", "NoNewPrivs:1")
			s.want(t, "sec", "plain", "grep NoNewPrivs /proc/1/status | tr -d '\\t '", "NoNewPrivs:0")
			s.want(t, "sec", "user", "stat -c %g /d; echo mine >/d/user && stat -c %u:%g /d/user", "3333\n1234:3333")
			s.want(t, "sec", "readonly", "echo x 2>/dev/null >/file || echo refused; echo x >/d/file && echo written", "refused\nwritten")
		}},
		{id: "k8s-caps", core: true, on: onAll, asserts: "capabilities: the default ones, all dropped, some added", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			// containerd's default: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
			s.want(t, "sec", "plain", effective, "00000000a80425fb")
			s.want(t, "sec", "user", effective, "0000000000000000")
			s.want(t, "sec", "caps", effective, "0000000002001000")
			s.want(t, "sec", "plain", "/app call chown; /app call mount; /app call sethostname", "ok\nEPERM\nEPERM")
		}},
		{id: "k8s-seccomp", core: true, on: onAll, asserts: "RuntimeDefault filters system calls, Unconfined does not", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			s.want(t, "sec", "filtered", "grep -w Seccomp /proc/1/status | tr -d '\\t '", "Seccomp:2")
			s.want(t, "sec", "open", "grep -w Seccomp /proc/1/status | tr -d '\\t '", "Seccomp:0")
			s.want(t, "sec", "filtered", "/app call keyctl", "EPERM")
			if got := s.sh(t, "sec", "open", "/app call keyctl"); got == "EPERM" {
				t.Errorf("keyctl where nothing is filtered: %s", got)
			}
		}},
		{id: "k8s-sysctls", on: onAll, asserts: "sysctls of the pod's namespaces, one of them not among the safe ones", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			s.want(t, "sec", "plain", "cat /proc/sys/net/ipv4/ip_local_port_range | tr '\\t' ' '; cat /proc/sys/net/core/somaxconn", "30000 40000\n777")
		}},
		{id: "k8s-privileged", on: onAll, asserts: "a privileged container has every capability, and no device of the host where it is the guest's", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			s.want(t, "sec", "privileged", "/app call mount", "ok")
			if got := s.sh(t, "sec", "privileged", effective); !strings.HasSuffix(got, "ffffff") {
				t.Errorf("it has the capabilities %s", got)
			}
			if kindOf(c.h.name) == onMachine {
				s.want(t, "sec", "privileged", "ls /dev/kvm /dev/loop-control 2>/dev/null | wc -l", "0")
			}
		}},
		{id: "masked-paths", on: onAll, asserts: "/proc is masked and /sys read-only where a container is not privileged", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "security")
			s.want(t, "sec", "plain", "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused; touch /sys/x 2>/dev/null || echo refused", "0\nrefused\nrefused")
		}},
		{id: "runAsNonRoot", on: onAll, asserts: "runAsNonRoot refuses an image whose user is root", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: root}\nspec: {containers: [{name: a, securityContext: {runAsNonRoot: true}}]}\n")
			p := c.waitPod(t, "root", "refused", func(p *corev1.Pod) (bool, error) {
				w := container(p, "a").State.Waiting
				return w != nil && w.Reason == "CreateContainerConfigError", nil
			})
			_ = p
		}},
		{id: "k8s-cpu-ns", not: "asserts how Kata hot-plugs processors for limits: here the machine has those of its class, see k8s-sandbox-vcpus-allocation", asserts: "vCPUs after limits"},
	}
}
