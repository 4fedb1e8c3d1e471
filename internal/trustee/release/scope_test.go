package release

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

func TestScopes(t *testing.T) {
	t.Parallel()
	deep := strings.Split(strings.Repeat("a ", maxDepth), " ")[:maxDepth]
	for _, tc := range []struct {
		plugin string
		path   []string
		want   []string
	}{
		{kbs.PluginResource, []string{"demo", "key", "1"}, []string{"demo/key/1", "demo/key", "demo"}},
		{"pki", []string{"issue", "web"}, []string{"+pki/issue/web", "+pki/issue", "+pki"}},
		{"pki", nil, []string{"+pki"}},
		{kbs.PluginResource, []string{"demo", "key"}, nil},
		{kbs.PluginResource, nil, nil},
		{kbs.PluginResource, []string{"demo", "key/1", "x"}, nil},
		{kbs.PluginResource, []string{"+pki", "issue", "web"}, nil},
		{"pki", []string{"..", "web"}, nil},
		{"pki", []string{""}, nil},
		{"", []string{"a"}, nil},
		{"a/b", nil, nil},
		{"pki", append(deep, "more"), nil},
		{"pki", []string{"a\x00b"}, nil},
	} {
		got, err := Scopes(tc.plugin, tc.path)
		if !slices.Equal(got, tc.want) || (err == nil) != (tc.want != nil) {
			t.Errorf("%s %q: got %q, %v", tc.plugin, tc.path, got, err)
		}
		for _, s := range got {
			if again, err := ParseScope(s); err != nil || again != s {
				t.Errorf("ParseScope(%q) = %q, %v", s, again, err)
			}
		}
	}
	if got, err := Scopes("pki", deep); err != nil || len(got) != maxDepth+1 {
		t.Errorf("deepest: %d, %v", len(got), err)
	}
}

func TestParseScope(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"", "demo", "demo/key", "demo/key/1", "+pki", "+pki/issue/web"} {
		if got, err := ParseScope(ok); err != nil || got != ok {
			t.Errorf("%q: %q, %v", ok, got, err)
		}
	}
	for _, bad := range []string{"/", "demo/", "a/b/c/d", "..", "+", "+/a", "+a/", "+a/../b", "++a", "a b", "a:b", "a@1", "*", "+" + strings.Repeat("a/", 17) + "a"} {
		if got, err := ParseScope(bad); err == nil {
			t.Errorf("%q: %q, want an error", bad, got)
		}
	}
}

func TestLabel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		scope   string
		version int64
		label   string
	}{
		{"", 0, "resource-policy (built in)"},
		{"", 3, "resource-policy@3"},
		{"demo/key", 3, "resource-policy:demo/key@3"},
		{"+pki", 12, "resource-policy:+pki@12"},
		{"resource-policy", 1, "resource-policy:resource-policy@1"},
	} {
		if got := Label(tc.scope, tc.version); got != tc.label {
			t.Errorf("got %s, want %s", got, tc.label)
		}
		if scope, version, err := ParseLabel(tc.label); err != nil || scope != tc.scope || version != tc.version {
			t.Errorf("%s: %s, %d, %v", tc.label, scope, version, err)
		}
	}
	for _, bad := range []string{"", "resource-policy", "resource-policy@0", "resource-policy@-1", "resource-policy@01", "resource-policy@x", "resource-policy:@1",
		"resource-policy:..@1", "default_cpu@3", "resource-policyx@1", "resource-policy@1@2"} {
		if scope, version, err := ParseLabel(bad); err == nil {
			t.Errorf("%q: %s, %d, want an error", bad, scope, version)
		}
	}
}

func FuzzParseLabel(f *testing.F) {
	f.Add("resource-policy:demo/key@3")
	f.Add("resource-policy (built in)")
	f.Fuzz(func(t *testing.T, s string) {
		scope, version, err := ParseLabel(s)
		if err == nil && Label(scope, version) != s {
			t.Errorf("%q: %q, %d", s, scope, version)
		}
	})
}

const yes, no = "package policy\nallow := true", "package policy\nallow := false"

