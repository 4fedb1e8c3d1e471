package imagetool

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
)

// dockerArchive writes the form that docker load reads: the configuration, the
// layers without compression, and manifest.json, which names them (Docker image
// specification v1.2, "Combined Image JSON + Filesystem Changeset Format").
// Manifests have no place in it.
func dockerArchive(ctx context.Context, w *tar.Writer, l *layout.Layout, top oci.Descriptor, ref oci.Reference, spoolDir string) error {
	data, err := oci.ReadAll(ctx, l, top, oci.MaxDocument)
	if err != nil {
		return err
	}
	m, err := oci.ParseManifest(data, top.MediaType)
	if err != nil {
		return err
	}
	raw, err := oci.ReadAll(ctx, l, m.Config, oci.MaxDocument)
	if err != nil {
		return err
	}
	config, err := oci.ParseImageConfig(raw)
	if err != nil {
		return err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: m.Config.Digest.Hex() + ".json", RepoTags: []string{ref.String()}}
	if err := addFile(w, e.Config, raw); err != nil {
		return err
	}
	written := map[string]bool{}
	for i, d := range m.Layers {
		name := config.RootFS.DiffIDs[i].Hex() + ".tar"
		e.Layers = append(e.Layers, name)
		if written[name] {
			continue
		}
		written[name] = true
		if err := addLayer(ctx, w, name, l, d, config.RootFS.DiffIDs[i], spoolDir); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	list, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	return addFile(w, "manifest.json", list)
}

func addFile(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func addLayer(ctx context.Context, w *tar.Writer, name string, l *layout.Layout, d oci.Descriptor, diffID oci.Digest, spoolDir string) error {
	format, err := oci.ParseLayerMediaType(d.MediaType)
	if err != nil {
		return err
	}
	if format.Encrypted {
		return &EncryptionLostError{Destination: "a docker-archive", Layers: 1}
	}
	rc, err := l.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }()
	z, closeIt, err := decompress(contextReader{ctx, rc}, format.Compression)
	if err != nil {
		return err
	}
	defer closeIt()
	spool, err := spoolFile(spoolDir)
	if err != nil {
		return err
	}
	defer func() { _ = spool.Close() }()
	sum := newHash(diffID)
	n, err := io.CopyBuffer(io.MultiWriter(spool, sum), z, make([]byte, copyBytes))
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != diffID.Hex() {
		return fmt.Errorf("diff ID: expected %s, got %s", diffID.Hex(), got)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: n, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(w, spool)
	return err
}
