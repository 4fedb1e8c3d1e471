package guestimage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/elfdeps"
	"github.com/coffer-project/coffer/internal/guestimage/kmod"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/guestimage/recipe"
	"github.com/klauspost/compress/zstd"
)

const maxModuleBytes = 64 << 20

// blob is a file's content and the package it comes from.
type blob struct {
	data   []byte
	origin recipe.Locked
}

// collected is everything that is written out.
type collected struct {
	kernel   blob
	firmware *blob
	initrd   []byte
	entries  []manifest.Entry
	cmdline  string
}

// contents gathers the initrd's objects by path.
type contents map[string]cpio.Entry

func (c contents) add(e cpio.Entry) error {
	if _, ok := c[e.Name]; ok {
		return fmt.Errorf("two things want to be /%s in the guest", e.Name)
	}
	c[e.Name] = e
	return nil
}

func (c contents) file(name string, mode uint32, data []byte) error {
	return c.add(cpio.Entry{Name: name, Mode: cpio.TypeRegular | mode, Data: data})
}

func (b *builder) collect(ctx context.Context, packages []recipe.Locked, debs map[string]string) (*collected, error) {
	origin := map[string]recipe.Locked{}
	for _, p := range packages {
		origin[p.For] = p
	}
	out := &collected{cmdline: strings.Join(b.recipe.Cmdline, " ")}
	in := contents{}
	if err := b.static(in); err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	kernel, err := b.kernel(ctx, debs[b.recipe.Kernel.Meta], in)
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", origin[b.recipe.Kernel.Meta].Name, err)
	}
	out.kernel = blob{data: kernel, origin: origin[b.recipe.Kernel.Meta]}
	if fw := b.recipe.Firmware; fw != nil {
		tree, err := debian.Unpack(ctx, debs[fw.Package], func(name string) bool { return path.Dir(name) == path.Dir(fw.Path) })
		if err != nil {
			return nil, err
		}
		_, f, err := tree.Resolve(fw.Path)
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", fw.Package, err)
		}
		out.firmware = &blob{data: f.Data, origin: origin[fw.Package]}
	}
	if err := b.programs(ctx, debs, in); err != nil {
		return nil, err
	}
	if err := in.file("init", 0o755, b.agent); err != nil {
		return nil, err
	}
	if out.initrd, out.entries, err = archive(in); err != nil {
		return nil, err
	}
	if out.initrd, err = compress(out.initrd, b.recipe.Compression); err != nil {
		return nil, err
	}
	if int64(len(out.initrd)) > b.recipe.MaxInitrd {
		return nil, fmt.Errorf("the initrd has %d bytes, the recipe's max_initrd allows %d; the agent alone has %d",
			len(out.initrd), b.recipe.MaxInitrd, len(b.agent))
	}
	return out, nil
}

// static adds what the recipe spells out.
func (b *builder) static(in contents) error {
	var errs []error
	for _, d := range b.recipe.Directories {
		errs = append(errs, in.add(cpio.Entry{Name: d.Path, Mode: cpio.TypeDir | d.Mode}))
	}
	for _, f := range b.recipe.Files {
		errs = append(errs, in.file(f.Path, f.Mode, []byte(f.Content)))
	}
	for _, l := range b.recipe.Links {
		errs = append(errs, in.add(cpio.Entry{Name: l.Path, Mode: cpio.TypeLink | 0o777, Data: []byte(l.Target)}))
	}
	for _, d := range b.recipe.Devices {
		errs = append(errs, in.add(cpio.Entry{Name: d.Path, Mode: cpio.TypeChar | d.Mode, Major: d.Major, Minor: d.Minor}))
	}
	return errors.Join(errs...)
}

