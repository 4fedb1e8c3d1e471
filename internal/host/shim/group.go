package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// specLimit bounds a bundle's config.json.
const specLimit = 16 << 20

// Annotations that say what a container is to its pod, of containerd
// (internal/cri/annotations) and of CRI-O (pkg/annotations).
var podAnnotations = []struct{ kind, sandbox string }{
	{"io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"},
	{"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"},
}

// podOf returns the id of the pod that the container in a bundle belongs to:
// its own, unless the annotations say that it is a container of a pod. A
// bundle without a description is a sandbox's, of the Sandbox API.
func podOf(bundle, id string) (string, error) {
	annotations, err := readAnnotations(bundle)
	if err != nil {
		return "", err
	}
	for _, a := range podAnnotations {
		if annotations[a.kind] != "container" {
			continue
		}
		pod := annotations[a.sandbox]
		if err := podstate.CheckID("annotation "+a.sandbox, pod); err != nil {
			return "", fmt.Errorf("bundle of container %s: %w", id, err)
		}
		return pod, nil
	}
	return id, nil
}

func readAnnotations(bundle string) (map[string]string, error) {
	path := filepath.Join(bundle, "config.json")
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	defer func() { _ = file.Close() }()
	limited := &io.LimitedReader{R: file, N: specLimit + 1}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	err = json.NewDecoder(limited).Decode(&spec)
	if limited.N == 0 {
		return nil, fmt.Errorf("bundle: %s: expected at most %d bytes, got more", path, specLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("bundle: %s: %w", path, err)
	}
	return spec.Annotations, nil
}
