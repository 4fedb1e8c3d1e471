//go:build kata_policy

package katapolicy

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// FuzzPatch: whatever a policy's answer asks for, what was there stays as it
// was, and nothing beside pstate comes to be.
func FuzzPatch(f *testing.F) {
	f.Add([]byte(`[{"op":"add","path":"/pstate/a","value":{"b":[1]}},{"op":"move","from":"/pstate/a/b/0","path":"/pstate/c"}]`))
	f.Add([]byte(`[{"op":"remove","path":"/pstate"},{"op":"add","path":"/x","value":1}]`))
	f.Add([]byte(`[{"op":"copy","from":"/pstate","path":"/pstate/list/-"},{"op":"test","path":"/pstate/list/2/deep","value":"~1"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var ops []operation
		if json.Unmarshal(data, &ops) != nil {
			return
		}
		fresh := func() map[string]any {
			return map[string]any{"pstate": map[string]any{"list": []any{1.0, "two"}, "deep": map[string]any{"x": nil}}}
		}
		state := fresh()
		next, err := patch(state, ops)
		if !reflect.DeepEqual(state, fresh()) {
			t.Fatalf("the state was changed in place: %v", state)
		}
		if err != nil {
			return
		}
		if names := slices.Collect(maps.Keys(next)); len(names) != 1 || names[0] != "pstate" {
			t.Errorf("the state has %v", names)
		}
	})
}

// A host's claim of rights is in what a policy is asked about: here there is no
// pod policy to compare it with.
func TestRightsAreInTheInput(t *testing.T) {
	t.Parallel()
	q := podpolicy.Question{Container: "c", Sandbox: &podpolicy.SandboxConfig{}, Config: &podpolicy.ContainerConfig{
		Unmasked: true, ReadOnlyRoot: true, Capabilities: []string{"CAP_SYS_ADMIN"}, Seccomp: podpolicy.SeccompUnconfined,
		RLimits: map[string]podpolicy.RLimit{"RLIMIT_NOFILE": {Soft: 1, Hard: 2}},
	}}
	data, err := json.Marshal(containerInput(q))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"MaskedPaths":[]`, `"ReadonlyPaths":[]`, `"Readonly":true`, `"Bounding":["CAP_SYS_ADMIN"]`, `"Seccomp":null`, `"Rlimits":[{"Hard":2,"Soft":1,"Type":"RLIMIT_NOFILE"}]`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}