// kernel returns the bzImage and adds the modules and their lists.
func (b *builder) kernel(ctx context.Context, deb string, in contents) ([]byte, error) {
	tree, err := debian.Unpack(ctx, deb, func(name string) bool {
		return strings.HasPrefix(name, "boot/") || strings.HasSuffix(name, ".ko.xz") || path.Base(name) == "modules.builtin"
	})
	if err != nil {
		return nil, err
	}
	name, err := tree.Glob(b.recipe.Kernel.Image)
	if err != nil {
		return nil, fmt.Errorf("recipe, kernel.image: %w", err)
	}
	modules, err := newModules(tree)
	if err != nil {
		return nil, err
	}
	m := b.recipe.Modules
	base, err := kmod.Order(m.Base, modules.depends(ctx))
	if err != nil {
		return nil, err
	}
	tee, err := kmod.Order(m.TEE, modules.depends(ctx))
	if err != nil {
		return nil, err
	}
	tee = slices.DeleteFunc(tee, func(name string) bool { return slices.Contains(base, name) })
	for _, name := range slices.Concat(base, tee) {
		if err := in.file(path.Join(m.Dir, modules.file(name)), 0o644, modules.loaded[name]); err != nil {
			return nil, err
		}
	}
	if err := in.file(m.BaseList, 0o644, modules.list(base)); err != nil {
		return nil, err
	}
	return tree[name].Data, in.file(m.TEEList, 0o644, modules.list(tee))
}

// modules are a kernel package's modules by canonical name.
type modules struct {
	release string
	files   debian.Tree
	paths   map[string]string
	builtin map[string]bool
	loaded  map[string][]byte
}

func newModules(tree debian.Tree) (*modules, error) {
	m := &modules{files: tree, paths: map[string]string{}, builtin: map[string]bool{}, loaded: map[string][]byte{}}
	for name, f := range tree {
		switch {
		case path.Base(name) == "modules.builtin":
			m.release = path.Base(path.Dir(name))
			for line := range strings.Lines(string(f.Data)) {
				m.builtin[kmod.Canonical(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko"))] = true
			}
		case strings.HasSuffix(name, ".ko.xz"):
			m.paths[kmod.Canonical(strings.TrimSuffix(path.Base(name), ".ko.xz"))] = name
		}
	}
	if m.release == "" {
		return nil, errors.New("has no file modules.builtin")
	}
	return m, nil
}

func (m *modules) file(name string) string {
	return strings.TrimSuffix(path.Base(m.paths[name]), ".xz")
}

func (m *modules) list(names []string) []byte {
	var b bytes.Buffer
	for _, name := range names {
		b.WriteString(m.file(name) + "\n")
	}
	return b.Bytes()
}

// depends decompresses a module on the way, so that what is ordered is also
// what is stored.
func (m *modules) depends(ctx context.Context) func(string) ([]string, bool, error) {
	return func(name string) ([]string, bool, error) {
		file, ok := m.paths[name]
		if !ok {
			if m.builtin[name] {
				return nil, false, nil
			}
			return nil, false, fmt.Errorf("kernel %s has no module %s", m.release, name)
		}
		data, err := unxz(ctx, m.files[file].Data)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", file, err)
		}
		info, err := kmod.Read(data)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", file, err)
		}
		if release, _, _ := strings.Cut(info.Vermagic, " "); release != m.release {
			return nil, false, fmt.Errorf("%s is made for kernel %q, expected %q", file, release, m.release)
		}
		m.loaded[name] = data
		return info.Depends, true, nil
	}
}

