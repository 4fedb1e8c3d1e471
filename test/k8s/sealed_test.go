package k8s

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/test/k8s/node"
)

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// refusals waits until every container has either run or been refused, and
// returns why each was not.
func (s *space) refusals(t *testing.T, pod string) map[string]string {
	t.Helper()
	why := map[string]string{}
	s.waitPod(t, pod, "settled", func(p *corev1.Pod) (bool, error) {
		all := append(append([]corev1.ContainerStatus(nil), p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...)
		for _, c := range all {
			switch {
			case c.State.Running != nil:
				delete(why, c.Name)
			case c.State.Terminated != nil && c.State.Terminated.ContainerID != "" && c.State.Terminated.Reason != "StartError" && c.State.Terminated.Reason != "ContainerCannotRun":
				delete(why, c.Name)
			case c.State.Terminated != nil && c.State.Terminated.Message != "":
				why[c.Name] = c.State.Terminated.Message
			case c.State.Waiting != nil && c.State.Waiting.Message != "" && !strings.HasPrefix(c.State.Waiting.Message, "back-off"):
				why[c.Name] = c.State.Waiting.Message
			case c.LastTerminationState.Terminated != nil && c.LastTerminationState.Terminated.Message != "":
				why[c.Name] = c.LastTerminationState.Terminated.Message
			default:
				return false, nil
			}
		}
		return len(all) == len(p.Spec.Containers)+len(p.Spec.InitContainers), nil
	})
	return why
}

func sealedRows() []row {
	return []row{
		{id: "unsealed", core: true, on: onMachine, asserts: "a pod with the runtime class only runs, the node's log and the pod's notices say that it is unsealed, and it gets no secret", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			s.noticed(t, "io", "Unsealed", "unsealed: this pod has no initdata")
			out, err := os.ReadFile(filepath.Join(s.n.Dir(), "log/containerd.log"))
			if err != nil || !strings.Contains(string(out), "unsealed: this pod has no initdata") {
				t.Error("containerd's log, with that of the shims, does not say that a pod is unsealed")
			}
			text, _, err := s.attempt(t, "io", "a", "sh", "-c", "wget -q -O - http://127.0.0.1:8006/cdh/resource/shop/db/password 2>&1 && echo got it")
			if err != nil || strings.Contains(text, "got it") {
				t.Errorf("a resource: %q, %v", text, err)
			}
		}},
		{id: "k8s-confidential-attestation", core: true, on: onMachine, asserts: "a sealed pod gets its secret in the environment, and by HTTP inside the guest; not that of another pod", run: attested},
		{id: "k8s-confidential-attestation/denied", on: onMachine, asserts: "a resource policy that denies all: the pod does not start, and the event says why", run: func(t *testing.T, c *cluster) {
			o := c.owner(t)
			o.put(t, "kbs:///denied/db/password")
			o.do(t, "trustee", "policy", "set", o.file(t, "deny.rego", []byte("package policy\n\ndefault allow := false\n")), "--scope", "kbs:///denied")
			c.apply(t, c.seal(t, secretPod("denied", "kbs:///denied/db/password", "")))
			c.event(t, "denied", "denied/db/password")
		}},
		{id: "k8s-confidential-attestation/reference-values", on: onMachine, asserts: "without reference values of the machine nothing is given; with them, it is", run: referenceValues},
		{id: "k8s-sealed-secret", on: onMachine, asserts: "sealed secrets are opened in environment and file; one whose key is not given keeps the pod from starting", run: sealedSecrets},
		{id: "k8s-guest-pull-image", on: onMachine, asserts: "an image that the node has pulled for runc is pulled again in the guest", run: func(t *testing.T, c *cluster) {
			images, err := the.images()
			if err != nil {
				t.Fatal(err)
			}
			ref := node.Registry + "/twice:1"
			if err := images.Copy(node.AppImage, ref); err != nil {
				t.Fatal(err)
			}
			c.apply(t, fmt.Sprintf("kind: Pod\nmetadata: {name: plain}\nspec: {runtimeClassName: runc, restartPolicy: Never, containers: [{name: a, image: %q, command: [\"true\"]}]}\n", ref))
			c.succeeded(t, "plain")
			before := images.Pulls("twice")
			c.apply(t, fmt.Sprintf("kind: Pod\nmetadata: {name: guest}\nspec: {containers: [{name: a, image: %q}]}\n", ref))
			c.ready(t, "guest")
			if after := images.Pulls("twice"); after <= before {
				t.Errorf("the guest has asked the registry for nothing: %d requests before, %d after", before, after)
			}
		}},
		{id: "k8s-guest-pull-image/too-big", on: onMachine, asserts: "an image that does not fit into the guest: the event says so", run: func(t *testing.T, c *cluster) {
			images, err := the.images()
			if err != nil {
				t.Fatal(err)
			}
			ref := node.Registry + "/big:1"
			if err := images.PushBig(ref, 700<<20); err != nil {
				t.Fatal(err)
			}
			c.apply(t, fmt.Sprintf("kind: Pod\nmetadata: {name: big}\nspec: {containers: [{name: a, image: %q, command: [/app, pause]}]}\n", ref))
			c.event(t, "big", "no space: the image needs")
		}},
		{id: "k8s-guest-pull-image/timeout", on: onMachine, not: "create_timeout is the handler's and outlasts the kubelet's; a pull that is given up is tested in internal/host/task", asserts: "a pull longer than the time-out fails"},
		{id: "k8s-guest-pull-image-encrypted", on: onMachine, core: true, asserts: "encrypted layers: with the key the container runs; without it, or with a wrong one, the event says why", run: encryptedImages},
		{id: "k8s-guest-pull-image-authenticated", on: onMachine, asserts: "right, wrong and no credentials of a registry, from the trustee", run: authenticatedImages},
		{id: "k8s-guest-pull-image-signature", on: onMachine, asserts: "unsigned where none is asked for; unsigned, signed and signed by another where a key is demanded", run: signedImages},
		{id: "k8s-trusted-ephemeral-data-storage", core: true, on: onMachine, asserts: "what a pod writes into an emptyDir is not to be read on the node", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: Pod\nmetadata: {name: store}\nspec: {volumes: [{name: d, emptyDir: {}}], containers: [{name: a, volumeMounts: [{name: d, mountPath: /d}]}]}\n")
			c.ready(t, "store")
			marker := "marker-" + rand.Text()
			c.sh(t, "store", "a", "for i in $(seq 20000); do echo "+marker+"; done >/d/file; sync; echo 3 2>/dev/null >/proc/sys/vm/drop_caches; wc -l </d/file")
			if c.hostHas(t, "qemu-system-x86_64", marker) {
				t.Error("the node's file has the text")
			}
		}},
		{id: "spark", core: true, on: onMachine, asserts: "a job whose runtime class alone was changed, and prepared, reads a data set that is encrypted with its owner's key, which it gets after attestation", run: batch},
	}
}

