package registry

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
)

func mustRef(t testing.TB, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestParseCredentials(t *testing.T) {
	t.Parallel()
	auth := base64.StdEncoding.EncodeToString([]byte("u:p"))
	c, err := ParseCredentials([]byte(`{"HttpHeaders":{"x":"y"},"credsStore":"","auths":{
	 "https://index.docker.io/v1/":{"auth":"` + auth + `"},"reg.example":{"username":"reg","password":"x"},"reg.example/a/b":{"username":"ab","password":"x"},
	 "reg.example/v2":{"username":"v2","password":"x"},"empty.example":{},
	 "docker.io/team":{"username":"team","password":"x"},"https://two.example/v2/":{"username":"url","password":"x"},"two.example":{"username":"name","password":"x"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"debian": "u", "index.docker.io/library/debian": "u", "team/app": "team", "reg.example/x": "reg", "reg.example/a/b": "ab", "reg.example/a/b/c": "ab",
		"reg.example/a/bb": "reg", "reg.example/v2/x": "v2", "reg.example:5000/x": "", "empty.example/x": "", "evil.example/reg.example/x": "", "two.example/x": "name",
	} {
		got := ""
		if l := c.lookup(mustRef(t, in)); l != nil {
			got = l.user
		}
		if got != want || c.Has(mustRef(t, in)) != (want != "") {
			t.Errorf("%s: want %q, got %q", in, want, got)
		}
	}
	if (*Credentials)(nil).Has(mustRef(t, "debian")) {
		t.Error("no credentials have some")
	}
	const hidden = "c2VjcmV0LW1hcmtlcg=="
	for doc, want := range map[string]string{
		``:                             "registry credentials: JSON",
		`{}`:                           "auths: missing",
		`{"auths":{"a":{"auth":"*"}}}`: `auths["a"].auth: expected base64`,
		`{"auths":{"a":{"auth":"` + hidden + `"}}}`:                 "there is no colon",
		`{"auths":{"a":{"registrytoken":"secret-marker\r\nx: y"}}}`: `auths["a"].registrytoken: expected printable text`,
		`{"auths":{"a":{"x":"y"}}}`:                                 "auths",
		`{"auths":{},"credsStore":"desktop"}`:                       "credential helpers are not supported",
		`{"auths":{},"credHelpers":{"gcr.io":"gcloud"}}`:            "credential helpers are not supported",
		`{"auths":{},"auths":{}}`:                                   "auths",
	} {
		_, err := ParseCredentials([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret-marker") || strings.Contains(err.Error(), hidden) {
			t.Errorf("%s: want %q, got %v", doc, want, err)
		}
	}
}

func TestParseChallenges(t *testing.T) {
	t.Parallel()
	for header, want := range map[string][]challenge{
		``:                nil,
		`Basic realm="x"`: {{"basic", "x", ""}},
		`BASIC`:           {{"basic", "", ""}},
		`Bearer realm="https://a/token",service="reg \"x\"",scope="repository:a:pull,push"`: {{"bearer", "https://a/token", `reg "x"`}},
		`Bearer realm=https, service = s`:                 {{"bearer", "https", "s"}},
		`Negotiate, Basic realm="a, b", Bearer realm="c"`: {{"negotiate", "", ""}, {"basic", "a, b", ""}, {"bearer", "c", ""}},
		`Bearer realm="open`:                              {{"bearer", "", ""}},
		`Negotiate dG9rZW4=`:                              {{"negotiate", "", ""}},
		`"quoted"`:                                        nil,
	} {
		got := parseChallenges([]string{header})
		if header == `Negotiate dG9rZW4=` {
			got = got[:min(1, len(got))] // what a token68 leaves behind does not matter
		}
		if len(got) != len(want) {
			t.Errorf("%s: %+v, want %+v", header, got, want)
			continue
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: %+v, want %+v", header, got, want)
			}
		}
	}
	if got := parseChallenges([]string{strings.Repeat("Basic,", 1000)}); len(got) > maxChallenges {
		t.Errorf("%d challenges", len(got))
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="s"`)
	f.Add(`Basic realm="a\"", Bearer x=y`)
	f.Fuzz(func(t *testing.T, header string) {
		if got := parseChallenges([]string{header}); len(got) > maxChallenges {
			t.Errorf("%d challenges", len(got))
		}
	})
}
