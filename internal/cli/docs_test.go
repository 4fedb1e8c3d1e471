package cli_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/cli"
)

// example is a command in a document, and what has to be in its output.
type example struct {
	line    int
	args    []string
	printed []string
	code    int
}

// examples reads the blocks of a document that are marked "console".
func examples(t *testing.T, file string) []example {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []example
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		command, isCommand := strings.CutPrefix(line, "$ coffer ")
		code, isCode := strings.CutPrefix(line, "exit code ")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case isCommand:
			out = append(out, example{line: i + 1, args: strings.Fields(command)})
		case len(out) == 0:
			t.Fatalf("%s:%d: expected a command first", file, i+1)
		case isCode:
			if out[len(out)-1].code, err = strconv.Atoi(code); err != nil {
				t.Fatal(err)
			}
		case line != "…":
			out[len(out)-1].printed = append(out[len(out)-1].printed, line)
		}
	}
	return out
}

// TestDocumentedExamples runs the examples in the documents, in order.
func TestDocumentedExamples(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Chdir("../..")
	for _, file := range []string{"docs/evidence.md", "README.md"} {
		list := examples(t, file)
		if len(list) == 0 {
			t.Errorf("%s has no examples", file)
		}
		for _, x := range list {
			stdout, code := runCoffer(t, x.args)
			if code != x.code {
				t.Errorf("%s:%d: expected exit code %d, got %d: %s", file, x.line, x.code, code, stdout)
			}
			lines := strings.Split(stdout, "\n")
			for _, want := range x.printed {
				at := 0
				for at < len(lines) && lines[at] != want {
					at++
				}
				if at == len(lines) {
					t.Errorf("%s:%d: expected the line %q, in order, in:\n%s", file, x.line, want, stdout)
					break
				}
				lines = lines[at+1:]
			}
		}
	}
}

func runCoffer(t *testing.T, args []string) (stdout string, code int) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	code = cli.Main(context.WithoutCancel(t.Context()), cli.Env{Args: args, Stdin: null, Stdout: out, Stderr: null})
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), code
}
