//go:build kata_policy

package katapolicy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// genpolicyPolicy is genpolicy's own rules with the data of its default
// settings, but no containers: those it makes of a pod and its images.
func genpolicyPolicy(t *testing.T) *Policy {
	t.Helper()
	rules, err := os.ReadFile("testdata/genpolicy/rules.rego")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/genpolicy/settings.json")
	if err != nil {
		t.Fatal(err)
	}
	var settings map[string]any
	if err := json.Unmarshal(text, &settings); err != nil {
		t.Fatal(err)
	}
	data := map[string]any{"containers": []any{}}
	for _, name := range []string{"common", "sandbox", "request_defaults", "cluster_config", "devices"} {
		data[name] = settings[name]
	}
	encoded, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(string(bytes.Join([][]byte{rules, []byte("policy_data := "), encoded, []byte("\n")}, []byte("\n"))))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGenpolicyVectors runs genpolicy's published test cases of requests that do
// not depend on a pod, with its own rules.
func TestGenpolicyVectors(t *testing.T) {
	t.Parallel()
	p := genpolicyPolicy(t) // none of these requests changes its state
	for _, name := range []string{"addarpneighbors", "copyfile", "createsandbox", "updateinterface", "updateroutes"} {
		text, err := os.ReadFile(filepath.Join("testdata/genpolicy", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var cases []struct {
			Description, Kind string
			Allowed           bool
			Request           object
		}
		if err := json.Unmarshal(text, &cases); err != nil || len(cases) < 3 {
			t.Fatalf("%s: %d cases, %v", name, len(cases), err)
		}
		for _, c := range cases {
			if c.Kind == "CreateSandboxRequest" {
				// The vectors leave out fields that have protobuf's defaults.
				full := sandboxInput(podpolicy.Question{Sandbox: &podpolicy.SandboxConfig{}})
				maps.Copy(full, c.Request)
				c.Request = full
			}
			if err := p.request(request{c.Kind, c.Request}); (err == nil) != c.Allowed {
				t.Errorf("%s: %s: allowed %t, got %v", name, c.Description, c.Allowed, err)
			}
		}
	}
}

// What this package says of a network is what genpolicy's rules expect.
func TestGenpolicyTakesOurNetwork(t *testing.T) {
	t.Parallel()
	p := genpolicyPolicy(t)
	network := podpolicy.NetworkConfig{
		Interfaces: []podpolicy.Interface{{MAC: "66:74:9f:6a:96:01", Name: "eth0", Addresses: []string{"10.244.0.14/24", "fe80::6474:9fff:fe6a:9601/64"}, MTU: 1500}},
		Routes:     []podpolicy.Route{{Gateway: "10.244.0.1", Interface: "eth0"}},
		Neighbours: []podpolicy.Neighbour{{Address: "10.0.0.1", MAC: "00:00:5e:00:53:01", Interface: "eth0"}},
	}
	if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskNetwork, Network: &network}); err != nil {
		t.Error(err)
	}
	network.Interfaces[0].Name = "lo"
	if err := p.Decide(podpolicy.Question{Kind: podpolicy.AskNetwork, Network: &network}); err == nil {
		t.Error("lo was accepted")
	}
	// A container is not in this policy.
	c := podpolicy.Question{Kind: podpolicy.AskContainer, Sandbox: &podpolicy.SandboxConfig{}, Config: &podpolicy.ContainerConfig{}}
	if err := p.Decide(c); err == nil {
		t.Error("a container was accepted")
	}
}
