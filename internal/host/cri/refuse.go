package cri

import "errors"

// What a machine of its own cannot give a pod.
var (
	errNetwork = errors.New("the pod asks for the node's network (hostNetwork): it runs in a virtual machine with a network of its own; remove hostNetwork, or use another runtimeClassName")
	errPID     = errors.New("the pod asks for the node's processes (hostPID): its virtual machine does not see them; remove hostPID, or use another runtimeClassName")
	errIPC     = errors.New("the pod asks for the node's IPC (hostIPC): its virtual machine has none with the node; remove hostIPC, or use another runtimeClassName")
	errUsers   = errors.New("the pod asks for a user namespace (hostUsers: false): the virtual machine is the boundary, and users are those of the guest; remove hostUsers")
	errHooks   = errors.New("the bundle has OCI hooks: they are programs of the node, which would not see the container; remove what adds them (containerd's base_runtime_spec, NRI or CDI) for this runtime handler")
	errHuge    = errors.New("the container asks for huge pages (resources.limits hugepages-…): the guest has none; remove them")
	errNoImage = errors.New("the bundle does not name its image, which the guest pulls itself: give its reference with the annotation " + AnnotationImage + " (ctr run --annotation " + AnnotationImage + "=REGISTRY/REPOSITORY:TAG …)")
)
