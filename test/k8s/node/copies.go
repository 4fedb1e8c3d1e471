package node

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// DataAddress is where [Images.Publish] puts files, without TLS.
const DataAddress = IP + ":5080"

// read gets an image from the registry.
func (i *Images) read(ref string) (v1.Image, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	options, err := i.options(r)
	if err != nil {
		return nil, err
	}
	return remote.Image(r, options...)
}

// Copy gives an image of the registry another name.
func (i *Images) Copy(from, to string) error {
	img, err := i.read(from)
	if err != nil {
		return err
	}
	return i.Write(to, img)
}

// CopyLabelled makes another image of one, with a label: it runs as the other does.
func (i *Images) CopyLabelled(from, to, label string) error {
	img, err := i.read(from)
	if err != nil {
		return err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	c.Config.Labels = map[string]string{"name": label}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		return err
	}
	return i.Write(to, img)
}

// Pulls is how many blobs of a repository have been asked for.
func (i *Images) Pulls(repository string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pulls[repository]
}

func (i *Images) count(path string) {
	repository, _, ok := strings.Cut(strings.TrimPrefix(path, "/v2/"), "/blobs/")
	if !ok {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pulls[repository]++
}

// Publish serves a file at http://[DataAddress]/NAME.
func (i *Images) Publish(name string, data []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.files[name] = data
}

func (i *Images) serveFiles(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	data, ok := i.files[strings.TrimPrefix(r.URL.Path, "/")]
	i.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(data)
}

// PushBig makes an image of the app with a file of so many zeros, which are small
// while they are packed.
func (i *Images) PushBig(ref string, size int64) error {
	img, err := i.read(AppImage)
	if err != nil {
		return err
	}
	layer, err := newZeros(i.n.dir, size)
	if err != nil {
		return err
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return err
	}
	err = i.Write(ref, img)
	_ = os.Remove(layer.file)
	return err
}

// zeros is a packed layer with one big file.
type zeros struct {
	file         string
	digest, diff v1.Hash
	packed       int64
}

func newZeros(dir string, size int64) (*zeros, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	packed, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, packed))
	w := tar.NewWriter(io.MultiWriter(z, plain))
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	block := make([]byte, 1<<20)
	for left := size; left > 0; left -= int64(len(block)) {
		if _, err := w.Write(block[:min(left, int64(len(block)))]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &zeros{file: f.Name(), digest: hashOf(packed), diff: hashOf(plain), packed: info.Size()}, nil
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

func (z *zeros) Digest() (v1.Hash, error)            { return z.digest, nil }
func (z *zeros) DiffID() (v1.Hash, error)            { return z.diff, nil }
func (z *zeros) Size() (int64, error)                { return z.packed, nil }
func (z *zeros) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
func (z *zeros) Compressed() (io.ReadCloser, error)  { return os.Open(z.file) }
func (z *zeros) Uncompressed() (io.ReadCloser, error) {
	return nil, fmt.Errorf("%s is only there packed", z.file)
}
