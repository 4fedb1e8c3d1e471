// Package tree walks backends that keep resources in folders, repository/type/
// tag, in the order of the whole paths' bytes. That is not the order in which
// folders list: "a-b/x/y" comes before "a/x/y", for "-" is less than "/".
package tree

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/resource"
)

// MaxFolder is the most entries that one folder may have.
const MaxFolder = 1 << 20

// depth is the number of a path's segments.
const depth = 3

// Lister returns the names in a folder: "" for the repositories, "repository"
// for its types, "repository/type" for its tags. A folder that is not there has
// none. Names that no segment of a path can have are ignored.
type Lister func(ctx context.Context, folder string) ([]string, error)

// Walk calls visit for each path after the given one and below the prefix ("",
// "repository" or "repository/type"), in order, until visit returns false.
// Folders that lie before "after" are not listed.
func Walk(ctx context.Context, list Lister, prefix, after string, visit func(resource.Path) (more bool, err error)) error {
	level := 0
	if prefix != "" {
		if _, err := resource.ParsePrefix(prefix); err != nil {
			return err
		}
		if level = strings.Count(prefix, "/") + 1; level >= depth {
			return fmt.Errorf("list %q: expected at most repository/type, got a whole path", prefix)
		}
	}
	w := walker{list, after, visit}
	_, err := w.walk(ctx, prefix, level)
	return err
}

type walker struct {
	list  Lister
	after string
	visit func(resource.Path) (bool, error)
}

func (w walker) walk(ctx context.Context, folder string, level int) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	names, err := w.list(ctx, folder)
	if err != nil {
		return false, err
	}
	if len(names) > MaxFolder {
		return false, fmt.Errorf("list %q: expected at most %d entries, got %d", folder, MaxFolder, len(names))
	}
	leaf := level == depth-1
	entries := make([]string, 0, len(names))
	for _, name := range names {
		if _, err := resource.ParsePrefix(name); err != nil || strings.Contains(name, "/") {
			continue // not ours
		}
		if folder != "" {
			name = folder + "/" + name
		}
		if !leaf {
			name += "/" // sorts as the paths below it do
		}
		entries = append(entries, name)
	}
	slices.Sort(entries)
	for _, e := range slices.Compact(entries) {
		more := true
		switch {
		case leaf && e > w.after:
			var p resource.Path
			if p, err = resource.Parse(e); err == nil {
				more, err = w.visit(p)
			}
		case !leaf && (e > w.after || strings.HasPrefix(w.after, e)):
			more, err = w.walk(ctx, strings.TrimSuffix(e, "/"), level+1)
		}
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}
