package run

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/oci"
)

// Bounds on what is read of an image's layers to find its accounts.
const (
	maxAccountFile  = 1 << 20
	maxLayerBytes   = 16 << 30
	maxLayerEntries = 1 << 21
)

// accounts are /etc/passwd and /etc/group of an image in the making: layers are
// read from the top, and the first that says something about a file decides.
type accounts struct {
	files map[string]*account
}

type account struct {
	content []byte
	// settled: no lower layer matters.
	settled bool
}

// readAccounts reads the two files of an image; nil for one that it does not
// have.
func readAccounts(ctx context.Context, f oci.Fetcher, m *oci.Manifest) (passwd, group []byte, err error) {
	a := &accounts{map[string]*account{"etc/passwd": {}, "etc/group": {}}}
	for i := len(m.Layers) - 1; i >= 0 && !a.settled(); i-- {
		if err := a.layer(ctx, f, m.Layers[i]); err != nil {
			return nil, nil, fmt.Errorf("its /etc/passwd and /etc/group: layer %d: %w", i, err)
		}
	}
	return a.files["etc/passwd"].content, a.files["etc/group"].content, nil
}

func (a *accounts) settled() bool {
	for _, f := range a.files {
		if !f.settled {
			return false
		}
	}
	return true
}

func (a *accounts) layer(ctx context.Context, f oci.Fetcher, d oci.Descriptor) (err error) {
	format, err := oci.ParseLayerMediaType(d.MediaType)
	if err != nil {
		return err
	}
	if format.Encrypted {
		return errors.New("encrypted")
	}
	blob, err := f.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	verified, err := oci.VerifyReader(blob, d)
	if err != nil {
		return err
	}
	plain := verified
	switch format.Compression {
	case oci.Gzip:
		if plain, err = gzip.NewReader(verified); err != nil {
			return err
		}
	case oci.Zstd:
		z, err := zstd.NewReader(verified, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		plain = z
	case oci.Uncompressed:
	}
	found := map[string]*account{"etc/passwd": {}, "etc/group": {}}
	if err := scan(tar.NewReader(io.LimitReader(plain, maxLayerBytes)), found); err != nil {
		return err
	}
	// To its end, where the digest is known.
	if _, err := io.Copy(io.Discard, verified); err != nil {
		return err
	}
	for name, file := range found {
		if own := a.files[name]; !own.settled && file.settled {
			*own = *file
		}
	}
	return nil
}

// scan notes what one layer says about the files: that one is there, or that
// those below do not count (whiteouts, OCI image specification, "Layer").
func scan(t *tar.Reader, files map[string]*account) error {
	hide := func(names ...string) {
		for _, name := range names {
			files[name].settled = true
		}
	}
	for range maxLayerEntries {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)[1:]
		switch name {
		case "etc/passwd", "etc/group":
			if h.Typeflag != tar.TypeReg {
				return fmt.Errorf("/%s is no regular file", name)
			}
			content, err := io.ReadAll(io.LimitReader(t, maxAccountFile+1))
			if err != nil {
				return err
			}
			if len(content) > maxAccountFile {
				return fmt.Errorf("/%s is larger than %d bytes", name, maxAccountFile)
			}
			files[name] = &account{content, true}
		case "etc/.wh.passwd":
			hide("etc/passwd")
		case "etc/.wh.group":
			hide("etc/group")
		case ".wh.etc", "etc/.wh..wh..opq", ".wh..wh..opq":
			hide("etc/passwd", "etc/group")
		case "etc":
			if h.Typeflag != tar.TypeDir {
				return errors.New("/etc is no directory")
			}
		}
	}
	return fmt.Errorf("more than %d entries", maxLayerEntries)
}
