package conffile

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

const pattern = "/etc/containerd/conf.d/coffer*.toml"

func TestAddRemove(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "imports = [\"" + pattern + "\"] " + marker + "\n"},
		{"none", "version = 2\n[plugins]\n", "imports = [\"" + pattern + "\"] " + marker + "\nversion = 2\n[plugins]\n"},
		{"no end of line", "version = 3", "imports = [\"" + pattern + "\"] " + marker + "\nversion = 3"},
		{"carriage returns", "version = 2\r\nroot = \"/x\"\r\n", ""},
		{"empty list", "imports = []\n", "imports = [\"" + pattern + "\"]\n"},
		{"empty list with space", "imports = [ ]\nversion = 2\n", ""},
		{"one", "version = 2\nimports = [\"/a/*.toml\"] # ours\n", "version = 2\nimports = [\"/a/*.toml\", \"" + pattern + "\"] # ours\n"},
		{"trailing comma", "imports = [\"/a\",]\n", "imports = [\"/a\", \"" + pattern + "\",]\n"},
		{"lines", "imports = [\n  \"/a\", # first ] \"\n  '/b' # last, really\n  # nothing\n]\nversion = 2\n", "imports = [\n  \"/a\", # first ] \"\n  '/b', \"" + pattern + "\" # last, really\n  # nothing\n]\nversion = 2\n"},
		{"lines with comma", "imports = [\n  \"/a\",\n]\nversion = 2\n", "imports = [\n  \"/a\", \"" + pattern + "\",\n]\nversion = 2\n"},
		{"quoted key", "\"imports\" = ['/a']\n", ""},
		{"after others", "root = '''/x\nimports = []\n'''\nstate = \"a # b\"\nx = [[\"[\", 1], [2]] # ]\ny = { a = \"}\", b = [1] }\nimports=[\"/a\"]\n[grpc]\nimports = 1\n", ""},
		{"in a table only", "version = 2\n[a]\nimports = [\"/a\"]\n", "imports = [\"" + pattern + "\"] " + marker + "\nversion = 2\n[a]\nimports = [\"/a\"]\n"},
		{"comment", "# imports = [\"x\"]\nversion = 2\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			added, err := Add([]byte(tc.text), pattern)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want != "" && string(added) != tc.want {
				t.Errorf("added:\n%s\nwant:\n%s", added, tc.want)
			}
			if again, err := Add(added, pattern); err != nil || !bytes.Equal(again, added) {
				t.Errorf("a second time: %v\n%s", err, again)
			}
			removed, err := Remove(added, pattern)
			if err != nil || string(removed) != tc.text {
				t.Errorf("removed: %v\n%q, want\n%q", err, removed, tc.text)
			}
			if again, err := Remove(removed, pattern); err != nil || string(again) != tc.text {
				t.Errorf("removed twice: %v", err)
			}
		})
	}
}

// TestOthersChange: what an administrator does in between stays.
func TestOthersChange(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ before, old, new, want string }{
		{"version = 2\n", "version = 2\n", "version = 2\nroot = \"/y\"\n", "version = 2\nroot = \"/y\"\n"},
		{"imports = [\"/a\"]\n", "\"]", "\", \"/z\"]", "imports = [\"/a\", \"/z\"]\n"},
		{"version = 2\n", "\"] #", "\", \"/z\"] #", "imports = [\"/z\"] " + marker + "\nversion = 2\n"},
		{"imports = [\"/a\"]\n", "\"/a\", ", "", "imports = []\n"},
		{"version = 2\n", marker, "# mine", "imports = [] # mine\nversion = 2\n"},
	} {
		added, err := Add([]byte(tc.before), pattern)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(added), tc.old, tc.new, 1)
		if changed == string(added) {
			t.Fatalf("%q is not in %q", tc.old, added)
		}
		if got, err := Remove([]byte(changed), pattern); err != nil || string(got) != tc.want {
			t.Errorf("from %q: %v\n%q, want\n%q", changed, err, got, tc.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"imports = \"/a\"\n":   "expected a list of texts",
		"imports = [1]\n":      "imports[0]: expected a text",
		"version = \"2\"\n":    "version: expected a number",
		"version = 2\nversion": "line",
		"plugins = 1\n":        "plugins: expected a table",
	} {
		if _, err := Add([]byte(text), pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestImporting(t *testing.T) {
	t.Parallel()
	m := &Main{Imports: []string{"/x/*.toml", "conf.d/*.toml"}}
	if got := m.Importing("/etc/containerd", "/etc/containerd/conf.d/coffer.toml"); got != "conf.d/*.toml" {
		t.Errorf("%q", got)
	}
	if got := m.Importing("/etc/containerd", "/etc/containerd/coffer.toml"); got != "" {
		t.Errorf("%q", got)
	}
}

func FuzzAddRemove(f *testing.F) {
	for _, s := range []string{"", "version = 2\n", "imports = [\"/a\", 'b',\n# c\n]\n[x]\n", "a = \"\"\"\n\"\"\"\"\nimports = []", "imports = [\"\"\"a\"\"\"]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before, err := Parse(text)
		if err != nil || slices.Contains(before.Imports, pattern) {
			return
		}
		added, err := Add(text, pattern)
		if err != nil {
			return // refused: the file stays as it is
		}
		removed, err := Remove(added, pattern)
		if err != nil || !bytes.Equal(removed, text) {
			t.Fatalf("%q became %q: %v", text, removed, err)
		}
	})
}
