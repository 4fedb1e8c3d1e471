package podpolicy

import (
	"fmt"
	"maps"
	"slices"
)

// VolumeClaim is a volume as the host knows it.
type VolumeClaim struct {
	Name string
	Kind ClaimedKind
	// SizeBytes bounds an ephemeral volume; 0: nothing does.
	SizeBytes uint64
	// Group owns the volume; nil is root's.
	Group *uint32
}

// ClaimedKind is what a host says that a volume is.
type ClaimedKind string

// Kinds of volumes in a host's words.
const (
	ClaimEphemeral ClaimedKind = "ephemeral"
	ClaimMemory    ClaimedKind = "memory"
	ClaimFiles     ClaimedKind = "files"
	ClaimBlock     ClaimedKind = "block"
)

// kind is the policy's word for it.
func (k ClaimedKind) kind() (VolumeKind, Medium) {
	switch k {
	case ClaimEphemeral:
		return VolumeEphemeral, MediumDisk
	case ClaimMemory:
		return VolumeEphemeral, MediumMemory
	case ClaimFiles:
		return VolumeFiles, ""
	case ClaimBlock:
		return VolumeBlock, ""
	}
	return "", ""
}

// DefaultTerminationPath is where a container leaves its last words unless
// somebody says otherwise (Kubernetes API, Container.terminationMessagePath).
const DefaultTerminationPath = "/dev/termination-log"

// checkClaims bounds what a proposal claims of volumes, devices and last words,
// whoever decides about it.
func checkClaims(q ContainerProposal) *Refusal {
	if len(q.Volumes) > maxVolumes {
		return tooMany(RuleProposalForm, "volumes", maxVolumes, len(q.Volumes))
	}
	if len(q.Devices) > maxDevices {
		return tooMany(RuleProposalForm, "devices", maxDevices, len(q.Devices))
	}
	seen := map[string]bool{}
	for i, v := range q.Volumes {
		at := indexPath("volumes", i)
		kind, _ := v.Kind.kind()
		switch {
		case kind == "":
			return refuse(RuleContainerVolumes, at+".kind", "EPHEMERAL, MEMORY, FILES or BLOCK", quote(string(v.Kind)), "this guest knows no other kind of volume")
		case !isDNSLabel(v.Name):
			return refuse(RuleProposalForm, at+".name", "a DNS label", quote(v.Name), "")
		case seen[v.Name]:
			return refuse(RuleContainerVolumes, at+".name", "each volume once", quote(v.Name), "")
		case v.SizeBytes > 1<<63-1:
			return refuse(RuleProposalForm, at+".sizeBytes", "at most 2^63-1", fmt.Sprint(v.SizeBytes), "")
		case v.SizeBytes != 0 && kind != VolumeEphemeral:
			return refuse(RuleProposalForm, at+".sizeBytes", "0: only ephemeral volumes have a bound", fmt.Sprint(v.SizeBytes), "")
		case v.Group != nil && *v.Group > maxID:
			return refuse(RuleProposalForm, at+".group", fmt.Sprintf("at most %d", uint32(maxID)), fmt.Sprint(*v.Group), "")
		}
		seen[v.Name] = true
	}
	if p := q.TerminationPath; !isTerminationPath(p) {
		return refuse(RuleProposalForm, "terminationMessagePath", terminationForm, quote(p), "")
	}
	return nil
}

const terminationForm = "a clean absolute path outside /proc, /sys and /dev, or " + DefaultTerminationPath

func isTerminationPath(p string) bool {
	return p == "" || p == DefaultTerminationPath || isCleanAbsolute(p) && !reservedMountPath(p)
}

// compareClaims holds what a host claims against the policy. Size, medium and
// owner of a volume are not looked at: they are the policy's whatever a host
// says, and a host cannot always tell them.
func compareClaims(p *Policy, c *Container, q ContainerProposal) *Refusal {
	for i, claim := range q.Volumes {
		at := indexPath("volumes", i)
		v, ok := p.Volumes[claim.Name]
		if !ok {
			return refuse(RuleContainerVolumes, at+".name", "a volume of the policy", quote(claim.Name), "")
		}
		if kind, _ := claim.Kind.kind(); kind != v.Kind {
			return refuse(RuleContainerVolumes, at+".kind", quote(string(v.Kind)), quote(string(kind)), "volume "+quote(claim.Name)+" is another one in the policy")
		}
	}
	if r := compareDevices(c, q.Devices); r != nil {
		return r
	}
	if want := orDefault(c.TerminationMessagePath, DefaultTerminationPath); q.TerminationPath != "" && q.TerminationPath != want {
		return refuse(RuleContainerTermination, "terminationMessagePath", quote(want), quote(q.TerminationPath), "the file would cover one of the image; the owner may name it in the policy (coffer prepare does)")
	}
	return nil
}

