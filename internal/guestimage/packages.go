package guestimage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/recipe"
)

// fromLock returns the lock file's packages if they are all that the recipe
// asks for and the caller does not want others.
func (b *builder) fromLock() ([]recipe.Locked, bool) {
	if b.o.UpdateLock {
		return nil, false
	}
	var packages []recipe.Locked
	for _, name := range b.recipe.PackageNames() {
		l, ok := b.locked[name]
		if !ok {
			return nil, false
		}
		packages = append(packages, l)
	}
	return packages, true
}

// isLocked tells whether these are the lock file's packages, or will be.
func (b *builder) isLocked(packages []recipe.Locked) bool {
	if b.o.UpdateLock {
		return true
	}
	for _, p := range packages {
		if b.locked[p.For] != p {
			return false
		}
	}
	return true
}

// fetch returns the packages to build from and the paths of their .deb files, by
// the name the recipe has for them.
func (b *builder) fetch(ctx context.Context) ([]recipe.Locked, map[string]string, error) {
	names := b.recipe.PackageNames()
	if b.o.UpdateLock {
		b.archive.Refresh(ctx)
	} else {
		stale := maps.Clone(b.locked)
		maps.DeleteFunc(stale, func(name string, _ recipe.Locked) bool { return slices.Contains(names, name) })
		if len(stale) > 0 {
			return nil, nil, fmt.Errorf("lock file: the recipe asks for no package %q (write the lock file anew: coffer guest build --update-lock)",
				slices.Sorted(maps.Keys(stale)))
		}
	}
	var packages []recipe.Locked
	debs := map[string]string{}
	for _, name := range names {
		l, deb, err := b.fetchOne(ctx, name)
		if err != nil {
			return nil, nil, fmt.Errorf("guest image: %w", err)
		}
		packages = append(packages, l)
		debs[name] = deb
	}
	return packages, debs, nil
}

func (b *builder) fetchOne(ctx context.Context, name string) (recipe.Locked, string, error) {
	l, ok := b.locked[name]
	switch {
	case b.o.UpdateLock:
	case ok:
		deb, err := b.archive.Fetch(ctx, packageOf(l))
		if err == nil {
			return l, deb, nil
		}
		if b.o.Locked || !errors.Is(err, debian.ErrNotAvailable) {
			return recipe.Locked{}, "", err
		}
		b.log.WarnContext(ctx, "NOT THE LOCKED IMAGE: a package of the lock file is gone from the archive, taking the newest instead; the measurement will differ",
			"package", name, "error", err)
	case b.o.Locked:
		return recipe.Locked{}, "", fmt.Errorf("lock file: no line for package %s (write the lock file anew: coffer guest build --update-lock)", name)
	default:
		b.log.WarnContext(ctx, "NOT THE LOCKED IMAGE: the lock file has no line for a package, taking the newest", "package", name)
	}
	newest, err := b.newest(ctx, name)
	if err != nil {
		return recipe.Locked{}, "", err
	}
	deb, err := b.archive.Fetch(ctx, newest)
	if err != nil {
		return recipe.Locked{}, "", err
	}
	return recipe.Locked{For: name, Name: newest.Name, Version: newest.Version, Architecture: newest.Architecture, SHA256: newest.SHA256}, deb, nil
}

func (b *builder) newest(ctx context.Context, name string) (debian.Package, error) {
	if name == b.recipe.Kernel.Meta {
		return b.archive.Follow(ctx, name, b.recipe.Kernel.Prefix)
	}
	return b.archive.Newest(ctx, name)
}

func packageOf(l recipe.Locked) debian.Package {
	return debian.Package{Name: l.Name, Version: l.Version, Architecture: l.Architecture, SHA256: l.SHA256}
}
