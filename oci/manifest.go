package oci

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Limits on the documents of an image.
const (
	// MaxDocument is the greatest size of a manifest, an index or a
	// configuration, in bytes (the OCI distribution specification's advice).
	MaxDocument = 4 << 20
	// MaxLayers is how many layers an image may have. Docker's own limit is 127.
	MaxLayers = 128
	// MaxIndexEntries is how many manifests an index may list.
	MaxIndexEntries = 1024
	// MaxBlob is the greatest size a descriptor may claim, in bytes.
	MaxBlob = 1 << 40

	maxDepth       = 16
	maxAnnotations = 256
	maxMediaType   = 255
)

// Descriptor points to content (OCI image specification v1.1, "Content
// Descriptors"). Its urls and data fields are not read: content comes from the
// repository and nowhere else.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
}

// Platform is what a manifest in an index is for.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// String implements fmt.Stringer: OS/ARCHITECTURE[/VARIANT].
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// GuestPlatform is the platform this program was built for, always Linux:
// containers run in a Linux guest.
func GuestPlatform() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH} }

// Manifest is an image manifest. It encodes to JSON in the form of the
// specification; SchemaVersion must be 2.
type Manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Index is a list of manifests, one per platform.
type Index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []Descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// ParseManifest decodes an image manifest. mediaType is what the registry or
// the index says it is; the document must agree where it says so itself.
// Whether the layers are layers of an image is for [Manifest.CheckImage].
func ParseManifest(data []byte, mediaType string) (*Manifest, error) {
	m, err := parseManifest(data, mediaType)
	if err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	return m, nil
}

func parseManifest(data []byte, mediaType string) (*Manifest, error) {
	if !IsManifest(mediaType) {
		return nil, fmt.Errorf("media type %q: expected %s or %s", clip(mediaType), MediaTypeManifest, MediaTypeDockerManifest)
	}
	doc, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	if err := doc.envelope(mediaType, &m.SchemaVersion, &m.MediaType, &m.Annotations); err != nil {
		return nil, err
	}
	// CVE-2021-41190: one document that two readers take for two kinds.
	if doc.has("manifests") {
		return nil, fmt.Errorf("manifests: a manifest must not also be an index")
	}
	if !doc.has("config") {
		return nil, fmt.Errorf("config: missing")
	}
	if m.Config, err = doc.descriptor("config"); err != nil {
		return nil, err
	}
	if m.Layers, err = doc.descriptors("layers", MaxLayers); err != nil {
		return nil, err
	}
	return m, nil
}

// CheckImage says whether m is a container image and not some other artifact:
// its configuration and each of its layers have the media types of one.
func (m *Manifest) CheckImage() error {
	if t := m.Config.MediaType; t != MediaTypeConfig && t != MediaTypeDockerConfig {
		return fmt.Errorf("image manifest: config.mediaType: expected %s or %s, got %q: this is not a container image",
			MediaTypeConfig, MediaTypeDockerConfig, clip(t))
	}
	if len(m.Layers) == 0 {
		return fmt.Errorf("image manifest: layers: expected at least one, got none")
	}
	for i, l := range m.Layers {
		if _, err := ParseLayerMediaType(l.MediaType); err != nil {
			return fmt.Errorf("image manifest: layers[%d].mediaType: %w", i, err)
		}
	}
	return nil
}

// ParseIndex decodes an index of manifests.
func ParseIndex(data []byte, mediaType string) (*Index, error) {
	x, err := parseIndex(data, mediaType)
	if err != nil {
		return nil, fmt.Errorf("image index: %w", err)
	}
	return x, nil
}

func parseIndex(data []byte, mediaType string) (*Index, error) {
	if !IsIndex(mediaType) {
		return nil, fmt.Errorf("media type %q: expected %s or %s", clip(mediaType), MediaTypeIndex, MediaTypeDockerIndex)
	}
	doc, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	x := &Index{}
	if err := doc.envelope(mediaType, &x.SchemaVersion, &x.MediaType, &x.Annotations); err != nil {
		return nil, err
	}
	for _, name := range []string{"layers", "config"} {
		if doc.has(name) {
			return nil, fmt.Errorf("%s: an index must not also be a manifest", name)
		}
	}
	if x.Manifests, err = doc.descriptors("manifests", MaxIndexEntries); err != nil {
		return nil, err
	}
	return x, nil
}