// noticed waits until a pod's shim has written down what a person should know.
func (s *space) noticed(t *testing.T, pod string, words ...string) {
	t.Helper()
	s.eventually(t, fmt.Sprintf("a notice of pod %s with %q", pod, words), func() error {
		out, err := s.n.Run(t.Context(), filepath.Join(the.bin, "coffer"), "doctor", "--pods")
		if err != nil {
			return err
		}
		var all []string
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, s.ns+"/"+pod+" ") {
				continue
			}
			if all = append(all, line); containsAll(line, words) {
				return nil
			}
		}
		return fmt.Errorf("there are %q", all)
	})
}

// secretPod prints the digest of a secret in its environment.
func secretPod(name, uri, more string) string {
	return fmt.Sprintf(`
kind: Pod
metadata:
  name: %s
  annotations:
    coffer-project.io/secret-env.a: '{"PASSWORD": %q}'
    coffer-project.io/allow.a: '{"logs": true}'
    %s
spec:
  restartPolicy: Never
  containers:
  - name: a
    command: [sh, -c, "printf %%s $PASSWORD | sha256sum"]
`, name, uri, more)
}

func attested(t *testing.T, c *cluster) {
	o := c.owner(t)
	mine := o.put(t, "kbs:///mine/db/password")
	o.put(t, "kbs:///other/db/password")
	c.apply(t, c.seal(t, `
kind: Pod
metadata:
  name: sealed
  annotations:
    coffer-project.io/secret-env.a: '{"PASSWORD": "kbs:///mine/db/password"}'
    coffer-project.io/allow.a: '{"logs": true}'
spec:
  restartPolicy: Never
  containers:
  - name: a
    command: [sh, -c, "printf %s $PASSWORD | sha256sum; wget -q -O - http://127.0.0.1:8006/cdh/resource/mine/db/password | sha256sum; wget -q -O - http://127.0.0.1:8006/cdh/resource/other/db/password || echo refused"]
`))
	c.succeeded(t, "sealed")
	want := sum(mine) + "  -\n" + sum(mine) + "  -\n"
	if out := c.logs(t, "sealed", "a"); !strings.HasPrefix(out, want) || !strings.Contains(out, "refused") {
		t.Errorf("it printed %q, expected %q and refused", out, want)
	}
	if out := o.do(t, "trustee", "verdicts"); !strings.Contains(out, "mine/db/password") {
		t.Errorf("the trustee's verdicts: %q", clip(out))
	}
}

