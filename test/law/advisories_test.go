package law

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const advisories = root + "/docs/advisories.md"

var (
	// One package and its tests: `dir`: `TestA`, `TestB`.
	namedTests = regexp.MustCompile("^`([a-z0-9/]+)`: ((?:`(?:Test|Fuzz)[A-Za-z0-9_]+`(?:, )?)+)$")
	rowID      = regexp.MustCompile(`GHSA(?:-[a-z0-9]{4}){3}|GO-\d+-\d+|Kata \d+|Pain \d+`)
)

// mustBeListed is what docs/advisories.md is a table of.
func mustBeListed() map[string]bool {
	out := map[string]bool{}
	for _, id := range strings.Fields(`GHSA-vqv5-385r-2hf8 GHSA-h5f8-crrq-4pw8 GHSA-vxg3-w9rv-rhr2 GHSA-f5p4-p5q5-jv3h GHSA-g9ww-x58f-9g6m
		GHSA-rh99-wc69-c255 GHSA-3ccm-4qq2-5wrp GHSA-hjgc-jc5v-fw7h GHSA-r2h5-3hgw-8j34 GHSA-6w5f-5wgr-qjg5 GHSA-g8fc-vrcg-8vjg
		GHSA-hq76-6gh2-5g4q GHSA-w7wm-2425-7p2h GHSA-x5r5-2qrx-rqj8 GO-2023-2378`) {
		out[id] = true
	}
	for i := range 12 {
		out[fmt.Sprintf("Kata %d", i+1)] = true
	}
	for i := range 20 {
		out[fmt.Sprintf("Pain %d", i+1)] = true
	}
	return out
}

// TestAdvisories holds the table of known holes against the tree: every hole has
// one line, every test that a line names exists, and nothing is called closed
// without a test.
func TestAdvisories(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(advisories)
	if err != nil {
		t.Fatal(err)
	}
	missing, tests := mustBeListed(), testFunctions(t)
	for n, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "| ") || !rowID.MatchString(cells[0]) {
			continue
		}
		where := fmt.Sprintf("%s:%d", advisories, n+1)
		if len(cells) != 4 {
			t.Errorf("%s: expected 4 columns, got %d", where, len(cells))
			continue
		}
		for _, id := range rowID.FindAllString(cells[0], -1) {
			if !missing[id] {
				t.Errorf("%s: %s is unknown to this test, or listed twice", where, id)
			}
			delete(missing, id)
		}
		named := strings.TrimSpace(cells[3])
		if named == "" && !strings.HasPrefix(strings.TrimSpace(cells[2]), "**Open") {
			t.Errorf("%s: no test is named; only what is open has none", where)
		}
		for part := range strings.SplitSeq(named, "; ") {
			if part == "" {
				continue
			}
			m := namedTests.FindStringSubmatch(part)
			if m == nil {
				t.Errorf("%s: expected `directory`: `TestName`, …, got %q", where, part)
				continue
			}
			for name := range strings.SplitSeq(m[2], ", ") {
				if name = strings.Trim(name, "`"); !tests[m[1]+" "+name] {
					t.Errorf("%s: package %s has no %s", where, m[1], name)
				}
			}
		}
	}
	for id := range missing {
		t.Errorf("%s has no line for %s", advisories, id)
	}
}

// testFunctions are all tests and fuzz targets, as "directory Name".
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "testdata" || name == "build" || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				out[filepath.ToSlash(dir)+" "+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
