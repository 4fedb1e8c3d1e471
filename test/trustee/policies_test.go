package tests

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs/admin"
)

// TestPolicies: the most specific policy of a resource decides, and what is
// no policy is refused where it is uploaded or bounded where it runs.
func TestPolicies(t *testing.T) {
	t.Parallel()
	s := embed(t, "", "policy.evaluation_timeout = \"300ms\"\n")
	a := s.populate("")
	guest := s.good("")
	set := func(scope, text string) {
		t.Helper()
		_, err := a.SetPolicy(t.Context(), admin.PolicyResource, scope, text)
		s.must(err)
	}
	const allow, deny = "package policy\nallow := true\n", "package policy\nallow := false\n"
	demo := uri(t, "kbs:///demo/key/1")
	get := func(want string) {
		t.Helper()
		_, err := guest.Resource(t.Context(), demo)
		e := asStatus(err)
		rule := ""
		if e != nil {
			rule = e.Info.Reason.Rule
		} else if err != nil {
			t.Fatal(err)
		}
		if rule != want {
			t.Errorf("got %v; want %q", err, want)
		}
		list, err := a.Audit(t.Context(), admin.AuditQuery{Kind: admin.KindResource, Limit: 1})
		s.must(err)
		r, err := list[0].Record()
		s.must(err)
		if r.Granted != (want == "") || r.Policy == "" {
			t.Errorf("record %+v", r)
		}
	}
	get("") // built in
	set("", deny)
	get("resource-policy")
	set("demo", allow)
	get("")
	set("demo/key", deny)
	get("resource-policy")
	set("demo/key/1", allow)
	get("")
	set("demo/ke", deny)    // no prefix of the path's segments
	set("demo/key/2", deny) // a neighbour
	get("")
	for _, step := range []struct{ scope, want string }{{"demo/key/1", "resource-policy"}, {"demo/key", ""}, {"demo", "resource-policy"}, {"", ""}} {
		s.must(a.DeletePolicy(t.Context(), admin.PolicyResource, step.scope))
		get(step.want)
	}
	list, err := a.PolicyVersions(t.Context(), admin.PolicyResource, "demo/key")
	if err != nil || len(list) != 2 {
		t.Errorf("versions %+v, %v; want the policy and its deletion", list, err)
	}

	// Explained and replayed: what another policy would have decided.
	set("demo", "package policy\ndefault allow := false\nallow if { input.submods.cpu0[\"ear.status\"] == \"affirming\" }\n")
	get("resource-policy")
	last, err := a.Audit(t.Context(), admin.AuditQuery{Kind: admin.KindResource, Limit: 1})
	s.must(err)
	x, err := a.Explain(t.Context(), admin.ExplainRequest{Seq: last[0].Seq})
	s.must(err)
	if x.Recorded || x.Granted || len(x.Allow) == 0 || x.Allow[0].Conditions[0].State != "fails" {
		t.Errorf("%+v", x)
	}
	x, err = a.Explain(t.Context(), admin.ExplainRequest{Seq: last[0].Seq, Text: allow})
	if err != nil || !x.Granted || x.Recorded {
		t.Errorf("%+v, %v", x, err)
	}
	s.must(a.DeletePolicy(t.Context(), admin.PolicyResource, "demo"))

	for name, tc := range map[string]struct{ text, want string }{
		"syntax":      {"package policy\nallow if {\n", ":"},
		"package":     {"package other\nallow := true\n", "package"},
		"unknown":     {"package policy\nallow if nonsense(input)\n", "nonsense"},
		"network":     {"package policy\nallow if http.send({\"url\": \"http://127.0.0.1\", \"method\": \"get\"}).status_code == 200\n", "http.send"},
		"environment": {"package policy\nallow if opa.runtime().env.HOME == \"/\"\n", "opa.runtime"},
		"clock":       {"package policy\nallow if time.now_ns() > 0\n", "time.now_ns"},
		"recursion":   {"package policy\nallow if allow\n", "recursive"},
		"too long":    {"package policy\nallow := true\n#" + strings.Repeat("x", 300<<10) + "\n", "262144"},
	} {
		_, err := a.SetPolicy(t.Context(), admin.PolicyResource, "demo", tc.text)
		if e := asStatus(err); e == nil || e.Status != http.StatusBadRequest && e.Status != http.StatusRequestEntityTooLarge || !strings.Contains(e.Info.Detail, tc.want) {
			t.Errorf("%s: %v; want it to name %s", name, err, tc.want)
		}
	}
	get("") // none of them was stored

	numbers := "[" + strings.TrimSuffix(strings.Repeat("7, 8, 9, ", 100), ", ") + "]\n"
	// What takes for ever, or all memory, is ended, and releases nothing.
	for name, text := range map[string]string{
		"loops":          "package policy\nallow if { some a in xs; some b in xs; some c in xs; some d in xs; a + b + c + d == -1 }\nxs := " + numbers,
		"reads too much": "package policy\nallow if { count([x | some a in xs; some b in xs; some c in xs; x := [a, b, c, concat(\"\", [input.jti, input.jti])]]) == 1 }\nxs := " + numbers,
	} {
		set("demo", text)
		start := time.Now()
		x := s.do(s.http(), "GET", "/kbs/v0/resource/demo/key/1", guest.HeldToken(), "")
		if x.status < 500 || !strings.Contains(x.body, "policy did not decide") {
			t.Errorf("%s: %d %s", name, x.status, x.body)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
	// Meanwhile another resource's policy is not in the way.
	s.must(a.DeletePolicy(t.Context(), admin.PolicyResource, "demo"))
	get("")
}