func referenceValues(t *testing.T, c *cluster) {
	o := c.owner(t)
	value := o.put(t, "kbs:///measured/db/password")
	// Another number of processors is another measurement: the node's choice here,
	// the owner's below.
	sealed := c.seal(t, secretPod("unknown", "kbs:///measured/db/password", `coffer-project.io/vcpus: "1"`))
	c.apply(t, strings.ReplaceAll(sealed, `coffer-project.io/vcpus: "1"`, `coffer-project.io/vcpus: "3"`))
	c.event(t, "unknown", "measured/db/password")
	c.remove(t, "unknown")
	c.apply(t, c.seal(t, secretPod("known", "kbs:///measured/db/password", `coffer-project.io/vcpus: "3"`)))
	c.succeeded(t, "known")
	if out := c.logs(t, "known", "a"); out != sum(value)+"  -\n" {
		t.Errorf("it printed %q", out)
	}
}

func sealedSecrets(t *testing.T, c *cluster) {
	o := c.owner(t)
	key := o.file(t, "sealing", nil)
	o.do(t, "secret", "keygen", "--kid", "kbs:///sealed/keys/signing", "--out", key, "--put")
	private := key + ".private.jwk"
	value := rand.Text()
	text := o.do(t, "secret", "seal", "vault", "--sign-key", private, "--resource", "kbs:///sealed/db/password", "--put", o.file(t, "value", []byte(value)))
	c.apply(t, c.seal(t, fmt.Sprintf(`
kind: Secret
metadata: {name: login}
stringData: {password: %q}
---
kind: Pod
metadata:
  name: sealed
  annotations:
    coffer-project.io/allow.a: '{"logs": true}'
spec:
  restartPolicy: Never
  volumes: [{name: login, secret: {secretName: login}}]
  containers:
  - name: a
    command: [sh, -c, "printf %%s $PASSWORD | sha256sum; sha256sum </login/password"]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}]
    volumeMounts: [{name: login, mountPath: /login}]
`, text)))
	c.succeeded(t, "sealed")
	if out := c.logs(t, "sealed", "a"); out != sum(value)+"  -\n"+sum(value)+"  -\n" {
		t.Errorf("it printed %q", out)
	}
}

