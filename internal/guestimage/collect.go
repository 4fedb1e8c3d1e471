package guestimage

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/compression"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/kmod"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/guestimage/recipe"
)

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
	if out.initrd, err = compression.Compress(out.initrd, b.recipe.Compression); err != nil {
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

// kernel returns the bzImage and adds the modules.
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
	modules, err := newModules(tree, b.recipe.Modules.StripSignatures)
	if err != nil {
		return nil, err
	}
	if err := b.modules(ctx, modules, in); err != nil {
		return nil, err
	}
	return tree[name].Data, nil
}

// modules adds the modules and the lists of them. What is in the first list is
// loaded when another one is.
func (b *builder) modules(ctx context.Context, modules *modules, in contents) error {
	m := b.recipe.Modules
	var base []string
	added := map[string]bool{}
	for _, l := range []struct {
		path  string
		names []string
	}{{m.BaseList, m.Base}, {m.TEEList, m.TEE}, {m.DiskList, m.Disk}, {m.MemoryList, m.Memory}} {
		if l.path == "" {
			continue // the recipe has no such list
		}
		names, err := kmod.Order(l.names, modules.depends(ctx))
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(base, name) })
		if base == nil {
			base = names
		}
		for _, name := range names {
			if added[name] {
				continue
			}
			added[name] = true
			if err := in.file(path.Join(m.Dir, modules.file(name)), 0o644, modules.loaded[name]); err != nil {
				return err
			}
		}
		if err := in.file(l.path, 0o644, modules.list(names)); err != nil {
			return err
		}
	}
	return nil
}
