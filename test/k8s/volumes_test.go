package k8s

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fixtures are pods that rows share, by name.
func fixtures() map[string]string {
	return map[string]string{"volumes": volumesFixture, "security": securityFixture, "net": strings.ReplaceAll(netFixture, "HOSTPORT", "18080"), "io": ioFixture}
}

// volumesFixture has one pod with most kinds of volumes, in two containers, filled
// by an init container.
const volumesFixture = `
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, size: "12", nested.conf: "a=b\n"}
binaryData: {raw: AAECAw==}
---
kind: ConfigMap
metadata: {name: live}
data: {first: one, second: two}
---
kind: Secret
metadata: {name: login}
stringData: {username: alice, password: "s3cret"}
---
kind: Pod
metadata:
  name: vol
  labels: {app: vol, tier: back}
  annotations: {note: first}
spec:
  hostname: volhost
  hostAliases: [{ip: 10.9.8.7, hostnames: [db.example, db2.example]}]
  securityContext: {fsGroup: 2222}
  automountServiceAccountToken: true
  volumes:
  - {name: settings, configMap: {name: settings, defaultMode: 0440}}
  - {name: picked, configMap: {name: settings, items: [{key: color, path: deep/er/colour, mode: 0400}]}}
  - {name: live, configMap: {name: live}}
  - {name: login, secret: {secretName: login}}
  - {name: optional-config, configMap: {name: absent, optional: true}}
  - {name: optional-secret, secret: {secretName: absent, optional: true}}
  - name: projected
    projected:
      sources:
      - configMap: {name: settings, items: [{key: size, path: cm/size}]}
      - secret: {name: login, items: [{key: username, path: secret/name}]}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token, expirationSeconds: 600, audience: tests}
  - name: info
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: cpu, resourceFieldRef: {containerName: a, resource: limits.cpu, divisor: 1m}}
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: shared, emptyDir: {}}
  initContainers:
  - name: fill
    command: [sh, -c, "echo from-init >/shared/greeting; mkdir -p /shared/sub/dir; echo in-sub >/shared/sub/dir/file; echo $$ >/memory/pid"]
    volumeMounts: [{name: shared, mountPath: /shared}, {name: memory, mountPath: /memory}]
  containers:
  - name: a
    command: [/app, serve]
    resources: {limits: {cpu: 250m, memory: 96Mi}}
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}
    - {name: MAYBE, valueFrom: {configMapKeyRef: {name: absent, key: x, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: BOTH, value: "$(COLOR)-$(POD)"}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom: [{configMapRef: {name: live}, prefix: LIVE_}]
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: picked, mountPath: /etc/picked}
    - {name: live, mountPath: /etc/live}
    - {name: login, mountPath: /etc/login, readOnly: true}
    - {name: optional-config, mountPath: /etc/none}
    - {name: optional-secret, mountPath: /etc/none2}
    - {name: projected, mountPath: /projected}
    - {name: info, mountPath: /info}
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: shared, mountPath: /shared}
    - {name: shared, mountPath: /just-sub, subPath: sub}
    - {name: settings, mountPath: /etc/one.conf, subPath: nested.conf}
    - {name: shared, mountPath: /by-name, subPathExpr: "$(POD)"}
    - {name: live, mountPath: /etc/nested}
    - {name: login, mountPath: /etc/nested/login}
  - name: b
    command: [sh, -c, "umask 0; exec /app listen /shared/socket"]
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: disk, mountPath: /read, readOnly: true}
    - {name: memory, mountPath: /memory}
  - {name: c, command: [/app, pause]}
`

