package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

// Targets: how many times faster than a peer.
const (
	overUmoci      = 5.0
	overContainerd = 1.3
	overIgzip      = 0.9
	zstdOverIgzip  = 1.5
	mostMemory     = 64.0 // MiB
)

// The image that is compared: 300 MB in 12,000 files.
const (
	imageFiles = 12_000
	imageBytes = 300e6
)

const repository = "bench/image"

// images is a registry with images in it.
type images struct {
	registry *daemon
	address  string
	digests  map[string]oci.Digest
	client   *registry.Client
}

func (b *bench) startImages(ctx context.Context, shapes ...shape) (*images, error) {
	dir := b.path("registry")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	d, address, err := startRegistry(ctx, dir)
	if err != nil {
		return nil, err
	}
	im := &images{registry: d, address: address, digests: map[string]oci.Digest{}}
	if im.client, err = registry.New(registry.Options{PlainHTTP: []string{address}}); err != nil {
		return nil, errors.Join(err, b.stopImages(im))
	}
	ref, err := oci.ParseReference(address + "/" + repository + ":x")
	if err != nil {
		return nil, errors.Join(err, b.stopImages(im))
	}
	repo, err := im.client.Repository(ref)
	if err != nil {
		return nil, errors.Join(err, b.stopImages(im))
	}
	for _, s := range shapes {
		fmt.Fprintln(os.Stderr, "  making", s.name)
		if im.digests[s.name], err = s.push(ctx, repo, dir); err != nil {
			return nil, errors.Join(fmt.Errorf("make %s: %w", s.name, err), b.stopImages(im))
		}
	}
	return im, nil
}

func (b *bench) stopImages(im *images) error {
	if im.client != nil {
		im.client.Close()
	}
	im.registry.stop()
	return os.RemoveAll(b.path("registry"))
}

func (im *images) tag(name string) string { return im.address + "/" + repository + ":" + name }

// ours pulls with this program.
func (b *bench) ours(im *images, name string) contender {
	return contender{"ours", func(ctx context.Context) (cost, error) { return b.pull(ctx, im, name) }}
}

// pull pulls in a process of its own, which tells its peak itself: that of the
// usage would include this process's until exec.
func (b *bench) pull(ctx context.Context, im *images, name string, args ...string) (cost, error) {
	dest, peak := b.path("ours"), b.path("peak")
	ref := im.address + "/" + repository + "@" + string(im.digests[name])
	c, err := command(ctx, nil, b.self, append([]string{"pull", "-ref", ref, "-dest", dest, "-peak", peak}, args...)...)
	if err != nil {
		return c, errors.Join(err, os.RemoveAll(dest))
	}
	text, err := os.ReadFile(peak)
	if err != nil {
		return c, err
	}
	c.peak, err = strconv.ParseFloat(string(text), 64)
	return c, errors.Join(err, os.RemoveAll(dest))
}

// script is a contender in shell, which unpacks below $DIR.
func (b *bench) script(name, text string) contender {
	return contender{name, func(ctx context.Context) (cost, error) {
		dir := b.path(name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return cost{}, err
		}
		c, err := command(ctx, []string{"DIR=" + dir}, "bash", "-euo", "pipefail", "-c", text)
		return c, errors.Join(err, os.RemoveAll(dir))
	}}
}

func (b *bench) umoci(im *images, name string) contender {
	return b.script("umoci", fmt.Sprintf(`skopeo copy -q --insecure-policy --src-tls-verify=false docker://%s oci:$DIR/oci:x
umoci unpack --image $DIR/oci:x $DIR/bundle`, im.tag(name)))
}

// igzip is the pipeline that is as fast as a single stream can be had, which
// checks nothing. It is told the layer's digest.
func (b *bench) igzip(ctx context.Context, im *images, name string) (contender, error) {
	layer, err := im.onlyLayer(ctx, name)
	if err != nil {
		return contender{}, err
	}
	return b.script("igzip", fmt.Sprintf(`mkdir $DIR/root
curl -sf http://%s/v2/%s/blobs/%s | igzip -d | tar -x -C $DIR/root`, im.address, repository, layer)), nil
}

func (im *images) onlyLayer(ctx context.Context, name string) (oci.Digest, error) {
	ref, err := oci.ParseReference(im.tag(name))
	if err != nil {
		return "", err
	}
	repo, err := im.client.Repository(ref)
	if err != nil {
		return "", err
	}
	d, err := repo.Resolve(ctx, ref)
	if err != nil {
		return "", err
	}
	data, err := oci.ReadAll(ctx, repo, d, oci.MaxDocument)
	if err != nil {
		return "", err
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		return "", err
	}
	return m.Layers[0].Digest, nil
}

