package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func TestPolicies(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		set := func(n tenant.Name, id, text string) (p Policy) {
			t.Helper()
			moves(t, s, n, "set "+id, func(ctx context.Context) (err error) {
				p, err = s.SetPolicy(ctx, n, ResourcePolicy, id, text, "ann")
				return err
			})
			c.advance(time.Second)
			return p
		}
		if _, err := s.Policy(ctx, acme, ResourcePolicy, "", 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("none yet: got %v", err)
		}
		first := set(acme, "", "one")
		second := set(acme, "", "two")
		if first.Version != 1 || second.Version != 2 || !first.Created.Before(second.Created) {
			t.Errorf("got %+v, %+v", first, second)
		}
		set(acme, "repo", "narrow")
		set(tenant.Default, "", "of default")
		for v, want := range map[int64]Policy{0: second, 1: first, 2: second} {
			if got, err := s.Policy(ctx, acme, ResourcePolicy, "", v); err != nil || cmp.Diff(want, got) != "" {
				t.Errorf("version %d: %v\n%s", v, err, cmp.Diff(want, got))
			}
		}
		for _, v := range []int64{3, -1, 1 << 60} {
			if _, err := s.Policy(ctx, acme, ResourcePolicy, "", v); !errors.Is(err, ErrNotFound) {
				t.Errorf("version %d: got %v", v, err)
			}
		}
		if _, err := s.Policy(ctx, acme, AttestationPolicy, "", 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("another kind: got %v", err)
		}
		if got, err := s.PolicyHeads(ctx, acme, ResourcePolicy); err != nil || cmp.Diff(map[string]int64{"": 2, "repo": 1}, got) != "" {
			t.Errorf("heads %v, %v", got, err)
		}

		moves(t, s, acme, "delete", func(ctx context.Context) error {
			was, err := s.DeletePolicy(ctx, acme, ResourcePolicy, "", "bob")
			if !was {
				t.Error("delete: was not there")
			}
			return err
		})
		if was, err := s.DeletePolicy(ctx, acme, ResourcePolicy, "", "bob"); was || err != nil {
			t.Errorf("second delete: %v, %v", was, err)
		}
		for _, v := range []int64{0, 3} {
			if _, err := s.Policy(ctx, acme, ResourcePolicy, "", v); !errors.Is(err, ErrNotFound) {
				t.Errorf("deleted, version %d: got %v", v, err)
			}
		}
		// What decided before can still be read.
		if got, err := s.Policy(ctx, acme, ResourcePolicy, "", 2); err != nil || got.Text != "two" {
			t.Errorf("got %+v, %v", got, err)
		}
		if got, err := s.PolicyHeads(ctx, acme, ResourcePolicy); err != nil || cmp.Diff(map[string]int64{"repo": 1}, got) != "" {
			t.Errorf("heads after deletion %v, %v", got, err)
		}
		list, err := s.PolicyVersions(ctx, acme, ResourcePolicy, "")
		if err != nil || len(list) != 3 || !list[0].Deleted || list[0].Author != "bob" || list[2].Version != 1 || list[2].Text != "" {
			t.Errorf("versions %+v, %v", list, err)
		}
		if p := set(acme, "", "four"); p.Version != 4 {
			t.Errorf("after a deletion: %+v", p)
		}
		if got, err := s.Policy(ctx, tenant.Default, ResourcePolicy, "", 0); err != nil || got.Text != "of default" || got.Version != 1 {
			t.Errorf("the other tenant's: %+v, %v", got, err)
		}
	})
}

func TestPolicyPages(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ids := []string{"", "+pki", "+pki/issue", "A", "a", "a-b", "a/t", "b"}
		for _, i := range []int{3, 0, 7, 5, 1, 6, 2, 4} {
			if _, err := s.SetPolicy(t.Context(), acme, ResourcePolicy, ids[i], "x", ""); err != nil {
				t.Fatal(err)
			}
		}
		for _, limit := range []int{1, 3, 0, 100} {
			var got []string
			for after := ""; ; after = got[len(got)-1] { // the empty id never ends a page alone
				list, err := s.Policies(t.Context(), acme, ResourcePolicy, after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range list {
					got = append(got, p.ID)
				}
				if len(list) == 0 || len(got) > len(ids) {
					break
				}
			}
			if !slices.Equal(got, ids) {
				t.Errorf("pages of %d: %q", limit, got)
			}
		}
	})
}

// TestPolicyWriters: every change gets a number of its own.
func TestPolicyWriters(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		const writers, rounds = 4, 5
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range rounds {
					if _, err := s.SetPolicy(t.Context(), acme, AttestationPolicy, "default_cpu", fmt.Sprint(w, i), ""); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		list, err := s.PolicyVersions(t.Context(), acme, AttestationPolicy, "default_cpu")
		if err != nil || len(list) != writers*rounds || list[0].Version != writers*rounds {
			t.Errorf("%d versions, %v", len(list), err)
		}
	})
}

func TestPolicyRefusals(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx := t.Context()
		for name, f := range map[string]func() error{
			"kind: expected": func() error { _, err := s.SetPolicy(ctx, acme, "other", "a", "x", ""); return err },
			"text: expected at most 1048576 bytes": func() error {
				_, err := s.SetPolicy(ctx, acme, ResourcePolicy, "a", strings.Repeat("x", MaxPolicy+1), "")
				return err
			},
			"text: expected UTF-8": func() error { _, err := s.SetPolicy(ctx, acme, ResourcePolicy, "a", "\x00", ""); return err },
			"id: expected UTF-8":   func() error { _, err := s.SetPolicy(ctx, acme, ResourcePolicy, "\xff", "x", ""); return err },
			"id: expected at most": func() error {
				_, err := s.DeletePolicy(ctx, acme, ResourcePolicy, strings.Repeat("x", 5000), "")
				return err
			},
			ErrNoTenant.Error():            func() error { _, err := s.SetPolicy(ctx, "nobody", ResourcePolicy, "a", "x", ""); return err },
			ErrNoTenant.Error() + ": none": func() error { _, err := s.DeletePolicy(ctx, "none", ResourcePolicy, "a", ""); return err },
		} {
			if err := f(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want %q", err, name)
			}
		}
		if _, err := s.Policy(ctx, acme, ResourcePolicy, "\x00\xff", 0); !errors.Is(err, ErrNotFound) {
			t.Errorf("a hostile id: got %v", err)
		}
	})
}