// compareDevices: none, or all of them.
func compareDevices(c *Container, got []Device) *Refusal {
	if len(got) == 0 {
		return nil
	}
	want := make(map[string]Device, len(c.Devices))
	for _, d := range c.Devices {
		want[d.Path] = d
	}
	for i, g := range got {
		at := indexPath("devices", i)
		w, ok := want[g.Path]
		switch {
		case !ok:
			return refuse(RuleContainerMounts, at+".path", "a device of the policy, once", quote(g.Path), "")
		case g.Volume != w.Volume:
			return refuse(RuleContainerMounts, at+".volume", quote(w.Volume), quote(g.Volume), "")
		case g.ReadOnly != w.ReadOnly:
			return refuse(RuleContainerMounts, at+".readOnly", fmt.Sprint(w.ReadOnly), fmt.Sprint(g.ReadOnly), "")
		}
		delete(want, g.Path)
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		return refuse(RuleContainerMounts, "devices", "a device at "+quote(path), nothing, "send all devices of the policy, or none to leave them to it")
	}
	return nil
}

// deriveVolumes gives an unsealed pod the volumes that the host claims. What a
// volume is, is said once: a later claim is the same, or refused.
func deriveVolumes(volumes map[string]Volume, claims []VolumeClaim) *Refusal {
	for i, claim := range claims {
		at := indexPath("volumes", i)
		kind, medium := claim.Kind.kind()
		v, ok := volumes[claim.Name]
		if !ok {
			if len(volumes) >= maxVolumes {
				return tooMany(RuleContainerVolumes, "volumes", maxVolumes, len(volumes)+1)
			}
			v = Volume{Kind: kind, Medium: medium, Size: Memory{Bytes: claim.SizeBytes}, Group: claim.Group}
			if kind == VolumeFiles {
				v.Host = anyFiles()
			}
			volumes[claim.Name] = v
			continue
		}
		if kind == VolumeFiles && v.Group == nil {
			v.Group = claim.Group // its files came first, and say nothing of it
			volumes[claim.Name] = v
		}
		help := "a volume of a pod is the same for all its containers"
		switch {
		case v.Kind != kind:
			return refuse(RuleContainerVolumes, at+".kind", quote(string(v.Kind)), quote(string(kind)), help)
		case v.Medium != medium:
			return refuse(RuleContainerVolumes, at+".kind", quote(string(v.Medium)), quote(string(medium)), help)
		case v.Size.Bytes != claim.SizeBytes:
			return refuse(RuleContainerVolumes, at+".sizeBytes", fmt.Sprint(v.Size.Bytes), fmt.Sprint(claim.SizeBytes), help)
		case !sameGroup(v.Group, claim.Group) && (claim.Group != nil || kind == VolumeEphemeral):
			return refuse(RuleContainerVolumes, at+".group", groupText(v.Group), groupText(claim.Group), help)
		}
	}
	return nil
}

func sameGroup(a, b *uint32) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

func groupText(g *uint32) string {
	if g == nil {
		return "none"
	}
	return fmt.Sprint(*g)
}

// anyFiles are the files of an unsealed pod: whatever the host puts.
func anyFiles() *HostFiles { return &HostFiles{MaxBytes: maxFilesBytes, any: true} }

// deriveAttach makes a disk a volume of an unsealed pod, in the clear.
func deriveAttach(p *Policy, volume string) (*Policy, *Refusal) {
	if _, ok := p.Volumes[volume]; ok {
		return p, nil
	}
	if len(p.Volumes) >= maxVolumes || !isDNSLabel(volume) {
		return nil, refuse(RuleVolumeAttach, "volume", fmt.Sprintf("a DNS label, and at most %d volumes", maxVolumes), quote(volume), "")
	}
	d := *p
	d.Volumes = maps.Clone(p.Volumes)
	d.Volumes[volume] = Volume{Kind: VolumeBlock}
	return &d, nil
}

// decideTermination reports whether the host may read what a container has left
// at its termination message path: it is output, as the logs are.
func decideTermination(p *Policy, s *state, id string) bool {
	i, ok := s.instance(id)
	if !ok || i.config == nil {
		return false
	}
	c := findContainer(p, i.name)
	return c != nil && (c.Allow.Logs || c.Allow.Attach)
}
