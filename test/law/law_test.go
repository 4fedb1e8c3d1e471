package law

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/coffer-project/coffer"
	root   = "../.."
	// agentDeps is the trusted computing base of the guest, package by package.
	agentDeps = "testdata/coffer-agent.deps"
)

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
	Module     *struct{ Path, Version string }
}

func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,Deps,Module"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// wings are the parts that belong to one party each.
var wings = []string{"internal/guest", "internal/host", "internal/trustee"}

// compositions may import several wings: they are programs of the owner.
var compositions = []string{"cmd", "internal/cli", "internal/run", "internal/install", "internal/demo", "internal/protect", "internal/evidence", "test"}

func under(path, dir string) bool {
	rel := strings.TrimPrefix(path, module+"/")
	return rel == dir || strings.HasPrefix(rel, dir+"/")
}

func anyUnder(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return under(path, d) })
}

func TestImportLaw(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module+"/") {
				continue
			}
			if under(p.ImportPath, "internal/agentapi") && !under(imp, "internal/agentapi") {
				t.Errorf("%s imports %s: internal/agentapi imports nothing of ours", p.ImportPath, imp)
			}
			if anyUnder(p.ImportPath, compositions) {
				continue
			}
			for _, wing := range wings {
				if under(imp, wing) && !under(p.ImportPath, wing) {
					t.Errorf("%s imports %s: only %s itself and the owner's programs (%s) may", p.ImportPath, imp, wing, strings.Join(compositions, ", "))
				}
			}
			if anyUnder(imp, compositions) {
				t.Errorf("%s imports %s: nothing below imports a composition", p.ImportPath, imp)
			}
		}
	}
}

// forbiddenInAgent never run inside the trusted computing base; packages below
// them neither.
var forbiddenInAgent = map[string]string{
	"testing":                                   "test code does not belong into the guest",
	"net/http/httptest":                         "test code does not belong into the guest",
	"github.com/stretchr/testify":               "test code does not belong into the guest",
	"os/exec":                                   "its Wait races with the one collector of children",
	"github.com/containers/ocicrypt":            "its key wrappers link PGP, PKCS#7 and gRPC; oci/crypt decodes what we need",
	"github.com/google/go-containerregistry":    "the CLI's library; the guest pulls with oci/registry",
	"github.com/open-policy-agent/opa":          "Rego runs at the trustee only",
	"modernc.org/sqlite":                        "the guest has no database",
	"google.golang.org/grpc/internal/transport": "the agent speaks ttrpc, which takes only gRPC's status codes",
	"github.com/cloudflare/circl":               judges,
	"github.com/emmansun/gmsm":                  judges,
	"github.com/google/go-sev-guest":            judges,
	"github.com/google/go-tdx-guest":            judges,
	"github.com/veraison/go-cose":               judges,
	"github.com/ebitengine/purego":              "the agent is static; what loads a shared library is a program of its own",
	module + "/tee/collateral":                  judges,
	module + "/tee/measure":                     judges,
	module + "/tee/dcap/dcapmint":               "what is minted for tests and the software TEE is the host's",
	module + "/tee/internal/checks":             judges,
	module + "/tee/internal/memo":               judges,
	module + "/tee/internal/p384":               judges,
	module + "/tee/sample":                      "every machine can be the sample TEE",
}

const judges = "the guest does not judge evidence"

// verifier tells whether a package is one of tee/NAME/NAMEverify, or what they
// share. (tee/dcap/dcapquote is a format.)
func verifier(path string) bool {
	rel, ours := strings.CutPrefix(path, module+"/tee/")
	return ours && rel == "dcap" || ours && slices.ContainsFunc(strings.Split(rel, "/"), func(s string) bool { return strings.HasSuffix(s, "verify") })
}

// TestAgentDependencies keeps the guest's list of linked packages in a file:
// a new line needs a reason in the commit. COFFER_UPDATE=1 rewrites it.
func TestAgentDependencies(t *testing.T) {
	t.Parallel()
	var lines []string
	for _, p := range list(t, "-deps", "./cmd/coffer-agent") {
		if p.ImportPath == module+"/tee/softtee" {
			t.Errorf("coffer-agent links %s: the software security processor is the host's", p.ImportPath)
		}
		for prefix, reason := range forbiddenInAgent {
			if p.ImportPath == prefix || strings.HasPrefix(p.ImportPath, prefix+"/") {
				t.Errorf("coffer-agent links %s: %s", p.ImportPath, reason)
			}
		}
		if verifier(p.ImportPath) {
			t.Errorf("coffer-agent links %s: %s", p.ImportPath, judges)
		}
		if !p.Standard {
			lines = append(lines, p.ImportPath)
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	if os.Getenv("COFFER_UPDATE") == "1" {
		if err := os.WriteFile(agentDeps, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(agentDeps)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		have := strings.Split(string(want), "\n")
		for _, l := range lines {
			if !slices.Contains(have, l) {
				t.Errorf("coffer-agent now links %s", l)
			}
		}
		for _, l := range have {
			if l != "" && !slices.Contains(lines, l) {
				t.Errorf("coffer-agent no longer links %s", l)
			}
		}
		t.Errorf("%s is not what coffer-agent links: if that is meant, run COFFER_UPDATE=1 go test ./test/law and give the reason in the commit", agentDeps)
	}
	const budget = 150
	if n := len(lines); n > budget {
		t.Errorf("coffer-agent links %d packages beyond the standard library; the budget is %d", n, budget)
	}
}

// TestPackageComments: every package has exactly one package comment.
func TestPackageComments(t *testing.T) {
	t.Parallel()
	comments := map[string][]string{}
	packages := map[string]bool{}
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
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		packages[dir] = true
		if file.Doc != nil && !strings.Contains(path, ".pb.go") {
			comments[dir] = append(comments[dir], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range packages {
		if n := len(comments[dir]); n != 1 {
			t.Errorf("%s: expected one package comment, got %d %v", dir, n, comments[dir])
		}
	}
}

// TestGenerated: what go generate would write is what is checked in.
func TestGenerated(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("protoc is absent although this is CI: make deps installs it: %v", err)
		}
		t.Skipf("not supported here: protoc is absent (make deps installs it): %v", err)
	}
	for dir, files := range map[string][]string{
		"internal/agentapi":                {"agent.pb.go", "agent_ttrpc.pb.go"},
		"internal/trustee/api/attestation": {"attestation.pb.go", "attestation_grpc.pb.go"},
		"internal/trustee/api/reference":   {"reference.pb.go", "reference_grpc.pb.go"},
	} {
		out := t.TempDir()
		cmd := exec.Command("sh", "generate.sh", out)
		cmd.Dir = filepath.Join(root, dir)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: generate: %v\n%s", dir, err, text)
		}
		for _, name := range files {
			fresh, err := os.ReadFile(filepath.Join(out, name))
			if err != nil {
				t.Fatal(err)
			}
			kept, err := os.ReadFile(filepath.Join(root, dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if string(fresh) != string(kept) {
				t.Errorf("%s/%s is not what its .proto generates: run make generate", dir, name)
			}
		}
	}
}
