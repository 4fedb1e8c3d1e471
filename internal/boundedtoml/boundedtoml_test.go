package boundedtoml

import (
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 20)
	for name, doc := range map[string]string{
		"comment":       "a = 1 # " + deep + "\n",
		"basic":         `a = "` + deep + `\"` + deep + `"`,
		"literal":       `a = '` + deep + `\'`,
		"multi basic":   "a = \"\"\"\n" + deep + "\\\"\"\"\"",
		"multi five":    "a = \"\"\"" + deep + "\"\"\"\"\"\nb = 1",
		"multi literal": "a = '''" + deep + "\n'''''\nb = 1",
		"empty strings": "a = ''\nb = \"\"\nc = ''''''\nd = \"\"\"\"\"\"\n",
		"quoted keys":   "\"a[[[[[[[[[[[[[[[[[\".'b'.c = [[1], [2]]",
		"inline":        "a = {b = {c = [\n1,\n2]}}",
		"tables":        "[a.\"b.c\"]\nx=1\n[[d]]\n[[d]]\n",
	} {
		if _, err := Decode([]byte(doc), 1<<10); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 20)
	for name, tc := range map[string]struct{ doc, want string }{
		"array":               {"a = 1\nb = " + deep, "line 2: nested more than 16 deep"},
		"array over lines":    {"a = " + strings.Repeat("[\n", 20), "line 17: nested"},
		"after a string":      {`a = ["x", ` + deep, "nested more than 16 deep"},
		"after escaped quote": {`a = ["\\", ` + deep, "nested more than 16 deep"},
		"after multi":         {"a = [\"\"\"x\"\"\"\"\", " + deep, "nested more than 16 deep"},
		"six quotes":          {"a = [\"\"\"x\"\"\"\"\"\"" + deep, "unexpected character after a string"},
		"glued":               {`a = ["x"` + deep, "unexpected character after a string"},
		"newline in string":   {"a = \"x\n" + deep + "\"", "line 1: string does not end"},
		"open string":         {`a = 'x`, "string does not end"},
		"escape at the end":   {`a = "x\`, "string does not end"},
		"dotted key":          {strings.Repeat("a.", 17) + "a = 1", "more than 16 dots"},
		"dotted quoted key":   {strings.Repeat("'a'.", 17) + "a = 1", "more than 16 dots"},
		"dotted table":        {"[" + strings.Repeat("a.", 17) + "a]", "more than 16 dots"},
		"elements":            {"a = [" + strings.Repeat("1,", 4097) + "]", "more than 4096 keys and elements"},
		"long message":        {"a = " + strings.Repeat("é", 2000), "line 1: "},
		"size":                {strings.Repeat("#", 20000), "20000 bytes, the limit is 16384"},
		"syntax":              {"\n\na = = 1", "line 3: "},
	} {
		if v, err := Decode([]byte(tc.doc), 1<<14); err == nil || v != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, v, err, tc.want)
		} else if len(err.Error()) > 2*maxMessage {
			t.Errorf("%s: the message has %d bytes", name, len(err.Error()))
		}
	}
}

// FuzzDecode also checks that what was decoded is no deeper than the limits
// allow: that the pass over the text and the library agree on what a string
// is.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("a = \"\"\"\"\"\"\"[[[[[[[[[[[[[[[[[[\"\"\""))
	f.Add([]byte("[a.b]\nc = {d = [1, 2.5, 'x']}\n[[e]]\n"))
	f.Add([]byte("a = '''''''[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := Decode(raw, 1<<12)
		if (v == nil) == (err == nil) {
			t.Fatalf("got %v, %v", v, err)
		}
		// Every level of nesting needs a bracket or a dot: in the header of
		// its table, in its key and in its value.
		if d := depth(v); d > 2*maxDots+2*maxDepth+4 {
			t.Fatalf("depth %d", d)
		}
	})
}

func depth(v any) int {
	n := 0
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			n = max(n, depth(e))
		}
	case []any:
		for _, e := range v {
			n = max(n, depth(e))
		}
	case []map[string]any:
		for _, e := range v {
			n = max(n, depth(e))
		}
	default:
		return 0
	}
	return n + 1
}

func FuzzQuote(f *testing.F) {
	f.Add("a\nb'", "x")
	f.Add("'''\n\\", "\x7f\u0085")
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?")
		doc := "a = " + Text(a) + "\n" + "b = " + Quote(b) + "\n"
		v, err := Decode([]byte(doc), 1<<20)
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if v["a"] != a || v["b"] != b {
			t.Fatalf("got %q and %q, want %q and %q", v["a"], v["b"], a, b)
		}
	})
}
