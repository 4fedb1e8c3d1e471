package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math"
	mrand "math/rand/v2"
	"os"
	"runtime"
	"strings"

	fastgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// shape is what an image looks like.
type shape struct {
	name   string
	layers int
	files  int   // of a layer
	bytes  int64 // of a layer's files
	format oci.LayerFormat
	window int // of zstd, in bytes; 0: the encoder's own
}

// seed makes every run's input the same.
const seed = 5

// content writes bytes that compress about twofold, less than a distribution's
// files do: words of a small vocabulary, and one part in eight that does not compress.
type content struct {
	rand  *mrand.Rand
	words [1 << 14]string // the frequent ones often
}

func newContent(n uint64) *content {
	c := &content{rand: mrand.New(mrand.NewPCG(seed, n))}
	const letters = "etaoinshrdlucmfwypvbgkjqxz_/.-ETAOIN0123456789"
	var vocabulary [4096]string
	for i := range vocabulary {
		var b strings.Builder
		for range 3 + c.rand.IntN(9) {
			b.WriteByte(letters[int(float64(len(letters))*math.Pow(c.rand.Float64(), 1.5))])
		}
		vocabulary[i] = b.String() + " "
	}
	for i := range c.words {
		c.words[i] = vocabulary[int(float64(len(vocabulary))*math.Pow(c.rand.Float64(), 3))]
	}
	return c
}

func (c *content) fill(b *bytes.Buffer, n int64) {
	b.Reset()
	for int64(b.Len()) < n {
		if c.rand.IntN(8) == 0 {
			for range 16 {
				x := c.rand.Uint64()
				b.Write([]byte{byte(x), byte(x >> 8), byte(x >> 16), byte(x >> 24), byte(x >> 32), byte(x >> 40)})
			}
			continue
		}
		for range 4 { // a line
			x := c.rand.Uint64()
			for range 4 {
				b.WriteString(c.words[x%uint64(len(c.words))])
				x >>= 16
			}
		}
		b.WriteByte('\n')
	}
	b.Truncate(int(n))
}

// writeTar writes a layer's tar stream: directories of some twenty files, most
// files small, a few large.
func (s shape) writeTar(w io.Writer, index int) error {
	c := newContent(uint64(index))
	sizes := make([]int64, s.files)
	var sum float64
	for i := range sizes {
		sizes[i] = int64(math.Exp(c.rand.NormFloat64()*1.3) * 1000)
		sum += float64(sizes[i])
	}
	t := tar.NewWriter(w)
	var body bytes.Buffer
	for i, size := range sizes {
		size = int64(float64(size) * float64(s.bytes) / sum)
		dir := fmt.Sprintf("usr/share/l%d/d%02d/d%03d", index, i/400, i/20)
		if i%20 == 0 {
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return err
			}
		}
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file-%05d.txt", dir, i), Mode: 0o644, Size: size}
		if err := t.WriteHeader(hdr); err != nil {
			return err
		}
		c.fill(&body, size)
		if _, err := t.Write(body.Bytes()); err != nil {
			return err
		}
	}
	return t.Close()
}

const kid = "kbs:///default/bench/key"

func benchKey() secret.Bytes { return secret.New(bytes.Repeat([]byte{7}, 32)) }

// keys is the source of the key that encrypted layers are wrapped with.
type keys struct{}

func (keys) Key(context.Context, string) (secret.Bytes, error) { return benchKey(), nil }

// store makes one layer in dir and describes it.
func (s shape) store(dir string, index int) (_ oci.Descriptor, diffID oci.Digest, file string, err error) {
	f, err := os.CreateTemp(dir, "layer-*")
	if err != nil {
		return oci.Descriptor{}, "", "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	plain := sha256.New()
	to, finish, err := s.compressor(f)
	if err != nil {
		return oci.Descriptor{}, "", "", err
	}
	if err := s.writeTar(io.MultiWriter(to, plain), index); err != nil {
		return oci.Descriptor{}, "", "", err
	}
	if err := finish(); err != nil {
		return oci.Descriptor{}, "", "", err
	}
	d := oci.Descriptor{MediaType: s.format.MediaType()}
	if s.format.Encrypted {
		if f, d.Annotations, err = seal(f, dir); err != nil {
			return oci.Descriptor{}, "", "", err
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return oci.Descriptor{}, "", "", err
	}
	stored := sha256.New()
	if d.Size, err = io.Copy(stored, f); err != nil {
		return oci.Descriptor{}, "", "", err
	}
	d.Digest = oci.FromHash(stored)
	return d, oci.FromHash(plain), f.Name(), nil
}

func (s shape) compressor(w io.Writer) (io.Writer, func() error, error) {
	switch s.format.Compression {
	case oci.Gzip: // as docker and buildah do it
		if s.bytes > imageBytes { // what matters of large ones is their size
			z, err := fastgzip.NewWriterLevel(w, fastgzip.BestSpeed)
			if err != nil {
				return nil, nil, err
			}
			return z, z.Close, nil
		}
		z := gzip.NewWriter(w)
		return z, z.Close, nil
	case oci.Zstd:
		var options []zstd.EOption
		if s.window > 0 {
			options = append(options, zstd.WithWindowSize(s.window))
		}
		z, err := zstd.NewWriter(w, options...)
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	default:
		return w, func() error { return nil }, nil
	}
}

// seal replaces a file by its encryption.
func seal(f *os.File, dir string) (*os.File, map[string]string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	l, err := encrypt.NewLayer(f, rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	out, err := os.CreateTemp(dir, "layer-*")
	if err != nil {
		return nil, nil, err
	}
	if _, err := io.Copy(out, l); err != nil {
		return nil, nil, err
	}
	annotations, err := l.Annotations(encrypt.Recipient{KID: kid, Key: benchKey()})
	if err != nil {
		return nil, nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, nil, err
	}
	return out, annotations, f.Close()
}

// push makes the image, pushes it under the tag that is its name, and returns
// the digest of its manifest.
func (s shape) push(ctx context.Context, to oci.Pusher, dir string) (oci.Digest, error) {
	config := oci.ImageConfig{OS: "linux", Architecture: runtime.GOARCH, RootFS: oci.RootFS{Type: "layers"}}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest}
	for i := range s.layers {
		d, diffID, file, err := s.store(dir, i)
		if err != nil {
			return "", err
		}
		if err := pushFile(ctx, to, d, file); err != nil {
			return "", err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		m.Layers = append(m.Layers, d)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	if m.Config, err = oci.PushBytes(ctx, to, oci.MediaTypeConfig, data); err != nil {
		return "", err
	}
	if data, err = json.Marshal(m); err != nil {
		return "", err
	}
	d, err := oci.PushBytes(ctx, to, oci.MediaTypeManifest, data)
	if err != nil {
		return "", err
	}
	return d.Digest, to.Tag(ctx, d, s.name)
}

func pushFile(ctx context.Context, to oci.Pusher, d oci.Descriptor, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := to.Push(ctx, d, f); err != nil {
		return err
	}
	return os.Remove(file)
}
