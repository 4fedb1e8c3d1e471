package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/oci"
)

const hexA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestParseReference(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want oci.Reference
		full string
	}{
		{"debian", oci.Reference{Registry: "docker.io", Repository: "library/debian"}, "docker.io/library/debian"},
		{"debian:12", oci.Reference{Registry: "docker.io", Repository: "library/debian", Tag: "12"}, "docker.io/library/debian:12"},
		{"index.docker.io/debian", oci.Reference{Registry: "docker.io", Repository: "library/debian"}, "docker.io/library/debian"},
		{"a/b", oci.Reference{Registry: "docker.io", Repository: "a/b"}, "docker.io/a/b"},
		{"localhost/b", oci.Reference{Registry: "localhost", Repository: "b"}, "localhost/b"},
		{"localhost:5000/b/c_d__e-f.g:T_1.x", oci.Reference{Registry: "localhost:5000", Repository: "b/c_d__e-f.g", Tag: "T_1.x"}, "localhost:5000/b/c_d__e-f.g:T_1.x"},
		{"[::1]:5000/b", oci.Reference{Registry: "[::1]:5000", Repository: "b"}, "[::1]:5000/b"},
		{"Reg.Example/b@sha256:" + hexA, oci.Reference{Registry: "reg.example", Repository: "b", Digest: "sha256:" + hexA}, "reg.example/b@sha256:" + hexA},
		{"reg.example:443/b:t@sha256:" + hexA, oci.Reference{Registry: "reg.example:443", Repository: "b", Tag: "t", Digest: "sha256:" + hexA}, "reg.example:443/b:t@sha256:" + hexA},
	}
	for _, tt := range tests {
		got, err := oci.ParseReference(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if got != tt.want || got.String() != tt.full {
			t.Errorf("%s: want %+v, got %+v (%s)", tt.in, tt.want, got, got)
		}
	}
	for _, in := range []string{
		"", ":t", "@sha256:" + hexA, "a:", "a@", "a@md5:00", "a@sha256:AA", "a@sha256:" + strings.ToUpper(hexA), "A/b", "a//b", "/a", "a/", "a/../b", "a b",
		"a:t:u", "a:-t", "reg:0/a", "reg:99999/a", "reg:x/a", "-reg.example/a", "reg..example/a", "a___b", "a._b", "a.", "http://a/b", "a?b", "a%2e/b", "a:" + strings.Repeat("x", 129),
		strings.Repeat("a", 256), strings.Repeat("a/", 2000), "a\x00b", "[::1/b", "user@reg.example/a", "é/a",
	} {
		if got, err := oci.ParseReference(in); err == nil {
			t.Errorf("%q was accepted: %+v", in, got)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"debian", "localhost:5000/a/b:t@sha256:" + hexA, "[::1]:1/a", "a:b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := oci.ParseReference(s)
		if err != nil {
			return
		}
		again, err := oci.ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q: %+v does not survive: %+v, %v", s, ref, again, err)
		}
	})
}

func TestParseDigest(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "sha256", "sha256:", "sha256:" + hexA[:63], "sha256:" + hexA + "a", "sha384:" + hexA, "sha512:" + hexA, "sha256:" + strings.Repeat("g", 64), "SHA256:" + hexA} {
		if d, err := oci.ParseDigest(s); err == nil {
			t.Errorf("%q was accepted: %s", s, d)
		}
	}
	for _, s := range []string{"sha256:" + hexA, "sha512:" + hexA + hexA} {
		if d, err := oci.ParseDigest(s); err != nil || string(d) != s {
			t.Errorf("%q: %q, %v", s, d, err)
		}
	}
}

func TestVerifyReader(t *testing.T) {
	t.Parallel()
	data := []byte("content")
	good := oci.Describe("x/y", data)
	for name, tt := range map[string]struct {
		d    oci.Descriptor
		want string
	}{
		"good":    {good, ""},
		"longer":  {oci.Descriptor{Digest: good.Digest, Size: 6}, "size differs: expected 6 bytes, got more"},
		"shorter": {oci.Descriptor{Digest: good.Digest, Size: 8}, "size differs: expected 8 bytes, got 7"},
		"changed": {oci.Descriptor{Digest: oci.FromBytes(nil), Size: 7}, "digest differs: expected sha256:e3b0"},
	} {
		for _, r := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data))} {
			vr, err := oci.VerifyReader(r, tt.d)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(vr)
			_, mismatch := errors.AsType[*oci.MismatchError](err)
			if (err == nil) != (tt.want == "") || (err != nil && (!mismatch || !strings.Contains(err.Error(), tt.want))) {
				t.Errorf("%s: want %q, got %v", name, tt.want, err)
			}
		}
	}
}

