package policy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

var documents = []string{
	`{}`, `[]`, `""`, `null`, `true`, `false`, `0`, `-1.5e+3`, ` { "a" : [ 1 , "b" , null , true , false , { } ] , "c" : { "d" : "e\"\\\u00e9" } } `,
	`{"a":1,"a":2}`, `["\ud800","` + "\xff" + `","é","\\"]`, `[[],[[]],{"":""}]`, `{"a":1e400}`, `12345678901234567890`, `{"a":[1e99999999]}`, `1e-99999999`, `-1E+99999999999`, `1e25000`, "\t[\r\n1\n]\n",
	``, `{`, `[1,]`, `{"a"}`, `01`, `"a`, `"\x"`, `{} {}`, `nul`, `[1 2]`,
}

func sameInput(t *testing.T, doc string) {
	t.Helper()
	_, err := NewInput(json.RawMessage(doc))
	want, theirs := ast.ValueFromReader(strings.NewReader(doc))
	if json.Valid([]byte(doc)) && (err == nil) != (theirs == nil) || err == nil && !json.Valid([]byte(doc)) {
		t.Fatalf("%q: got %v, the library %v", doc, err, theirs)
	}
	if err != nil {
		return
	}
	r := reader{rest: []byte(doc)}
	if got, err := r.value(); err != nil || got.Compare(want) != 0 {
		t.Errorf("%q: got %v, want %v, %v", doc, got, want, err)
	}
}

func TestNewInput(t *testing.T) {
	t.Parallel()
	for _, doc := range documents {
		sameInput(t, doc)
	}
}

// A number that Rego's arithmetic cannot take panics or never ends, whatever
// the time limit of the evaluation.
func TestNewInputRefusesNumbersBeyondAllUse(t *testing.T) {
	t.Parallel()
	for _, doc := range []string{`{"n":1e99999999}`, `[1e-99999999]`, `1e99999999999`, `-1E+99999999`} {
		if _, err := NewInput(json.RawMessage(doc)); err == nil || !strings.Contains(err.Error(), "number") {
			t.Errorf("%s: got %v", doc, err)
		}
	}
}

func FuzzNewInput(f *testing.F) {
	for _, doc := range documents {
		f.Add(doc)
	}
	f.Fuzz(sameInput)
}
