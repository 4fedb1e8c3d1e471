package tree

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/resource"
)

// lister lists paths as folders, in an order of its own, and counts its calls.
func lister(paths []string, calls *int) Lister {
	return func(_ context.Context, folder string) ([]string, error) {
		*calls++
		var out []string
		for _, p := range paths {
			rest, ok := strings.CutPrefix(p, folder+"/")
			if folder == "" {
				rest, ok = p, true
			}
			if ok {
				name, _, _ := strings.Cut(rest, "/")
				out = append(out, name) // more than once: must not matter
			}
		}
		slices.Reverse(out)
		return append(out, "..", ".tmp-1", "", "a/b", "ü"), nil
	}
}

func walk(t testing.TB, paths []string, prefix, after string, limit int) (out []string, calls int) {
	t.Helper()
	err := Walk(t.Context(), lister(paths, &calls), prefix, after, func(p resource.Path) (bool, error) {
		out = append(out, p.String())
		return len(out) < limit, nil
	})
	if err != nil {
		t.Fatalf("walk %q after %q: %v", prefix, after, err)
	}
	return out, calls
}

func TestWalk(t *testing.T) {
	t.Parallel()
	paths := []string{"a-b/t/x", "a.b/t/x", "a/t-1/x", "a/t/x", "a/t/x-1", "a/t1/x", "ab/t/x", "b/t/x"}
	for i := range paths {
		for _, after := range []string{paths[i], paths[i] + "!", strings.TrimSuffix(paths[i], "x")} {
			want := slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return p <= after })
			if got, _ := walk(t, paths, "", after, 100); !slices.Equal(got, want) {
				t.Errorf("after %q: got %v, want %v", after, got, want)
			}
		}
	}
	if got, calls := walk(t, paths, "", "ab/t/x", 100); !slices.Equal(got, []string{"b/t/x"}) || calls > 5 {
		t.Errorf("got %v with %d listings: earlier folders are to be left out", got, calls)
	}
	if got, calls := walk(t, paths, "", "", 2); len(got) != 2 || calls > 5 {
		t.Errorf("got %v with %d listings, want 2 paths and no look at later folders", got, calls)
	}
}

func TestWalkFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	visit := func(resource.Path) (bool, error) { return true, nil }
	if err := Walk(t.Context(), func(context.Context, string) ([]string, error) { return nil, broken }, "", "", visit); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	calls := 0
	for _, bad := range []string{"..", "a/b/c", "/", "a/", "*"} {
		if err := Walk(t.Context(), lister(nil, &calls), bad, "", visit); err == nil {
			t.Errorf("prefix %q: want an error", bad)
		}
	}
	if err := Walk(t.Context(), func(context.Context, string) ([]string, error) { return make([]string, MaxFolder+1), nil }, "", "", visit); err == nil {
		t.Error("a folder without end: want an error")
	}
}
