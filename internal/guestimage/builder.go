package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	guestrecipe "github.com/coffer-project/coffer/guest-image"
	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/elfdeps"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/guestimage/recipe"
)

// revision is part of an image's inputs: raise it with every change to this package
// that makes other bytes from the same recipe.
const revision = "coffer guest image builder 3"

// Names of the image's files in the output directory.
const (
	kernelFile   = "vmlinuz"
	initrdFile   = "initrd.img"
	firmwareFile = "firmware.bin"
)

const maxAgentBytes = 256 << 20

type builder struct {
	o       Options
	recipe  *recipe.Recipe
	raw     []byte // the recipe's text
	locked  map[string]recipe.Locked
	archive *debian.Archive
	log     *slog.Logger

	agent    []byte
	agentSum string
}

// newBuilder checks everything that can be checked without the archive.
func newBuilder(o Options) (*builder, error) {
	switch {
	case o.OutDir == "":
		return nil, errors.New("guest image: no output directory given")
	case o.CacheDir == "":
		return nil, errors.New("guest image: no package cache directory given")
	case o.Agent == "":
		return nil, errors.New("guest image: no agent binary given (make one with: make bin/coffer-agent)")
	case o.Locked && o.UpdateLock:
		return nil, errors.New("guest image: to keep to the lock file and to update it exclude each other")
	}
	if o.Recipe == nil {
		o.Recipe = []byte(guestrecipe.Recipe)
	}
	if o.Lock == nil {
		o.Lock = []byte(guestrecipe.Lock)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &builder{o: o, raw: o.Recipe, log: o.Logger, locked: map[string]recipe.Locked{}}
	var err error
	if b.recipe, err = recipe.Parse(o.Recipe); err != nil {
		return nil, err
	}
	lines, err := recipe.ParseLock(o.Lock)
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		b.locked[l.For] = l
	}
	if err := b.readAgent(); err != nil {
		return nil, err
	}
	if b.archive, err = debian.NewArchive(o.CacheDir, o.Logger); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *builder) readAgent() error {
	info, err := os.Stat(b.o.Agent)
	if err != nil {
		return fmt.Errorf("guest agent: %w", err)
	}
	if info.Size() > maxAgentBytes {
		return fmt.Errorf("guest agent %s: %d bytes, at most %d fit a guest image", b.o.Agent, info.Size(), maxAgentBytes)
	}
	if b.agent, err = os.ReadFile(b.o.Agent); err != nil {
		return fmt.Errorf("guest agent: %w", err)
	}
	needs, err := elfdeps.Read(b.agent)
	if err != nil {
		return fmt.Errorf("guest agent %s: %w", b.o.Agent, err)
	}
	if needs.Loader != "" || len(needs.Libraries) > 0 {
		return fmt.Errorf("guest agent %s: needs a loader and libraries %q; as PID 1 it must be static (build it with CGO_ENABLED=0)", b.o.Agent, needs.Libraries)
	}
	sum := sha256.Sum256(b.agent)
	b.agentSum = hex.EncodeToString(sum[:])
	return nil
}

func (b *builder) build(ctx context.Context) (*Result, error) {
	// First without the archive: nothing to do is the common case.
	if packages, ok := b.fromLock(); ok {
		if r := b.upToDate(packages, true); r != nil {
			return r, nil
		}
	}
	packages, debs, err := b.fetch(ctx)
	if err != nil {
		return nil, err
	}
	locked := b.isLocked(packages)
	if r := b.upToDate(packages, locked); r != nil {
		return r, nil
	}
	files, err := b.collect(ctx, packages, debs)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := b.write(files, packages, locked)
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	return &Result{Manifest: m, Lock: recipe.FormatLock(packages)}, nil
}

// upToDate returns a result when the output directory holds the image that
// these packages make, every byte of it.
func (b *builder) upToDate(packages []recipe.Locked, locked bool) *Result {
	if b.o.Force {
		return nil
	}
	m, err := manifest.Load(b.o.OutDir)
	if err != nil || m.Inputs != b.inputs(packages) || m.Locked != locked || m.Check(b.o.OutDir) != nil {
		return nil
	}
	return &Result{Manifest: m, UpToDate: true, Lock: recipe.FormatLock(packages)}
}

// inputs digests everything that the image's bytes depend on.
func (b *builder) inputs(packages []recipe.Locked) string {
	sum := sha256.New()
	add := func(parts ...string) {
		for _, part := range parts {
			sum.Write(fmt.Appendf(nil, "%d:%s,", len(part), part))
		}
	}
	add(revision, string(b.raw), b.o.AgentVersion, b.agentSum)
	add(string(recipe.FormatLock(packages)))
	return hex.EncodeToString(sum.Sum(nil))
}

func (b *builder) write(files *collected, packages []recipe.Locked, locked bool) (*manifest.Manifest, error) {
	if err := os.MkdirAll(b.o.OutDir, 0o755); err != nil {
		return nil, err
	}
	// From here until the new manifest is in place there is no image.
	if err := os.Remove(filepath.Join(b.o.OutDir, manifest.FileName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	m := &manifest.Manifest{
		Version:      manifest.Version,
		Architecture: "amd64",
		Cmdline:      files.cmdline,
		Agent:        manifest.Agent{Version: b.o.AgentVersion, SHA256: b.agentSum, Size: int64(len(b.agent))},
		Locked:       locked,
		Inputs:       b.inputs(packages),
	}
	for _, p := range packages {
		m.Packages = append(m.Packages, manifest.Package{Name: p.Name, Version: p.Version, Architecture: p.Architecture, SHA256: p.SHA256})
	}
	var err error
	if m.Kernel, err = b.writeFile(kernelFile, files.kernel); err != nil {
		return nil, err
	}
	if m.Initrd.File, err = b.writeFile(initrdFile, blob{data: files.initrd}); err != nil {
		return nil, err
	}
	m.Initrd.Compression = b.recipe.Compression
	m.Initrd.Files = files.entries
	if files.firmware != nil {
		f, err := b.writeFile(firmwareFile, *files.firmware)
		if err != nil {
			return nil, err
		}
		m.Firmware = &f
	}
	data, err := m.Encode()
	if err != nil {
		return nil, err
	}
	return m, replaceFile(filepath.Join(b.o.OutDir, manifest.FileName), data)
}

func (b *builder) writeFile(name string, content blob) (manifest.File, error) {
	if err := replaceFile(filepath.Join(b.o.OutDir, name), content.data); err != nil {
		return manifest.File{}, err
	}
	sum := sha256.Sum256(content.data)
	return manifest.File{
		Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content.data)),
		Package: content.origin.Name, PackageVersion: content.origin.Version,
	}, nil
}

// replaceFile puts data at path in one step, readable by all whatever the umask.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