func descriptor(mediaType string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":3}`, mediaType, hexA)
}

func manifestJSON(config string, layers ...string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, oci.MediaTypeManifest, descriptor(config), strings.Join(layers, ","))
}

func TestParseManifest(t *testing.T) {
	t.Parallel()
	layer := descriptor(oci.MediaTypeLayerGzip)
	good := manifestJSON(oci.MediaTypeConfig, layer)
	m, err := oci.ParseManifest([]byte(good), oci.MediaTypeManifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.CheckImage(); err != nil {
		t.Fatal(err)
	}
	// What is written can be read.
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := oci.ParseManifest(data, oci.MediaTypeManifest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Error(diff)
	}
	extra := strings.Replace(good, `{"schemaVersion"`, `{"artifactType":"x","subject":null,"schemaVersion"`, 1)
	if _, err := oci.ParseManifest([]byte(extra), oci.MediaTypeManifest); err != nil {
		t.Errorf("fields that are not known: %v", err)
	}

	many := make([]string, oci.MaxLayers+1)
	for i := range many {
		many[i] = layer
	}
	for name, tt := range map[string]struct{ doc, want string }{
		"empty":              {``, "JSON"},
		"null":               {`null`, "null"},
		"array":              {`[]`, ""},
		"cut off":            {good[:len(good)-2], ""},
		"trailing":           {good + "{}", ""},
		"twice":              {strings.Replace(good, `"schemaVersion":2`, `"schemaVersion":2,"schemaVersion":2`, 1), "schemaVersion"},
		"schema 1":           {strings.Replace(good, `"schemaVersion":2`, `"schemaVersion":1`, 1), "schemaVersion: expected 2, got 1"},
		"no schema":          {strings.Replace(good, `"schemaVersion":2,`, ``, 1), "schemaVersion: expected 2, got 0"},
		"other case":         {strings.Replace(good, `"schemaVersion"`, `"SchemaVersion"`, 1), "schemaVersion"},
		"says it is another": {strings.Replace(good, oci.MediaTypeManifest, oci.MediaTypeIndex, 1), "mediaType: expected"},
		"also an index":      {strings.Replace(good, `"layers"`, `"manifests":[],"layers"`, 1), "manifests: a manifest must not also be an index"},
		"no layers":          {`{"schemaVersion":2,"config":` + descriptor(oci.MediaTypeConfig) + `}`, "layers: missing"},
		"no config":          {`{"schemaVersion":2,"layers":[]}`, "config: missing"},
		"too many layers":    {manifestJSON(oci.MediaTypeConfig, many...), "layers: 129 entries, at most 128"},
		"bad digest":         {strings.Replace(good, hexA, "../../etc/passwd", 1), "config.digest"},
		"negative size":      {strings.Replace(good, `"size":3`, `"size":-1`, 1), "config.size"},
		"huge size":          {strings.Replace(good, `"size":3`, `"size":9223372036854775807`, 1), "config.size"},
		"size overflow":      {strings.Replace(good, `"size":3`, `"size":92233720368547758070`, 1), "config.size"},
		"no size":            {strings.Replace(good, `,"size":3`, ``, 1), "config.size: missing"},
		"layer digest":       {manifestJSON(oci.MediaTypeConfig, layer, strings.Replace(layer, "sha256", "md5", 1)), "layers[1].digest"},
		"deep":               {strings.Replace(good, `{"schemaVersion"`, `{"x":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)+`,"schemaVersion"`, 1), ""},
		"large":              {good + strings.Repeat(" ", oci.MaxDocument), "limit"},
	} {
		_, err := oci.ParseManifest([]byte(tt.doc), oci.MediaTypeManifest)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "image manifest: ") {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
	if _, err := oci.ParseManifest([]byte(good), "text/html"); err == nil {
		t.Error("media type text/html was accepted")
	}
	for name, tt := range map[string]struct{ doc, want string }{
		"config of an artifact": {manifestJSON("application/vnd.oci.empty.v1+json", layer), "config.mediaType"},
		"layer of an artifact":  {manifestJSON(oci.MediaTypeConfig, layer, descriptor("text/plain")), "layers[1].mediaType"},
		"none":                  {manifestJSON(oci.MediaTypeConfig), "expected at least one"},
	} {
		m, err := oci.ParseManifest([]byte(tt.doc), oci.MediaTypeManifest)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := m.CheckImage(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

func entryJSON(mediaType, arch, variant, hex string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":3,"platform":{"os":"linux","architecture":%q,"variant":%q}}`, mediaType, hex, arch, variant)
}

func TestIndex(t *testing.T) {
	t.Parallel()
	index := func(entries ...string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeIndex, strings.Join(entries, ","))
	}
	hexB, hexC := strings.Repeat("b", 64), strings.Repeat("c", 64)
	amd64 := oci.Platform{OS: "linux", Architecture: "amd64"}
	m := oci.MediaTypeManifest
	for name, tt := range map[string]struct{ doc, digest, err string }{
		"plain":           {index(entryJSON(m, "arm64", "", hexA), entryJSON(m, "amd64", "", hexB)), hexB, ""},
		"no variant wins": {index(entryJSON(m, "amd64", "v3", hexA), entryJSON(m, "amd64", "", hexB)), hexB, ""},
		"first wins":      {index(entryJSON(m, "amd64", "v2", hexA), entryJSON(m, "amd64", "v3", hexB)), hexA, ""},
		"attestations":    {index(entryJSON(m, "unknown", "", hexA), entryJSON(m, "amd64", "", hexC), descriptor(m)), hexC, ""},
		"none":            {index(entryJSON(m, "arm64", "v8", hexA)), "", "no manifest for linux/amd64; it has linux/arm64/v8"},
		"empty":           {index(), "", "no manifest for linux/amd64"},
		"index loop":      {index(entryJSON(oci.MediaTypeIndex, "amd64", "", hexA)), "", "nested indexes are refused"},
		"index inside":    {index(descriptor(oci.MediaTypeDockerIndex)), "", "nested indexes are refused"},
		"a layer":         {index(entryJSON(oci.MediaTypeLayer, "amd64", "", hexA)), "", "manifests[0].mediaType"},
	} {
		x, err := oci.ParseIndex([]byte(tt.doc), oci.MediaTypeIndex)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		d, err := x.Select(amd64)
		if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) || (err == nil && d.Digest.Hex() != tt.digest) {
			t.Errorf("%s: want %s %q, got %s, %v", name, tt.digest, tt.err, d.Digest, err)
		}
	}
	for name, tt := range map[string]struct{ doc, want string }{
		"also a manifest": {`{"schemaVersion":2,"manifests":[],"layers":[]}`, "layers: an index must not also be a manifest"},
		"no manifests":    {`{"schemaVersion":2}`, "manifests: missing"},
		"bad platform":    {index(strings.Replace(entryJSON(m, "amd64", "", hexA), `"linux"`, `1`, 1)), "platform"},
	} {
		if _, err := oci.ParseIndex([]byte(tt.doc), oci.MediaTypeIndex); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

func TestParseImageConfig(t *testing.T) {
	t.Parallel()
	const doc = `{"created":"2024-01-01T00:00:00Z","architecture":"amd64","os":"linux","container_config":{"Cmd":["x"]},
	 "config":{"User":"1:2","Env":["A=b"],"Entrypoint":["/e"],"Cmd":null,"WorkingDir":"/w","Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{}},
	 "Labels":{"k":"v","K":"w"},"StopSignal":"SIGINT","ArgsEscaped":true,"Healthcheck":{"Test":["NONE"]},"env":["EVIL=1"]},
	 "rootfs":{"type":"layers","diff_ids":["sha256:` + hexA + `"]},"history":[{"created_by":"x"}]}`
	c, err := oci.ParseImageConfig([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	want := &oci.ImageConfig{Created: "2024-01-01T00:00:00Z", Architecture: "amd64", OS: "linux", Config: oci.ContainerConfig{
		User: "1:2", Env: []string{"A=b"}, Entrypoint: []string{"/e"}, WorkingDir: "/w", Volumes: map[string]struct{}{"/v": {}},
		ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"k": "v", "K": "w"}, StopSignal: "SIGINT",
	}, RootFS: oci.RootFS{Type: "layers", DiffIDs: []oci.Digest{"sha256:" + hexA}}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	if err := c.CheckImage(oci.Platform{OS: "linux", Architecture: "amd64"}, 1); err != nil {
		t.Error(err)
	}
	if err := c.CheckImage(oci.Platform{OS: "linux", Architecture: "amd64"}, 2); err == nil || !strings.Contains(err.Error(), "rootfs.diff_ids: expected 2") {
		t.Errorf("two layers: %v", err)
	}
	if err := c.CheckImage(oci.Platform{OS: "linux", Architecture: "arm64"}, 1); err == nil || !strings.Contains(err.Error(), "another platform") {
		t.Errorf("arm64: %v", err)
	}
	for _, tt := range []struct{ from, to, want string }{
		{`"rootfs"`, `"Rootfs"`, "rootfs: missing"},
		{`"layers"`, `"x"`, "rootfs.type"},
		{`sha256:` + hexA, `sha256:x`, "rootfs.diff_ids[0]"},
		{`["A=b"]`, `"A=b"`, "config.Env"},
		{`{"/v":{}}`, `[]`, "config.Volumes"},
		{`"os":"linux"`, `"os":"linux","os":"x"`, "os"},
		{`"os":"linux"`, `"os":1`, "os"},
	} {
		if _, err := oci.ParseImageConfig([]byte(strings.Replace(doc, tt.from, tt.to, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", tt.to, tt.want, err)
		}
	}
}

func TestLayerMediaTypes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]oci.LayerFormat{
		oci.MediaTypeLayer:                                                       {},
		oci.MediaTypeLayerGzip:                                                   {Compression: oci.Gzip},
		oci.MediaTypeLayerZstd + "+encrypted":                                    {Compression: oci.Zstd, Encrypted: true},
		"application/vnd.oci.image.layer.v1.tar+encrypted":                       {Encrypted: true},
		oci.MediaTypeDockerLayer + ".gzip":                                       {Compression: oci.Gzip},
		oci.MediaTypeDockerLayer + ".gzip+encrypted":                             {Compression: oci.Gzip, Encrypted: true},
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted": {Compression: oci.Gzip, Encrypted: true},
	} {
		got, err := oci.ParseLayerMediaType(in)
		if err != nil || got != want {
			t.Errorf("%s: want %+v, got %+v, %v", in, want, got, err)
		}
		if round, err := oci.ParseLayerMediaType(got.MediaType()); err != nil || round != got {
			t.Errorf("%s: %s does not survive: %+v, %v", in, got.MediaType(), round, err)
		}
	}
	for _, in := range []string{"", "+encrypted", "text/html", oci.MediaTypeLayer + "+xz", oci.MediaTypeLayer + "+encrypted+gzip", oci.MediaTypeManifest} {
		if f, err := oci.ParseLayerMediaType(in); err == nil {
			t.Errorf("%q was accepted: %+v", in, f)
		}
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte(manifestJSON(oci.MediaTypeConfig, descriptor(oci.MediaTypeLayerGzip))))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[` + entryJSON(oci.MediaTypeManifest, "amd64", "", hexA) + `]}`))
	f.Add([]byte(`{"os":"linux","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["sha256:` + hexA + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := oci.ParseManifest(data, oci.MediaTypeManifest)
		if (m == nil) == (err == nil) {
			t.Errorf("manifest: %v, %v", m, err)
		}
		if m != nil {
			_ = m.CheckImage()
		}
		x, xerr := oci.ParseIndex(data, oci.MediaTypeIndex)
		if (x == nil) == (xerr == nil) {
			t.Errorf("index: %v, %v", x, xerr)
		}
		if m != nil && x != nil {
			t.Error("one document is a manifest and an index")
		}
		if x != nil {
			_, _ = x.Select(oci.GuestPlatform())
		}
		if c, err := oci.ParseImageConfig(data); (c == nil) == (err == nil) {
			t.Errorf("configuration: %v, %v", c, err)
		}
	})
}