func (b *bench) pulls(ctx context.Context) (err error) {
	gz := oci.LayerFormat{Compression: oci.Gzip}
	one := shape{name: "gzip", layers: 1, files: imageFiles, bytes: imageBytes, format: gz}
	zstd := one
	zstd.name, zstd.format = "zstd", oci.LayerFormat{Compression: oci.Zstd}
	sealed := one
	sealed.name, sealed.format = "gzip-encrypted", oci.LayerFormat{Compression: oci.Gzip, Encrypted: true}
	four := shape{name: "gzip-four-layers", layers: 4, files: imageFiles / 4, bytes: imageBytes / 4, format: gz}
	im, err := b.startImages(ctx, one, zstd, sealed, four)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopImages(im)) }()
	igzip, err := b.igzip(ctx, im, one.name)
	if err != nil {
		return err
	}
	all := []contender{b.ours(im, one.name), b.ours(im, zstd.name), igzip, b.ours(im, sealed.name), b.ours(im, four.name)}
	names := []string{"pull/gzip", "pull/zstd", "pull/igzip", "pull/gzip-encrypted", "pull/gzip-four-layers"}
	peers := []string{"", "", version(ctx, "igzip", "--version") + ", " + version(ctx, "curl", "--version"), "", ""}
	ctr, err := b.startContainerd(ctx)
	if err != nil {
		return err
	}
	if ctr != nil {
		defer ctr.stop()
		all = append(all, ctr.pull(im, one.name))
		names, peers = append(names, "pull/containerd"), append(peers, ctr.version)
	} else {
		b.report.Add("pull/over-containerd/missing", 1, "", "no program in "+b.containerd+", and tools/interop does not build it")
	}
	costs, err := b.rounds(ctx, b.pairs, all)
	if err != nil {
		return err
	}
	for i, name := range names {
		b.absolute(name, peers[i], costs[i])
	}
	b.compare("pull/over-igzip", overIgzip, "curl | igzip -d | tar -x", costs[2], costs[0])
	b.compare("pull/zstd-over-igzip", zstdOverIgzip, "curl | igzip -d | tar -x of the gzip image", costs[2], costs[1])
	b.compare("pull/encrypted-over-plain", 0, "ours, not encrypted", costs[0], costs[3])
	b.compare("pull/four-layers-over-one", 0, "ours, one layer", costs[0], costs[4])
	if ctr != nil {
		b.compare("pull/over-containerd", overContainerd, ctr.version, costs[5], costs[0])
	}
	b.report.AtMost("pull/peak", median(each(costs[0], peak)), "MiB", mostMemory, "")
	return nil
}

// againstUmoci is apart, since it takes much longer than the others.
func (b *bench) againstUmoci(ctx context.Context) (err error) {
	one := shape{name: "gzip", layers: 1, files: imageFiles, bytes: imageBytes, format: oci.LayerFormat{Compression: oci.Gzip}}
	im, err := b.startImages(ctx, one)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopImages(im)) }()
	costs, err := b.rounds(ctx, b.pairs, []contender{b.ours(im, one.name), b.umoci(im, one.name)})
	if err != nil {
		return err
	}
	peer := version(ctx, "skopeo", "--version") + " and " + version(ctx, "umoci", "--version")
	b.absolute("pull/umoci", peer, costs[1])
	b.compare("pull/over-umoci", overUmoci, peer, costs[1], costs[0])
	return nil
}

// memory is the peak of pulls of layers of several sizes. There is no spool:
// the destination is on a tmpfs.
func (b *bench) memory(ctx context.Context) (err error) {
	gz, zstd := oci.LayerFormat{Compression: oci.Gzip}, oci.LayerFormat{Compression: oci.Zstd}
	sealed := oci.LayerFormat{Compression: oci.Gzip, Encrypted: true}
	shapes := []shape{
		{name: "gzip-50mb", layers: 1, files: 200, bytes: 50e6, format: gz},
		{name: "gzip-300mb", layers: 1, files: 200, bytes: 300e6, format: gz},
		{name: "gzip-1gb", layers: 1, files: 200, bytes: 1e9, format: gz},
		{name: "zstd-1gb", layers: 1, files: 200, bytes: 1e9, format: zstd},
		{name: "zstd-window-32mib", layers: 1, files: 200, bytes: 200e6, format: zstd, window: 32 << 20},
		{name: "gzip-encrypted-1gb", layers: 1, files: 200, bytes: 1e9, format: sealed},
		{name: "gzip-encrypted-four-100mb", layers: 4, files: 200, bytes: 100e6, format: sealed},
	}
	for _, s := range shapes {
		if err := b.memoryOf(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) memoryOf(ctx context.Context, s shape) (err error) {
	im, err := b.startImages(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopImages(im)) }()
	var peaks []float64
	for range 3 {
		c, err := b.ours(im, s.name).run(ctx)
		if err != nil {
			return err
		}
		peaks = append(peaks, c.peak)
	}
	b.report.AtMost("memory/"+s.name, median(peaks), "MiB", mostMemory, "")
	return nil
}

// version is the first line of what a program says about itself.
func version(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return filepath.Base(name)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	words := strings.Fields(line)
	return strings.Join(words[:min(5, len(words))], " ")
}
