package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/archive"
	"github.com/coffer-project/coffer/oci/layout"
)

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// claim changes the size in the last header of a tar, whose checksum it makes
// right again, and cuts off what is behind.
func claim(t *testing.T, name string, size uint64) []byte {
	t.Helper()
	h := write(t, member{name: name, body: ""})[:512]
	clear(h[124:136])
	h[124] = 0x80 // base 256
	binary.BigEndian.PutUint64(h[128:], size)
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	id := oci.FromBytes([]byte(emptyTar))
	cfg, layer := member{name: "c.json", body: config(id)}, member{name: "l", body: emptyTar}
	m := func(body string) member { return member{name: "manifest.json", body: body} }
	good := m(`[{"Config":"c.json","Layers":["l"]}]`)
	tags := strings.TrimSuffix(strings.Repeat(`"a:b",`, 1025), ",")
	layers := strings.TrimSuffix(strings.Repeat(`"l",`, 10_000), ",")
	var many []member
	for i := range 20 {
		many = append(many, member{name: fmt.Sprint(i) + strings.Repeat("n", 900<<10), body: ""})
	}
	chain := []member{cfg, good}
	for i := range 20 {
		chain = append(chain, member{fmt.Sprintf("k%d", i), fmt.Sprintf("k%d", i+1), tar.TypeSymlink})
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"manifest twice":       {write(t, cfg, layer, good, good), `member "manifest.json": occurs more than once`},
		"layer twice":          {write(t, cfg, layer, layer, good), `field Layers[0]: member "l": occurs more than once`},
		"layer twice, by ..":   {write(t, cfg, layer, member{name: "x/../l", body: "other"}, good), `member "l": occurs more than once`},
		"file and link":        {write(t, cfg, layer, member{"l", "c.json", tar.TypeSymlink}, good), `member "l": occurs more than once`},
		"link to twice":        {write(t, cfg, member{"l", "k", tar.TypeSymlink}, member{name: "k", body: emptyTar}, member{name: "k", body: ""}, good), `member "k": occurs more than once`},
		"chain of links":       {write(t, append(chain, member{"l", "k0", tar.TypeLink})...), "more than 8 links in a row"},
		"a device":             {write(t, cfg, member{"l", "", tar.TypeChar}, good), `member "l": missing`},
		"huge names":           {write(t, many...), "the names of its members are longer than 16777216 bytes together"},
		"huge manifest":        {write(t, cfg, layer, m("["+strings.Repeat(" ", oci.MaxDocument)+"]")), `member "manifest.json": 4194306 bytes, at most 4194304 are allowed`},
		"huge configuration":   {write(t, member{name: "c.json", body: config(id) + strings.Repeat(" ", oci.MaxDocument)}, layer, good), `field Config: member "c.json"`},
		"many images":          {write(t, m("["+strings.Repeat(`{},`, 256)+"{}]")), "expected 1 to 256 images, got 257"},
		"many tags":            {write(t, cfg, layer, m(`[{"Config":"c.json","RepoTags":[`+tags+`],"Layers":["l"]}]`)), "field RepoTags: 1025 of them, at most 1024 are allowed"},
		"many layers":          {write(t, cfg, layer, m(`[{"Config":"c.json","Layers":[`+layers+`]}]`)), "field Layers: expected 1"},
		"deep manifest":        {write(t, m(strings.Repeat("[", 100)+strings.Repeat("]", 100))), "manifest.json: JSON"},
		"name twice in JSON":   {write(t, cfg, layer, m(`[{"Config":"c.json","Config":"d.json","Layers":["l"]}]`)), "manifest.json: JSON"},
		"size beyond the file": {append(write(t, cfg, good)[:4*512], claim(t, "l", 1<<40)...), "unexpected EOF"},
		"greatest size":        {append(write(t, cfg, good)[:4*512], claim(t, "l", 1<<63-1)...), ""},
		"negative size":        {append(write(t, cfg, good)[:4*512], claim(t, "l", 1<<63)...), "invalid tar header"},
		"manifest cut off":     {claim(t, "manifest.json", 1000), "unexpected EOF"},
		"an OCI archive":       {write(t, member{name: "oci-layout", body: "{}"}), "it is an archive of an OCI image layout"},
		"gzip in gzip":         {gz(t, gz(t, write(t, cfg, layer, good))), "unexpected EOF"},
		"gzip and garbage":     {append(gz(t, write(t, cfg, layer, good)), "garbage garbage"...), "gzip: corrupt at offset"},
		"gzip with wrong CRC":  {flip(gz(t, write(t, cfg, layer, good)), -5), "gzip: corrupt at offset"},
	} {
		images, _, err := load(t, tt.data)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v, %v", name, tt.want, images, err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
}

func flip(b []byte, i int) []byte {
	b[len(b)+i] ^= 1
	return b
}

// A sparse member has fewer bytes in the archive than its size says.
func TestSparse(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := "1\n0\n512\n" + strings.Repeat("\x00", 504) + strings.Repeat("x", 512)
	h := &tar.Header{Name: "GNUSparseFile.0/l", Mode: 0o600, Size: int64(len(body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte(body))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// archive/tar does not write the records: they are put before by hand.
	record := func(k, v string) string {
		s := " " + k + "=" + v + "\n"
		n := len(s) + 2
		return fmt.Sprint(n) + s
	}
	records := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "l") + record("GNU.sparse.realsize", "1000000")
	pax := write(t, member{name: "PaxHeaders/l", body: records})[:1024]
	pax[156] = 'x'
	copy(pax[148:], "        ")
	sum := 0
	for _, c := range pax[:512] {
		sum += int(c)
	}
	copy(pax[148:], fmt.Sprintf("%06o\x00 ", sum))
	if _, _, err := load(t, append(pax, b.Bytes()...)); err == nil || !strings.Contains(err.Error(), `member "l": is a sparse file`) {
		t.Errorf("%v", err)
	}
}

func TestNotRegular(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, file := range []string{fifo, dir, "/dev/null"} {
		if _, err := archive.Load(t.Context(), file, l, dir); err == nil || !strings.Contains(err.Error(), "expected a regular file") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// ociArchive are the members of an archive of a layout with one image.
func ociArchive(t testing.TB, index string, more ...member) []byte {
	return write(t, append([]member{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: index}}, more...)...)
}

func blob(body string) member {
	return member{name: "blobs/sha256/" + oci.FromBytes([]byte(body)).Hex(), body: body}
}

func entry(body, tag string, size int) string {
	d := oci.Describe(oci.MediaTypeManifest, []byte(body))
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":%q}}`, d.MediaType, d.Digest, size, tag)
}

func index(entries ...string) string {
	return `{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`
}

func loadOCI(t testing.TB, data []byte) (*layout.Layout, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, archive.LoadOCI(t.Context(), file, l, t.TempDir())
}

func TestLoadOCI(t *testing.T) {
	t.Parallel()
	one := index(entry("a", "v1", 1), entry("b", "v2", 1))
	for name, data := range map[string][]byte{
		"plain":      ociArchive(t, one, blob("a"), blob("b")),
		"compressed": gz(t, ociArchive(t, one, blob("b"), blob("a"))),
		"directories": ociArchive(t, one, member{"blobs/", "", tar.TypeDir}, member{"./blobs/sha256/", "", tar.TypeDir}, blob("a"), blob("b"),
			member{name: "manifest.json", body: "[]"}),
		"link": ociArchive(t, one, member{name: "a", body: "a"}, member{"./" + blob("a").name, "a", tar.TypeLink}, blob("b")),
	} {
		l, err := loadOCI(t, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for tag, body := range map[string]string{"v1": "a", "v2": "b"} {
			d, err := l.Resolve(t.Context(), oci.Reference{Tag: tag})
			if err != nil || d.Digest != oci.FromBytes([]byte(body)) {
				t.Errorf("%s: %s: %+v, %v", name, tag, d, err)
				continue
			}
			if got, err := oci.ReadAll(t.Context(), l, d, 100); err != nil || string(got) != body {
				t.Errorf("%s: %s: %q, %v", name, tag, got, err)
			}
		}
	}
}

func TestHostileOCIArchives(t *testing.T) {
	t.Parallel()
	var thousands []string
	for i := range 3000 {
		thousands = append(thousands, entry("a", fmt.Sprint("v", i), 1))
	}
	one := index(entry("a", "v1", 1))
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"docker save":     {write(t, member{name: "manifest.json", body: "[]"}), "it is an archive that docker save wrote"},
		"version":         {write(t, member{name: "oci-layout", body: `{"imageLayoutVersion":"2.0.0"}`}), "imageLayoutVersion"},
		"version by case": {write(t, member{name: "oci-layout", body: `{"ImageLayoutVersion":"1.0.0"}`}), "imageLayoutVersion"},
		"no index":        {write(t, member{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}), `member "index.json": missing`},
		"index twice":     {ociArchive(t, one, member{name: "index.json", body: one}, blob("a")), `member "index.json": occurs more than once`},
		"thousands":       {ociArchive(t, index(thousands...), blob("a")), "manifests: 3000 entries, at most 1024 are allowed"},
		"tag twice":       {ociArchive(t, index(entry("a", "v1", 1), entry("b", "v1", 1)), blob("a"), blob("b")), `the tag "v1" names`},
		"no manifest":     {ociArchive(t, one), "index.json: manifests[0]: member"},
		"wrong size":      {ociArchive(t, index(entry("a", "v1", 5)), blob("a")), "index.json: manifests[0].size: 5, but the manifest has 1 bytes"},
		"huge size":       {ociArchive(t, index(entry("a", "v1", 1<<50)), blob("a")), "size: expected 0 to"},
		"wrong digest":    {ociArchive(t, one, member{name: blob("a").name, body: "x"}), "is not what its name says: digest differs"},
		"no digest":       {ociArchive(t, one, blob("a"), member{name: "blobs/sha256/../../../../etc/passwd", body: "x"}, member{name: "blobs/sha256/xyz", body: "x"}), "expected 64 hexadecimal digits"},
		"other algorithm": {ociArchive(t, one, blob("a"), member{name: "blobs/md5/0123", body: "x"}), `algorithm "md5" is not supported`},
		"deeper":          {ociArchive(t, one, blob("a"), member{name: blob("a").name + "/x", body: "x"}), "expected 64 hexadecimal digits"},
		"link out":        {ociArchive(t, one, member{blob("a").name, "../../../../../etc/passwd", tar.TypeSymlink}), "missing"},
		"blob twice":      {ociArchive(t, one, blob("a"), blob("a")), "occurs more than once"},
		"cut off":         {append(ociArchive(t, one)[:4*512], claim(t, blob("a").name, 1<<40)...), "unexpected EOF"},
	} {
		l, err := loadOCI(t, tt.data)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
		if _, err := l.Resolve(t.Context(), oci.Reference{}); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("%s: an image was listed: %v", name, err)
		}
	}
}

func FuzzLoadOCI(f *testing.F) {
	f.Add(ociArchive(f, index(entry("a", "v1", 1)), blob("a")))
	f.Add(gz(f, ociArchive(f, index(entry("a", "v1", 1)), blob("a"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := loadOCI(t, data)
		if err != nil {
			return
		}
		for _, d := range l.Manifests() {
			if _, err := oci.ReadAll(t.Context(), l, d, oci.MaxDocument); err != nil {
				t.Errorf("%s: %v", d.Digest, err)
			}
		}
	})
}
