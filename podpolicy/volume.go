package podpolicy

import (
	"maps"
	"slices"
	"strings"
)

// fromHost reports whether a files volume has files that come by PutFiles.
func fromHost(v Volume) bool { return len(v.Pinned) > 0 || v.Host != nil }

// Holds reports whether a files volume has a file of this name, or files in a
// directory of this name: what [Mount.SubPath] may be.
func (v Volume) Holds(subPath string) bool {
	if v.Kind != VolumeFiles || checkFileName(subPath) != nil {
		return false
	}
	is := func(name string) bool { return name == subPath || strings.HasPrefix(name, subPath+"/") }
	for _, files := range []map[string]string{v.Pinned, v.Sealed, v.Resources} {
		for name := range files {
			if is(name) {
				return true
			}
		}
	}
	return v.Host != nil && (v.Host.any || slices.ContainsFunc(v.Host.Names, is))
}

// describeVolume spells a volume out.
func describeVolume(p *Policy, s *state, name string) (VolumeConfig, *Refusal) {
	v, ok := p.Volumes[name]
	if !ok {
		return VolumeConfig{}, refuse(RuleVolumeUnknown, "volume", "a volume of the policy", quote(name), "")
	}
	c := VolumeConfig{
		Name: name, Kind: v.Kind, Key: v.Key, Filesystem: v.Filesystem, Disk: s.disks[name],
		Sealed: maps.Clone(v.Sealed), Resources: maps.Clone(v.Resources), Modes: maps.Clone(v.Modes),
	}
	switch v.Kind {
	case VolumeEphemeral:
		c.Medium, c.SizeBytes = orDefault(v.Medium, MediumDisk), v.Size.Bytes
	case VolumeFiles:
		c.HostFiles, c.Mode, c.Executable = fromHost(v), orDefault(v.Mode, defaultFileMode), executable(v)
	case VolumeBlock:
	}
	if v.Group != nil {
		c.Group = new(*v.Group)
	}
	return c, nil
}

// executable reports whether some file of a files volume has a mode to be run
// by.
func executable(v Volume) bool {
	modes := append(slices.Collect(maps.Values(v.Modes)), v.Mode)
	if v.Host != nil {
		if v.Host.any {
			return true
		}
		modes = append(modes, v.Host.Mode)
	}
	return slices.ContainsFunc(modes, func(octal string) bool {
		mode, err := parseMode(orDefault(octal, defaultFileMode))
		return err == nil && mode&0o111 != 0
	})
}

// isDiskSerial: what a virtio block device has room for.
func isDiskSerial(s string) bool { return len(s) >= 1 && len(s) <= 20 && only(s, alnum+"_-") }

func decideAttach(p *Policy, s *state, volume, disk string) (*state, *Refusal) {
	if r := needSandbox(s); r != nil {
		return nil, r
	}
	if !isDiskSerial(disk) {
		return nil, refuse(RuleProposalForm, "disk", "1 to 20 characters of [a-zA-Z0-9_-]", quote(disk), "")
	}
	if v, ok := p.Volumes[volume]; !ok || v.Kind != VolumeBlock {
		return nil, refuse(RuleVolumeAttach, "volume", "a block volume of the policy", quote(volume), "the host selects a disk for a volume; it cannot add one")
	}
	switch had, attached := s.disks[volume]; {
	case attached && had == disk:
		return s, nil
	case attached:
		return nil, refuse(RuleVolumeAttach, "disk", quote(had)+", which is attached as "+quote(volume), quote(disk), "a volume is one disk in the life of a pod")
	}
	for other, had := range s.disks {
		if had == disk {
			return nil, refuse(RuleVolumeAttach, "disk", "a disk that is no other volume", quote(disk)+", which is attached as "+quote(other), "")
		}
	}
	next := s.clone()
	next.disks = with(s.disks, volume, disk)
	return next, nil
}

func decideAttachFailed(p *Policy, s *state, volume, disk string) (*state, *Refusal) {
	if had, ok := s.disks[volume]; !ok || had != disk {
		return nil, refuse(RuleVolumeAttach, "disk", "a disk that is attached as the volume", quote(disk), "")
	}
	for id, i := range s.instances {
		if c := findContainer(p, i.name); c != nil && uses(c, volume) {
			return nil, refuse(RuleVolumeAttach, "volume", "a volume that no container has", quote(volume)+", which "+quote(id)+" has", "")
		}
	}
	next := s.clone()
	next.disks = without(s.disks, volume)
	return next, nil
}

func uses(c *Container, volume string) bool {
	return slices.ContainsFunc(c.Mounts, func(m Mount) bool { return m.Volume == volume }) ||
		slices.ContainsFunc(c.Devices, func(d Device) bool { return d.Volume == volume })
}

func needAttached(p *Policy, s *state, path, volume string) *Refusal {
	if _, ok := s.disks[volume]; !ok && p.Volumes[volume].Kind == VolumeBlock {
		return refuse(RuleVolumeAttach, path, "block volume "+quote(volume)+" to be attached", nothing, "attach a disk as this volume before creating the container")
	}
	return nil
}

// decidePortForward: a running container opens the port. An unsealed pod has
// nobody who could have.
func decidePortForward(p *Policy, s *state, unsealed bool, port uint16, which func(id string) bool) bool {
	if port == 0 {
		return false
	}
	for id, i := range s.instances {
		if i.phase != phaseRunning || !which(id) {
			continue
		}
		if c := findContainer(p, i.name); unsealed || c != nil && slices.Contains(c.Allow.PortForward, port) {
			return true
		}
	}
	return false
}
