package kube

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/podpolicy"
)

// Annotations of a pod template that say what Kubernetes has no field for. The
// name of a container or volume follows; the value is a JSON object.
const (
	// AnnotationAllow permits operations on a container: a podpolicy.Allow
	// without restarts.
	AnnotationAllow = "coffer-project.io/allow."
	// AnnotationMount makes a block volume of a claim, see [SecureMount].
	AnnotationMount = "coffer-project.io/secure-mount."
	// AnnotationEnv gives a container variables from the trustee: name to KBS
	// URI.
	AnnotationEnv = "coffer-project.io/secret-env."
	// AnnotationFiles gives a volume of files contents from the trustee: name
	// to KBS URI.
	AnnotationFiles = "coffer-project.io/secret-files."

	// AnnotationVCPUs and AnnotationMemory ask the node's runtime for a machine of
	// another size than its class has: a number, and MiB of the whole machine.
	AnnotationVCPUs  = "coffer-project.io/vcpus"
	AnnotationMemory = "coffer-project.io/memory"
	// AnnotationVolumes tells the node's runtime which volume of the policy a claim
	// is: KEY=VOLUME, separated by commas.
	AnnotationVolumes = "coffer-project.io/volumes"

	annotationPrefix = "coffer-project.io/"
)

// SecureMount is the value of [AnnotationMount].
type SecureMount struct {
	// Key is the KBS URI of the volume's key.
	Key string `json:"key"`
	// Mount is where the containers that have the claim as a device get its
	// file system instead; empty leaves it a device, decrypted.
	Mount string `json:"mount,omitempty"`
	// ReadOnly mounts, or gives the device, for reading only.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Filesystem is ext4, which is also the default with Mount.
	Filesystem string `json:"filesystem,omitempty"`
}

// annotations of the pod template that are ours.
type annotations struct {
	allow  map[string]podpolicy.Allow
	mounts map[string]SecureMount
	env    map[string]map[string]string
	files  map[string]map[string]string
	// vcpus and memory are 0 where the class says.
	vcpus, memory int
}

func (g *generator) annotations() *annotations {
	a := &annotations{
		allow: map[string]podpolicy.Allow{}, mounts: map[string]SecureMount{}, env: map[string]map[string]string{}, files: map[string]map[string]string{},
	}
	for _, key := range slices.Sorted(maps.Keys(g.w.template.Annotations)) {
		if !strings.HasPrefix(key, annotationPrefix) {
			continue
		}
		value := []byte(g.w.template.Annotations[key])
		var err error
		if name, ok := strings.CutPrefix(key, AnnotationAllow); ok {
			a.allow[name], err = ParseAllow(value)
		} else if name, ok := strings.CutPrefix(key, AnnotationMount); ok {
			var m SecureMount
			err = strictjson.Decode(value, &m, strictjson.Limits{})
			a.mounts[name] = m
		} else if name, ok := strings.CutPrefix(key, AnnotationEnv); ok {
			var m map[string]string
			err = strictjson.Decode(value, &m, strictjson.Limits{})
			a.env[name] = m
		} else if name, ok := strings.CutPrefix(key, AnnotationFiles); ok {
			var m map[string]string
			err = strictjson.Decode(value, &m, strictjson.Limits{})
			a.files[name] = m
		} else if key == AnnotationVCPUs {
			a.vcpus, err = size(string(value), maxVCPUs)
		} else if key == AnnotationMemory {
			a.memory, err = size(string(value), maxMemoryMiB)
		} else if key != AnnotationVolumes {
			g.badMeta(key, "known are "+AnnotationAllow+"CONTAINER, "+AnnotationEnv+"CONTAINER, "+AnnotationMount+"VOLUME, "+AnnotationFiles+"VOLUME, "+AnnotationVCPUs+", "+AnnotationMemory+" and "+AnnotationVolumes, "unknown annotation")
		}
		if err != nil {
			g.badMeta(key, "", "%s", err)
		}
	}
	return a
}

// Bounds of what a machine can have: processors as the measurement of an SNP guest
// counts them, and a TiB.
const (
	maxVCPUs     = 255
	maxMemoryMiB = 1 << 20
)

// size reads a number as the node's runtime does.
func size(text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("expected a number from 1 to %d, got %q", most, clip(text))
	}
	return n, nil
}

// ParseAllow reads what the host may do with a container: a podpolicy.Allow
// without restarts, which are Kubernetes' restartPolicy.
func ParseAllow(data []byte) (podpolicy.Allow, error) {
	var allow podpolicy.Allow
	if err := strictjson.Decode(data, &allow, strictjson.Limits{}); err != nil {
		return podpolicy.Allow{}, err
	}
	if allow.Restarts != "" {
		return podpolicy.Allow{}, &strictjson.Error{Path: "restarts", Problem: "restarts follow from restartPolicy; leave them out"}
	}
	return allow, nil
}

// checkAnnotations reports annotations for what the pod does not have.
func (g *generator) checkAnnotations() {
	containers := map[string]bool{}
	for _, c := range slices.Concat(g.spec.InitContainers, g.spec.Containers) {
		containers[c.Name] = true
	}
	for _, c := range g.spec.EphemeralContainers {
		containers[c.Name] = true
	}
	for _, at := range []struct {
		prefix string
		names  []string
	}{{AnnotationAllow, slices.Sorted(maps.Keys(g.marks.allow))}, {AnnotationEnv, slices.Sorted(maps.Keys(g.marks.env))}} {
		for _, name := range at.names {
			if !containers[name] {
				g.badMeta(at.prefix+name, "", "the pod has no container %s", clip(name))
			}
		}
	}
	for _, at := range []struct {
		prefix string
		names  []string
	}{{AnnotationMount, slices.Sorted(maps.Keys(g.marks.mounts))}, {AnnotationFiles, slices.Sorted(maps.Keys(g.marks.files))}} {
		for _, name := range at.names {
			if _, ok := g.volumes[name]; !ok {
				g.badMeta(at.prefix+name, "", "the pod has no volume %s", clip(name))
			}
		}
	}
}
