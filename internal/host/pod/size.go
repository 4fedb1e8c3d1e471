package pod

import (
	"fmt"
	"strconv"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// size decides how large the machine is; it does not change later.
//
// Memory is what the limits of the containers add up to, as the kubelet tells, or
// the configured default, and the overhead on top: the RuntimeClass declares the
// overhead to the scheduler, so that what the pod is accounted for is what the
// machine has. The annotation is the whole of it.
//
// The number of virtual CPUs follows the configuration or the annotation, not the
// pod's limits: SEV-SNP measures it, and a measurement that changed with a limit
// would have no reference value. The kubelet's cgroup still limits the machine.
func size(s *cri.Sandbox, c *runtimeconfig.Config) (vcpus, memoryMiB int, err error) {
	if vcpus, err = number(s, runtimeconfig.AnnotationVCPUs, c.DefaultVCPUs, c.MaxVCPUs); err != nil {
		return 0, 0, err
	}
	want := int64(c.DefaultMemory)
	if n := s.Resources.MemoryBytes; n > 0 {
		want = (n-1)/mib + 1
	}
	want += int64(c.OverheadMemory)
	if _, own := s.Annotations[runtimeconfig.AnnotationMemory]; own {
		if memoryMiB, err = number(s, runtimeconfig.AnnotationMemory, 0, c.MaxMemory); err != nil {
			return 0, 0, err
		}
		if memoryMiB < c.OverheadMemory {
			return 0, 0, fmt.Errorf("annotation %s: expected at least %d (the overhead of a machine), got %d", runtimeconfig.AnnotationMemory, c.OverheadMemory, memoryMiB)
		}
		return vcpus, memoryMiB, nil
	}
	if want > int64(c.MaxMemory) {
		return 0, 0, fmt.Errorf("memory: the limits of the pod's containers and the overhead of %d MiB are %d MiB, and this runtime handler gives a machine at most %d MiB: lower resources.limits.memory, or raise max_memory",
			c.OverheadMemory, want, c.MaxMemory)
	}
	return vcpus, int(want), nil
}

// number reads an annotation that is a positive number.
func number(s *cri.Sandbox, name string, missing, most int) (int, error) {
	text, ok := s.Annotations[name]
	if !ok {
		return missing, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("annotation %s: expected a number from 1 to %d, got %.32q", name, most, text)
	}
	return n, nil
}
