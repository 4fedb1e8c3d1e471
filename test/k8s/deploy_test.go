package k8s

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// system is the namespace of the product's DaemonSet.
const system = "coffer-system"

// nodeImage puts the image of the DaemonSet, which `make node-image` makes, into
// the node's registry.
func (c *cluster) nodeImage(t *testing.T, images *node.Images) string {
	t.Helper()
	index, err := layout.ImageIndexFromPath(directory("COFFER_NODE_IMAGE", "../../build/node-image"))
	if err != nil {
		t.Fatalf("%v (`make node-image` makes it)", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref := node.Registry + "/coffer-node:0.1.0"
	if err := images.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	return ref
}

// manifests writes a copy of deploy/manifests with the image's name, as users put
// it in, and for a node without systemd.
func (c *cluster) manifests(t *testing.T, image string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(the.manifests, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests in %s: %v", the.manifests, err)
	}
	dir := t.TempDir()
	changed := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		changed += strings.Count(string(text), "registry.example/coffer-node:0.1.0") + strings.Count(string(text), "--containerd-restart=systemd")
		out := strings.NewReplacer("registry.example/coffer-node:0.1.0", image, "--containerd-restart=systemd", "--containerd-restart=none").Replace(string(text))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if changed != 2 {
		t.Fatalf("%d places in the manifests are to be changed; expected the image and who restarts containerd", changed)
	}
	return dir
}

// helm runs Helm for the product's namespace.
func (c *cluster) helm(t *testing.T, args ...string) {
	t.Helper()
	program := directory("COFFER_HELM", "../../build/tools/helm")
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("COFFER_REQUIRE_K8S") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v (`make build/tools/helm` makes it)", err)
	}
	cmd := exec.CommandContext(t.Context(), program, append(args, "--namespace", system, "--kubeconfig", c.n.Kubeconfig())...)
	home := filepath.Join(c.n.Dir(), "helm")
	cmd.Env = []string{"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home, "HOME=" + home}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v: %s", args[0], err, out)
	}
}

// agentIsBounded tries, with the rights of the DaemonSet's account on this node,
// what it must not be able to do.
func (c *cluster) agentIsBounded(t *testing.T) {
	t.Helper()
	for _, tc := range []struct{ from, patch, want string }{
		{node.Name, `{"metadata":{"labels":{"coffer-project.io/kvm":null}}}`, ""},
		{node.Name, `{"metadata":{"labels":{"kubernetes.io/os":"other"}}}`, "may change no labels but coffer-project.io/"},
		{node.Name, `{"metadata":{"annotations":{"a":"b"}}}`, "may change nothing but labels"},
		{node.Name, `{"spec":{"unschedulable":true}}`, "may change nothing but labels"},
		{"other", `{"metadata":{"labels":{"coffer-project.io/snp":"true"}}}`, "may change no other node"},
	} {
		config := c.n.Config()
		config.Impersonate = rest.ImpersonationConfig{
			UserName: "system:serviceaccount:" + system + ":coffer-node", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + system, "system:authenticated"},
			Extra: map[string][]string{"authentication.kubernetes.io/node-name": {tc.from}},
		}
		agent, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = agent.CoreV1().Nodes().Patch(t.Context(), node.Name, types.StrategicMergePatchType, []byte(tc.patch), metav1.PatchOptions{})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("the agent of node %s patches %s: %v; expected %q", tc.from, tc.patch, err, tc.want)
		}
	}
}
