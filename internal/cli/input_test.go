package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/kbs/admin"
)

func TestScopes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, scope, uri string }{
		{"", "", "kbs:///"},
		{"kbs:///", "", "kbs:///"},
		{"kbs:///shop", "shop", "kbs:///shop"},
		{"kbs:///shop/", "shop", "kbs:///shop"},
		{"shop/db", "shop/db", "kbs:///shop/db"},
		{"kbs:///shop/db/password", "shop/db/password", "kbs:///shop/db/password"},
		{"kbs+resource:///shop", "shop", "kbs:///shop"},
		{"kbs+pki:///", "+pki", "kbs+pki:///"},
		{"kbs+pki:///issue/web", "+pki/issue/web", "kbs+pki:///issue/web"},
		{"+pki/issue", "+pki/issue", "kbs+pki:///issue"},
	} {
		scope, err := parseScope(tc.in)
		if err != nil || scope != tc.scope || scopeURI(scope) != tc.uri {
			t.Errorf("%q: expected %q and %q, got %q, %q and %v", tc.in, tc.scope, tc.uri, scope, scopeURI(scope), err)
		}
	}
	for _, in := range []string{
		"http:///shop", "kbs://shop/db", "kbs:///a/b/c/d", "kbs:///a//b", "kbs:///../b", "kbs:///a%2fb", "kbs:///a\x00b", "kbs:///a?b=c",
		"kbs+pki:///../x", "kbs+:///x", "kbs+auth:///x", "+", "+resource/a", "kbs:///" + strings.Repeat("a", 300),
	} {
		if scope, err := parseScope(in); err == nil {
			t.Errorf("%q: expected an error, got %q", in, scope)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 9, 1, 12, 0, 0, 5, time.UTC)
	for _, tc := range []struct {
		in        string
		direction int
		want      time.Time
	}{
		{"2026-08-01", -1, time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)},
		{"2026-08-01T01:02:03.5Z", 1, time.Date(2026, 8, 1, 1, 2, 3, 500_000_000, time.UTC)},
		{"7d", -1, time.Date(2026, 8, 25, 12, 0, 0, 0, time.UTC)},
		{"90m", 1, time.Date(2026, 9, 1, 13, 30, 0, 0, time.UTC)},
	} {
		if got, err := parseTime(tc.in, now, tc.direction); err != nil || !got.Equal(tc.want) {
			t.Errorf("%q: expected %s, got %s, %v", tc.in, tc.want, got, err)
		}
	}
	for _, in := range []string{"", "d", "-1d", "-1h", "0s", "yesterday", "99999999d", "1.5d", "2026-13-01"} {
		if got, err := parseTime(in, now, 1); err == nil {
			t.Errorf("%q: expected an error, got %s", in, got)
		}
	}
}

func TestEscapeControls(t *testing.T) {
	t.Parallel()
	in := "a\u009b\x7f\u202e\u00a0ü→😀\U000e0001\n"
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got := escapeControls(text)
	if want := `"a\u009b\u007f\u202e\u00a0ü→😀\udb40\udc01\n"`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var back string
	if err := json.Unmarshal(got, &back); err != nil || back != in {
		t.Errorf("comes back as %q, %v", back, err)
	}
}

func TestReportClean(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if code := (&app{}).report(&out, usagef("a\x1b[2J\nb\u009b")); code != ExitUsage || out.String() != "coffer: a?[2J\nb?\n" {
		t.Errorf("got %d, %q", code, out.String())
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	if got := clean("a\x1b[2J\nb\tc\u202e\x00ü"); got != "a?[2J b c??ü" {
		t.Errorf("got %q", got)
	}
}

func TestCheckpointFiles(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"a.b.c\n": {"a.b.c"}, "a.b.c\nd.e.f": {"a.b.c", "d.e.f"},
		`{"seq":1,"at":"2026-01-01T00:00:00Z","jws":"a.b.c"}`: {"a.b.c"}, `[{"jws":"a.b.c"},{"jws":"d.e.f"}]`: {"a.b.c", "d.e.f"},
	} {
		if got, err := parseCheckpoints([]byte(in)); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%q: expected %q, got %q, %v", in, want, got, err)
		}
	}
	for _, in := range []string{"", " \n", "[]", "{", "{}", "a.b", `[{"jws":"x"}]`, "[1]"} {
		if got, err := parseCheckpoints([]byte(in)); err == nil {
			t.Errorf("%q: expected an error, got %q", in, got)
		}
	}
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	broken := func(w io.Writer) error { _ = text("half")(w); return io.ErrUnexpectedEOF }
	if err := writeFile(path, false, broken); err == nil {
		t.Error("a broken write: expected an error")
	}
	if err := writeFile(path, false, text("one")); err != nil {
		t.Error(err)
	}
	if err := writeFile(path, false, text("two")); err == nil {
		t.Error("a file that is there: expected an error")
	}
	if err := writeFile(path, true, broken); err == nil {
		t.Error("a broken replacement: expected an error")
	}
	if got, _ := os.ReadFile(path); string(got) != "one" {
		t.Errorf("expected one, got %q", got)
	}
	if err := writeFile(path, true, text("three")); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("expected the file alone, got %v, %v", entries, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("expected mode 0600, got %v, %v", st, err)
	}
}

