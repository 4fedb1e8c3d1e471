// Package kube writes the pod policy of a Kubernetes workload, and tells
// whether a workload fits a policy. It is for the workload's owner; nothing of
// it runs in the guest.
//
// [Load] reads manifests as they are given to kubectl, strictly: what it does
// not know, finds twice or would have to guess is a [Problem] with file, line
// and column. [Generate] makes one [podpolicy.Policy] of every workload among
// them. What a policy has to say about images comes from an [ImageSource].
// [Fields] is the list of what becomes of every field of a PodSpec; values that
// it refuses are refused by that list, and docs/prepare.md shows it.
//
// [Check] plays the host of a workload before a [podpolicy.Guard], and
// [Input.Rewrite] puts what was prepared into the manifests, with their comments
// and their order.
//
// The same input gives the same bytes. Neither the version of Kubernetes nor
// that of its container runtime matters: where versions differ, the package asks
// for what means the same in all of them.
package kube