// programs adds the recipe's programs with the libraries they need.
func (b *builder) programs(ctx context.Context, debs map[string]string, in contents) error {
	all := func(string) bool { return true }
	libs := map[string]debian.Tree{}
	for _, name := range b.recipe.Libraries.Packages {
		tree, err := debian.Unpack(ctx, debs[name], all)
		if err != nil {
			return err
		}
		libs[name] = tree
	}
	used := map[string]bool{}
	found := map[string]debian.File{}
	lookup := func(soname string) ([]byte, error) {
		for _, pkg := range b.recipe.Libraries.Packages {
			for _, dir := range b.recipe.Libraries.Dirs {
				if _, f, err := libs[pkg].Resolve(path.Join(dir, soname)); err == nil {
					used[pkg], found[soname] = true, f
					return f.Data, nil
				}
			}
		}
		return nil, fmt.Errorf("no package of libraries.packages has %s in %q", soname, b.recipe.Libraries.Dirs)
	}
	for _, p := range b.recipe.Programs {
		tree, err := debian.Unpack(ctx, debs[p.Package], all)
		if err != nil {
			return err
		}
		_, f, err := tree.Resolve(p.Path)
		if err != nil {
			return fmt.Errorf("package %s: %w", p.Package, err)
		}
		loader, _, err := elfdeps.Closure(f.Data, lookup)
		if err != nil {
			return fmt.Errorf("program %s: %w", p.Path, err)
		}
		if err := in.file(p.Dest, 0o755, f.Data); err != nil {
			return err
		}
		if loader != "" {
			if _, err := lookup(path.Base(loader)); err != nil {
				return fmt.Errorf("program %s: loader: %w", p.Path, err)
			}
		}
	}
	for soname, f := range found {
		// Under the name that programs ask for: no links to follow in the guest.
		if err := in.file(path.Join(b.recipe.Libraries.Dest, soname), f.Mode, f.Data); err != nil {
			return err
		}
	}
	for _, name := range b.recipe.Libraries.Packages {
		if !used[name] {
			return fmt.Errorf("recipe: libraries.packages: nothing needs package %s", name)
		}
	}
	return b.checkLoaders(in)
}

// checkLoaders makes sure that the kernel finds each program's loader under the
// path the program names, through the image's own links.
func (b *builder) checkLoaders(in contents) error {
	for _, p := range b.recipe.Programs {
		needs, err := elfdeps.Read(in[p.Dest].Data)
		if err != nil {
			return err
		}
		if needs.Loader == "" {
			continue
		}
		if e, ok := in.resolve(needs.Loader); !ok || e.Mode&cpio.TypeMask != cpio.TypeRegular {
			return fmt.Errorf("recipe: program %s asks for the loader %s, which the image does not have there (add a link)", p.Dest, needs.Loader)
		}
	}
	return nil
}

// resolve looks an absolute path up, following links in every part of it.
func (c contents) resolve(name string) (cpio.Entry, bool) {
	const maxLinks = 16
	rest := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	at := ""
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		e, ok := c[next]
		if !ok {
			return cpio.Entry{}, false
		}
		rest = rest[1:]
		if e.Mode&cpio.TypeMask != cpio.TypeLink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return cpio.Entry{}, false
		}
		target := string(e.Data)
		if !path.IsAbs(target) {
			target = path.Join("/", at, target)
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
		at = ""
	}
	e, ok := c[at]
	return e, ok
}

// archive writes the objects in the order of their paths.
func archive(in contents) ([]byte, []manifest.Entry, error) {
	var out bytes.Buffer
	var entries []manifest.Entry
	w := cpio.NewWriter(&out)
	sorted := make([]cpio.Entry, 0, len(in))
	for _, e := range in {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b cpio.Entry) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range sorted {
		if err := w.Add(e); err != nil {
			return nil, nil, err
		}
		listed := manifest.Entry{Path: "/" + e.Name, Mode: fmt.Sprintf("%07o", e.Mode)}
		switch e.Mode & cpio.TypeMask {
		case cpio.TypeRegular:
			sum := sha256.Sum256(e.Data)
			listed.Size, listed.SHA256 = int64(len(e.Data)), hex.EncodeToString(sum[:])
		case cpio.TypeLink:
			listed.Target = string(e.Data)
		}
		entries = append(entries, listed)
	}
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	return out.Bytes(), entries, nil
}

// compress returns data in the format the recipe names. One worker: the
// output of several depends on how they are scheduled.
func compress(data []byte, format string) ([]byte, error) {
	if format == "none" {
		return data, nil
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return enc.EncodeAll(data, nil), enc.Close()
}

// unxz decompresses with Debian's xz.
func unxz(ctx context.Context, data []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--single-stream", "--no-warn")
	cmd.Stdin = bytes.NewReader(data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("xz: %w: %s (xz is in Debian's package xz-utils)", err, strings.TrimSpace(stderr.String()))
	}
	if len(out) > maxModuleBytes {
		return nil, fmt.Errorf("decompresses to %d bytes, at most %d are taken", len(out), maxModuleBytes)
	}
	return out, nil
}
