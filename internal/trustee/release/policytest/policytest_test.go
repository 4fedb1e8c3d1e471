package policytest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/release"
)

func run(t *testing.T, text, cases string) Report {
	t.Helper()
	f, err := Load(filepath.Join("testdata", cases))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), "p.rego", text, f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestResourceCases(t *testing.T) {
	t.Parallel()
	r := run(t, release.DefaultPolicy(), "resource.toml")
	if !r.OK || r.Passed != 4 || r.Failed != 0 || r.Kind != KindResource {
		t.Errorf("%+v", r)
	}
	if r.Coverage.Percent < 50 || r.Coverage.Percent >= 100 || len(r.Coverage.Missed) == 0 {
		t.Errorf("coverage %+v", r.Coverage)
	}
	// A policy that grants to everybody.
	r = run(t, "package policy\nallow := true\nnever if input.x.y", "resource.toml")
	var failures []string
	for _, c := range r.Results {
		failures = append(failures, c.Failures...)
	}
	if diff := cmp.Diff([]string{"expect: expected deny, got allow", "expect: expected deny, got allow", "expect: expected deny, got allow"}, failures); diff != "" || r.OK || r.Failed != 3 {
		t.Errorf("%s%+v", diff, r)
	}
	if diff := cmp.Diff([]Lines{{3, 3}}, r.Coverage.Missed); diff != "" {
		t.Error(diff)
	}
	r = run(t, "package policy\nallow if to_number(\"x\") == 1", "resource.toml")
	if r.OK || r.Failed != 4 || !strings.Contains(r.Results[0].Failures[0], "to_number") {
		t.Errorf("a policy that fails: %+v", r)
	}
	r = run(t, "package policy\nallow := false\ndeny contains {\"rule\": \"mine\", \"help\": \"h\"}", "resource.toml")
	if got := r.Results[0].Failures; len(got) != 1 || got[0] != "expect: expected allow, got deny: mine (h)" {
		t.Errorf("%q", got)
	}
	if got := r.Results[1].Failures; len(got) != 1 || got[0] != "expect_rule: expected initdata.registered, got mine (h)" {
		t.Errorf("%q", got)
	}
}

func TestAttestationCases(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/attestation.rego")
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, string(text), "attestation.toml")
	if !r.OK || r.Passed != 3 {
		t.Errorf("%+v", r)
	}
	// The head of the extension, and its second condition.
	if diff := cmp.Diff([]Lines{{22, 22}, {24, 24}}, r.Coverage.Missed); diff != "" {
		t.Error(diff)
	}
	r = run(t, "package policy\ntrust_claims := {\"hardware\": 97}", "attestation.toml")
	want := []string{"expect_status: expected affirming, got contraindicated", "expect_trust_claims: executables: expected 3, got 0", "expect_trust_claims: hardware: expected 2, got 97"}
	got := r.Results[0].Failures
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(got))); diff != "" {
		t.Error(diff)
	}
	if r = run(t, "package policy\ntrust_claims := {\"software\": 97}", "attestation.toml"); r.OK || !strings.Contains(r.Results[0].Failures[0], "software") {
		t.Errorf("%+v", r)
	}
}

