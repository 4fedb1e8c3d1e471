package store

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// What a decision reads is bounded, whatever one tenant's administrators store.
func TestBindingsPerResource(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		ctx := t.Context()
		bind := func(n tenant.Name, res string, i int) error {
			return s.bind(ctx, n, Binding{Resource: res, InitData: fmt.Sprintf("%064x", i)}, 3)
		}
		for i := range 3 {
			if err := bind(acme, "repo", i); err != nil {
				t.Fatal(err)
			}
		}
		if err := bind(acme, "repo", 3); !errors.Is(err, ErrFull) {
			t.Errorf("one too many: got %v", err)
		}
		for name, err := range map[string]error{
			"one that is there": bind(acme, "repo", 2), "another resource": bind(acme, "repo/key", 3), "another tenant": bind(tenant.Default, "repo", 3),
		} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if list, err := s.BindingsFor(ctx, acme, []string{"repo"}); err != nil || len(list) != 3 {
			t.Errorf("got %v, %v", list, err)
		}
	})
}

func TestBindings(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		d := strings.Repeat("0123456789abcdef", 4)
		bind := func(n tenant.Name, res, digest, description string) {
			t.Helper()
			moves(t, s, n, "bind", func(ctx context.Context) error {
				return s.Bind(ctx, n, Binding{Resource: res, InitData: digest, Description: description})
			})
		}
		for _, r := range []string{"repo", "repo/key", "repo/key/1", "repo-2", "+pki", "+pki/issue/web"} {
			bind(acme, r, d, "one\x00")
		}
		bind(acme, "repo", strings.ToUpper(d), "other")
		bind(acme, "repo", d, "again")
		bind(tenant.Default, "repo", d, "of default")
		got, err := s.BindingsFor(ctx, acme, []string{"repo/key/1", "repo/key", "repo"})
		want := []Binding{{"repo", strings.ToUpper(d), "other", c.now()}, {"repo", d, "again", c.now()},
			{"repo/key", d, "one\ufffd", c.now()}, {"repo/key/1", d, "one\ufffd", c.now()}}
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%v\n%s", err, cmp.Diff(want, got))
		}
		if got, err := s.BindingsFor(ctx, acme, []string{"+pki/issue/web", "+pki/issue", "+pki", "\x00\xff"}); err != nil || len(got) != 2 {
			t.Errorf("got %v, %v", got, err)
		}
		if got, err := s.BindingsFor(ctx, acme, nil); err != nil || len(got) != 0 {
			t.Errorf("no names: %v, %v", got, err)
		}
		if _, err := s.BindingsFor(ctx, acme, make([]string, maxScopes+1)); err == nil {
			t.Error("too many names: want an error")
		}
		var all []string
		for after := (Binding{}); ; {
			list, err := s.Bindings(ctx, acme, after, 3)
			if err != nil || len(list) > 3 {
				t.Fatal(list, err)
			}
			if len(list) == 0 {
				break
			}
			for _, b := range list {
				all = append(all, b.Resource)
			}
			after = list[len(list)-1]
		}
		if got := strings.Join(all, " "); got != "+pki +pki/issue/web repo repo repo-2 repo/key repo/key/1" {
			t.Errorf("got %s", got)
		}
		for _, x := range []struct {
			res, digest string
			want        int
		}{{"repo/key", d, 1}, {"repo/key", d, 0}, {"repo", "", 2}, {"repo", "", 0}, {"\x00", "\xff", 0}} {
			if n, err := s.Unbind(ctx, acme, x.res, x.digest); n != x.want || err != nil {
				t.Errorf("unbind %q %q: %d, %v; want %d", x.res, x.digest, n, err, x.want)
			}
		}
		moves(t, s, acme, "unbind", func(ctx context.Context) error { _, err := s.Unbind(ctx, acme, "+pki", d); return err })
		if got, err := s.Bindings(ctx, tenant.Default, Binding{}, 0); err != nil || len(got) != 1 {
			t.Errorf("the other tenant's: %v, %v", got, err)
		}
		for _, b := range []Binding{{}, {Resource: "a"}, {Resource: "a\x00", InitData: d}, {Resource: "a", InitData: "\xff"}, {Resource: strings.Repeat("a", 5000), InitData: d},
			{Resource: "a", InitData: d, Description: strings.Repeat("a", 2000)}} {
			if err := s.Bind(ctx, acme, b); err == nil {
				t.Errorf("bind %.40q %.40q: want an error", b.Resource, b.InitData)
			}
		}
		if err := s.Bind(ctx, "nobody", want[0]); !errors.Is(err, ErrNoTenant) {
			t.Errorf("got %v", err)
		}
	})
}

func testAdmin(n tenant.Name, fill byte, roles ...string) Admin {
	key := make(ed25519.PublicKey, ed25519.PublicKeySize)
	key[0] = fill
	return Admin{Tenant: n, Name: fmt.Sprint("admin ", fill), Roles: roles, PublicKey: key}
}

