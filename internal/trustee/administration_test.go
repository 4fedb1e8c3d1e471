package trustee

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/release/explain"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
)

// TestExplanationIsWhole: what a replay finds out reaches the wire; nothing of
// it has no place there.
func TestExplanationIsWhole(t *testing.T) {
	t.Parallel()
	because := explain.Rule{Name: "known", Line: 9, Holds: true}
	doc, err := json.Marshal(explain.Report{
		Policy: "p@1", Granted: true, Reasons: []kbs.Reason{{Rule: "r", Claim: "c", Expected: "e", Got: "g", Help: "h"}},
		Allow: []explain.Rule{{Name: "allow", Line: 3, Holds: true, Conditions: []explain.Condition{
			{Line: 4, Text: "known", State: explain.Fails, Values: []explain.Value{{Ref: "input.a", Value: "1"}}, Because: []explain.Rule{because}},
		}}},
		Needed: []string{"line 4: known"},
	})
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	var x admin.Explanation
	if err := d.Decode(&x); err != nil {
		t.Fatal(err)
	}
	if len(x.Needed) != 1 || x.Allow[0].Conditions[0].Because[0].Name != "known" || x.Allow[0].Conditions[0].Values[0].Value != "1" {
		t.Errorf("%+v", x)
	}
}
