package k8s

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// system is the namespace of the product's DaemonSet.
const system = "coffer-system"

// nodeImage is the index of the image that `make node-image` makes, helm the program
// of `make build/tools/helm`.
func nodeImage() string {
	return filepath.Join(directory("COFFER_NODE_IMAGE", "../../build/node-image"), "index.json")
}
func helm() string { return directory("COFFER_HELM", "../../build/tools/helm") }

// nodeImage puts the image of the DaemonSet into the node's registry.
func (c *cluster) nodeImage(t *testing.T, images *node.Images) string {
	t.Helper()
	index, err := layout.ImageIndexFromPath(filepath.Dir(nodeImage()))
	if err != nil {
		t.Fatal(err)
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
	cmd := exec.CommandContext(t.Context(), helm(), append(args, "--namespace", system, "--kubeconfig", c.n.Kubeconfig())...)
	home := filepath.Join(c.n.Dir(), "helm")
	cmd.Env = []string{"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home, "HOME=" + home}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v: %s", args[0], err, out)
	}
}
