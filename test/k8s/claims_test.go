package k8s

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// blockClaim makes the claim "disk" of a block device of 64 MiB, which it gets by a
// file of the node, and returns the file's name there.
func (c *cluster) blockClaim(t *testing.T) string {
	t.Helper()
	c.own(t)
	file := "/opt/" + c.ns + ".img"
	out, err := c.n.Run(t.Context(), "sh", "-c", "truncate -s 64M "+file+" && losetup --find --show "+file)
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(out)
	t.Cleanup(func() {
		if _, err := c.n.Run(context.Background(), "losetup", "--detach", device); err != nil {
			t.Log(err)
		}
	})
	c.apply(t, fmt.Sprintf(`
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: %[1]s
  local: {path: %[2]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [coffer-node]}]}]}}
---
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: %[1]s, resources: {requests: {storage: 64Mi}}}
`, c.ns, device))
	t.Cleanup(func() {
		_ = c.n.Client().CoreV1().PersistentVolumes().Delete(context.Background(), c.ns, metav1.DeleteOptions{})
	})
	return file
}

func blockVolume(t *testing.T, c *cluster) {
	file := c.blockClaim(t)
	c.apply(t, `
kind: Pod
metadata: {name: block}
spec:
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
  containers: [{name: a, volumeDevices: [{name: disk, devicePath: /dev/data}]}]
`)
	c.ready(t, "block")
	c.want(t, "block", "a", "test -b /dev/data && blockdev --getsize64 /dev/data", "67108864")
	c.sh(t, "block", "a", "echo written-by-the-pod | dd of=/dev/data bs=512 seek=8 conv=sync 2>/dev/null && sync")
	c.remove(t, "block")
	if out, err := c.n.Run(t.Context(), "sh", "-c", "dd if="+file+" bs=512 skip=8 count=1 2>/dev/null | head -c 18"); err != nil || out != "written-by-the-pod" {
		t.Errorf("the node's file has %q: %v", out, err)
	}
}

// encryptedVolume has a database's claim under a key of the trustee: what a pod
// wrote is there for the next one, and not for the node.
func encryptedVolume(t *testing.T, c *cluster) {
	o := c.owner(t)
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	o.do(t, "trustee", "secret", "set", "kbs:///claims/disk/key", o.file(t, "disk-key", key))
	file := c.blockClaim(t)
	secret := rand.Text()
	manifest := fmt.Sprintf(`
kind: Pod
metadata:
  name: db
  annotations:
    coffer-project.io/secure-mount.disk: '{"key": "kbs:///claims/disk/key", "mount": "/var/lib/db"}'
    coffer-project.io/allow.a: '{"logs": true}'
spec:
  restartPolicy: Never
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
  containers:
  - name: a
    command: [sh, -c, "cat /var/lib/db/kept 2>/dev/null || echo none; echo %s >/var/lib/db/kept; sync"]
    volumeDevices: [{name: disk, devicePath: /dev/data}]
`, secret)
	sealed := c.seal(t, manifest)
	for _, want := range []string{"none\n", secret + "\n"} {
		c.apply(t, sealed)
		c.succeeded(t, "db")
		if out := c.logs(t, "db", "a"); out != want {
			t.Errorf("it printed %q, expected %q", out, want)
		}
		c.remove(t, "db")
	}
	disk, err := c.n.Run(t.Context(), "sh", "-c", "head -c 4 "+file+" && { grep -c "+secret+" "+file+" || true; }")
	if err != nil || disk != "LUKS0\n" {
		t.Errorf("on the node's disk: %q, %v; expected a LUKS header, and no line with what the pod wrote", disk, err)
	}

	// The same disk, which the node gives to a pod whose owner expects none.
	var pod map[string]any
	bare := strings.NewReplacer("name: db", "name: bare", "    coffer-project.io/secure-mount.disk: '{\"key\": \"kbs:///claims/disk/key\", \"mount\": \"/var/lib/db\"}'\n", "",
		"  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]\n", "", "    volumeDevices: [{name: disk, devicePath: /dev/data}]\n", "").Replace(manifest)
	if err := yaml.Unmarshal([]byte(c.seal(t, bare)), &pod); err != nil {
		t.Fatal(err)
	}
	spec := pod["spec"].(map[string]any)
	spec["volumes"] = []any{map[string]any{"name": "disk", "persistentVolumeClaim": map[string]any{"claimName": "disk"}}}
	spec["containers"].([]any)[0].(map[string]any)["volumeDevices"] = []any{map[string]any{"name": "disk", "devicePath": "/dev/data"}}
	text, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, string(text))
	if why := c.refusals(t, "bare")["a"]; !strings.Contains(why, "device") {
		t.Errorf("a device that the policy has not: %q", why)
	}
}