func volumeRows() []row {
	return []row{
		{id: "k8s-configmap", core: true, on: onAll, asserts: "a ConfigMap's files have contents and modes of the volume; binary data too", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /etc/settings/color", "blue")
			s.want(t, "vol", "a", "cat /etc/settings/nested.conf", "a=b")
			s.want(t, "vol", "a", "stat -L -c %a /etc/settings/color", "440")
			s.want(t, "vol", "a", "od -An -tx1 /etc/settings/raw | tr -d ' '", "00010203")
			s.want(t, "vol", "a", "ls /etc/picked && cat /etc/picked/deep/er/colour && stat -L -c %a /etc/picked/deep/er/colour", "deep\nblue440")
		}},
		{id: "k8s-env", core: true, on: onAll, asserts: "variables from ConfigMap, Secret, fields, resources and other variables", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "echo $COLOR $PASSWORD $POD $BOTH $LIMIT $LIVE_first ${MAYBE:-none} $FROM_IMAGE $HOSTNAME", "blue s3cret vol blue-vol 96 one none yes volhost")
			p, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), "vol", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s.want(t, "vol", "a", "echo $POD_IP", p.Status.PodIP)
		}},
		{id: "k8s-credentials-secrets", core: true, on: onAll, asserts: "a Secret's files", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /etc/login/username; echo -n :; cat /etc/login/password", "alice:s3cret")
			s.want(t, "vol", "a", "echo x 2>/dev/null >/etc/login/username || echo refused", "refused")
		}},
		{id: "k8s-projected-volume", on: onAll, asserts: "ConfigMap, Secret, labels and a service account token in one volume", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /projected/cm/size; echo -n :; cat /projected/secret/name", "12:alice")
			s.want(t, "vol", "a", "grep -c vol /projected/labels", "1")
			s.want(t, "vol", "a", "cut -d. -f2 /projected/token | tr -d '\n' | wc -c | awk '{print ($1 > 100)}'", "1")
			s.want(t, "vol", "a", "ls /var/run/secrets/kubernetes.io/serviceaccount", "ca.crt\nnamespace\ntoken")
			s.want(t, "vol", "a", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", s.ns)
		}},
		{id: "k8s-nested-configmap-secret", on: onAll, asserts: "a Secret mounted below a ConfigMap's mount", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /etc/nested/first; echo -n :; cat /etc/nested/login/username", "one:alice")
		}},
		{id: "k8s-optional-empty-configmap", on: onAll, asserts: "an optional ConfigMap that is absent is an empty directory", run: func(t *testing.T, c *cluster) {
			c.shared(t, "volumes").want(t, "vol", "a", "ls /etc/none | wc -l", "0")
		}},
		{id: "k8s-optional-empty-secret", on: onAll, asserts: "an optional Secret that is absent is an empty directory", run: func(t *testing.T, c *cluster) {
			c.shared(t, "volumes").want(t, "vol", "a", "ls /etc/none2 | wc -l", "0")
		}},
		{id: "k8s-file-volume", on: onAll, asserts: "subPath mounts one file over a path, and a directory by name or by expression", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /etc/one.conf", "a=b")
			s.want(t, "vol", "a", "cat /just-sub/dir/file", "in-sub")
			s.want(t, "vol", "a", "echo x >/by-name/y && cat /shared/vol/y", "x")
			s.want(t, "vol", "a", "echo new >/just-sub/dir/more && cat /shared/sub/dir/more", "new")
		}},
		{id: "k8s-file-volume/made", on: onAll, asserts: "subPath mounts what an init container has made in an emptyDir: a file, and where a link leads", run: madeByInit},
		{id: "k8s-empty-dirs", core: true, on: onAll, asserts: "emptyDir on disk and in memory is shared by init and app containers; fsGroup owns it; read-only mounts are", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "cat /shared/greeting", "from-init")
			s.want(t, "vol", "b", "cat /shared/greeting && echo back >/shared/answer", "from-init")
			s.want(t, "vol", "a", "cat /shared/answer", "back")
			s.want(t, "vol", "a", "echo data >/disk/file && sync", "")
			s.want(t, "vol", "b", "cat /read/file; echo x 2>/dev/null >/read/file || echo refused", "data\nrefused")
			s.want(t, "vol", "a", "awk '$2 == \"/memory\" {print $3}' /proc/mounts", "tmpfs")
			s.want(t, "vol", "b", "test -s /memory/pid && echo there", "there")
			s.want(t, "vol", "a", "stat -c %g /disk", "2222")
		}},
		{id: "k8s-empty-dirs/size", on: onAll, asserts: "the sizeLimit of an emptyDir in memory holds", run: func(t *testing.T, c *cluster) {
			c.shared(t, "volumes").want(t, "vol", "a", "dd if=/dev/zero of=/memory/big bs=1M count=16 2>/dev/null; stat -c %s /memory/big | awk '{print ($1 > 1000000 && $1 <= 8388608)}'; rm -f /memory/big", "1")
		}},
		{id: "k8s-shared-volume", on: onAll, asserts: "two containers read and write the same files", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.sh(t, "vol", "a", "mkdir /shared/m && mv /shared/m /shared/moved && echo 1 >/shared/moved/x")
			s.want(t, "vol", "b", "cat /shared/moved/x && rm -r /shared/moved && ls -d /shared/moved 2>/dev/null || echo gone", "1\ngone")
		}},
		{id: "k8s-uds-shared-volume", core: true, on: onAll, asserts: "a UNIX socket in an emptyDir connects two containers", run: func(t *testing.T, c *cluster) {
			c.shared(t, "volumes").want(t, "vol", "a", "/app dial unix /shared/socket hello", "echo hello")
		}},
		{id: "k8s-hostname", core: true, on: onAll, asserts: "host name, /etc/hosts with aliases, /etc/hostname", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", "hostname; cat /etc/hostname", "volhost\nvolhost")
			s.want(t, "vol", "a", "awk '$1 == \"10.9.8.7\" {print $2, $3}' /etc/hosts", "db.example db2.example")
			s.want(t, "vol", "a", "grep -w volhost /etc/hosts | awk '{print $1}' | grep -cFx \"$POD_IP\"", "1")
		}},
		{id: "downward-api/files", on: onAll, asserts: "labels, annotations and limits as files", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.want(t, "vol", "a", `grep '^app=' /info/labels`, `app="vol"`)
			s.want(t, "vol", "a", `cat /info/cpu`, "250")
		}},
		{id: "k8s-inotify", core: true, on: onAll, asserts: "a changed ConfigMap changes its files, deleted keys go, and inotify tells", run: liveUpdate},
		{id: "downward-api/live", on: onAll, asserts: "a changed annotation changes its file", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "volumes")
			s.patchPod(t, "vol", `{"metadata":{"annotations":{"note":"second"}}}`)
			s.comes(t, "vol", "a", `grep '^note=' /info/annotations`, `note="second"`)
		}},
		{id: "k8s-termination-log", core: true, on: onAll, asserts: "the termination message, of the default and of another path, and the end of the log where there is none", run: terminationMessage},
		{id: "k8s-termination-log/sealed", on: onMachine, asserts: "a sealed pod's message is at the path of its policy; where the host may not read logs it says that, and nothing of the log", run: keptTermination},
		{id: "k8s-hostpath-volume", on: onProcess | onMachine, asserts: "a hostPath directory is copied into the guest, and the pod's events or the shim's log warn", run: hostPath},
		{id: "k8s-hostpath-volume/runc", on: onRunc, asserts: "a hostPath directory is the node's", run: hostPathShared},
		{id: "k8s-copy-file", core: true, on: onAll, asserts: "kubectl cp both ways", run: copyFiles},
		{id: "k8s-block-volume", on: onRunc | onMachine, asserts: "a claim with volumeMode Block is a device of the container", run: blockVolume},
		{id: "k8s-volume", on: onRunc, asserts: "a claim of a directory of the node is mounted (the product refuses those: see prepare)", run: localVolume},
		{id: "k8s-volume/two-pods", on: onCoffer, asserts: "an emptyDir is the pod's alone: a second pod does not see it", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: other}\nspec: {containers: [{name: a, volumeMounts: [{name: d, mountPath: /disk}]}], volumes: [{name: d, emptyDir: {}}]}\n")
			c.ready(t, "other")
			c.want(t, "other", "a", "ls /disk | wc -l", "0")
		}},
	}
}