func TestMostSpecificPolicyDecides(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		policies fakePolicies
		plugin   string
		path     string
		granted  bool
		label    string
	}{
		{fakePolicies{"": no, "demo/key/1": yes}, "resource", "demo/key/1", true, "resource-policy:demo/key/1@1"},
		{fakePolicies{"": no, "demo/key/1": yes}, "resource", "demo/key/2", false, "resource-policy@1"},
		{fakePolicies{"demo": yes, "demo/key": no}, "resource", "demo/key/2", false, "resource-policy:demo/key@1"},
		{fakePolicies{"demo": yes, "demo/key": no}, "resource", "demo/cert/2", true, "resource-policy:demo@1"},
		{fakePolicies{"demo": yes}, "resource", "demo2/cert/2", false, "resource-policy (built in)"},
		{fakePolicies{"demo": yes}, "resource", "other/demo/2", false, "resource-policy (built in)"},
		{fakePolicies{"pki": yes}, "pki", "issue/web", false, "resource-policy (built in)"},
		{fakePolicies{"+pki": yes, "": no}, "pki", "issue/web", true, "resource-policy:+pki@1"},
		{fakePolicies{"+pki": yes, "+pki/issue/web": no}, "pki", "issue/web", false, "resource-policy:+pki/issue/web@1"},
		{fakePolicies{"": yes}, "pki", "issue/web", true, "resource-policy@1"},
		{fakePolicies{"": "package policy\nallow if data.coffer.tenant == \"default\""}, "resource", "demo/key/1", true, "resource-policy@1"},
	} {
		c := &ear.Claims{}
		d, err := New(Options{Policies: tc.policies, Bindings: fakeBindings(nil)}).Decide(t.Context(),
			Request{Tenant: tenant.Default, Plugin: tc.plugin, Path: strings.Split(tc.path, "/"), Claims: c, Payload: json.RawMessage(`{}`)})
		if err != nil || d.Granted != tc.granted || d.PolicyID != tc.label {
			t.Errorf("%s %s: %+v, %v", tc.plugin, tc.path, d, err)
		}
	}
}

