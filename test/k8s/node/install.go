package node

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Install runs the product's `coffer install` on a node that has not been
// installed to: a second boot finds what the first one did. containerd takes it
// up when it is started.
func (c Coffer) Install(ctx context.Context, n *Node) error {
	_, err := os.Stat(n.disk("/opt/coffer/install/record.json"))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := []string{"install", "--shim", filepath.Join(c.Bin, "containerd-shim-coffer-v2"), "--guest-image", c.Guest, "--settings", settingsFile}
	if c.Sandboxer != "" {
		args = append(args, "--sandboxer", c.Sandboxer)
	}
	out, err := n.Run(ctx, filepath.Join(c.Bin, "coffer"), args...)
	n.log.InfoContext(ctx, "coffer install", "printed", out)
	return err
}

// Admit makes the runtime classes of the product's manifests and labels the node
// with what the installed program finds that it can do.
func (c Coffer) Admit(ctx context.Context, n *Node) error {
	classes, err := readClasses(filepath.Join(c.Manifests, "40-runtimeclasses.yaml"))
	if err != nil {
		return err
	}
	for _, class := range classes {
		// Ten pods at once have to fit on two processors.
		class.Overhead.PodFixed[corev1.ResourceCPU] = resource.MustParse("100m")
		if _, err := n.client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	out, err := n.Run(ctx, "/opt/coffer/bin/coffer", "doctor", "--output", "json")
	if err != nil {
		return fmt.Errorf("this machine cannot run pods in machines: %w: %s", err, out)
	}
	var report struct {
		Labels map[string]string `json:"labels"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": report.Labels}})
	if err != nil {
		return err
	}
	_, err = n.client.CoreV1().Nodes().Patch(ctx, Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

func readClasses(file string) ([]*nodev1.RuntimeClass, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var list []*nodev1.RuntimeClass
	for d := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		class := &nodev1.RuntimeClass{}
		err := d.Decode(class)
		switch {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil || class.Overhead == nil:
			return nil, fmt.Errorf("%s: runtime class %q without overhead: %w", file, class.Name, err)
		}
		list = append(list, class)
	}
}

// Written is what lies on the node's disk below the directories, by path, beyond
// what this machine has there: of a file its digest, mode, owner and time of
// change, of a link its target; what the machine has and the node has removed is
// a device. Directories that both have are left out.
func (n *Node) Written(directories ...string) (map[string]string, error) {
	list := map[string]string{}
	for _, d := range directories {
		outside := n.disk(d)
		if outside == "" {
			return nil, fmt.Errorf("%s is not on the node's disk", d)
		}
		err := filepath.WalkDir(outside, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			rest, err := filepath.Rel(outside, path)
			if err != nil {
				return err
			}
			inside := filepath.Join(d, rest)
			if _, err := os.Lstat(inside); err == nil && e.IsDir() {
				return nil
			}
			list[inside], err = describeFile(path)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func describeFile(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	text := info.Mode().String()
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		text += fmt.Sprintf(" %d:%d", owner.Uid, owner.Gid)
	}
	switch {
	case info.Mode().IsRegular():
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s %s %x", text, info.ModTime(), sha256.Sum256(data)), nil
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return text + " " + target, err
	}
	return text, nil
}