func TestAdmins(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		add := func(a Admin) (got Admin) {
			t.Helper()
			moves(t, s, a.Tenant, "add", func(ctx context.Context) (err error) { got, err = s.AddAdmin(ctx, a); return err })
			return got
		}
		one, two := add(testAdmin(acme, 1, "admin")), add(testAdmin(acme, 2, "auditor", "secret-writer"))
		add(testAdmin(tenant.Default, 1, "admin"))
		if one.ID != AdminID(one.PublicKey) || len(one.ID) != 32 || !one.Created.Equal(c.now()) {
			t.Errorf("got %+v", one)
		}
		if _, err := s.AddAdmin(ctx, testAdmin(acme, 1, "admin")); !errors.Is(err, ErrExists) {
			t.Errorf("the same key: got %v", err)
		}
		// A key for everybody moves every tenant on.
		before := map[tenant.Name]int64{}
		generations := func(check bool) {
			for _, n := range []tenant.Name{acme, tenant.Default} {
				g, err := s.Generation(ctx, n)
				if err != nil || check && g <= before[n] {
					t.Errorf("generation of %s: %d after %d, %v", n, g, before[n], err)
				}
				before[n] = g
			}
		}
		generations(false)
		root, err := s.AddAdmin(ctx, testAdmin(tenant.All, 9, "admin"))
		if err != nil {
			t.Fatal(err)
		}
		generations(true)
		byID := cmp.Transformer("byID", func(list []Admin) map[string]Admin {
			m := map[string]Admin{}
			for _, a := range list {
				m[string(a.Tenant)+"/"+a.ID] = a
			}
			return m
		})
		if got, err := s.Admins(ctx, acme); err != nil || cmp.Diff([]Admin{root, one, two}, got, byID) != "" {
			t.Errorf("%v\n%s", err, cmp.Diff([]Admin{root, one, two}, got, byID))
		}
		if got, err := s.Admins(ctx, tenant.All); err != nil || cmp.Diff([]Admin{root}, got, byID) != "" {
			t.Errorf("%v\n%s", err, cmp.Diff([]Admin{root}, got, byID))
		}
		// A tenant's administrator cannot revoke everybody's key, nor another's.
		for _, id := range []string{root.ID, "", "\x00"} {
			if was, err := s.RemoveAdmin(ctx, acme, id); was || err != nil {
				t.Errorf("remove %q: %v, %v", id, was, err)
			}
		}
		moves(t, s, acme, "remove", func(ctx context.Context) error {
			was, err := s.RemoveAdmin(ctx, acme, one.ID)
			if !was {
				t.Error("remove: was not there")
			}
			return err
		})
		if was, err := s.RemoveAdmin(ctx, tenant.All, root.ID); !was || err != nil {
			t.Errorf("remove: %v, %v", was, err)
		}
		generations(true)
		if got, err := s.Admins(ctx, acme); err != nil || cmp.Diff([]Admin{two}, got, byID) != "" {
			t.Errorf("%v\n%s", err, cmp.Diff([]Admin{two}, got, byID))
		}
		if got, err := s.Admins(ctx, tenant.Default); err != nil || len(got) != 1 {
			t.Errorf("the other tenant's: %v, %v", got, err)
		}
		if _, err := s.exec(ctx, "swap", "UPDATE admins SET public_key = ? WHERE id = ?", []byte(one.PublicKey), two.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Admins(ctx, acme); err == nil || !strings.Contains(err.Error(), "the database was changed") {
			t.Errorf("a key under another's name: got %v", err)
		}
	})
}

func TestAdminRefusals(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		for name, change := range map[string]func(*Admin){
			"no key":         func(a *Admin) { a.PublicKey = nil },
			"short key":      func(a *Admin) { a.PublicKey = a.PublicKey[1:] },
			"no role":        func(a *Admin) { a.Roles = nil },
			"many roles":     func(a *Admin) { a.Roles = make([]string, 17) },
			"long role":      func(a *Admin) { a.Roles = []string{strings.Repeat("x", 65)} },
			"broken role":    func(a *Admin) { a.Roles = []string{"\xff"} },
			"long name":      func(a *Admin) { a.Name = strings.Repeat("x", 257) },
			"no tenant":      func(a *Admin) { a.Tenant = "" },
			"bad tenant":     func(a *Admin) { a.Tenant = "../x" },
			"unknown tenant": func(a *Admin) { a.Tenant = "nobody" },
		} {
			a := testAdmin(acme, 1, "admin")
			change(&a)
			if _, err := s.AddAdmin(t.Context(), a); err == nil {
				t.Errorf("%s: want an error", name)
			}
		}
		if list, err := s.Admins(t.Context(), acme); err != nil || len(list) != 0 {
			t.Errorf("got %v, %v", list, err)
		}
	})
}
