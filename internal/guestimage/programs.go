package guestimage

import (
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/elfdeps"
	"github.com/coffer-project/coffer/internal/guestimage/elfstub"
)

// programs adds the recipe's programs with the libraries they need.
func (b *builder) programs(ctx context.Context, debs map[string]string, in contents) error {
	all := func(string) bool { return true }
	var programs [][]byte
	for _, p := range b.recipe.Programs {
		tree, err := debian.Unpack(ctx, debs[p.Package], all)
		if err != nil {
			return err
		}
		_, f, err := tree.Resolve(p.Path)
		if err != nil {
			return fmt.Errorf("package %s: %w", p.Package, err)
		}
		programs = append(programs, f.Data)
		if err := in.file(p.Dest, 0o755, f.Data); err != nil {
			return err
		}
	}
	libs := &libraries{builder: b, trees: map[string]debian.Tree{}, used: map[string]bool{}, found: map[string]debian.File{}}
	for _, name := range b.recipe.Libraries.Packages {
		tree, err := debian.Unpack(ctx, debs[name], all)
		if err != nil {
			return err
		}
		libs.trees[name] = tree
	}
	if err := libs.stubs(programs); err != nil {
		return err
	}
	for i, p := range b.recipe.Programs {
		if err := libs.need(programs[i]); err != nil {
			return fmt.Errorf("program %s: %w", p.Path, err)
		}
	}
	if err := libs.check(); err != nil {
		return err
	}
	for soname, f := range libs.found {
		// Under the name that programs ask for: no links to follow in the guest.
		if err := in.file(path.Join(b.recipe.Libraries.Dest, soname), f.Mode, f.Data); err != nil {
			return err
		}
	}
	return b.checkLoaders(in)
}

// libraries are those of the recipe's packages, and the stubs.
type libraries struct {
	*builder
	trees map[string]debian.Tree // of each package
	used  map[string]bool        // packages
	found map[string]debian.File // by the name that programs ask for
}

// stubs makes the libraries that programs name without using them here.
func (l *libraries) stubs(programs [][]byte) error {
	for _, soname := range l.recipe.Libraries.Stubs {
		data, err := elfstub.Library(soname, programs...)
		if err != nil {
			return fmt.Errorf("recipe: libraries.stubs: %w", err)
		}
		l.found[soname] = debian.File{Data: data, Mode: 0o644}
	}
	return nil
}

func (l *libraries) lookup(soname string) ([]byte, error) {
	if f, ok := l.found[soname]; ok {
		return f.Data, nil
	}
	for _, pkg := range l.recipe.Libraries.Packages {
		for _, dir := range l.recipe.Libraries.Dirs {
			if _, f, err := l.trees[pkg].Resolve(path.Join(dir, soname)); err == nil {
				l.used[pkg], l.found[soname] = true, f
				return f.Data, nil
			}
		}
	}
	return nil, fmt.Errorf("no package of libraries.packages has %s in %q", soname, l.recipe.Libraries.Dirs)
}

// need finds what a program needs.
func (l *libraries) need(program []byte) error {
	loader, _, err := elfdeps.Closure(program, l.lookup)
	if err != nil || loader == "" {
		return err
	}
	if _, err := l.lookup(path.Base(loader)); err != nil {
		return fmt.Errorf("loader: %w", err)
	}
	return nil
}

// check makes sure that the recipe names no package for nothing, and that no
// library needs one of the stubs, which have what programs import.
func (l *libraries) check() error {
	for _, name := range l.recipe.Libraries.Packages {
		if !l.used[name] {
			return fmt.Errorf("recipe: libraries.packages: nothing needs package %s", name)
		}
	}
	for soname, f := range l.found {
		needs, err := elfdeps.Read(f.Data)
		if err != nil {
			return fmt.Errorf("library %s: %w", soname, err)
		}
		for _, stub := range l.recipe.Libraries.Stubs {
			if slices.Contains(needs.Libraries, stub) {
				return fmt.Errorf("recipe: libraries.stubs: library %s needs %s", soname, stub)
			}
		}
	}
	return nil
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
