package kube_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestSubPathOfFiles mounts single files of ConfigMaps and Secrets, and a volume
// whose optional ConfigMap does not exist.
func TestSubPathOfFiles(t *testing.T) {
	t.Parallel()
	const text = `
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {app.conf: "a=1", extra.conf: "b=2"}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  containers:
  - name: a
    image: registry.example/a:1
    env: [{name: WHICH, value: extra}]
    volumeMounts:
    - {name: config, mountPath: /etc/app/app.conf, subPath: app.conf}
    - {name: config, mountPath: /etc/app/extra.conf, subPathExpr: $(WHICH).conf}
    - {name: nested, mountPath: /etc/nested, subPath: conf/d/}
    - {name: nested, mountPath: /etc/host-name, subPath: info/name}
    - {name: tls, mountPath: /etc/tls.key, subPath: tls.key}
    - {name: none, mountPath: /etc/none}
  volumes:
  - {name: config, configMap: {name: config}}
  - name: nested
    projected:
      sources:
      - configMap: {name: config, items: [{key: app.conf, path: conf/d/app.conf}]}
      - downwardAPI: {items: [{path: info/name, fieldRef: {fieldPath: metadata.name}}]}
  - {name: tls, secret: {secretName: tls, optional: true}}
  - {name: none, configMap: {name: absent, optional: true}}
`
	text2 := strings.Replace(text, "metadata: {name: p}", "metadata: {name: p, annotations: {coffer-project.io/secret-files.tls: '{\"tls.key\":\"kbs:///shop/tls/key\"}'}}", 1)
	g := one(t, text2, kube.Options{})
	want := []podpolicy.Mount{
		{Path: "/etc/app/app.conf", Volume: "config", SubPath: "app.conf", ReadOnly: true},
		{Path: "/etc/app/extra.conf", Volume: "config", SubPath: "extra.conf", ReadOnly: true},
		{Path: "/etc/host-name", Volume: "nested", SubPath: "info/name", ReadOnly: true},
		{Path: "/etc/nested", Volume: "nested", SubPath: "conf/d", ReadOnly: true},
		{Path: "/etc/none", Volume: "none", ReadOnly: true},
		{Path: "/etc/tls.key", Volume: "tls", SubPath: "tls.key", ReadOnly: true},
	}
	got := slices.SortedFunc(slices.Values(g.Policy.Containers[0].Mounts), func(a, b podpolicy.Mount) int { return strings.Compare(a.Path, b.Path) })
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(podpolicy.Volume{Kind: podpolicy.VolumeFiles}, g.Policy.Volumes["none"], cmp.AllowUnexported(podpolicy.Volume{})); d != "" {
		t.Error(d)
	}
	// Without the annotation the Secret is empty, and so there is no such file.
	if _, err := generate(t, text, kube.Options{}); err == nil || !strings.Contains(err.Error(), "volume tls has no file tls.key (name one of its files") {
		t.Errorf("a file that is not there: %v", err)
	}
}