// stub gives the node's containerd a name of an image for one that it can
// unpack: it pulls what the guest pulls again, and cannot decrypt layers.
func (c *cluster) stub(t *testing.T, manifest string) {
	t.Helper()
	objects, err := decode(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		spec, _ := o.Object["spec"].(map[string]any)
		containers, _ := spec["containers"].([]any)
		for _, one := range containers {
			m, _ := one.(map[string]any)
			image, _ := m["image"].(string)
			// The node's name of an image with a digest has no tag.
			image = regexp.MustCompile(`:[^:/@]+@`).ReplaceAllString(image, "@")
			if _, err := c.n.Run(t.Context(), "ctr", "-n", "k8s.io", "images", "tag", "--force", node.AppImage, image); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func encryptedImages(t *testing.T, c *cluster) {
	o := c.owner(t)
	images := map[string]string{}
	for _, name := range []string{"good", "none", "wrong"} {
		images[name] = o.do(t, "image", "protect", node.AppImage, node.Registry+"/encrypted/"+name+":1", "--key", "kbs:///images/"+name+"/key", "--registry-ca", c.n.CA())
	}
	manifest := "kind: Pod\nmetadata: {name: encrypted}\nspec:\n  restartPolicy: Never\n  containers:\n"
	for name, pull := range map[string]string{"good": "Always", "none": "IfNotPresent", "wrong": "IfNotPresent"} {
		manifest += fmt.Sprintf("  - {name: %s, image: %q, imagePullPolicy: %s, command: [/app, pause], securityContext: {runAsUser: 0, runAsGroup: 0}}\n", name, images[name], pull)
	}
	sealed := c.seal(t, manifest, "--host-images", "push")
	o.do(t, "trustee", "secret", "delete", "kbs:///images/none/key")
	other := make([]byte, 32)
	_, _ = rand.Read(other)
	o.do(t, "trustee", "secret", "set", "kbs:///images/wrong/key", o.file(t, "other", other))
	c.apply(t, sealed)
	why := c.refusals(t, "encrypted")
	if reason, refused := why["good"]; refused {
		t.Errorf("with the key: %s", reason)
	}
	for _, name := range []string{"none", "wrong"} {
		if !strings.Contains(why[name], "images/"+name+"/key") && !strings.Contains(why[name], "decrypt") {
			t.Errorf("container %s: %q; expected that the layer cannot be decrypted", name, why[name])
		}
	}
	// What the node has are the stubs, of some hundred bytes, and not the images.
	out, err := c.n.Run(t.Context(), "ctr", "-n", "k8s.io", "images", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good", "none", "wrong"} {
		if _, digest, ok := strings.Cut(images[name], "@"); !ok || strings.Contains(out, digest) {
			t.Errorf("the node has pulled the encrypted image %s", images[name])
		}
		if !strings.Contains(out, node.Registry+"/encrypted/"+name+"@") {
			t.Errorf("the node has no stub of %s: %s", images[name], out)
		}
	}
}

func authenticatedImages(t *testing.T, c *cluster) {
	o := c.owner(t)
	images, err := the.images()
	if err != nil {
		t.Fatal(err)
	}
	auths := map[string]any{}
	for name, password := range map[string]string{"right": "let-me-in", "wrong": "wrong", "none": ""} {
		images.Protect("private-"+name, "user", "let-me-in")
		// Images that differ: what a guest has, it does not ask for again.
		if err := images.CopyLabelled(node.AppImage, node.Registry+"/private-"+name+"/app:1", name); err != nil {
			t.Fatal(err)
		}
		if password != "" {
			auths[node.Registry+"/private-"+name] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("user:" + password))}
		}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	for _, name := range []string{"right", "wrong", "none"} {
		all[node.Registry+"/private-"+name] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("user:let-me-in"))}
	}
	mine, err := json.Marshal(map[string]any{"auths": all})
	if err != nil {
		t.Fatal(err)
	}
	o.do(t, "trustee", "secret", "set", "kbs:///registry/pull/auth", o.file(t, "auth.json", text))
	manifest := "kind: Pod\nmetadata: {name: private}\nspec:\n  restartPolicy: Never\n  containers:\n"
	for _, name := range []string{"right", "wrong", "none"} {
		// The node has the image: what is looked at is the guest's way to it.
		manifest += fmt.Sprintf("  - {name: %s, image: \"%s/private-%s/app:1\", imagePullPolicy: Never, command: [/app, pause]}\n", name, node.Registry, name)
	}
	sealed := c.seal(t, manifest, "--credentials", "kbs:///registry/pull/auth", "--authfile", o.file(t, "mine.json", mine))
	c.stub(t, sealed)
	c.apply(t, sealed)
	why := c.refusals(t, "private")
	if reason, refused := why["right"]; refused {
		t.Errorf("with the right credentials: %s", reason)
	}
	for _, name := range []string{"wrong", "none"} {
		if !strings.Contains(strings.ToLower(why[name]), "credential") && !strings.Contains(strings.ToLower(why[name]), "authori") {
			t.Errorf("container %s: %q; expected that credentials are refused", name, why[name])
		}
	}
}

