package initdata

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vector is the document of the key broker specification, section 2.5.
const vector = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"http://127.0.0.1:8080\"\n'''\n"

const vectorSHA384 = "e6abf188a5ea43a380637ad2cd26cf490551371712a61e4a23279c2aef9dfc9e593855d01130188daa603a61767ac549"

func TestDigestVector(t *testing.T) {
	t.Parallel()
	alg, digest, err := Digest([]byte(vector))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(digest); alg != SHA384 || got != vectorSHA384 {
		t.Errorf("Digest = %s %s, want %s %s", alg, got, SHA384, vectorSHA384)
	}
	d, err := Parse([]byte(vector))
	if err != nil {
		t.Fatal(err)
	}
	want := &Document{Version: Version, Algorithm: SHA384, Data: map[string]string{KeyAA: "[token_configs.kbs]\nurl = \"http://127.0.0.1:8080\"\n"}}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	if !MatchesField(digest, digest[:32]) {
		t.Error("the first 32 bytes do not match HOST_DATA")
	}
}

func TestDigestIsOverExactBytes(t *testing.T) {
	t.Parallel()
	for alg, size := range map[string]int{SHA256: 32, SHA384: 48, SHA512: 64} {
		raw := strings.Replace(vector, "sha384", alg, 1)
		gotAlg, a, err := Digest([]byte(raw))
		if err != nil || gotAlg != alg || len(a) != size {
			t.Fatalf("%s: Digest = %q, %d bytes, %v", alg, gotAlg, len(a), err)
		}
		_, b, err := Digest([]byte(raw + "# a comment\n"))
		if err != nil || bytes.Equal(a, b) {
			t.Errorf("%s: a comment does not change the digest (%v)", alg, err)
		}
	}
	if _, _, err := Digest([]byte("version = 1")); err == nil {
		t.Error("Digest of an invalid document gave no error")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const ok = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"
	for name, tc := range map[string]struct{ doc, want string }{
		"empty":               {"", `key "algorithm" is missing`},
		"no data":             {"version = \"0.1.0\"\nalgorithm = \"sha256\"\n", "table [data] is missing"},
		"unknown key":         {"x = 1\n" + ok, `unknown key "x"`},
		"key in other case":   {strings.Replace(ok, "version", "Version", 1), `unknown key "Version"`},
		"unknown table":       {ok + "[more]\n", `unknown key "more"`},
		"version":             {strings.Replace(ok, "0.1.0", "0.2.0", 1), `key "version": expected "0.1.0", got "0.2.0"`},
		"version type":        {strings.Replace(ok, `"0.1.0"`, "0.1", 1), `key "version": expected a string, got a float`},
		"algorithm":           {strings.Replace(ok, "sha256", "md5", 1), `got "md5"`},
		"algorithm dash":      {strings.Replace(ok, "sha256", "sha-256", 1), `got "sha-256"`},
		"algorithm case":      {strings.Replace(ok, "sha256", "SHA256", 1), `got "SHA256"`},
		"algorithm type":      {strings.Replace(ok, `"sha256"`, "[1]", 1), "expected a string, got an array"},
		"value type":          {ok + "a = 1\n", `data: key "a": expected a string, got an integer`},
		"nested value":        {ok + "[data.a]\nb = \"x\"\n", `data: key "a": expected a string, got a table`},
		"date":                {ok + "a = 2020-01-01\n", "got a date or time"},
		"data type":           {"version = \"0.1.0\"\nalgorithm = \"sha256\"\ndata = \"x\"\n", "expected a table, got a string"},
		"data array":          {"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[[data]]\na = \"x\"\n", "expected a table, got an array"},
		"duplicate":           {ok + "a = \"1\"\na = \"2\"\n", "line 5"},
		"duplicate quoted":    {ok + "a = \"1\"\n\"a\" = \"2\"\n", "line 5"},
		"empty entry name":    {ok + "\"\" = \"1\"\n", "a key is empty"},
		"control in name":     {ok + "\"a\\u0001\" = \"1\"\n", "control character"},
		"long name":           {ok + strings.Repeat("k", 129) + " = \"1\"\n", "129 bytes"},
		"not TOML":            {"{\"version\":1}", "line 1"},
		"not UTF-8":           {ok + "a = \"\xff\"\n", "not valid UTF-8"},
		"byte order mark":     {"\ufeff" + ok, "byte order mark"},
		"NUL":                 {ok + "a = \"\x00\"\n", "line 4"},
		"too large":           {ok + strings.Repeat("#", MaxBytes), "the limit is 1048576"},
		"too many entries":    {ok + entries(65), "65 entries"},
		"truncated in a text": {ok + "a = '''\nabc", "line 4"},
		"deep":                {"a = " + strings.Repeat("[", 500_000), "nested more than 16 deep"},
		"deep inline":         {"a = " + strings.Repeat("{a=", 300_000), "nested more than 16 deep"},
		"dotted":              {strings.Repeat("a.", 500_000) + "a = 1", "more than 16 dots"},
		"many tables":         {strings.Repeat("[a]\n", 2000), "more than 1024 tables"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := Parse([]byte(tc.doc))
			if err == nil || d != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Parse = %v, %v; want an error with %q", d, err, tc.want)
			}
		})
	}
}

func entries(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("k" + strings.Repeat("x", i) + " = \"\"\n")
	}
	return b.String()
}

func TestParseReportsAllProblems(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte("a = 1\nb = 2\nversion = 3\n"))
	if err == nil {
		t.Fatal("no error")
	}
	want := "initdata: key \"algorithm\" is missing\ninitdata: key \"version\": expected a string, got an integer\n" +
		"initdata: table [data] is missing\ninitdata: unknown key \"a\": expected version, algorithm and [data]\n" +
		"initdata: unknown key \"b\": expected version, algorithm and [data]"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

