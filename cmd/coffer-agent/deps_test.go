package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The agent is the trusted computing base: what it must not contain, and why.
func TestForbiddenDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	forbidden := map[string]string{
		"testing":                                           "test helpers belong to tests",
		"net/http/httptest":                                 "test helpers belong to tests",
		"os/exec":                                           "its Wait races with the one collector of children",
		"google.golang.org/grpc":                            "the protocol is ttrpc, which needs its status codes only",
		"github.com/google/go-sev-guest":                    "evidence is verified by the trustee",
		"github.com/open-policy-agent/opa":                  "the guest has no Rego",
		"github.com/containers/ocicrypt":                    "the guest opens layers with its own small code",
		"github.com/google/go-containerregistry":            "the guest pulls with its own small code",
		"modernc.org/sqlite":                                "the guest has no database",
		"github.com/coffer-project/coffer/internal/host":    "the host is not trusted",
		"github.com/coffer-project/coffer/internal/trustee": "the trustee is another party",
	}
	for line := range strings.Lines(string(out)) {
		pkg := strings.TrimSpace(line)
		for bad, why := range forbidden {
			under := strings.HasPrefix(pkg, bad+"/") && bad != "google.golang.org/grpc"
			if pkg == bad || under {
				t.Errorf("%s is linked: %s", pkg, why)
			}
		}
	}
}