// TestAuditPages lists from a trustee that gives fewer entries than are asked
// for, and from one that gives the same again and again.
func TestAuditPages(t *testing.T) {
	t.Parallel()
	const last, most = 10, 3
	stuck := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		number := func(name string) (n int) {
			_, _ = fmt.Sscan(r.URL.Query().Get(name), &n)
			return n
		}
		after, before, limit := number("after"), number("before"), min(number("limit"), most)
		entries := []string{}
		add := func(seq int) {
			entries = append(entries, fmt.Sprintf(`{"seq":%d,"previous":"","hash":"","record":{}}`, seq))
		}
		switch {
		case stuck:
			add(5)
		case r.URL.Query().Has("after"):
			for seq := after + 1; seq <= last && len(entries) < limit; seq++ {
				add(seq)
			}
		default:
			if before == 0 {
				before = last + 1
			}
			for seq := before - 1; seq > 0 && len(entries) < limit; seq-- {
				add(seq)
			}
		}
		_, _ = io.WriteString(w, `{"entries":[`+strings.Join(entries, ",")+`]}`)
	}))
	t.Cleanup(server.Close)
	client, err := admin.New(admin.Options{
		URL: server.URL, Key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)),
		RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	list := func(q admin.AuditQuery, ascending bool, limit int) []int64 {
		t.Helper()
		entries, err := listAudit(t.Context(), client, q, ascending, limit)
		if err != nil {
			t.Fatal(err)
		}
		var out []int64
		for _, e := range entries {
			out = append(out, e.Seq)
		}
		return out
	}
	for name, tc := range map[string]struct{ got, want []int64 }{
		"all":        {list(admin.AuditQuery{}, false, 0), []int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		"some":       {list(admin.AuditQuery{}, false, 4), []int64{10, 9, 8, 7}},
		"before":     {list(admin.AuditQuery{Before: 5}, false, 2), []int64{4, 3}},
		"from start": {list(admin.AuditQuery{}, true, 0), []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
		"first":      {list(admin.AuditQuery{}, true, 1), []int64{1}},
		"after":      {list(admin.AuditQuery{After: 8}, true, 0), []int64{9, 10}},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	stuck = true
	for _, ascending := range []bool{true, false} {
		if _, err := listAudit(context.WithoutCancel(t.Context()), client, admin.AuditQuery{}, ascending, 0); err == nil || !strings.Contains(err.Error(), "does not advance") {
			t.Errorf("expected an error for a list that does not advance, got %v", err)
		}
	}
}

func FuzzInput(f *testing.F) {
	for _, s := range []string{"a.b.c", `[{"jws":"a.b.c"}]`, `{"type":"sample","payload":"e30="}`, "kbs+pki:///issue/web", "7d", "2026-01-01", "4711"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if list, err := parseCheckpoints([]byte(s)); err == nil && len(list) == 0 {
			t.Error("no checkpoint and no error")
		}
		if doc, err := rvpsMessage([]byte(s), ""); err == nil && len(doc) == 0 {
			t.Error("no message and no error")
		}
		if scope, err := parseScope(s); err == nil {
			if again, err := parseScope(scopeURI(scope)); err != nil || again != scope {
				t.Errorf("%q: expected %q again, got %q, %v", s, scope, again, err)
			}
		}
		_, _ = parseTime(s, time.Unix(0, 0), -1)
		if r, err := recordName(s); err == nil && (r.Seq == 0) == (r.ID == "") {
			t.Errorf("%q: expected a number or an id, got %+v", s, r)
		}
		if strings.ContainsAny(clean(s), "\x1b\n\r\t\x00") {
			t.Error("a control character is left")
		}
	})
}