// Select finds the manifest for the platform. The first entry wins, except
// that one without a variant goes before one with. Entries that are indexes
// themselves are refused if they are for the platform: an index in an index
// can be made to go round.
func (x *Index) Select(want Platform) (Descriptor, error) {
	var chosen *Descriptor
	var have []string
	for i := range x.Manifests {
		d := &x.Manifests[i]
		if d.Platform == nil {
			if IsIndex(d.MediaType) {
				return Descriptor{}, fmt.Errorf("image index: manifests[%d]: is itself an index (%s); nested indexes are refused", i, d.MediaType)
			}
			continue
		}
		have = append(have, d.Platform.String())
		if d.Platform.OS != want.OS || d.Platform.Architecture != want.Architecture {
			continue
		}
		if want.Variant != "" && d.Platform.Variant != want.Variant {
			continue
		}
		if IsIndex(d.MediaType) {
			return Descriptor{}, fmt.Errorf("image index: manifests[%d]: is itself an index (%s); nested indexes are refused", i, d.MediaType)
		}
		if !IsManifest(d.MediaType) {
			return Descriptor{}, fmt.Errorf("image index: manifests[%d].mediaType: expected %s or %s, got %q", i, MediaTypeManifest, MediaTypeDockerManifest, clip(d.MediaType))
		}
		if chosen == nil || (chosen.Platform.Variant != "" && d.Platform.Variant == "") {
			chosen = d
		}
	}
	if chosen == nil {
		slices.Sort(have)
		return Descriptor{}, fmt.Errorf("image index: no manifest for %s; it has %s", want, clip(strings.Join(slices.Compact(have), ", ")))
	}
	return *chosen, nil
}

// object is a JSON object whose values have not been decoded, so that fields
// are taken by their exact names; encoding/json would ignore case.
type object map[string]json.RawMessage

func (o object) has(name string) bool { _, ok := o[name]; return ok }

// envelope decodes what manifests and indexes have in common.
func (o object) envelope(want string, version *int, mediaType *string, annotations *map[string]string) error {
	if err := o.get("schemaVersion", version); err != nil {
		return err
	}
	if *version != 2 {
		return fmt.Errorf("schemaVersion: expected 2, got %d", *version)
	}
	if err := o.get("mediaType", mediaType); err != nil {
		return err
	}
	switch *mediaType {
	case want:
	case "": // OCI leaves it optional
		*mediaType = want
	default:
		return fmt.Errorf("mediaType: expected %s as the registry says, got %q", want, clip(*mediaType))
	}
	return o.annotations(annotations)
}

func (o object) annotations(to *map[string]string) error {
	if err := o.get("annotations", to); err != nil {
		return err
	}
	if len(*to) > maxAnnotations {
		return fmt.Errorf("annotations: %d of them, at most %d are allowed", len(*to), maxAnnotations)
	}
	return nil
}

func (o object) descriptors(name string, most int) ([]Descriptor, error) {
	if !o.has(name) {
		return nil, fmt.Errorf("%s: missing", name)
	}
	var raw []json.RawMessage
	if err := o.get(name, &raw); err != nil {
		return nil, err
	}
	if len(raw) > most {
		return nil, fmt.Errorf("%s: %d entries, at most %d are allowed", name, len(raw), most)
	}
	out := make([]Descriptor, len(raw))
	for i, r := range raw {
		d, err := decodeDescriptor(r)
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", name, i, err)
		}
		out[i] = d
	}
	return out, nil
}

func (o object) descriptor(name string) (Descriptor, error) {
	d, err := decodeDescriptor(o[name])
	if err != nil {
		return Descriptor{}, fmt.Errorf("%s.%w", name, err)
	}
	return d, nil
}

func decodeDescriptor(raw json.RawMessage) (Descriptor, error) {
	o, err := parseObject(raw)
	if err != nil {
		return Descriptor{}, err
	}
	var d Descriptor
	var digest string
	if err := o.get("mediaType", &d.MediaType); err != nil {
		return Descriptor{}, err
	}
	if d.MediaType == "" || len(d.MediaType) > maxMediaType {
		return Descriptor{}, fmt.Errorf("mediaType: expected 1 to %d bytes, got %d", maxMediaType, len(d.MediaType))
	}
	if err := o.get("digest", &digest); err != nil {
		return Descriptor{}, err
	}
	if d.Digest, err = ParseDigest(digest); err != nil {
		return Descriptor{}, fmt.Errorf("digest: %w", err)
	}
	if !o.has("size") {
		return Descriptor{}, fmt.Errorf("size: missing")
	}
	if err := o.get("size", &d.Size); err != nil {
		return Descriptor{}, err
	}
	if d.Size < 0 || d.Size > MaxBlob {
		return Descriptor{}, fmt.Errorf("size: expected 0 to %d bytes, got %d", int64(MaxBlob), d.Size)
	}
	if err := o.annotations(&d.Annotations); err != nil {
		return Descriptor{}, err
	}
	if o.has("platform") {
		p, err := parseObject(o["platform"])
		if err != nil {
			return Descriptor{}, fmt.Errorf("platform: %w", err)
		}
		d.Platform = &Platform{}
		for name, to := range map[string]*string{"os": &d.Platform.OS, "architecture": &d.Platform.Architecture, "variant": &d.Platform.Variant} {
			if err := p.get(name, to); err != nil {
				return Descriptor{}, fmt.Errorf("platform.%w", err)
			}
		}
	}
	return d, nil
}
