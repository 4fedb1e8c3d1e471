package pull_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/pull"
)

// mediaTypes are all that a layer may have, by their compression.
func mediaTypes() map[string]oci.Compression {
	const (
		oct    = "application/vnd.oci.image.layer.v1.tar"
		nondis = "application/vnd.oci.image.layer.nondistributable.v1.tar"
		docker = "application/vnd.docker.image.rootfs.diff.tar"
		frgn   = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	)
	return map[string]oci.Compression{
		oct: oci.Uncompressed, nondis: oci.Uncompressed, docker: oci.Uncompressed, frgn: oci.Uncompressed,
		oct + "+gzip": oci.Gzip, nondis + "+gzip": oci.Gzip, docker + ".gzip": oci.Gzip, frgn + ".gzip": oci.Gzip,
		oct + "+zstd": oci.Zstd, nondis + "+zstd": oci.Zstd, docker + ".zstd": oci.Zstd, frgn + ".zstd": oci.Zstd,
	}
}

// Every media type of a layer, plain and encrypted, as OCI and as Docker images,
// by manifest and by index: also those that other guests refuse.
func TestPullMediaTypes(t *testing.T) {
	t.Parallel()
	for mediaType, compression := range mediaTypes() {
		for _, encrypted := range []bool{false, true} {
			for _, docker := range []bool{false, true} {
				for _, index := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s encrypted=%v docker=%v index=%v", mediaType, encrypted, docker, index), func(t *testing.T) {
						t.Parallel()
						pullMediaType(t, mediaType, compression, encrypted, docker, index)
					})
				}
			}
		}
	}
}

func pullMediaType(t *testing.T, mediaType string, compression oci.Compression, encrypted, docker, index bool) {
	s := newStore()
	i := image{layers: threeLayers(t), compression: compression, encrypted: encrypted, manifest: func(m *oci.Manifest) {
		for n := range m.Layers {
			m.Layers[n].MediaType = mediaType
			if encrypted {
				m.Layers[n].MediaType += "+encrypted"
			}
		}
		if docker {
			m.MediaType, m.Config.MediaType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig
		}
	}}
	if docker {
		i.mediaType, i.indexType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerIndex
	}
	if index {
		i.index = func(x *oci.Index) {
			if docker {
				x.MediaType = oci.MediaTypeDockerIndex
			}
			// Another platform's manifest, which is not there, comes first.
			other := oci.Describe(x.Manifests[0].MediaType, []byte("not there"))
			other.Platform = &oci.Platform{OS: "linux", Architecture: "s390x"}
			if runtime.GOARCH == "s390x" {
				other.Platform.Architecture = "amd64"
			}
			x.Manifests = append([]oci.Descriptor{other}, x.Manifests...)
		}
	}
	o := options(t, s, i.push(t, s))
	if _, err := pull.Pull(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"etc/a": "three", "etc/b": "two"} {
		if got, err := os.ReadFile(filepath.Join(o.Dest, name)); err != nil || string(got) != want {
			t.Errorf("%s: want %q, got %q, %v", name, want, got, err)
		}
	}
}

// pullStored pulls an image with one layer that is stored as given.
func pullStored(t *testing.T, plain, stored []byte, c oci.Compression) (pull.Options, error) {
	t.Helper()
	s := newStore()
	d := oci.Describe(oci.LayerFormat{Compression: c}.MediaType(), stored)
	_ = s.Push(t.Context(), d, bytes.NewReader(stored))
	o := options(t, s, image{layers: [][]byte{plain}, manifest: func(m *oci.Manifest) { m.Layers[0] = d }}.push(t, s))
	_, err := pull.Pull(t.Context(), o)
	return o, err
}

// Layers whose format has more in it than a stream are pulled as ordinary ones:
// members and frames, eStargz with its footer, zstd:chunked with its skippable
// frames, padding.
func TestPullFormatsWithinFormats(t *testing.T) {
	t.Parallel()
	plain := threeLayers(t)[0]
	half := len(plain) / 2
	gz := func(b []byte) []byte { return compress(t, b, oci.Gzip) }
	zst := func(b []byte) []byte { return compress(t, b, oci.Zstd) }
	skippable := func(n byte, b []byte) []byte { // RFC 8878, 3.1.2
		head := binary.LittleEndian.AppendUint32(nil, 0x184d2a50+uint32(n))
		return append(binary.LittleEndian.AppendUint32(head, uint32(len(b))), b...)
	}
	var footer bytes.Buffer // estargz: an empty member with an extra field
	w := gzip.NewWriter(&footer)
	w.Extra = []byte("SG\x16\x000000000000001234STARGZ")
	_ = w.Close()
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		stored      []byte
		compression oci.Compression
	}{
		"gzip members":            {join(gz(plain[:half]), gz(plain[half:])), oci.Gzip},
		"gzip member without any": {join(gz(nil), gz(plain)), oci.Gzip},
		"eStargz":                 {join(gz(plain[:512]), gz(plain[512:half]), gz(plain[half:]), footer.Bytes()), oci.Gzip},
		"gzip, zeros behind":      {join(gz(plain), make([]byte, 1000)), oci.Gzip},
		"zstd frames":             {join(zst(plain[:half]), zst(plain[half:])), oci.Zstd},
		"zstd:chunked":            {join(zst(plain[:half]), zst(plain[half:]), skippable(0, []byte(`{"version":1}`)), skippable(0, make([]byte, 64))), oci.Zstd},
		"skippable frame first":   {join(skippable(3, []byte("x")), zst(plain)), oci.Zstd},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := pullStored(t, plain, tt.stored, tt.compression)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(o.Dest, "etc/a")); err != nil || string(got) != "one" {
				t.Errorf("etc/a: %q, %v", got, err)
			}
		})
	}
}

// Garbage behind a layer is refused even where its digests are right: other
// readers would make another image of it.
func TestPullRefusesGarbageBehindLayers(t *testing.T) {
	t.Parallel()
	plain := threeLayers(t)[0]
	second := tarOf(t, file("hidden", "x"))
	for name, tt := range map[string]struct {
		plain, stored []byte
		compression   oci.Compression
	}{
		"gzip":                     {plain, append(compress(t, plain, oci.Gzip), "garbage"...), oci.Gzip},
		"zstd":                     {plain, append(compress(t, plain, oci.Zstd), "garbage"...), oci.Zstd},
		"a second archive":         {append(bytes.Clone(plain), second...), nil, oci.Uncompressed},
		"a second archive in gzip": {append(bytes.Clone(plain), second...), compress(t, append(bytes.Clone(plain), second...), oci.Gzip), oci.Gzip},
	} {
		stored := tt.stored
		if stored == nil {
			stored = tt.plain
		}
		o, err := pullStored(t, tt.plain, stored, tt.compression)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		contains(t, name, err, "pull reg.example/shop/web@sha256:", "layer 1 of 1 (sha256:")
		gone(t, o)
	}
}
