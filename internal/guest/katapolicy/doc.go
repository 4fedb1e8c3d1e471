// Package katapolicy holds a host to a policy of Kata's agent (policy.rego in
// initdata), for owners who migrate. It exists only in a guest that is built
// with the tag kata_policy, which links OPA: without it, initdata with such a
// policy is refused.
//
// A [Policy] is a [podpolicy.Decider]. What the guest is about to do is told to
// the Rego rules in the words of Kata's protocol: the request of that name in
// package agent_policy is evaluated with the request's fields as input, and
// allows it if it is true, or an object with allowed true and, in ops, a JSON
// patch on what the policy remembers (data.pstate). A request without a rule is
// denied. Names and shapes are those of kata-containers
// src/libs/protocols/protos (agent.proto, oci.proto, types.proto) and
// src/agent/policy/src/policy.rs at 09c7421.
//
// Differences that an owner must know: the guest makes the container's
// specification itself, from the proposal and the image, and that is what rules
// see; there is no pause container; annotations, storages and the sources of
// mounts hold what the guest knows, not what a shim would have sent; images are
// pulled by digest only. AllowRequestsFailingPolicy is refused. The rules that
// genpolicy generates compile, and its published test cases for sandbox, network
// and files pass; but what they demand of a container is a shim's own fields, so
// a generated policy lets none run as it is. Hand-written rules about images,
// arguments, environment, users, mounts, commands and streams do.
package katapolicy
