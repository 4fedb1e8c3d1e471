// Package trustee_test holds the example files of this directory to what they
// say they are.
package trustee_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/identity"
	"github.com/coffer-project/coffer/internal/trustee/release/policytest"
)

// TestPolicies puts the cases beside each policy to it.
func TestPolicies(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("policies/*.rego")
	if err != nil || len(files) == 0 {
		t.Fatalf("policies: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cases, err := policytest.Load(strings.TrimSuffix(file, ".rego") + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		report, err := policytest.Run(t.Context(), file, string(text), cases)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range report.Results {
			for _, f := range r.Failures {
				t.Errorf("%s: %s: %s", file, r.Name, f)
			}
		}
		if len(report.Coverage.Missed) > 0 {
			t.Errorf("%s: no case reaches lines %v", file, report.Coverage.Missed)
		}
	}
}

// TestReplica: the configuration of a replica is valid but for the files that
// are the site's own.
func TestReplica(t *testing.T) {
	t.Parallel()
	c, err := config.Load("ha/trustee.toml")
	if err != nil {
		t.Fatal(err)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("it relaxes security: %q", w)
	}
}

// TestBalancer: haproxy takes its configuration.
func TestBalancer(t *testing.T) {
	t.Parallel()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
		}
		t.Skipf("%v (apt-get install haproxy)", err)
	}
	state := filepath.Join(t.TempDir(), "state")
	dir, err := identity.Open(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Authority([]string{"trustee.example"}, time.Now, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("ha/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	const root = "/etc/haproxy/trustee-ca.pem"
	if !strings.Contains(string(text), root) {
		t.Fatalf("ha/haproxy.cfg does not name %s", root)
	}
	file := filepath.Join(state, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), root, dir.File("ca.pem"))), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), haproxy, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("haproxy -c: %v\n%s", err, out)
	}
}