func (s *space) patchPod(t *testing.T, name, patch string) {
	t.Helper()
	if _, err := s.n.Client().CoreV1().Pods(s.ns).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func liveUpdate(t *testing.T, c *cluster) {
	c.apply(t, `
kind: ConfigMap
metadata: {name: conf}
data: {kept: old, goes: away}
---
kind: Pod
metadata: {name: live}
spec:
  volumes: [{name: conf, configMap: {name: conf}}]
  containers:
  - {name: a, volumeMounts: [{name: conf, mountPath: /conf}]}
  - {name: watch, command: [/app, watch, /conf], volumeMounts: [{name: conf, mountPath: /conf}]}
`)
	c.ready(t, "live")
	c.printed(t, "live", "watch", "watching")
	c.want(t, "live", "a", "cat /conf/kept", "old")
	maps := c.n.Client().CoreV1().ConfigMaps(c.ns)
	if _, err := maps.Update(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"kept": "new", "came": "fresh"}}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.comes(t, "live", "a", "cat /conf/kept /conf/came; ls /conf", "newfreshcame\nkept")
	c.printed(t, "live", "watch", "changed")
}

func terminationMessage(t *testing.T, c *cluster) {
	c.apply(t, `
kind: Pod
metadata: {name: last}
spec:
  restartPolicy: Never
  containers:
  - {name: a, command: [sh, -c, "echo -n bye >/dev/termination-log; exit 3"]}
  - {name: b, terminationMessagePath: /tmp/words, command: [sh, -c, "echo -n other >/tmp/words"]}
  - {name: c, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo from the log; exit 1"]}
`)
	p := c.waitPod(t, "last", "ended", ended)
	for name, want := range map[string]string{"a": "bye", "b": "other", "c": "from the log\n"} {
		end := container(p, name).State.Terminated
		if end == nil || end.Message != want {
			t.Errorf("container %s: %s; expected the message %q", name, status(p), want)
		}
	}
	if end := container(p, "a").State.Terminated; end != nil && end.ExitCode != 3 {
		t.Errorf("exit code %d, expected 3", end.ExitCode)
	}
}

