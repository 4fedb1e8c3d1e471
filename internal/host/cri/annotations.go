package cri

import (
	"strconv"
	"strings"
)

// Annotations of containerd's CRI plugin (containerd@v2.4.2
// internal/cri/annotations; those of 1.6 are the same).
const (
	criType           = "io.kubernetes.cri.container-type"
	criSandboxID      = "io.kubernetes.cri.sandbox-id"
	criSandboxName    = "io.kubernetes.cri.sandbox-name"
	criNamespace      = "io.kubernetes.cri.sandbox-namespace"
	criUID            = "io.kubernetes.cri.sandbox-uid"
	criLogDir         = "io.kubernetes.cri.sandbox-log-directory"
	criMemory         = "io.kubernetes.cri.sandbox-memory"
	criCPUPeriod      = "io.kubernetes.cri.sandbox-cpu-period"
	criCPUQuota       = "io.kubernetes.cri.sandbox-cpu-quota"
	criCPUShares      = "io.kubernetes.cri.sandbox-cpu-shares"
	criContainerName  = "io.kubernetes.cri.container-name"
	criImageName      = "io.kubernetes.cri.image-name"
	criTerminationMsg = "io.kubernetes.container.terminationMessagePath"
)

// Annotations of CRI-O (containers/podman pkg/annotations, which it shares, and
// the labels of the kubelet, which it repeats as annotations).
const (
	crioType        = "io.kubernetes.cri-o.ContainerType"
	crioSandboxID   = "io.kubernetes.cri-o.SandboxID"
	crioImageName   = "io.kubernetes.cri-o.ImageName"
	crioLogPath     = "io.kubernetes.cri-o.LogPath"
	crioSandboxName = "io.kubernetes.pod.name"
	crioNamespace   = "io.kubernetes.pod.namespace"
	crioUID         = "io.kubernetes.pod.uid"
	crioContainer   = "io.kubernetes.container.name"
)

// Values of the type annotations.
const (
	typeSandbox   = "sandbox"
	typeContainer = "container"
)

// annotations are those of a bundle.
type annotations map[string]string

// first returns the first of several that there is.
func (a annotations) first(names ...string) string {
	for _, n := range names {
		if v := a[n]; v != "" {
			return v
		}
	}
	return ""
}

// number reads a number that may be absent; what is none counts as absent, as
// these are hints.
func (a annotations) number(name string) int64 {
	v, err := strconv.ParseInt(a[name], 10, 64)
	if err != nil || v < 0 {
		return 0
	}
	return v
}

// resources are what the kubelet adds up for a pod.
func (a annotations) resources() Resources {
	return resources(a.number(criMemory), a.number(criCPUQuota), a.number(criCPUPeriod), a.number(criCPUShares))
}

func resources(memory, quota, period, shares int64) Resources {
	return Resources{MemoryBytes: max(memory, 0), CPUMillis: millis(quota, period), CPUShares: max(shares, 0)}
}

// maxMillis is a million CPUs.
const maxMillis = 1 << 30

// millis are thousandths of a CPU that a quota for a period in microseconds is,
// rounded to the nearest; 0 for none.
func millis(quota, period int64) int64 {
	if quota <= 0 || period <= 0 || quota > maxMillis*1000 || period > 1<<40 {
		return 0
	}
	return min(max((quota*1000+period/2)/period, 1), maxMillis)
}

// uid finds the pod's UID: in its annotation, or in the name of its log
// directory (NAMESPACE_NAME_UID), which older daemons have alone.
func (a annotations) uid() string {
	if uid := a.first(criUID, crioUID); uid != "" {
		return uid
	}
	dir := a.first(criLogDir)
	parts := strings.Split(dir[strings.LastIndexByte(dir, '/')+1:], "_")
	if len(parts) == 3 {
		return parts[2]
	}
	return ""
}
