package kbs

import (
	"encoding/json"
	"net/http"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseResourceURI(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]struct{ canonical, request string }{
		"kbs:///repo/type/tag":                         {"kbs:///repo/type/tag", "/kbs/v0/resource/repo/type/tag"},
		"kbs://kbs.example:8080/repo/type/tag":         {"kbs:///repo/type/tag", "/kbs/v0/resource/repo/type/tag"},
		"kbs://[::1]:8080/repo/type/tag":               {"kbs:///repo/type/tag", "/kbs/v0/resource/repo/type/tag"},
		"kbs://payments/repo/type/tag":                 {"kbs://payments/repo/type/tag", "/kbs/v0/resource/repo/type/tag"},
		"kbs+resource://a-1/repo/type/tag?v=2":         {"kbs://a-1/repo/type/tag?v=2", "/kbs/v0/resource/repo/type/tag?v=2"},
		"kbs+resource:///repo/type/tag":                {"kbs:///repo/type/tag", "/kbs/v0/resource/repo/type/tag"},
		"kbs:///a-._~!$&'()*+,;=:@/B/0":                {"kbs:///a-._~!$&'()*+,;=:@/B/0", "/kbs/v0/resource/a-._~!$&'()*+,;=:@/B/0"},
		"kbs:///default/image-kek/3f0c...":             {"kbs:///default/image-kek/3f0c...", "/kbs/v0/resource/default/image-kek/3f0c..."},
		"kbs:///a/b/c?x=1&y=%20":                       {"kbs:///a/b/c?x=1&y=%20", "/kbs/v0/resource/a/b/c?x=1&y=%20"},
		"kbs+nebula-ca:///credential?name=a&ip=10.0.1": {"kbs+nebula-ca:///credential?name=a&ip=10.0.1", "/kbs/v0/nebula-ca/credential?name=a&ip=10.0.1"},
		"kbs+pkcs11:///resource/r/t/t":                 {"kbs+pkcs11:///resource/r/t/t", "/kbs/v0/pkcs11/resource/r/t/t"},
	} {
		u, err := ParseResourceURI(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if u.String() != want.canonical || u.RequestPath() != want.request {
			t.Errorf("%s: got %s and %s, want %s and %s", in, u, u.RequestPath(), want.canonical, want.request)
		}
	}
	u, err := NewResourceURI("repo", "type", "tag")
	if err != nil || u.Plugin() != PluginResource || u.Path() != "repo/type/tag" || u.Query() != "" {
		t.Errorf("got %v, %v", u, err)
	}
	if diff := cmp.Diff([]string{"repo", "type", "tag"}, u.Segments()); diff != "" {
		t.Error(diff)
	}
	out, err := json.Marshal(map[string]ResourceURI{"u": u})
	if err != nil || string(out) != `{"u":"kbs:///repo/type/tag"}` {
		t.Errorf("JSON %s, %v", out, err)
	}
	var back map[string]ResourceURI
	if err := json.Unmarshal(out, &back); err != nil || back["u"] != u {
		t.Errorf("got %v, %v", back, err)
	}
	if (ResourceURI{}).String() != "" || !(ResourceURI{}).IsZero() {
		t.Error("the zero value names something")
	}
}

func TestParseResourceURIRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                        "expected kbs:///repository/type/tag",
		"kbs:/repo/type/tag":      "expected kbs:///repository/type/tag",
		"repo/type/tag":           "expected kbs:///repository/type/tag",
		"KBS:///repo/type/tag":    "expected the scheme kbs",
		"https://h/kbs/v0/a/b/c":  "expected the scheme kbs",
		"file:///etc/passwd":      "expected the scheme kbs",
		"kbs://repo":              "expected a path after the host",
		"kbs://Payments/a/b/c":    "is no trustee's name",
		"kbs://-x/a/b/c":          "is no trustee's name",
		"kbs://under_score/a/b/c": "is no trustee's name",
		"kbs://" + strings.Repeat("a", 64) + "/a/b/c": "is no trustee's name",
		"kbs://default/key/1":                         "did you mean kbs:///default/key/1?",
		"kbs:///":                                     "segment 1 is empty",
		"kbs:///a/b":                                  "expected three segments (repository/type/tag), got 2",
		"kbs:///a/b/c/d":                              "got 4",
		"kbs:///a//c":                                 "segment 2 is empty",
		"kbs:////b/c":                                 "segment 1 is empty",
		"kbs:///a/b/c/":                               "segment 4 is empty",
		"kbs:///a/../c":                               `segment 2 is ".."`,
		"kbs:///./b/c":                                `segment 1 is "."`,
		"kbs:///a/%2e%2e/c":                           "segment 2 has a character",
		"kbs:///a/b%2fx/c":                            "segment 2 has a character",
		"kbs:///a/b\\..\\x/c":                         "segment 2 has a character",
		"kbs:///a/b c/d":                              "segment 2 has a character",
		"kbs:///a/b\x00/d":                            "segment 2 has a character",
		"kbs:///a/b\r\nX: y/d":                        "segment 2 has a character",
		"kbs:///a/b/ü":                                "segment 3 has a character",
		"kbs:///a/b/c#d":                              "segment 3 has a character",
		"kbs:///a/b/c?":                               "the query is empty",
		"kbs:///a/b/c?x y":                            "the query has a character",
		"kbs:///a/b/c?x=%zz":                          "the query is malformed",
		"kbs:///a/b/c?x=1;y=2":                        "the query is malformed",
		"kbs://u@h/a/b/c":                             "not a host name",
		"kbs://h\r\n/a/b/c":                           "not a host name",
		"kbs+:///a/b/c":                               "plugin's name must be",
		"kbs+Resource:///a/b/c":                       "plugin's name must be",
		"kbs+../x:///a/b/c":                           "plugin's name must be",
		"kbs+auth:///a/b/c":                           `"auth" is not a plugin`,
		"kbs+resource-policy:///a":                    `"resource-policy" is not a plugin`,
		"kbs:///" + strings.Repeat("a", 256) + "/b/c":  "segment 1 has 256 bytes",
		"kbs+x:///" + strings.Repeat("a/", 16) + "a":   "has 17 segments",
		"kbs+x:///a?" + strings.Repeat("x", 3000):      "the limit is 2048",
		"kbs+" + strings.Repeat("x", 65) + ":///a":     "plugin's name must be",
		"kbs://" + strings.Repeat("h", 256) + "/a/b/c": "not a host name",
	} {
		u, err := ParseResourceURI(in)
		if err == nil || !u.IsZero() || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v; want an error with %q", in, u, err, want)
		}
	}
	if _, err := NewResourceURI("a/b", "c", "d"); err == nil {
		t.Error("a repository with a slash was accepted")
	}
}

func FuzzParseResourceURI(f *testing.F) {
	for _, s := range []string{"kbs:///repo/type/tag", "kbs+nebula-ca://h:1/credential?name=a&ip=b", "kbs:///a/../c", "kbs://h/a/b/c?%41=;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseResourceURI(s)
		if u.IsZero() == (err == nil) {
			t.Fatalf("got %v, %v", u, err)
		}
		if err != nil {
			return
		}
		if back, err := ParseResourceURI(u.String()); err != nil || back != u {
			t.Fatalf("got %v, %v; want %v", back, err, u)
		}
		// What is asked for must be what was named, however it is read.
		req, err := http.NewRequest(http.MethodGet, "https://kbs.example"+u.RequestPath(), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := PathPrefix + "/" + u.Plugin() + "/" + u.Path()
		if req.URL.Path != want || path.Clean(req.URL.Path) != want || req.URL.RawQuery != u.Query() || req.URL.Fragment != "" {
			t.Fatalf("%q is asked for as %q", s, req.URL)
		}
		if len(u.Segments()) == 0 || u.Plugin() == PluginResource && len(u.Segments()) != 3 {
			t.Fatalf("%q has segments %q", s, u.Segments())
		}
	})
}