func madeByInit(t *testing.T, c *cluster) {
	c.apply(t, `
kind: Pod
metadata: {name: made}
spec:
  volumes: [{name: d, emptyDir: {}}]
  initContainers:
  - name: first
    command: [sh, -c, "mkdir -p /d/releases/2 && echo two >/d/releases/2/file && ln -s releases/2 /d/current"]
    volumeMounts: [{name: d, mountPath: /d}]
  containers:
  - name: a
    volumeMounts:
    - {name: d, mountPath: /etc/one, subPath: releases/2/file}
    - {name: d, mountPath: /etc/two, subPath: current/file, readOnly: true}
    - {name: d, mountPath: /now, subPath: current}
    - {name: d, mountPath: /d}
`)
	c.ready(t, "made")
	c.want(t, "made", "a", "cat /etc/one /etc/two /now/file", "two\ntwo\ntwo")
	c.want(t, "made", "a", "echo three >/etc/one && cat /etc/two /d/releases/2/file; echo x 2>/dev/null >/etc/two || echo refused", "three\nthree\nrefused")
}

func keptTermination(t *testing.T, c *cluster) {
	c.apply(t, c.seal(t, `
kind: Pod
metadata:
  name: kept
  annotations:
    coffer-project.io/allow.b: '{"logs": true}'
spec:
  restartPolicy: Never
  containers:
  - {name: a, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo secret >/dev/termination-log; echo secret; exit 3"]}
  - {name: b, terminationMessagePath: /tmp/words, command: [sh, -c, "echo -n open >/tmp/words"]}
`))
	p := c.waitPod(t, "kept", "ended", ended)
	if end := container(p, "a").State.Terminated; end == nil || end.ExitCode != 3 || !strings.Contains(end.Message, "allow.logs") || strings.Contains(end.Message, "secret") {
		t.Errorf("container a: %s", status(p))
	}
	if end := container(p, "b").State.Terminated; end == nil || end.Message != "open" {
		t.Errorf("container b: %s", status(p))
	}
}

func hostPathPod(t *testing.T, c *cluster) {
	c.own(t)
	if _, err := c.n.Run(t.Context(), "sh", "-c", "mkdir -p /opt/"+c.ns+" && echo of-the-node >/opt/"+c.ns+"/file"); err != nil {
		t.Fatal(err)
	}
	c.apply(t, fmt.Sprintf(`
kind: Pod
metadata: {name: host}
spec:
  volumes: [{name: h, hostPath: {path: /opt/%s, type: Directory}}]
  containers: [{name: a, volumeMounts: [{name: h, mountPath: /host}]}]
`, c.ns))
	c.ready(t, "host")
	c.want(t, "host", "a", "cat /host/file", "of-the-node")
}

func hostPath(t *testing.T, c *cluster) {
	hostPathPod(t, c)
	// A copy: the node does not see what the guest writes.
	c.sh(t, "host", "a", "echo changed 2>/dev/null >/host/written || true")
	if out, err := c.n.Run(t.Context(), "ls", "/opt/"+c.ns); err != nil || strings.Contains(out, "written") {
		t.Errorf("the node has %q: %v", out, err)
	}
}

func hostPathShared(t *testing.T, c *cluster) {
	hostPathPod(t, c)
	c.sh(t, "host", "a", "echo changed >/host/written")
	if out, err := c.n.Run(t.Context(), "cat", "/opt/"+c.ns+"/written"); err != nil || out != "changed\n" {
		t.Errorf("the node has %q: %v", out, err)
	}
}

func localVolume(t *testing.T, c *cluster) {
	c.own(t)
	if _, err := c.n.Run(t.Context(), "mkdir", "-p", "/opt/"+c.ns); err != nil {
		t.Fatal(err)
	}
	c.apply(t, fmt.Sprintf(`
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: %[1]s
  hostPath: {path: /opt/%[1]s}
---
kind: PersistentVolumeClaim
metadata: {name: dir}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[1]s, resources: {requests: {storage: 64Mi}}}
---
kind: Pod
metadata: {name: local}
spec:
  volumes: [{name: dir, persistentVolumeClaim: {claimName: dir}}]
  containers: [{name: a, volumeMounts: [{name: dir, mountPath: /data}]}]
`, c.ns))
	t.Cleanup(func() {
		_ = c.n.Client().CoreV1().PersistentVolumes().Delete(context.Background(), c.ns, metav1.DeleteOptions{})
	})
	c.ready(t, "local")
	c.want(t, "local", "a", "echo kept >/data/x && cat /data/x", "kept")
}