func TestRunErrors(t *testing.T) {
	t.Parallel()
	f, err := Load("testdata/resource.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), "p.rego", "package policy\nallow if query_reference_value(\"a\")", f)
	if _, ok := errors.AsType[*policy.CompileError](err); !ok {
		t.Errorf("a builtin of the other kind: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, "p.rego", "package policy\nallow := true", f); err == nil {
		t.Error("cancelled: want an error")
	}
	for name, bad := range map[string]Case{
		"resource":  {Resource: "demo/key/1", Claims: Document{JSON: json.RawMessage(`{}`)}},
		"host":      {Resource: "kbs://demo/key/1", Claims: Document{JSON: json.RawMessage(`{}`)}},
		"dots":      {Resource: "kbs:///demo/../1", Claims: Document{JSON: json.RawMessage(`{}`)}},
		"tenant":    {Resource: "kbs:///demo/key/1", Tenant: "*", Claims: Document{JSON: json.RawMessage(`{}`)}},
		"digest":    {Resource: "kbs:///demo/key/1", RegisteredInitData: []string{"xy"}, Claims: Document{JSON: json.RawMessage(`{}`)}},
		"claims":    {Resource: "kbs:///demo/key/1", Claims: Document{JSON: json.RawMessage(`[]`)}},
		"not read":  {Resource: "kbs:///demo/key/1", Claims: Document{File: "x"}},
		"bad query": {Resource: "kbs:///demo/key/1?a=b", Claims: Document{JSON: json.RawMessage(`{}`)}},
	} {
		bad.Name, bad.Expect = name, "allow"
		r, err := Run(t.Context(), "p.rego", "package policy\nallow := true", &File{Kind: KindResource, Cases: []Case{bad}})
		if err != nil || r.OK {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for name, bad := range map[string]Case{
		"not read":  {Evidence: Document{File: "x"}},
		"submod":    {Evidence: Document{JSON: json.RawMessage(`{"submods":{}}`)}, Submod: "gpu0"},
		"no claims": {Evidence: Document{JSON: json.RawMessage(`{}`)}, Submod: "gpu0"},
		"null":      {Evidence: Document{JSON: json.RawMessage(`{}`)}, ReferenceValues: map[string]Value{"a": {json.RawMessage(`null`)}}},
		"component": {Evidence: Document{JSON: json.RawMessage(`{}`)}, ExpectTrustClaims: map[string]int{"software": 1}},
	} {
		bad.Name = name
		r, err := Run(t.Context(), "p.rego", "package policy\ntrust_claims := {}", &File{Kind: KindAttestation, Cases: []Case{bad}})
		if err != nil || r.OK {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const good = "[[case]]\nname = \"a\"\nclaims = \"c.json\"\nresource = \"kbs:///a/b/c\"\nexpect = \"deny\"\n"
	if f, err := Parse([]byte(good), false); err != nil || f.Kind != KindResource || f.Cases[0].Claims.File != "c.json" {
		t.Errorf("%+v, %v", f, err)
	}
	f, err := Parse([]byte(`{"case":[{"name":"a","claims":{"submods":{}},"resource":"kbs:///a/b/c","expect":"deny"}]}`), true)
	if err != nil || string(f.Cases[0].Claims.JSON) != `{"submods":{}}` {
		t.Errorf("%+v, %v", f, err)
	}
	for name, bad := range map[string]string{
		"empty":        "",
		"kind":         "kind = \"x\"\n" + good,
		"unknown key":  good + "expected = \"deny\"\n",
		"unknown top":  "x = 1\n" + good,
		"twice":        good + good,
		"no name":      strings.Replace(good, `"a"`, `""`, 1),
		"expect":       strings.Replace(good, `"deny"`, `"maybe"`, 1),
		"no claims":    strings.Replace(good, `claims = "c.json"`, "", 1),
		"no resource":  strings.Replace(good, `resource = "kbs:///a/b/c"`, "", 1),
		"bad JSON":     strings.Replace(good, `"c.json"`, `"{"`, 1),
		"other kind":   good + "expect_status = \"affirming\"\n",
		"allowed rule": strings.Replace(good, `"deny"`, `"allow"`, 1) + "expect_rule = \"x\"\n",
		"attestation":  "kind = \"attestation\"\n" + good,
		"no evidence":  "kind = \"attestation\"\n[[case]]\nname = \"a\"\nexpect_status = \"affirming\"\n",
		"no question":  "kind = \"attestation\"\n[[case]]\nname = \"a\"\nevidence = \"a\"\n",
	} {
		if f, err := Parse([]byte(bad), false); err == nil {
			t.Errorf("%s: %+v, want an error", name, f)
		}
	}
	if f, err := Parse([]byte(`{"case":[{"name":"a","name":"b"}]}`), true); err == nil {
		t.Errorf("%+v, want an error", f)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cases := func(claims string) string {
		return write("cases.toml", "[[case]]\nname = \"a\"\nclaims = \""+claims+"\"\nresource = \"kbs:///a/b/c\"\nexpect = \"deny\"\n")
	}
	const doc = `{"submods":{"cpu0":{}}}`
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(doc)) + ".AA\n"
	record := `{"id":"x","kind":"attestation","claims":` + doc + `}`
	for name, text := range map[string]string{
		"claims.json": doc, "token": token, "record.json": record, "entry.json": `{"seq":1,"previous":"","hash":"","record":` + record + `}`,
	} {
		write(name, text)
		f, err := Load(cases(name))
		if err != nil || string(f.Cases[0].Claims.JSON) != doc {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	for name, text := range map[string]string{"none": "", "list": "[]", "bad token": "a.!.b", "resource record": `{"kind":"resource"}`, "text": "hello"} {
		write(name, text)
		if f, err := Load(cases(name)); err == nil {
			t.Errorf("%s: %+v, want an error", name, f)
		}
	}
	if f, err := Load(cases("missing")); err == nil {
		t.Errorf("%+v, want an error", f)
	}
	if f, err := Load(filepath.Join(dir, "missing.toml")); err == nil {
		t.Errorf("%+v, want an error", f)
	}
	if f, err := Load(write("cases.json", `{"case":[]}`)); err == nil {
		t.Errorf("%+v, want an error", f)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"resource.toml", "attestation.toml"} {
		doc, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc, false)
	}
	f.Add([]byte(`{"case":[{"name":"a","claims":{},"resource":"kbs:///a/b/c","expect":"deny"}]}`), true)
	f.Fuzz(func(t *testing.T, doc []byte, isJSON bool) {
		if c, err := Parse(doc, isJSON); (err == nil) != (c != nil) {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"submods":{}}`))
	f.Add([]byte("a.e30.b"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if c, err := Claims(doc); err == nil && !json.Valid(c) {
			t.Errorf("%q", c)
		}
	})
}
