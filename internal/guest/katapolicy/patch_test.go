//go:build kata_policy

package katapolicy

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"testing"
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
