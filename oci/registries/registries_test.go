package registries_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registries"
)

func mustParse(t testing.TB, text string) *registries.Config {
	t.Helper()
	c, err := registries.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustRef(t testing.TB, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// sources writes them as REFERENCE[ insecure][ not tags][ not digests][ origin].
func sources(t *testing.T, c *registries.Config, name string) []string {
	t.Helper()
	list, err := c.Sources(mustRef(t, name))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range list {
		text := s.Ref.String()
		for _, w := range []struct {
			word string
			on   bool
		}{{" insecure", s.Insecure}, {" not tags", !s.Tags}, {" not digests", !s.Digests}, {" origin", !s.Mirror}} {
			if w.on {
				text += w.word
			}
		}
		out = append(out, text)
	}
	return out
}

const whole = `
unqualified-search-registries = ["registry.example"]
short-name-mode = "enforcing"
credential-helpers = ["containers-auth.json"]

[aliases]
"tool" = "quay.io/org/tool"
"team/app" = "registry.example:5000/apps/app"

[[registry]]
location = "example.com/foo"
[[registry.mirror]]
location = "mirror1.example/a/b"
insecure = true
[[registry.mirror]]
location = "mirror2.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "mirror3.example"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "example.com/foo/special"
location = "elsewhere.example/x"

[[registry]]
prefix = "*.corp.example"
insecure = true

[[registry]]
prefix = "*.proxied.corp.example"
location = "proxy.example/corp"
mirror-by-digest-only = true
mirror = [{location = "localhost:5001/m"}]

[[registry]]
prefix = "docker.io/library"
location = "hub.example/library"

[[registry]]
prefix = "bad.example/evil"
location = "bad.example/evil"
blocked = true
`

func TestSources(t *testing.T) {
	t.Parallel()
	c := mustParse(t, whole)
	for name, want := range map[string][]string{
		"example.com/foo/bar:v1":                 {"mirror1.example/a/b/bar:v1 insecure", "mirror2.example/bar:v1 not tags", "mirror3.example/bar:v1 not digests", "example.com/foo/bar:v1 origin"},
		"example.com/foo/special/x:v1":           {"elsewhere.example/x/x:v1 origin"},
		"example.com/foo/specials:v1":            {"mirror1.example/a/b/specials:v1 insecure", "mirror2.example/specials:v1 not tags", "mirror3.example/specials:v1 not digests", "example.com/foo/specials:v1 origin"},
		"example.com/foobar:v1":                  {"example.com/foobar:v1 origin"},
		"example.com:5000/foo/bar:v1":            {"example.com:5000/foo/bar:v1 origin"},
		"a.corp.example/x:v1":                    {"a.corp.example/x:v1 insecure origin"},
		"a.b.corp.example:8443/x:v1":             {"a.b.corp.example:8443/x:v1 insecure origin"},
		"corp.example/x:v1":                      {"corp.example/x:v1 origin"},
		"evilcorp.example/x:v1":                  {"evilcorp.example/x:v1 origin"},
		"a.corp.example.evil.example/x:v1":       {"a.corp.example.evil.example/x:v1 origin"},
		"evil.example/a.corp.example/x:v1":       {"evil.example/a.corp.example/x:v1 origin"},
		"one.proxied.corp.example:443/deep/x:v1": {"localhost:5001/m/deep/x:v1 not tags", "proxy.example/corp/deep/x:v1 origin"},
		"debian:v1":                              {"hub.example/library/debian:v1 origin"},
		"index.docker.io/library/debian:v1":      {"hub.example/library/debian:v1 origin"},
		"docker.io/other/debian:v1":              {"docker.io/other/debian:v1 origin"},
	} {
		got := sources(t, c, name)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if got := sources(t, nil, "x.example/y:v1"); len(got) != 1 || got[0] != "x.example/y:v1 origin" {
		t.Errorf("no configuration: %v", got)
	}
}

// TestPrefixIsNoSubstring: upstream compares substrings, and takes another
// host's path for the registry.
func TestPrefixIsNoSubstring(t *testing.T) {
	t.Parallel()
	c := mustParse(t, "[[registry]]\nprefix = 'example.com/foo'\nlocation = 'mirror.example/foo'\n")
	for _, name := range []string{"evil.com/example.com/foo:v1", "evil-example.com/foo:v1", "a.example.com/foo:v1", "example.com.evil.com/foo:v1"} {
		if got := sources(t, c, name); len(got) != 1 || got[0] != name+" origin" {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := sources(t, c, "example.com/foo:v1"); len(got) != 1 || got[0] != "mirror.example/foo:v1 origin" {
		t.Errorf("the prefix itself: %v", got)
	}
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	c := mustParse(t, whole)
	for name, blocked := range map[string]bool{"bad.example/evil": true, "bad.example/evil/x": true, "bad.example/evils": false, "bad.example/x": false} {
		if _, err := c.Sources(mustRef(t, name)); errors.Is(err, registries.ErrBlocked) != blocked {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDigestSurvives: what is asked of a mirror is the same digest.
func TestDigestSurvives(t *testing.T) {
	t.Parallel()
	d := oci.FromBytes(nil)
	for _, s := range sources(t, mustParse(t, whole), "example.com/foo/bar@"+string(d)) {
		if !strings.Contains(s, "@"+string(d)) {
			t.Errorf("%s has lost its digest", s)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	c := mustParse(t, whole)
	for name, want := range map[string]string{
		"tool": "quay.io/org/tool", "tool:v1": "quay.io/org/tool:v1", "team/app": "registry.example:5000/apps/app", "other": "registry.example/other",
		"other/x:v1": "registry.example/other/x:v1", "quay.io/tool": "quay.io/tool", "localhost/tool": "localhost/tool",
	} {
		if got, err := c.Resolve(name); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
	if got, err := (*registries.Config)(nil).Resolve("debian"); err != nil || got.String() != "docker.io/library/debian" {
		t.Errorf("without a configuration: %s, %v", got, err)
	}
	two := mustParse(t, "unqualified-search-registries = ['a.example', 'b.example']")
	if _, err := two.Resolve("app"); err == nil || !strings.Contains(err.Error(), "a.example/app or b.example/app") {
		t.Errorf("a name that two registries could have: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const reg = "[[registry]]\n"
	const loc = reg + "location = 'r.example'\n"
	for text, want := range map[string]string{
		"x = 1":                          "registries.conf: x: unknown key",
		"x":                              "registries.conf: line 1",
		"[registries.search]":            "registries: is not honoured (this is version 1",
		"credential-helpers = ['pass']":  "credential-helpers: is not honoured",
		"short-name-mode = 'permissive'": "short-name-mode: is not honoured",
		"unqualified-search-registries = ['https://x.example']": "expected HOST[:PORT]",
		"unqualified-search-registries = [1]":                   "expected an array of strings",
		"registry = 1":                                          "registry: expected an array of tables",
		"registry = [1]":                                        "registry: expected an array of tables",
		reg:                                                     "registry[0].location: expected HOST",
		reg + "location = 'r'":                                  "registry[0].location: expected HOST",
		reg + "location = 'https://r.example'":                  "registry[0].location: expected HOST",
		reg + "location = 'r.example/'":                         "registry[0].location: expected HOST",
		reg + "location = 'R.example'":                          "registry[0].location: expected HOST",
		reg + "prefix = 'r.example/x:v1'\nlocation = 'r.example'":                   "registry[0].prefix: expected",
		reg + "prefix = '*.r.example/x'\nlocation = 'r.example'":                    "registry[0].prefix: expected *.DOMAIN",
		reg + "prefix = '*'\nlocation = 'r.example'":                                "registry[0].prefix: expected *.DOMAIN",
		reg + "prefix = 'a.*.example'\nlocation = 'r.example'":                      "registry[0].prefix: expected",
		reg + "prefix = 'r.example'":                                                "registry[0].location: expected HOST",
		loc + loc:                                                                   `registry[1].prefix: "r.example" occurs twice`,
		loc + "insecure = 'yes'":                                                    "registry[0].insecure: expected true or false",
		loc + "x = 1":                                                               "registry[0].x: unknown key",
		loc + "[[registry.mirror]]\n":                                               "registry[0].mirror[0].location: expected HOST",
		loc + "[[registry.mirror]]\nlocation = 'm.example'\nx = 1":                  "registry[0].mirror[0].x: unknown key",
		loc + "[[registry.mirror]]\nlocation = 'm.example'\npull-from-mirror = 'x'": "pull-from-mirror: expected all, digest-only or tag-only",
		loc + "mirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'm.example'\npull-from-mirror = 'digest-only'": "keep one",
		loc + strings.Repeat("[[registry.mirror]]\nlocation = 'm.example'\n", 17):                                           "has 17 entries",
		"[aliases]\nx = 'y'":                       "aliases.x: expected REGISTRY/REPOSITORY",
		"[aliases]\nx = 'y.example/z:v1'":          "aliases.x: expected REGISTRY/REPOSITORY",
		"[aliases]\n'x:v1' = 'y.example/z'":        "expected a name without registry",
		"[aliases]\n'x.example/y' = 'y.example/z'": "expected a name without registry",
	} {
		if c, err := registries.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", text, c, err, want)
		}
	}
	if _, err := registries.Parse(make([]byte, registries.MaxBytes+1)); err == nil {
		t.Error("a document without bounds")
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	c := mustParse(t, whole)
	if diff := cmp.Diff(c, mustParse(t, c.TOML(""))); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole), "example.com/foo/bar")
	f.Add([]byte("[[registry]]\nprefix='*.a'\n[[registry.mirror]]\nlocation='b.c:1/d'"), "x.a/y")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		c, err := registries.Parse(data)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err != nil {
			return
		}
		back, err := registries.Parse([]byte(c.TOML("")))
		if err != nil {
			t.Fatalf("%v\n%s", err, c.TOML(""))
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Fatal(diff)
		}
		ref, err := oci.ParseReference(name)
		if err != nil {
			return
		}
		list, err := c.Sources(ref)
		if err == nil && (len(list) == 0 || list[len(list)-1].Mirror) {
			t.Fatalf("sources %v", list)
		}
	})
}
