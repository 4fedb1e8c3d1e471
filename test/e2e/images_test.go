package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/demo/demoroot"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
)

// images are those the tests run.
type images struct {
	// layout is an image of busybox, as oci:DIR:TAG.
	layout string
	// archive is the same image as docker save writes it.
	archive string
}

// imageConfig is the configuration of every image here.
func imageConfig() oci.ContainerConfig {
	return oci.ContainerConfig{
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo default command"},
		Env: []string{"PATH=/bin", "FROM_IMAGE=image", "CHANGED=image"}, WorkingDir: "/tmp", User: "app",
	}
}

func (s *suite) makeImages() (_ *images, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	base, app := filepath.Join(s.dir, "base"), filepath.Join(s.dir, "app")
	for _, d := range []string{base, app} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if _, err := demoroot.Base(ctx, base); err != nil {
		return nil, err
	}
	if err := demoroot.App(app, "a marker"); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, "layout")
	l, err := layout.Create(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	// Without compression, so that the layers are those of the archive too.
	d, err := build.Build(ctx, l, build.Options{
		Layers: []build.Tree{{Dir: base, ModTime: time.Unix(0, 0)}, {Dir: app, ModTime: time.Unix(0, 0)}},
		Config: oci.ImageConfig{Config: imageConfig()}, Compression: oci.Uncompressed, Spool: s.dir,
	})
	if err != nil {
		return nil, err
	}
	if err := l.Tag(ctx, d, "v1"); err != nil {
		return nil, err
	}
	made := &images{layout: "oci:" + dir + ":v1", archive: filepath.Join(s.dir, "image.tar")}
	return made, writeArchive(ctx, made.archive, l, d.Digest)
}

// writeArchive writes what docker save would.
func writeArchive(ctx context.Context, file string, l *layout.Layout, digest oci.Digest) error {
	ref := oci.Reference{Registry: "localhost", Repository: "app"}.WithDigest(digest)
	_, manifest, err := build.Inspect(ctx, l, ref, oci.GuestPlatform())
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	w := tar.NewWriter(out)
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: manifest.Config.Digest.Hex() + ".json", RepoTags: []string{"app:v1"}}
	copyBlob := func(d oci.Descriptor, name string) error {
		blob, err := l.Fetch(ctx, d)
		if err != nil {
			return err
		}
		defer func() { _ = blob.Close() }()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: d.Size}); err != nil {
			return err
		}
		_, err = io.Copy(w, blob)
		return err
	}
	if err := copyBlob(manifest.Config, entry.Config); err != nil {
		return err
	}
	for n, layer := range manifest.Layers {
		name := fmt.Sprintf("%d/layer.tar", n)
		entry.Layers = append(entry.Layers, name)
		if err := copyBlob(layer, name); err != nil {
			return err
		}
	}
	index, err := json.Marshal([]any{entry})
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: "manifest.json", Mode: 0o644, Size: int64(len(index))}); err != nil {
		return err
	}
	if _, err := w.Write(index); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}
