package podpolicy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Refusal says why a proposal was not accepted. It is an error. Expected and
// Got are for the owner; to the host of a hardware TEE only [Refusal.Public]
// may be shown.
type Refusal struct {
	// Rule is one of the Rule constants.
	Rule string
	// Path is the field of the proposal, for example args[1] or env.MODE.
	Path string
	// Expected and Got are readable and bounded.
	Expected, Got string
	// Help says what to do about it.
	Help string
}

// Rules by which proposals are refused. docs/pod-policy.md explains each.
const (
	RulePolicyInvalid      = "policy.invalid"
	RuleDelegated          = "policy.delegated"
	RuleProposalForm       = "proposal.form"
	RuleSandboxRequired    = "sandbox.required"
	RuleSandboxOnce        = "sandbox.once"
	RulePodName            = "pod.name"
	RulePodSharePID        = "pod.sharePID"
	RulePodSysctls         = "pod.sysctls"
	RuleSlotType           = "slot.type"
	RuleSlotValue          = "slot.value"
	RuleSlotMissing        = "slot.missing"
	RuleSlotChanged        = "slot.changed"
	RuleNetworkInterface   = "network.interface"
	RuleNetworkRoute       = "network.route"
	RuleNetworkNeighbour   = "network.neighbour"
	RuleNetworkDNS         = "network.dns"
	RuleNetworkHosts       = "network.hosts"
	RuleContainerUnknown   = "container.unknown"
	RuleContainerID        = "container.id"
	RuleContainerInstances = "container.instances"
	RuleContainerRestarts  = "container.restarts"
	RuleContainerOrder     = "container.order"
	RuleContainerState     = "container.state"
	RuleContainerImage     = "container.image"
	RuleContainerArgs      = "container.args"
	RuleContainerEnv       = "container.env"
	RuleContainerUser      = "container.user"
	RuleContainerCwd       = "container.cwd"
	RuleContainerMounts    = "container.mounts"
	RuleContainerTerminal  = "container.terminal"
	RuleContainerStdin     = "container.stdin"
	RuleContainerResources = "container.resources"

	RuleContainerCapabilities    = "container.capabilities"
	RuleContainerNoNewPrivileges = "container.noNewPrivileges"
	RuleContainerReadOnlyRoot    = "container.readOnlyRoot"
	RuleContainerSeccomp         = "container.seccomp"
	RuleContainerUnmasked        = "container.unmasked"
	RuleContainerVolumes         = "container.volumes"
	RuleContainerTermination     = "container.terminationMessage"
	RuleContainerTarget          = "container.target"

	RuleImageConfig   = "image.config"
	RuleVolumeUnknown = "volume.unknown"
	RuleVolumeAttach  = "volume.attach"
	RuleVolumeEmpty   = "volume.empty"
	RuleExecArgs      = "exec.args"
	RuleExecEnv       = "exec.env"
	RuleExecCwd       = "exec.cwd"
	RuleExecTerminal  = "exec.terminal"
	RuleExecStdin     = "exec.stdin"
	RuleExecCount     = "exec.count"
	RuleSignal        = "signal"
	RuleFilesVolume   = "files.volume"
	RuleFilesVersion  = "files.version"
	RuleFilesName     = "files.name"
	RuleFilesSize     = "files.size"
	RuleFilesDigest   = "files.digest"
	RuleFilesMissing  = "files.missing"
)

// Rules lists every rule identifier.
func Rules() []string {
	return []string{
		RulePolicyInvalid, RuleDelegated, RuleProposalForm, RuleSandboxRequired, RuleSandboxOnce, RulePodName, RulePodSharePID, RulePodSysctls,
		RuleSlotType, RuleSlotValue, RuleSlotMissing, RuleSlotChanged,
		RuleNetworkInterface, RuleNetworkRoute, RuleNetworkNeighbour, RuleNetworkDNS, RuleNetworkHosts,
		RuleContainerUnknown, RuleContainerID, RuleContainerInstances, RuleContainerRestarts, RuleContainerOrder, RuleContainerState,
		RuleContainerImage, RuleContainerArgs, RuleContainerEnv, RuleContainerUser, RuleContainerCwd, RuleContainerMounts,
		RuleContainerTerminal, RuleContainerStdin, RuleContainerResources, RuleContainerCapabilities, RuleContainerNoNewPrivileges, RuleContainerReadOnlyRoot,
		RuleContainerSeccomp, RuleContainerUnmasked, RuleContainerVolumes, RuleContainerTermination, RuleContainerTarget, RuleImageConfig, RuleVolumeUnknown, RuleVolumeAttach, RuleVolumeEmpty,
		RuleExecArgs, RuleExecEnv, RuleExecCwd, RuleExecTerminal, RuleExecStdin, RuleExecCount, RuleSignal,
		RuleFilesVolume, RuleFilesVersion, RuleFilesName, RuleFilesSize, RuleFilesDigest, RuleFilesMissing,
	}
}

// Error implements error, with everything.
func (r *Refusal) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "refused by the pod policy (rule %s)", r.Rule)
	if r.Path != "" {
		fmt.Fprintf(&b, ": %s", r.Path)
	}
	if r.Expected != "" {
		fmt.Fprintf(&b, ": expected %s", r.Expected)
	}
	if r.Got != "" {
		fmt.Fprintf(&b, ", got %s", r.Got)
	}
	if r.Help != "" {
		fmt.Fprintf(&b, " (%s)", r.Help)
	}
	return b.String()
}

// Public is what the host may know: rule and path. Both say nothing that the
// host did not know or could not read in the pod's initdata.
func (r *Refusal) Public() *Refusal { return &Refusal{Rule: r.Rule, Path: r.Path} }

func refuse(rule, path, expected, got, help string) *Refusal {
	return &Refusal{Rule: rule, Path: path, Expected: expected, Got: got, Help: help}
}

// quote makes a value readable in one bounded line.
func quote(s string) string { return strconv.QuoteToGraphic(clip(s)) }

const nothing = "nothing"

func quoteList(list []string) string {
	if list == nil {
		return nothing
	}
	var b strings.Builder
	b.WriteByte('[')
	for i, s := range list {
		if i > 0 {
			b.WriteString(" ")
		}
		if b.Len() > 512 {
			fmt.Fprintf(&b, "… %d in all", len(list))
			break
		}
		b.WriteString(quote(s))
	}
	b.WriteByte(']')
	return b.String()
}

// keyPath is the path of a member of a map: prefix.key, or prefix["key"] for a
// key that is not a plain word.
func keyPath(prefix, key string) string {
	if key != "" && len(key) <= 64 && only(key, alnum+"_-") {
		return prefix + "." + key
	}
	return prefix + "[" + strconv.QuoteToASCII(clip(key)) + "]"
}

func indexPath(prefix string, i int) string { return prefix + "[" + strconv.Itoa(i) + "]" }

// printable: valid UTF-8 without control characters.
func printable(s string) bool {
	plain := 0
	for plain < len(s) && s[plain] >= ' ' && s[plain] < 0x7f {
		plain++
	}
	return plain == len(s) || utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
