package lookaside_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/lookaside"
	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

var _ signature.Lookaside = (*lookaside.Store)(nil)

var digest = oci.FromBytes([]byte("image"))

func mustRef(t testing.TB, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func mustParse(t testing.TB, text string) *lookaside.Config {
	t.Helper()
	c, err := lookaside.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What registries.d files look like, and what is refused.
func TestParseConfig(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"empty":          {"", ""},
		"document":       {"# nothing\n---\n# nothing\n", ""},
		"two documents":  {"---\n---\n", "is not supported here"},
		"alias":          {"docker:\n  *.c.example:\n", "put it in quotes"},
		"default":        {"default-docker:\n  lookaside: https://a.example/x\n", ""},
		"older name":     {"default-docker:\n  sigstore: file:///var/lib/containers/sigstore\n  sigstore-staging: file:///x\n", ""},
		"scopes":         {"docker:\n    reg.example:5000/a:   # ours\n        lookaside: 'https://a.example'\n        use-sigstore-attachments: true\n\n    \"b.example\":\n        lookaside: \"http://b.example/s\"\n    '*.c.example':\n        lookaside: https://c.example\n", ""},
		"Windows":        {"docker:\r\n  a.example:\r\n    lookaside: https://a.example\r\n", ""},
		"empty map":      {"docker: {}\n", ""},
		"unknown":        {"dockr:\n  a.example:\n    lookaside: https://a\n", `line 1: expected default-docker or docker, got "dockr"`},
		"unknown field":  {"docker:\n  a.example:\n    lookside: https://a\n", `line 3: expected lookaside, sigstore`},
		"twice":          {"docker:\n  a.example:\n    lookaside: https://a\n  a.example:\n    lookaside: https://b\n", "line 4: a.example is there twice"},
		"both names":     {"docker:\n  a.example:\n    lookaside: https://a\n    sigstore: https://b\n", "line 4: lookaside and sigstore are two names"},
		"tab":            {"docker:\n\ta.example:\n", "line 2: expected spaces"},
		"anchor":         {"docker: &a\n", "is not supported here"},
		"flow":           {"docker: {a.example: {lookaside: x}}\n", "is not supported here"},
		"list":           {"docker:\n  - a.example\n", "is not supported here"},
		"block":          {"docker:\n  a.example:\n    lookaside: |\n", "is not supported here"},
		"escape":         {"docker:\n  a.example:\n    lookaside: \"https://a\\x41\"\n", "escapes"},
		"no end":         {"docker:\n  a.example:\n    lookaside: \"https://a\n", "does not end on its line"},
		"value and more": {"docker: x\n  a.example:\n", "line 2: docker has a value already"},
		"scalar":         {"docker: x\n", "expected names below it"},
		"indented":       {"  docker:\n", "it is indented, but below nothing"},
		"deep":           {"docker:\n a:\n  b:\n   c:\n    d:\n", "nested deeper"},
		"no scheme":      {"default-docker:\n  lookaside: /var/lib\n", "expected https://"},
		"relative":       {"default-docker:\n  lookaside: file://var/lib\n", "expected file:///PATH"},
		"query":          {"default-docker:\n  lookaside: https://a.example/?x=1\n", "without user, query"},
		"user":           {"default-docker:\n  lookaside: https://u:p@a.example/\n", "without user, query"},
		"not a boolean":  {"default-docker:\n  use-sigstore-attachments: yes\n", "expected true or false"},
		"not UTF-8":      {"default-docker:\n  lookaside: \xff\n", "not UTF-8"},
	} {
		_, err := lookaside.ParseConfig([]byte(tt.text))
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
	if _, err := lookaside.ParseConfig([]byte("default-docker:\n  lookaside: https://a\n"), []byte("default-docker:\n  lookaside: https://b\n")); err == nil {
		t.Error("two defaults were merged")
	}
}

// files is a store below a directory, with one signature in each place.
func files(t testing.TB, places ...string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for _, p := range places {
		name := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// The closest scope says where signatures are.
func TestScopes(t *testing.T) {
	t.Parallel()
	at := func(base, repository string) string {
		return base + "/" + repository + "@sha256=" + digest.Hex() + "/signature-1"
	}
	root := files(t, at("default", "x"), at("reg", "a/b"), at("reg", "c"), at("repo", "c/d"), at("wild", "e"), at("tag", "c/d"), at("default", "library/debian"))
	c := mustParse(t, "default-docker:\n  lookaside: file:///default/\ndocker:\n  reg.example:\n    lookaside: file:///reg\n  reg.example/c/d:\n    sigstore: file:///repo\n"+
		"  reg.example/c/d:1:\n    lookaside: file:///tag\n  \"*.wild.example\":\n    lookaside: file:///wild\n  reg.example/c/none:\n    use-sigstore-attachments: true\n")
	s, err := lookaside.New(lookaside.Options{Config: c, Files: root})
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"other.example/x": at("default", "x"), "reg.example/a/b": at("reg", "a/b"), "reg.example/c": at("reg", "c"), "reg.example/c/d": at("repo", "c/d"), "reg.example/c/d:1": at("tag", "c/d"),
		"a.b.wild.example:5000/e": at("wild", "e"), "debian": at("default", "library/debian"), "reg.example:5000/c": "", "reg.example/nothing": "",
	} {
		got, err := s.Signatures(t.Context(), mustRef(t, ref), digest)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if (len(got) == 0) != (want == "") || (len(got) > 0 && (len(got) != 1 || string(got[0]) != want)) {
			t.Errorf("%s: want %q, got %q", ref, want, got)
		}
	}
}

// Places that cannot be reached are errors before any image comes.
func TestNew(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"default-docker:\n  lookaside: file:///x\n": "file:// places are not supported here", "default-docker:\n  lookaside: https://x\n": "there is no HTTP client", "": "",
	} {
		if _, err := lookaside.New(lookaside.Options{Config: mustParse(t, text)}); (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A link that leads out of the root leads nowhere.
func TestFilesStayInRoot(t *testing.T) {
	t.Parallel()
	root := files(t, "a/x")
	if err := root.Symlink("/etc", "s"); err != nil {
		t.Fatal(err)
	}
	s, err := lookaside.New(lookaside.Options{Config: mustParse(t, "default-docker:\n  lookaside: file:///s\n"), Files: root})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Signatures(t.Context(), mustRef(t, "reg.example/x"), digest); err == nil {
		t.Errorf("%q", got)
	}
}

// Behind HTTP: several signatures, thousands of them, large ones, and errors.
func TestHTTP(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	h := http.NewServeMux()
	prefix := "@sha256=" + digest.Hex() + "/"
	h.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		name, isPlace := strings.CutPrefix(r.URL.Path, "/base/three"+prefix)
		switch {
		case isPlace && (name == "signature-1" || name == "signature-2" || name == "signature-3"):
			_, _ = fmt.Fprint(w, name)
		case strings.HasPrefix(r.URL.Path, "/base/many"+prefix):
			_, _ = fmt.Fprint(w, "x")
		case strings.HasPrefix(r.URL.Path, "/base/large"+prefix):
			_, _ = w.Write(make([]byte, openpgp.MaxMessage+1))
		case strings.HasPrefix(r.URL.Path, "/base/broken"+prefix):
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	s, err := lookaside.New(lookaside.Options{Config: mustParse(t, "default-docker:\n  lookaside: "+server.URL+"/base\n"), Client: server.Client()})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		n    int
		want string
	}{"three": {3, ""}, "none": {0, ""}, "many": {lookaside.MaxSignatures, ""}, "large": {0, "more than 262144 bytes"}, "broken": {0, "got 500"}} {
		requests.Store(0)
		got, err := s.Signatures(t.Context(), mustRef(t, "reg.example/"+name), digest)
		if len(got) != tt.n || (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %d, %q, got %d, %v", name, tt.n, tt.want, len(got), err)
		}
		if n := requests.Load(); n > lookaside.MaxSignatures {
			t.Errorf("%s: %d requests", name, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Signatures(ctx, mustRef(t, "reg.example/many"), digest); err == nil {
		t.Error("a cancelled context was ignored")
	}
}

// Registries that keep signatures themselves.
func TestExtension(t *testing.T) {
	t.Parallel()
	content := base64.StdEncoding.EncodeToString([]byte("signed"))
	one := `{"schemaVersion":2,"name":"sha256:x@y","type":"atomic","content":"` + content + `"}`
	for name, tt := range map[string]struct {
		supports, body string
		status, n      int
		want           string
	}{
		"one":         {"1", `{"signatures":[` + one + `]}`, 200, 1, ""},
		"other types": {"1", `{"signatures":[` + strings.Replace(one, "atomic", "other", 1) + `,` + strings.Replace(one, `"schemaVersion":2`, `"schemaVersion":1`, 1) + `]}`, 200, 0, ""},
		"many":        {"1", `{"signatures":[` + strings.TrimSuffix(strings.Repeat(one+",", 5000), ",") + `]}`, 200, lookaside.MaxSignatures, ""},
		"none":        {"1", "", 404, 0, ""},
		"no support":  {"", `{"signatures":[` + one + `]}`, 200, 0, ""},
		"broken":      {"1", `{"signatures":[{}`, 200, 0, "JSON"},
		"duplicate":   {"1", `{"signatures":[],"signatures":[` + one + `]}`, 200, 0, "twice"},
		"large":       {"1", strings.Repeat("x", 5<<20), 200, 0, "more than"},
		"error":       {"1", "", 500, 0, "HTTP status 500"},
	} {
		h := http.NewServeMux()
		h.HandleFunc("GET /v2/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Registry-Supports-Signatures", tt.supports)
		})
		h.HandleFunc("GET /extensions/v2/shop/web/signatures/"+string(digest), func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			_, _ = fmt.Fprint(w, tt.body)
		})
		server := httptest.NewServer(h)
		address := strings.TrimPrefix(server.URL, "http://")
		client, err := registry.New(registry.Options{PlainHTTP: []string{address}, Sleep: func(context.Context, time.Duration) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		s, err := lookaside.New(lookaside.Options{Registry: client})
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Signatures(t.Context(), mustRef(t, address+"/shop/web"), digest)
		if len(got) != tt.n || (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %d, %q, got %q, %v", name, tt.n, tt.want, got, err)
		}
		if tt.n == 1 && len(got) == 1 && string(got[0]) != "signed" {
			t.Errorf("%s: %q", name, got)
		}
		client.Close()
		server.Close()
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("default-docker:\n  lookaside: https://a.example/x\ndocker:\n  reg.example:5000/a: # x\n    sigstore: 'file:///x'\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := lookaside.ParseConfig([]byte(text))
		if (c == nil) == (err == nil) {
			t.Errorf("%v, %v", c, err)
		}
	})
}
