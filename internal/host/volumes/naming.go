package volumes

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/podpolicy"
)

// blockPlace is what a claim's device is in the guest: a volume's name, and where
// the policy mounts its file system, if it does.
type blockPlace struct {
	volume   string
	readOnly bool
	mount    *podpolicy.Mount
}

// namePlaces finds the names that a container's devices have as volumes. The CRI
// tells neither the pod's name of a volume nor that of its claim, only the
// device's numbers, which lead to the PersistentVolume's. So the name is, in this
// order: what [AnnotationVolumes] says of the devicePath or of the
// PersistentVolume; what the pod policy has at the devicePath; the one block
// volume that the policy mounts into the container, if one device is left; in an
// unsealed pod the PersistentVolume's name.
func (m *Manager) namePlaces(container string, blocks []claimed) ([]blockPlace, error) {
	annotated, err := parseNames(m.o.Annotations[AnnotationVolumes])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", AnnotationVolumes, err)
	}
	policy, err := m.policyContainer(container)
	if err != nil {
		return nil, err
	}
	places := make([]blockPlace, len(blocks))
	for i, b := range blocks {
		name := annotated[b.dev.Path]
		if name == "" {
			name = annotated[path.Base(b.link)]
		}
		places[i] = policy.place(name, b.dev.Path)
	}
	policy.pair(places)
	for i, b := range blocks {
		if places[i].volume != "" {
			continue
		}
		pv := path.Base(b.link)
		if m.o.Sealed {
			return nil, fmt.Errorf("device %s: which volume of the pod policy PersistentVolume %s is, is not known; annotate the pod with %s: %s=VOLUME", clip(b.dev.Path), clip(pv), AnnotationVolumes, clip(b.dev.Path))
		}
		if places[i].volume = pv; !isLabel(pv) {
			sum := sha256.Sum256([]byte(pv))
			places[i].volume = "claim-" + hex.EncodeToString(sum[:8])
		}
	}
	return places, nil
}

// parseNames reads KEY=VOLUME, separated by commas.
func parseNames(s string) (map[string]string, error) {
	names := map[string]string{}
	if s == "" {
		return names, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		key, name, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || key == "" || !isLabel(name) {
			return nil, fmt.Errorf("expected KEY=VOLUME, separated by commas, with a PersistentVolume or a devicePath as KEY, got %q", clip(part))
		}
		if _, twice := names[key]; twice {
			return nil, fmt.Errorf("%q is named twice", clip(key))
		}
		names[key] = name
	}
	return names, nil
}

// policyBlocks are the block volumes that a policy gives to a container.
type policyBlocks struct {
	devices []podpolicy.Device
	mounts  []podpolicy.Mount
}

// policyContainer looks a container up in the pod's policy; empty if there is
// none that could be read here. The guest judges the policy.
func (m *Manager) policyContainer(name string) (*policyBlocks, error) {
	if len(m.o.Initdata) == 0 {
		return &policyBlocks{}, nil
	}
	raw, err := initdata.Decompress(m.o.Initdata, initdata.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	text, ok := doc.Data[initdata.KeyPodPolicy]
	if !ok {
		return &policyBlocks{}, nil // a policy of another kind
	}
	policy, err := podpolicy.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("initdata: %s: %w", initdata.KeyPodPolicy, err)
	}
	blocks := &policyBlocks{}
	for _, c := range policy.Containers {
		if c.Name != name {
			continue
		}
		blocks.devices = c.Devices
		for _, mt := range c.Mounts {
			if policy.Volumes[mt.Volume].Kind == podpolicy.VolumeBlock {
				blocks.mounts = append(blocks.mounts, mt)
			}
		}
	}
	return blocks, nil
}

// place finds a device by the volume's name, if it is known, or by its path.
func (b *policyBlocks) place(name, devicePath string) blockPlace {
	for _, d := range b.devices {
		if d.Path == devicePath && (name == "" || name == d.Volume) {
			return blockPlace{volume: d.Volume, readOnly: d.ReadOnly}
		}
	}
	if name == "" {
		return blockPlace{}
	}
	for _, mt := range b.mounts {
		if mt.Volume == name {
			return blockPlace{volume: name, mount: &mt}
		}
	}
	return blockPlace{volume: name}
}

// pair gives the one volume that is left to the one device that is left.
func (b *policyBlocks) pair(places []blockPlace) {
	taken := func(volume string) bool {
		return slices.ContainsFunc(places, func(p blockPlace) bool { return p.volume == volume })
	}
	left := slices.DeleteFunc(slices.Clone(b.mounts), func(mt podpolicy.Mount) bool { return taken(mt.Volume) })
	open := slices.IndexFunc(places, func(p blockPlace) bool { return p.volume == "" })
	if len(left) != 1 || open < 0 || slices.ContainsFunc(places[open+1:], func(p blockPlace) bool { return p.volume == "" }) {
		return
	}
	places[open] = blockPlace{volume: left[0].Volume, mount: &left[0]}
}
