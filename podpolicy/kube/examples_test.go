package kube_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// TestExamples writes the policies of all examples and of testdata, and holds
// each workload against its own: it must fit.
func TestExamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 4 {
		t.Fatalf("expected at least four examples, got %v", files)
	}
	more, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, more...) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			result, err := generate(t, string(data), kube.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			for _, g := range result.Workloads {
				policy, err := g.Policy.Canonical()
				if err != nil {
					t.Fatal(err)
				}
				out.WriteString("# " + g.Workload.String() + "\n")
				out.Write(policy)
				for _, uri := range g.Resources() {
					out.WriteString("# resource " + uri + "\n")
				}
				findings, err := kube.Check(t.Context(), &g, g.Policy)
				if err != nil || len(findings) > 0 {
					t.Errorf("%s does not fit its own policy: %v %v", g.Workload, findings, err)
				}
				if _, err := podpolicy.Parse(policy); err != nil {
					t.Error(err)
				}
			}
			for _, n := range result.Notes {
				out.WriteString("# note " + n.String() + "\n")
			}
			name := strings.TrimSuffix(filepath.Base(file), ".yaml") + ".policy"
			golden(t, filepath.Join("testdata", name), out.Bytes())
		})
	}
}
