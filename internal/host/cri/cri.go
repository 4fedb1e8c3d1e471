// Package cri says in this project's terms what containerd or CRI-O put into an
// OCI bundle: which pod it belongs to, which container it is, and what the guest
// is to be proposed.
//
// [ReadBundle] tells three kinds of bundle apart by their annotations. A
// [Sandbox] is a pod: its names, network namespace, DNS, resources, and the
// initdata that seals it. A [Container] is one of its containers. A bundle
// without such annotations, as `ctr run` makes it, is both at once. The Sandbox
// API brings the pod in a message of its own ([FromConfig]).
//
// Nothing here decides: a guest with a policy takes from a proposal only what
// the policy leaves open. What a virtual machine cannot give, such as the node's
// network, is refused here, with what to do about it.
package cri

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Kind is what a bundle is.
type Kind int

// Kinds of bundle.
const (
	// KindSandbox is the pause container of a pod, which stands for the pod.
	KindSandbox Kind = iota + 1
	// KindContainer is a container of a pod.
	KindContainer
	// KindSingle is pod and container in one: a bundle of no pod.
	KindSingle
)

// String names the kind for messages.
func (k Kind) String() string {
	switch k {
	case KindSandbox:
		return "sandbox"
	case KindContainer:
		return "container"
	case KindSingle:
		return "single container"
	}
	return "unknown"
}

// Bundle is what a bundle says. Sandbox is nil for KindContainer, and Container
// for KindSandbox.
type Bundle struct {
	Kind Kind
	// SandboxID is the id of the pod's shim: that of the sandbox.
	SandboxID string
	Spec      *specs.Spec
	Sandbox   *Sandbox
	Container *Container
}

// Sandbox is a pod. It may be changed until it is given away.
type Sandbox struct {
	ID string
	// Name, Namespace and UID are the pod's in Kubernetes; a pod without them
	// has none.
	Name, Namespace, UID string
	Hostname             string
	// NetNS is the path of the pod's network namespace; empty: it has none, and
	// the machine goes out through the node's user-mode network.
	NetNS string
	// Cgroup is the pod's control group as the container runtime says it
	// (linux.cgroupsPath of the OCI specification); empty: it does not.
	Cgroup string
	// OOMScore is how readily the kernel is to kill the pod while it has no
	// containers: process.oomScoreAdj of the OCI specification; 0: not said.
	OOMScore int
	// LogDir is where the kubelet keeps the pod's logs; empty: nowhere.
	LogDir string
	// Initdata is the gzip stream of the document; nil: the pod is unsealed.
	Initdata []byte
	// Annotations of this project.
	Annotations map[string]string
	// DNS is nil where nothing says what it is.
	DNS *agentapi.DNS
	// SharePID asks for one PID namespace for all containers. Not every bundle
	// tells: SharePIDKnown says whether this one does. The containers' bundles
	// tell later.
	SharePID, SharePIDKnown bool
	Sysctls                 map[string]string
	Resources               Resources
	// Warnings are for a person: what of the pod has no effect.
	Warnings []string
}

// Resources is what the containers of a pod may have together, as the kubelet
// adds it up; zero: it does not say.
type Resources struct {
	MemoryBytes int64
	// CPUMillis are thousandths of a CPU.
	CPUMillis int64
	// CPUShares are the weight of the pod's requests: 1024 for a CPU.
	CPUShares int64
}

// Container is one container of a pod. Terminal and Stdin are the caller's to
// change, since a task's creation decides them.
type Container struct {
	ID string
	// Name is the container's in the pod, Image its reference as it was written.
	Name, Image string
	Spec        *specs.Spec
	// Terminal and Stdin say what the process is connected with.
	Terminal, Stdin bool
	// SharePID says that the container is to see processes of others.
	SharePID bool
	// Privileged says that it was asked to have everything.
	Privileged bool
	// TerminationPath is where it leaves its last words; empty: not said.
	TerminationPath string
	// Warnings are for a person: what of the container has no effect.
	Warnings []string
}
