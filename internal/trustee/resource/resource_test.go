package resource

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	p, err := Parse("demo/key/layer-1.v2")
	if err != nil {
		t.Fatal(err)
	}
	if p != (Path{"demo", "key", "layer-1.v2"}) || p.String() != "demo/key/layer-1.v2" {
		t.Errorf("got %+v", p)
	}
	if want := []string{"demo/key/layer-1.v2", "demo/key", "demo"}; !slices.Equal(p.Prefixes(), want) {
		t.Errorf("prefixes %v, want %v", p.Prefixes(), want)
	}
	for _, bad := range []string{
		"", "a", "a/b", "a/b/c/d", "a//c", "/a/b", "a/b/", "a/../c", "a/./c", "a/.hidden/c", "a/b/c\x00", "a/b/c%2e",
		"a/b/\xff", "a/b/c d", "a/b/ü", "a\\b/c/d", strings.Repeat("a", 129) + "/b/c", strings.Repeat("a", 5000), "a/b/c\n",
	} {
		if p, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", bad, p)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"a", "a/b", "a/b/c"} {
		if got, err := ParsePrefix(ok); err != nil || got != ok {
			t.Errorf("ParsePrefix(%q) = %q, %v", ok, got, err)
		}
	}
	for _, bad := range []string{"", "/", "a/", "a/b/c/d", "..", "*"} {
		if _, err := ParsePrefix(bad); err == nil {
			t.Errorf("ParsePrefix(%q): want an error", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("demo/key/1")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err == nil && p.String() != s {
			t.Errorf("Parse(%q) = %q", s, p)
		}
	})
}
