package appraisal

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/policy"
)

// TestInitDataClaimsOfHostileEntries: any guest writes its own initdata, and
// what is in it must neither end the trustee nor keep evidence from being judged.
func TestInitDataClaimsOfHostileEntries(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nested.toml":    "a = " + strings.Repeat("[", 900_000),
		"closed.toml":    "a = " + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000),
		"inline.toml":    "a = " + strings.Repeat("{a=", 300_000),
		"dotted.toml":    strings.Repeat("a.", 400_000) + "a = 1",
		"nan.toml":       "a = nan",
		"inf.toml":       "a = [-inf]",
		"nested.json":    strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000),
		"duplicate.json": `{"allow":false,"allow":true}`,
		"surrogate.json": `"\ud800"`,
		"huge.json":      `[1e999999999]`,
		"tiny.json":      `{"a":[1e-99999999]}`,
		"broken.json":    `{`,
	} {
		got := InitDataClaims(&initdata.Document{Data: map[string]string{name: text}})
		if got[name] != text {
			t.Errorf("%s: got %T, want the text as it is", name, got[name])
		}
		if _, err := json.Marshal(got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := InitDataClaims(&initdata.Document{Data: map[string]string{"aa.toml": "x = 1", "p.json": `{"a":[1]}`, "policy.rego": "package x"}})
	if doc, err := json.Marshal(got); err != nil || string(doc) != `{"aa.toml":{"x":1},"p.json":{"a":[1]},"policy.rego":"package x"}` {
		t.Errorf("got %s, %v", doc, err)
	}
}

func FuzzInitDataClaims(f *testing.F) {
	f.Add("a = [[1], {b = nan}]", `{"a":[1e999,{"b":null}]}`)
	f.Add("a.b.c = 1979-05-27", `"\ud800"`)
	f.Fuzz(func(t *testing.T, tomlText, jsonText string) {
		got := InitDataClaims(&initdata.Document{Data: map[string]string{"a.toml": tomlText, "b.json": jsonText}})
		doc, err := json.Marshal(got)
		if err != nil {
			t.Fatalf("%q, %q: %v", tomlText, jsonText, err)
		}
		if _, err := policy.NewInput(doc); err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
	})
}
