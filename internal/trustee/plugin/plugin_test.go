package plugin_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
)

type named string

func (n named) Name() string                        { return string(n) }
func (named) Access(string, []string) plugin.Access { return plugin.None }
func (named) Handle(context.Context, plugin.Request) (*plugin.Response, *problem.Error) {
	return nil, nil
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	r, err := plugin.New(named("pki"), named("a-1"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Names(), []string{"a-1", "pki"}) {
		t.Errorf("%v", r.Names())
	}
	if p, ok := r.Get("pki"); !ok || p.Name() != "pki" {
		t.Errorf("%v, %t", p, ok)
	}
	if _, ok := r.Get("none"); ok {
		t.Error("a plugin that is not there")
	}
	for _, bad := range [][]plugin.Plugin{
		{nil}, {named("")}, {named("A")}, {named("a/b")}, {named("a.b")}, {named("ä")}, {named(strings.Repeat("a", 65))}, {named("x"), named("x")},
		{named("auth")}, {named("attest")}, {named("attestation-policy")}, {named("resource-policy")}, {named("reference-value")},
	} {
		if _, err := plugin.New(bad...); err == nil {
			t.Errorf("%v: want an error", bad)
		}
	}
}

func TestSplitPath(t *testing.T) {
	t.Parallel()
	for path, want := range map[string][]string{
		"/pki": nil, "/pki/": nil, "pki/ca": {"ca"}, "/pki/issue/web": {"issue", "web"}, "/pki/A_b-c.d": {"A_b-c.d"},
	} {
		name, got, err := plugin.SplitPath(path)
		if err != nil || name != "pki" || !slices.Equal(got, want) {
			t.Errorf("%q: %q %q %v", path, name, got, err)
		}
	}
	for _, path := range []string{
		"/pki//", "/pki/a//b", "/pki/a/", "/pki/.", "/pki/..", "/pki/a/../b", "/pki/.a", "/pki/a%2fb", "/pki/a\x00", "/pki/\xff", "/pki/a b", "/pki/a\\b", "/pki/ä",
		"/pki/+x", "/pki/a?b", "/pki/" + strings.Repeat("a", 129), "/pki/" + strings.Repeat("a/", 16) + "a", "/pki/" + strings.Repeat("a", 1<<20),
	} {
		if name, got, err := plugin.SplitPath(path); err == nil || got != nil || name != "pki" || len(err.Error()) > 500 {
			t.Errorf("%.40q: %q %q %v", path, name, got, err)
		}
	}
}

func FuzzSplitPath(f *testing.F) {
	f.Add("/pki/issue/web")
	f.Add("/pki/../x")
	f.Fuzz(func(t *testing.T, path string) {
		_, segments, err := plugin.SplitPath(path)
		if err != nil && segments != nil {
			t.Fatal("segments beside an error")
		}
		for _, s := range segments {
			if s == "" || s[0] == '.' || len(s) > plugin.MaxSegment || strings.ContainsAny(s, "/\\%\x00") {
				t.Fatalf("%q", s)
			}
		}
	})
}