func TestReportIsBounded(t *testing.T) {
	t.Parallel()
	_, err := Parse([]byte(strings.Repeat("x", MaxBytes/2) + " = 1\n" + strings.ReplaceAll(entries(400), "\"\"", "1")))
	if err == nil || len(err.Error()) > 8<<10 || !strings.Contains(err.Error(), "and 372 more problems") {
		t.Errorf("got %.200v", err)
	}
}

func TestParseAcceptsSpellings(t *testing.T) {
	t.Parallel()
	want := &Document{Version: Version, Algorithm: SHA256, Data: map[string]string{"a": "x[[[[[[[[[[[[[[[[[[[[\n'"}}
	for _, doc := range []string{
		"version = '0.1.0'\nalgorithm = '''sha256'''\ndata = {a = \"x[[[[[[[[[[[[[[[[[[[[\\n'\"}\n",
		"version = \"0.1.0\" # [[[[[[[[[[[[[[[[[[\r\nalgorithm = \"sha256\"\r\n[data]\r\n'a' = \"x[[[[[[[[[[[[[[[[[[[[\\n'\"\r\n",
		"data.a = \"\"\"x[[[[[[[[[[[[[[[[[[[[\n'\"\"\"\nversion = \"0.1.0\"\nalgorithm = \"sha256\"",
		"data.a = '''x[[[[[[[[[[[[[[[[[[[[\n''''\nversion = \"0.1.0\"\nalgorithm = \"sha256\"",
	} {
		got, err := Parse([]byte(doc))
		if err != nil {
			t.Errorf("%s: %v", doc, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", doc, diff)
		}
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	d := &Document{Version: Version, Algorithm: SHA512, Data: map[string]string{
		"b":          "one line",
		"a.toml":     "x = 1\n\ty = '2'\n",
		"quote":      "ends with\n'",
		"triple":     "'''\n",
		"cr":         "a\r\nb",
		"control":    "\x00\x7f\\\"",
		"leading":    "\n\nx\n",
		"empty":      "",
		"key \"\\é⌘": "é⌘\n",
	}}
	raw, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := "version = \"0.1.0\"\nalgorithm = \"sha512\"\n\n[data]\n" +
		"\"a.toml\" = '''\nx = 1\n\ty = '2'\n'''\n" +
		"\"b\" = \"one line\"\n" +
		"\"control\" = \"\\u0000\\u007F\\\\\\\"\"\n" +
		"\"cr\" = \"a\\r\\nb\"\n" +
		"\"empty\" = \"\"\n" +
		"\"key \\\"\\\\é⌘\" = '''\né⌘\n'''\n" +
		"\"leading\" = '''\n\n\nx\n'''\n" +
		"\"quote\" = \"ends with\\n'\"\n" +
		"\"triple\" = \"'''\\n\"\n"
	if diff := cmp.Diff(want, string(raw)); diff != "" {
		t.Error(diff)
	}
	back, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, back); diff != "" {
		t.Error(diff)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*Document{
		"zero":      {},
		"algorithm": {Version: Version, Algorithm: "sm3"},
		"key":       {Version: Version, Algorithm: SHA256, Data: map[string]string{"": "x"}},
		"utf8":      {Version: Version, Algorithm: SHA256, Data: map[string]string{"a": "\xff"}},
		"size":      {Version: Version, Algorithm: SHA256, Data: map[string]string{"a": strings.Repeat("x", MaxBytes)}},
	} {
		if raw, err := d.Encode(); err == nil {
			t.Errorf("%s: encoded as %q", name, raw)
		}
	}
}

func TestMatchesField(t *testing.T) {
	t.Parallel()
	digest := bytes.Repeat([]byte{1, 2, 3, 0}, 12)
	padded := append(bytes.Clone(digest), make([]byte, 16)...)
	flipped := bytes.Clone(digest[:32])
	flipped[31] ^= 1
	for name, tc := range map[string]struct {
		digest, field []byte
		want          bool
	}{
		"same":             {digest, digest, true},
		"cut":              {digest, digest[:32], true},
		"padded":           {digest, padded, true},
		"padding not zero": {digest, append(bytes.Clone(digest), bytes.Repeat([]byte{1}, 16)...), false},
		"flipped":          {digest, flipped, false},
		"zero field":       {digest, make([]byte, 32), false},
		"both zero":        {make([]byte, 48), make([]byte, 32), false},
		"nil field":        {digest, nil, false},
		"nil digest":       {nil, digest, false},
		"nil both":         {nil, nil, false},
		"short field":      {digest, digest[:31], false},
		"short digest":     {digest[:31], padded, false},
		"zero head":        {append(make([]byte, 32), 1), make([]byte, 32), false},
	} {
		if got := MatchesField(tc.digest, tc.field); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(vector))
	f.Add([]byte("version = '0.1.0'\nalgorithm = \"sha256\"\ndata.a = \"\"\"\"x\"\"\"\"\"\n"))
	f.Add([]byte("data = {a = [[[[[[[[[[[[[[[[["))
	f.Add([]byte("a = \"\"\"\"\"\"\"\"\"\"[\"\"\"\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := Parse(raw)
		if (d == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", d, err)
		}
		if err != nil {
			return
		}
		out, err := d.Encode()
		if err != nil {
			// Escapes can make the encoding longer than the document.
			if len(raw) > MaxBytes/8 {
				return
			}
			t.Fatalf("Encode: %v", err)
		}
		back, err := Parse(out)
		if err != nil {
			t.Fatalf("Parse(Encode): %v\n%s", err, out)
		}
		if diff := cmp.Diff(d, back); diff != "" {
			t.Fatal(diff)
		}
	})
}
