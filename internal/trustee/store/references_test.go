package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func listOf(name string, values ...string) refvalues.Reference {
	r := refvalues.Reference{Name: name}
	for _, v := range values {
		r.Entries = append(r.Entries, refvalues.Entry{Value: json.RawMessage(v)})
	}
	return r
}

func current(t *testing.T, s *Store, n tenant.Name, name string) string {
	t.Helper()
	r, err := s.Reference(t.Context(), n, name)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.Current(s.o.Now()))
}

func TestReferences(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		if _, err := s.Reference(ctx, acme, "m"); !errors.Is(err, ErrNotFound) {
			t.Errorf("none yet: got %v", err)
		}
		full := listOf("m", `"a<b>&\u2028"`, `{"x":[1,2.50]}`)
		full.Entries[0].Description, full.Entries[0].Source = "<guest> 1.2\x00", "signed by <x>"
		full.Entries[0].Inputs = json.RawMessage(`{"vcpus":"<2>"}`)
		full.Entries[1].Expires = c.now().Add(time.Hour)
		scalar := refvalues.Reference{Name: "n", Scalar: true, Entries: listOf("n", "7").Entries}
		moves(t, s, acme, "set", func(ctx context.Context) error { return s.SetReferences(ctx, acme, full, scalar) })
		if !full.Entries[0].Created.IsZero() {
			t.Error("the caller's references were changed")
		}
		got, err := s.References(ctx, acme, "", 0)
		want := []refvalues.Reference{full, scalar}
		for i := range want {
			want[i].Entries = slices.Clone(want[i].Entries)
			for j := range want[i].Entries {
				want[i].Entries[j].Created = c.now()
			}
		}
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%v\n%s", err, cmp.Diff(want, got))
		}
		if list, err := s.References(ctx, tenant.Default, "", 0); err != nil || len(list) != 0 {
			t.Errorf("the other tenant's: %v, %v", list, err)
		}

		// An equal value is replaced, whatever characters it is made of.
		c.advance(time.Minute)
		again := listOf("m", `"new"`, `"a<b>&\u2028"`)
		again.Entries[1].Description = "again"
		moves(t, s, acme, "add", func(ctx context.Context) error { return s.AddReference(ctx, acme, again) })
		r, err := s.Reference(ctx, acme, "m")
		if err != nil || len(r.Entries) != 3 || string(r.Entries[0].Value) != `{"x":[1,2.50]}` || r.Entries[2].Description != "again" || !r.Entries[0].Created.Before(r.Entries[1].Created) {
			t.Errorf("got %+v, %v", r, err)
		}
		for _, x := range []refvalues.Reference{listOf("n", "8"), {Name: "m", Scalar: true, Entries: listOf("m", "8").Entries}} {
			if err := s.AddReference(ctx, acme, x); !errors.Is(err, ErrConflict) {
				t.Errorf("adding to or with a scalar: got %v", err)
			}
		}

		moves(t, s, acme, "delete", func(ctx context.Context) error {
			was, err := s.DeleteReference(ctx, acme, "m")
			if !was {
				t.Error("delete: was not there")
			}
			return err
		})
		if was, err := s.DeleteReference(ctx, acme, "m"); was || err != nil {
			t.Errorf("second delete: %v, %v", was, err)
		}
		if _, err := s.Reference(ctx, acme, "m"); !errors.Is(err, ErrNotFound) {
			t.Errorf("deleted: got %v", err)
		}
		if err := s.AddReference(ctx, acme, listOf("m", `"back"`)); err != nil || current(t, s, acme, "m") != `["back"]` {
			t.Errorf("after a deletion: %v", err)
		}
		history, err := s.ReferenceHistory(ctx, acme, "m")
		if err != nil || len(history) != 4 {
			t.Fatalf("history %+v, %v", history, err)
		}
		for i, v := range history {
			if v.Version != int64(4-i) || v.Deleted != (i == 1) || v.Deleted != (len(v.Reference.Entries) == 0) || v.Created.IsZero() {
				t.Errorf("entry %d: %+v", i, v)
			}
		}
		if diff := cmp.Diff(want[0], history[3].Reference); diff != "" {
			t.Error(diff)
		}
	})
}