func TestDefaultPolicyForPlugins(t *testing.T) {
	t.Parallel()
	c := &ear.Claims{Submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab"))}}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Tenant: "acme", Plugin: "pki", Path: []string{"issue", "web"}, Query: map[string]string{"dns": "web.example"}, Claims: c, Payload: payload}
	d, err := New(Options{Policies: fakePolicies{}, Bindings: fakeBindings{{InitData: digest("ab")}}}).Decide(t.Context(), r)
	if err != nil || !d.Granted {
		t.Fatalf("%+v, %v", d, err)
	}
	want := `{"plugin":"pki","resource-path":["issue","web"],"query":{"dns":"web.example"},"coffer":{"tenant":"acme","registered_initdata":["` + field("ab") +
		`"],"registered_description":"[` + field("ab") + `]","allow_simulated":false}}`
	if diff := cmp.Diff(want, string(d.Data)); diff != "" {
		t.Error(diff)
	}
	d, err = New(Options{Policies: fakePolicies{}, Bindings: fakeBindings(nil)}).Decide(t.Context(), r)
	if err != nil || d.Granted || !strings.Contains(d.Reasons[0].Expected, "+pki/issue/web: nothing") || !strings.Contains(d.Reasons[0].Help, "coffer trustee bind") {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestRegisteredIsBounded(t *testing.T) {
	t.Parallel()
	var all []Binding
	for i := range 1000 {
		all = append(all, Binding{InitData: strings.Repeat("1"+string("0123456789abcdef"[i%16]), 40) + strings.Repeat("a", 16)})
	}
	all = append(all, Binding{InitData: digest("AB"), Description: "mine"})
	c := &ear.Claims{Submods: map[string]ear.Submod{"cpu0": submod(ear.Affirming, good, false, field("ab"))}}
	digests, text, err := Registered(all, c)
	if err != nil || len(digests) != maxRegistered || digests[0] != field("ab") || !strings.HasSuffix(text, "and 993 more]") {
		t.Errorf("%d digests, %.70s, %s, %v", len(digests), digests, text, err)
	}
	if _, _, err := Registered([]Binding{{InitData: "xy"}}, c); err == nil {
		t.Error("no hex: want an error")
	}
}

// TestRegisteredInRegister: the register of a TPM holds not the digest but what
// becomes of it.
func TestRegisteredInRegister(t *testing.T) {
	t.Parallel()
	raw := sha256.Sum256([]byte("initdata"))
	extended := tpm.Extended(raw)
	registered := hex.EncodeToString(raw[:])
	bindings := []Binding{{InitData: digest("ab")}, {InitData: strings.Repeat("0", 64)}, {InitData: strings.ToUpper(registered), Description: "mine"}}
	for _, name := range []tee.Name{tee.TPM, tee.AzureSNPVTPM, tee.AzureTDXVTPM} {
		for _, held := range []string{hex.EncodeToString(extended[:]), strings.Repeat("0", 64)} {
			m := submod(ear.Affirming, good, false, held)
			m.Evidence = json.RawMessage(`{"` + string(name) + `":{},"init_data":"` + held + `"}`)
			got, text, err := Registered(bindings, &ear.Claims{Submods: map[string]ear.Submod{ear.CPU: m}})
			if err != nil || len(got) != 1 || got[0] != hex.EncodeToString(extended[:]) || !strings.Contains(text, "mine") {
				t.Errorf("%s: %v, %s, %v", name, got, text, err)
			}
		}
	}
	// The digest in a field of a launch is the digest.
	m := submod(ear.Affirming, good, false, registered)
	got, _, err := Registered(bindings, &ear.Claims{Submods: map[string]ear.Submod{ear.CPU: m}})
	if err != nil || len(got) != 2 || got[0] != registered {
		t.Errorf("snp: %v, %v", got, err)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	e := New(Options{Policies: fakePolicies{"demo": yes}, Bindings: fakeBindings{{InitData: digest("ab"), Description: "web"}}})
	submods := map[string]ear.Submod{"cpu0": submod(ear.Warning, softDrift, true, field("cd"), drift, simulated)}
	c := &ear.Claims{Submods: submods}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Decide(t.Context(), Request{Tenant: tenant.Default, Plugin: kbs.PluginResource, Path: []string{"other", "key", "1"}, Claims: c, Payload: payload})
	if err != nil || d.Granted {
		t.Fatalf("%+v, %v", d, err)
	}
	text, err := e.PolicyText(t.Context(), tenant.Default, d.PolicyID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Replay(t.Context(), d.PolicyID, text, payload, d.Data)
	if diff := cmp.Diff(d, again); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if text, err = e.PolicyText(t.Context(), tenant.Default, "resource-policy:demo@1"); err != nil || text != yes {
		t.Errorf("%q, %v", text, err)
	}
	if candidate, err := Replay(t.Context(), "candidate", text, payload, d.Data); err != nil || !candidate.Granted {
		t.Errorf("%+v, %v", candidate, err)
	}
	for name, args := range map[string][3]string{
		"text": {"package other", "{}", "{}"}, "claims": {yes, "[]", "{}"}, "no claims": {yes, "", "{}"}, "data": {yes, "{}", ""},
	} {
		if d, err := Replay(t.Context(), "x", args[0], json.RawMessage(args[1]), json.RawMessage(args[2])); err == nil {
			t.Errorf("%s: got %+v, want an error", name, d)
		}
	}
}

func TestCheckPolicy(t *testing.T) {
	t.Parallel()
	e := New(Options{Policies: fakePolicies{}, Bindings: fakeBindings(nil)})
	if err := e.CheckPolicy(t.Context(), "demo", DefaultPolicy()); err != nil {
		t.Error(err)
	}
	if err := e.CheckPolicy(t.Context(), "..", yes); err == nil {
		t.Error("scope: want an error")
	}
	if err := e.CheckPolicy(t.Context(), "demo/key", "package policy\nallow if"); err == nil || !strings.Contains(err.Error(), "resource-policy:demo/key:2") {
		t.Errorf("text: %v", err)
	}
}
