package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Bounds on what is read.
const (
	// maxConfig bounds config.json: annotations alone may have 256 KiB, and
	// an environment some more.
	maxConfig = 8 << 20
	maxFile   = 256 << 10
)

// configFile is the OCI runtime specification's name.
const configFile = "config.json"

// idRE is what the guest agent takes for an id.
var idRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ReadBundle reads the bundle in a directory. id is the task's. Of other files it
// reads the one that a pod has as /etc/resolv.conf. The error says what cannot run
// in a virtual machine, and what to do.
func ReadBundle(dir, id string) (*Bundle, error) {
	if !idRE.MatchString(id) {
		return nil, fmt.Errorf("container id: expected 1 to 64 characters of [A-Za-z0-9._-], got %.100q", id)
	}
	data, err := readConfig(dir)
	if err != nil {
		return nil, fmt.Errorf("OCI bundle %s: %w", dir, err)
	}
	return parse(data, id, readHostFile)
}

// fileReader reads a small file of the host; nil without error: there is none.
type fileReader func(path string) ([]byte, error)

// parse reads a bundle's config.json.
func parse(data []byte, id string, read fileReader) (*Bundle, error) {
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("OCI bundle: %s: %w", configFile, err)
	}
	if spec.Linux == nil || spec.Windows != nil || spec.VM != nil {
		return nil, errors.New("the bundle is not of a Linux container: the guest runs no other")
	}
	b := &Bundle{Spec: spec}
	a := annotations(spec.Annotations)
	switch t := a.first(criType, crioType); t {
	case typeSandbox:
		b.Kind, b.SandboxID = KindSandbox, id
	case typeContainer:
		b.Kind, b.SandboxID = KindContainer, a.first(criSandboxID, crioSandboxID)
		if !idRE.MatchString(b.SandboxID) {
			return nil, fmt.Errorf("annotation %s: expected the id of the container's pod, got %.100q", criSandboxID, b.SandboxID)
		}
	case "":
		b.Kind, b.SandboxID = KindSingle, id
	default:
		return nil, fmt.Errorf("annotation %s: expected sandbox or container, got %.100q", criType, t)
	}
	var err error
	if b.Kind != KindContainer {
		if b.Sandbox, err = sandbox(spec, id, b.Kind == KindSingle, read); err != nil {
			return nil, err
		}
	}
	if b.Kind != KindSandbox {
		if b.Container, err = container(spec, id, b.Kind == KindSingle); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func readConfig(dir string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory
	f, err := root.Open(configFile)
	if err != nil {
		return nil, err
	}
	return readBounded(f, maxConfig)
}

// readHostFile reads a file that the container runtime or the kubelet wrote for
// the pod.
func readHostFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // containerd's word
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return readBounded(f, maxFile)
}

func readBounded(f *os.File, most int64) ([]byte, error) {
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: expected a regular file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s: expected at most %d bytes, got more", f.Name(), most)
	}
	return data, nil
}