func signedImages(t *testing.T, c *cluster) {
	o := c.owner(t)
	images, err := the.images()
	if err != nil {
		t.Fatal(err)
	}
	owner, stranger := o.signer(t, "owner"), o.signer(t, "stranger")
	repository := node.Registry + "/signed"
	manifest := "kind: Pod\nmetadata: {name: signed}\nspec:\n  restartPolicy: Never\n  containers:\n"
	for _, name := range []string{"good", "unsigned", "stranger"} {
		ref := repository + "/" + name + ":1"
		// Images that differ, so that a signature is of one of them.
		if err := images.CopyLabelled(node.AppImage, ref, name); err != nil {
			t.Fatal(err)
		}
		for key, by := range map[string]signer{"good": owner, "stranger": stranger} {
			if key != name {
				continue
			}
			if out, err := o.coffer(t.Context(), "image", "sign", ref, "--key", by.private, "--registry-ca", c.n.CA()); err != nil {
				t.Fatal(out, err)
			}
		}
		manifest += fmt.Sprintf("  - {name: %s, image: %q, command: [/app, pause]}\n", name, ref)
	}
	manifest += fmt.Sprintf("  - {name: elsewhere, image: %q, command: [/app, pause]}\n", node.AppImage)
	c.apply(t, c.seal(t, manifest, "--image-policy", o.file(t, "policy.json", imagePolicy(t, repository, owner))))
	why := c.refusals(t, "signed")
	for _, name := range []string{"good", "elsewhere"} {
		if reason, refused := why[name]; refused {
			t.Errorf("container %s: %s", name, reason)
		}
	}
	for _, name := range []string{"unsigned", "stranger"} {
		if !strings.Contains(why[name], "sign") {
			t.Errorf("container %s: %q; expected that a signature is missing", name, why[name])
		}
	}
}

// batch is the case of the Spark job: real Spark is not to be had here, so the job
// is our own.
func batch(t *testing.T, c *cluster) {
	o := c.owner(t)
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	var csv strings.Builder
	want := map[string]int{}
	csv.WriteString("region,amount\n")
	for i := range 5000 {
		region := []string{"north", "south", "west"}[i%3]
		want[region] += i
		fmt.Fprintf(&csv, "%s,%d\n", region, i)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, seal.NonceSize())
	_, _ = rand.Read(nonce)
	images, err := the.images()
	if err != nil {
		t.Fatal(err)
	}
	images.Publish("orders.csv.enc", seal.Seal(nonce, nonce, []byte(csv.String()), nil))
	// The key stands in the cluster sealed: only a guest that has attested opens it.
	signing := o.file(t, "data-signing", nil)
	o.do(t, "secret", "keygen", "--kid", "kbs:///spark/keys/signing", "--out", signing, "--put")
	text := o.do(t, "secret", "seal", "vault", "--sign-key", signing+".private.jwk", "--resource", "kbs:///spark/data/key", "--put", o.file(t, "key", []byte(hex.EncodeToString(key))))
	job := func(class string) string {
		return fmt.Sprintf(`
kind: Secret
metadata: {name: orders}
stringData: {key: %q}
---
apiVersion: batch/v1
kind: Job
metadata: {name: totals}
spec:
  backoffLimit: 0
  template:
    spec:
      runtimeClassName: %s
      restartPolicy: Never
      volumes: [{name: work, emptyDir: {}}]
      initContainers:
      - {name: fetch, command: [wget, -q, -O, /scratch/orders, "http://%s/orders.csv.enc"], volumeMounts: [{name: work, mountPath: /scratch}]}
      containers:
      - name: totals
        command: [/app, totals, /scratch/orders]
        env: [{name: DATA_KEY, valueFrom: {secretKeyRef: {name: orders, key: key}}}]
        volumeMounts: [{name: work, mountPath: /scratch}]
`, text, class, node.DataAddress)
	}
	finish := func(condition string) string {
		c.kubectl(t, "wait", "--for=condition="+condition, "job/totals", "--timeout="+c.h.patience().String())
		return c.kubectl(t, "logs", "job/totals")
	}
	c.apply(t, job(runc))
	if out := finish("failed"); !strings.Contains(out, "no key in hexadecimal") {
		t.Errorf("without a guest: %q", out)
	}
	c.kubectl(t, "delete", "job/totals", "secret/orders", "--wait")
	c.apply(t, c.seal(t, job(c.h.name), "--allow-logs"))
	expected := fmt.Sprintf("north %d\nsouth %d\nwest %d\n", want["north"], want["south"], want["west"])
	if out := finish("complete"); out != expected {
		t.Errorf("it printed %q, expected %q", out, expected)
	}
}
