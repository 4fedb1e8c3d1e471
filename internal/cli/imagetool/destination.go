package imagetool

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
)

// Destination is where an image is written. Close it.
type Destination struct {
	// name is what the user called it.
	name  string
	store signature.Store
	// ref has the tag; its repository is made up for what is no registry.
	ref oci.Reference
	// registry says that the repository is not made up.
	registry bool
	// single is a Docker archive: one platform, no encrypted layers.
	single bool
	// pack writes the file of an archive; nil for what is no archive.
	pack  func(ctx context.Context, d oci.Descriptor) error
	close func() error
}

// Close ends the writing. What has no tag by then is no image.
func (d *Destination) Close() error { return d.close() }

// Name is what the user called it.
func (d *Destination) Name() string { return d.name }

// Lossy says that neither digests nor signatures are kept.
func (d *Destination) Lossy() bool { return d.single }

const destinationForms = "REGISTRY/REPOSITORY:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:REFERENCE"

// OpenDestination opens the place that name stands for:
//
//	[docker://]REGISTRY/REPOSITORY:TAG   a registry's
//	oci:DIR:TAG                          in an OCI layout directory
//	oci-archive:FILE:TAG                 in a new tar of such a directory
//	docker-archive:FILE:REFERENCE        in a new file for docker load
//
// o.Spool is where archives are put together.
func OpenDestination(name string, o run.ImageOptions) (*Destination, error) {
	kind, rest, ok := strings.Cut(name, ":")
	if !ok || strings.HasPrefix(rest, "//") || kind != "oci" && kind != "oci-archive" && kind != "docker-archive" {
		return openRegistry(name, o)
	}
	path, tag, ok := strings.Cut(rest, ":")
	if !ok || path == "" {
		return nil, fmt.Errorf("destination %q: expected %s", name, destinationForms)
	}
	d := &Destination{name: name, ref: oci.Reference{Registry: "localhost", Repository: "layout", Tag: tag}}
	if kind == "docker-archive" {
		ref, err := oci.ParseReference(tag)
		if err != nil || ref.Tag == "" || ref.Digest != "" {
			return nil, fmt.Errorf("destination %q: expected docker-archive:FILE:REPOSITORY:TAG", name)
		}
		d.ref, d.single = ref, true
	} else if err := oci.CheckTag(tag); err != nil {
		return nil, fmt.Errorf("destination %q: expected %s:%s:TAG: %w", name, kind, path, err)
	}
	dir := path
	if kind != "oci" {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("destination %s: %s exists already, and an archive is written whole", name, path)
		}
		dir = filepath.Join(o.Spool, "out")
	}
	l, err := layout.Create(dir)
	if err != nil {
		return nil, fmt.Errorf("destination %s: %w", name, err)
	}
	d.store, d.close = l, l.Close
	switch kind {
	case "oci-archive":
		d.pack = func(context.Context, oci.Descriptor) error {
			return writeArchive(path, func(w *tar.Writer) error { return w.AddFS(os.DirFS(dir)) })
		}
	case "docker-archive":
		d.pack = func(ctx context.Context, top oci.Descriptor) error {
			return writeArchive(path, func(w *tar.Writer) error { return dockerArchive(ctx, w, l, top, d.ref, o.Spool) })
		}
	}
	return d, nil
}

func openRegistry(name string, o run.ImageOptions) (*Destination, error) {
	ref, err := oci.ParseReference(strings.TrimPrefix(name, "docker://"))
	if err != nil {
		return nil, fmt.Errorf("destination: %w; expected %s", err, destinationForms)
	}
	if ref.Tag == "" || ref.Digest != "" {
		return nil, fmt.Errorf("destination %q: expected a reference with a tag and without a digest", name)
	}
	client, err := run.RegistryClient(o)
	if err != nil {
		return nil, err
	}
	repository, err := client.Repository(ref)
	if err != nil {
		client.Close()
		return nil, err
	}
	return &Destination{name: name, store: repository, ref: ref, registry: true, close: func() error { client.Close(); return nil }}, nil
}

// finish gives what was written its name, which it returns with the digest
// where names can have one.
func (d *Destination) finish(ctx context.Context, top oci.Descriptor) (string, error) {
	if !d.single {
		if err := d.store.Tag(ctx, top, d.ref.Tag); err != nil {
			return "", fmt.Errorf("tag %s: %w", d.name, err)
		}
	}
	if d.pack != nil {
		if err := d.pack(ctx, top); err != nil {
			return "", fmt.Errorf("write %s: %w", d.name, err)
		}
	}
	if d.registry {
		return d.ref.WithDigest(top.Digest).String(), nil
	}
	return d.name, nil
}

// writeArchive writes a tar, which appears under its name when it is whole.
func writeArchive(path string, write func(*tar.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	w := tar.NewWriter(f)
	err = errors.Join(write(w), w.Close(), f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