func TestReferencesAllOrNone(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx := t.Context()
		if err := s.SetReferences(ctx, acme, listOf("a", "1"), listOf("b b", "1")); err == nil {
			t.Error("a bad name: want an error")
		}
		// Too many names: the limit is found after they were written.
		var refs []refvalues.Reference
		for i := range 3 {
			refs = append(refs, listOf(fmt.Sprint("n", i), "1"))
		}
		const limit = 2
		before, err := s.Generation(ctx, acme)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.setReferences(ctx, acme, limit, refs); !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
		if _, err := s.Reference(ctx, acme, "n0"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
		if after, err := s.Generation(ctx, acme); err != nil || after != before {
			t.Errorf("a change that was rolled back moved the generation from %d to %d, %v", before, after, err)
		}
		if err := s.setReferences(ctx, acme, limit, refs[:limit]); err != nil {
			t.Errorf("up to the limit: %v", err)
		}
		// What was deleted makes room.
		if _, err := s.DeleteReference(ctx, acme, "n0"); err != nil {
			t.Fatal(err)
		}
		if err := s.setReferences(ctx, acme, limit, refs[2:]); err != nil {
			t.Errorf("after a deletion: %v", err)
		}
		if err := s.SetReferences(ctx, "nobody", refs[0]); !errors.Is(err, ErrNoTenant) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReferenceLimits(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx := t.Context()
		for i := range MaxReferenceVersions + 5 {
			if err := s.SetReferences(ctx, acme, listOf("m", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		history, err := s.ReferenceHistory(ctx, acme, "m")
		if err != nil || len(history) != MaxReferenceVersions || history[0].Version != MaxReferenceVersions+5 || current(t, s, acme, "m") != "[104]" {
			t.Errorf("%d versions, %v", len(history), err)
		}
		var many []string
		for i := range refvalues.MaxEntries {
			many = append(many, fmt.Sprint(i))
		}
		if err := s.SetReferences(ctx, acme, listOf("full", many...)); err != nil {
			t.Fatal(err)
		}
		if err := s.AddReference(ctx, acme, listOf("full", "0", "1")); err != nil {
			t.Errorf("values that are there: %v", err)
		}
		if err := s.AddReference(ctx, acme, listOf("full", "-1")); !errors.Is(err, ErrFull) {
			t.Errorf("one more: got %v", err)
		}
		big := listOf("big", many[:200]...)
		for i := range big.Entries {
			big.Entries[i].Inputs = json.RawMessage(`{"x":"` + strings.Repeat("y", refvalues.MaxInputs-10) + `"}`)
		}
		if err := s.SetReferences(ctx, acme, big); !errors.Is(err, ErrFull) {
			t.Errorf("12 MiB of inputs: got %v", err)
		}
		for _, name := range []string{"", "\x00", "\xff", strings.Repeat("x", 1000)} {
			if _, err := s.Reference(ctx, acme, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("reference %.20q: got %v", name, err)
			}
			if _, err := s.ReferenceHistory(ctx, acme, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("history of %.20q: got %v", name, err)
			}
			if was, err := s.DeleteReference(ctx, acme, name); was || err != nil {
				t.Errorf("delete %.20q: %v, %v", name, was, err)
			}
		}
	})
}

func TestReferencePages(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		names := []string{"A", "a", "a-b", "a.b", "a_b", "b"}
		for _, i := range []int{2, 5, 0, 4, 1, 3} {
			if err := s.SetReferences(t.Context(), acme, listOf(names[i], "1")); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			list, err := s.References(t.Context(), acme, after, 2)
			if err != nil || len(list) > 2 {
				t.Fatal(list, err)
			}
			if len(list) == 0 {
				break
			}
			for _, r := range list {
				got = append(got, r.Name)
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("got %q", got)
		}
	})
}

// FuzzReference: what is stored comes back, value for value.
func FuzzReference(f *testing.F) {
	f.Add("name", `"<x>"`, "d", "s")
	f.Add("name", `{"a":[1.0,"\u2028"]}`, "\x00", "\"")
	f.Fuzz(func(t *testing.T, name, value, description, source string) {
		r := refvalues.Reference{Name: name, Entries: []refvalues.Entry{{Value: json.RawMessage(value), Description: description, Source: source}}}
		if r.Validate() != nil {
			return
		}
		body, err := encodeReference(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeReference(name, body)
		if err != nil || cmp.Diff(r, got) != "" || checkText("body", body, maxReferenceBody) != nil {
			t.Fatalf("%v\n%s\n%s", err, body, cmp.Diff(r, got))
		}
	})
}

// Large references do not add up to more than one answer may take.
func TestLargeReferences(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		large := func(name string) refvalues.Reference {
			r := refvalues.Reference{Name: name}
			for i := range 800 {
				r.Entries = append(r.Entries, refvalues.Entry{Value: fmt.Appendf(nil, "%q", fmt.Sprint(i)+strings.Repeat("x", 3_000))})
			}
			return r
		}
		for _, name := range []string{"a", "b", "c"} {
			for range 8 {
				if err := s.SetReferences(t.Context(), acme, large(name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			list, err := s.References(t.Context(), acme, after, 0)
			if err != nil || len(list) > 1 {
				t.Fatalf("%d references at once, %v", len(list), err)
			}
			if len(list) == 0 {
				break
			}
			got = append(got, list[0].Name)
		}
		names, err := s.ReferenceNames(t.Context(), acme, "", 2)
		if err != nil || !slices.Equal(got, []string{"a", "b", "c"}) || !slices.Equal(names, got[:2]) {
			t.Errorf("%q, names %q, %v", got, names, err)
		}
		if h, err := s.ReferenceHistory(t.Context(), acme, "a"); err != nil || len(h) != 6 || h[0].Version != 8 {
			t.Errorf("history of %d versions, %v", len(h), err)
		}
	})
}
