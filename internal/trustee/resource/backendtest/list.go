package backendtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// listed returns the paths of a listing after checking its order and entries.
func (s suite) listed(t testing.TB, n tenant.Name, prefix, after string, limit int) []string {
	t.Helper()
	list, err := s.b.List(call(t), n, prefix, after, limit)
	if err != nil {
		t.Fatalf("list %q after %q: %v", prefix, after, err)
	}
	if len(list) > limit {
		t.Errorf("list %q after %q: got %d entries, the limit is %d", prefix, after, len(list), limit)
	}
	out := []string{}
	for _, info := range list {
		if info.Deleted || info.Version < 1 || info.Size < -1 || info.Created.IsZero() || info.Created.After(time.Now().Add(time.Minute)) {
			t.Errorf("list %q after %q: entry %+v", prefix, after, info)
		}
		if info.Path <= after || prefix != "" && !strings.HasPrefix(info.Path, prefix+"/") {
			t.Errorf("list %q after %q: got %q", prefix, after, info.Path)
		}
		out = append(out, info.Path)
	}
	if !slices.IsSorted(out) || len(slices.Compact(slices.Clone(out))) != len(out) {
		t.Errorf("list %q after %q: out of order or double: %v", prefix, after, out)
	}
	return out
}

func (s suite) list(t *testing.T) {
	if got := s.listed(t, TenantA, "", "", 10); len(got) != 0 {
		t.Errorf("an empty backend lists %v", got)
	}
	// The order is that of the paths' bytes: "-" and "." come before "/".
	all := []string{"a-b/t/x", "a.b/t/x", "a/t-1/x", "a/t/x", "a/t/x-1", "a/t/x.y", "a/t/x1", "a/t1/x", "ab/t/x", "b/t/x"}
	if !slices.IsSorted(all) {
		t.Fatal("the test's own list is out of order")
	}
	for _, i := range []int{5, 0, 9, 3, 7, 1, 8, 2, 6, 4} {
		s.put(t, TenantA, all[i], fmt.Sprint(i))
	}
	s.put(t, TenantB, "a/t/of-b", "b")
	latest := s.put(t, TenantA, "a/t/x", "newer content")
	for prefix, want := range map[string][]string{
		"":       all,
		"a":      {"a/t-1/x", "a/t/x", "a/t/x-1", "a/t/x.y", "a/t/x1", "a/t1/x"},
		"a/t":    {"a/t/x", "a/t/x-1", "a/t/x.y", "a/t/x1"},
		"a-b":    {"a-b/t/x"},
		"a-b/t":  {"a-b/t/x"},
		"none":   {},
		"a/none": {},
	} {
		if got := s.listed(t, TenantA, prefix, "", 100); !slices.Equal(got, want) {
			t.Errorf("list %q: got %v, want %v", prefix, got, want)
		}
		for i := range want {
			if got := s.listed(t, TenantA, prefix, want[i], 100); !slices.Equal(got, want[i+1:]) {
				t.Errorf("list %q after %q: got %v, want %v", prefix, want[i], got, want[i+1:])
			}
		}
	}
	// What stands in "after" need not exist.
	for _, after := range []string{"a", "a/", "a/t", "a/t/x0", "a0", "zzz", "a/t/x/y", "-"} {
		i, _ := slices.BinarySearch(all, after)
		if got := s.listed(t, TenantA, "", after, 100); !slices.Equal(got, all[i:]) {
			t.Errorf("list after %q: got %v, want %v", after, got, all[i:])
		}
	}
	list, err := s.b.List(call(t), TenantA, "a/t", "", 1)
	if err != nil || len(list) != 1 || list[0].Version != latest || list[0].Size != -1 && list[0].Size != len("newer content") {
		t.Errorf("list a/t: got %+v, %v; want version %d", list, err, latest)
	}
	for _, bad := range []string{"..", "/", "a/", "a//b", "*", "a/../b"} {
		if list, _ := s.b.List(call(t), TenantA, bad, "", 10); len(list) != 0 {
			t.Errorf("list %q: %v", bad, list)
		}
	}
}

func (s suite) pages(t *testing.T) {
	var all []string
	for i := range s.Many {
		p := fmt.Sprintf("r%d/t%d/n%d", i%3, i%2, i)
		s.put(t, TenantA, p, p)
		all = append(all, p)
	}
	slices.Sort(all)
	for _, limit := range []int{1, 7, s.Many, s.Many + 1} {
		var got []string
		after := ""
		for range s.Many + 1 {
			page := s.listed(t, TenantA, "", after, limit)
			if len(page) == 0 {
				break
			}
			if len(page) < limit && len(got)+len(page) < len(all) {
				t.Fatalf("pages of %d: a short page of %d after %q although more follow", limit, len(page), after)
			}
			got = append(got, page...)
			after = page[len(page)-1]
		}
		if !slices.Equal(got, all) {
			t.Errorf("pages of %d: got %v, want %v", limit, got, all)
		}
	}
	// Deleted ones take no place in a page.
	for i, p := range all {
		if i%2 == 0 {
			if _, err := s.b.Delete(call(t), TenantA, path(t, p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := s.listed(t, TenantA, "", "", 5); len(got) != 5 || got[0] != all[1] || got[4] != all[9] {
		t.Errorf("a page after deletions: %v", got)
	}
}
