package adminapi

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

func TestRequests(t *testing.T) {
	t.Parallel()
	e := newEnv(t, func(o *Options) {
		o.BuiltInPolicy = func(kind, id string) (string, bool) { return "built in", kind == "resource" && id == "" }
	})
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	std := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	digest, second := strings.Repeat("ab", 48), strings.Repeat("cd", 32)
	pub := string(pemOf(t, "new"))
	quoted, _ := json.Marshal(pub)
	for _, tc := range []struct {
		request, body string
		status        int
		want          string
	}{
		{"POST /kbs/v0/resource/demo/key/1", "content", 200, ""},
		{"POST /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"GET /kbs/v0/resource", "", 200, `["demo/key/1","demo/key/2"]`},
		{"DELETE /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"DELETE /kbs/v0/resource/demo/key/2", "", 200, ""},
		{"GET /admin/v1/resources", "", 200, `["demo/key/1"]`},
		{"GET /admin/v1/resources?details=true", "", 200, `[{"path":"demo/key/1","version":1,"size":7,"created":"2026-09-01T12:00:00Z"}]`},
		{"GET /admin/v1/resources?details=yes", "", 400, "details"},
		{"GET /admin/v1/resources?prefix=demo", "", 200, `["demo/key/1"]`},
		{"GET /admin/v1/resources?prefix=dem", "", 200, `[]`},
		{"GET /admin/v1/resources?prefix=..", "", 400, "prefix"},
		{"GET /admin/v1/resources?after=a", "", 400, "limit"},
		{"GET /admin/v1/resources?limit=1001", "", 400, "limit"},
		{"GET /admin/v1/resources?limit=1&limit=2", "", 400, "limit"},
		{"GET /admin/v1/resources/versions/demo/key/1", "", 200, `[{"path":"demo/key/1","version":1,"size":7,"created":"2026-09-01T12:00:00Z"}]`},
		{"GET /admin/v1/resources/versions/demo/key/3", "", 404, "never"},
		{"GET /admin/v1/resources/versions/demo", "", 400, "three segments"},
		{"POST /kbs/v0/resource/demo/key", "x", 400, "three segments"},
		{"POST /kbs/v0/resource/demo/key/.x", "x", 400, "dot"},
		{"POST /kbs/v0/resource/demo/key/big", strings.Repeat("x", 1<<12+1), 413, "4096"},
		{"PUT /kbs/v0/resource/demo/key/1", "x", 405, "POST"},
		{"POST /kbs/v0/resource/", "x", 404, "no such path"},

		{"GET /kbs/v0/resource-policy", "", 200, `["resource-policy"]`},
		{"GET /admin/v1/policies/resource?scope=", "", 200, "built in"},
		{"GET /admin/v1/policies/resource?scope=demo", "", 404, "less specific"},
		{"POST /kbs/v0/resource-policy", `{"policy":"` + b64("package policy") + `"}`, 200, ""},
		{"GET /admin/v1/policies/resource?scope=", "", 200, "package policy"},
		{"POST /kbs/v0/resource-policy", `{"policy":"` + b64("bad") + `"}`, 400, "rego:2"},
		{"POST /kbs/v0/resource-policy", `{"policy":""}`, 400, "1 to"},
		{"POST /kbs/v0/resource-policy", `{"policy":"***"}`, 400, "base64url"},
		{"POST /kbs/v0/resource-policy", `{"policy":"","x":1}`, 400, "x"},
		{"PUT /admin/v1/policies/resource?scope=demo/key", "package policy\n", 200, `{"kind":"resource","id":"demo/key","version":1,"author":"someone","created":"2026-09-01T12:00:00Z"}`},
		{"PUT /admin/v1/policies/resource?scope=%2Bpki/issue", "package policy\n", 200, `{"kind":"resource","id":"+pki/issue","version":1,"author":"someone","created":"2026-09-01T12:00:00Z"}`},
		{"PUT /admin/v1/policies/resource", "package policy\n", 400, "scope"},
		{"PUT /admin/v1/policies/resource?scope=a/b/c/d", "package policy\n", 400, "scope"},
		{"PUT /admin/v1/policies/resource?scope=..", "package policy\n", 400, "scope"},
		{"PUT /admin/v1/policies/resource?scope=demo", "bad", 400, "demo.rego:2"},
		{"PUT /admin/v1/policies/resource?scope=demo", "\xff", 400, "UTF-8"},
		{"GET /kbs/v0/resource-policy", "", 200, `["resource-policy","+pki/issue","demo/key"]`},
		{"PUT /admin/v1/policies/resource?scope=demo/key", "package policy\n# 2", 200, `{"kind":"resource","id":"demo/key","version":2,"author":"someone","created":"2026-09-01T12:00:00Z"}`},
		{"GET /admin/v1/policies/resource?scope=demo/key&version=1", "", 200, "package policy"},
		{"GET /admin/v1/policies/resource?scope=demo/key&version=3", "", 404, "version 3"},
		{"GET /admin/v1/policies/resource?scope=demo/key&version=x", "", 400, "version"},
		{"GET /admin/v1/policies/resource?version=1", "", 200, `[{"kind":"resource","id":"","version":1,`},
		{"DELETE /admin/v1/policies/resource?scope=demo/key", "", 200, ""},
		{"DELETE /admin/v1/policies/resource?scope=demo/key", "", 404, "stored"},
		{"DELETE /admin/v1/policies/resource", "", 400, "scope"},
		{"GET /admin/v1/policies/resource/versions?scope=demo/key", "", 200, `[{"kind":"resource","id":"demo/key","version":3,"author":"someone","created":"2026-09-01T12:00:00Z","deleted":true},`},
		{"GET /admin/v1/policies/resource/versions", "", 400, "scope"},
		{"POST /kbs/v0/attestation-policy", `{"type":"rego","policy_id":"default_cpu","policy":"` + b64("package policy") + `"}`, 200, ""},
		{"PUT /admin/v1/policies/attestation/strict_cpu", "package policy", 200, `{"kind":"attestation","id":"strict_cpu","version":1,`},
		{"PUT /admin/v1/policies/attestation/strict_cpu/versions", "package policy", 405, "read"},
		{"PUT /admin/v1/policies/attestation/strict", "package policy", 400, "default_cpu"},
		{"GET /admin/v1/policies/attestation/strict_cpu", "", 200, "package policy"},
		{"GET /admin/v1/policies/attestation/other_cpu", "", 404, "built-in"},
		{"GET /admin/v1/policies/attestation/strict_cpu/versions", "", 200, `[{"kind":"attestation","id":"strict_cpu","version":1,`},
		{"POST /kbs/v0/attestation-policy", `{"type":"rego","policy_id":"default","policy":"` + b64("package policy") + `"}`, 400, "default_cpu"},
		{"POST /kbs/v0/attestation-policy", `{"type":"cel","policy_id":"default_cpu","policy":""}`, 400, "rego"},
		{"POST /kbs/v0/attestation-policy", `{"policy_id":"a/b_cpu","policy":""}`, 400, "characters"},
		{"GET /kbs/v0/attestation-policy", "", 200, `["default_cpu","strict_cpu"]`},
		{"GET /admin/v1/policies/attestation?limit=2", "", 200, `[{"kind":"attestation","id":"default_cpu",`},
		{"DELETE /admin/v1/policies/attestation/strict_cpu", "", 200, ""},
		{"DELETE /admin/v1/policies/attestation/strict_cpu/versions", "", 405, "read"},
		{"POST /admin/v1/policies/check", `{"kind":"resource","id":"demo","text":"package policy"}`, 200, `{"ok":true,"problems":[]}`},
		{"POST /admin/v1/policies/check", `{"kind":"resource","id":"../x","text":"bad"}`, 200, `{"ok":false,"problems":["scope`},
		{"POST /admin/v1/policies/check", `{"kind":"attestation","id":"x","text":""}`, 200, `{"ok":false,"problems":["policy_id`},
		{"POST /admin/v1/policies/check", `{"kind":"x","id":"x","text":""}`, 400, "kind"},
		{"POST /admin/v1/explain", `{"seq":1}`, 404, "explanations"},

		{"POST /kbs/v0/reference-value", `{"version":"0.1.0","type":"sample","payload":"` + std(`{"svn":[1,2],"flag":true}`) + `"}`, 200, ""},
		{"POST /admin/v1/provenance", `{"type":"sample","payload":"` + std(`{"svn":[1,2],"flag":true}`) + `"}`, 200, `{"names":["flag","svn"]}`},
		{"POST /kbs/v0/reference-value", `{"type":"rim","payload":""}`, 400, "sample"},
		{"GET /kbs/v0/reference-value/svn", "", 200, `[1,2]`},
		{"GET /kbs/v0/reference-value/flag", "", 200, `true`},
		{"GET /kbs/v0/reference-value/none", "", 404, "not registered"},
		{"PUT /admin/v1/reference-values/m", `{"values":["aa"],"description":"old"}`, 200, ""},
		{"POST /admin/v1/reference-values/m", `{"values":["bb"],"description":"new","inputs":{"vcpus":2}}`, 200, ""},
		{"GET /kbs/v0/reference-value/m", "", 200, `["aa","bb"]`},
		{"GET /admin/v1/reference-values/m", "", 200, `{"name":"m","values":["aa","bb"],"expires":"2026-09-01T13:00:00Z","entries":[{"value":"aa","description":"old",`},
		{"POST /admin/v1/reference-values/flag", `{"values":[false]}`, 409, "scalar"},
		{"POST /admin/v1/reference-values/m", `{"values":[false],"scalar":true}`, 409, "scalar"},
		{"PUT /admin/v1/reference-values/m", `{"values":[]}`, 400, "1 to"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"expires":"2020-01-01T00:00:00Z"}`, 400, "past"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"name":"n"}`, 400, "name"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"values":["b"]}`, 400, "values"},
		{"PUT /admin/v1/reference-values/m", `{"values":["a"],"inputs":[]}`, 400, "inputs"},
		{"PUT /admin/v1/reference-values/m?name=n", `{"values":["a"]}`, 400, "name"},
		{"PUT /admin/v1/reference-values?name=rvps:///a/b", `{"values":[7],"scalar":true}`, 200, ""},
		{"PUT /admin/v1/reference-values", `{"values":[7]}`, 400, "name"},
		{"PUT /admin/v1/reference-values?name=a%20b", `{"values":[7]}`, 400, "ASCII"},
		{"GET /admin/v1/reference-values?name=rvps:///a/b", "", 200, `{"name":"rvps:///a/b","scalar":true,"values":[7],`},
		{"GET /admin/v1/reference-history?name=m", "", 200, `[{"version":2,"created":"2026-09-01T12:00:00Z","entries":[{"value":"aa",`},
		{"GET /admin/v1/reference-history?name=nothing", "", 404, "not registered"},
		{"GET /admin/v1/reference-history", "", 400, "name"},
		{"DELETE /admin/v1/reference-values?name=rvps:///a/b", "", 200, ""},
		{"DELETE /admin/v1/reference-values/none", "", 404, "not registered"},
		{"DELETE /admin/v1/reference-values/flag", "", 200, ""},
		{"DELETE /admin/v1/reference-values", "", 400, "name"},
		{"DELETE /admin/v1/reference-values?name=a%00", "", 404, "not registered"},
		{"GET /admin/v1/reference-values?name=%ff", "", 404, "not registered"},
		{"GET /admin/v1/reference-history?name=a%20b", "", 404, "not registered"},
		{"GET /admin/v1/reference-history?name=flag", "", 200, `[{"version":3,"created":"2026-09-01T12:00:00Z","deleted":true},`},

		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + digest + `","description":"web"}`, 200, ""},
		{"PUT /admin/v1/bindings", `{"resource":"+pki/issue/web","initdata":"` + second + `"}`, 200, ""},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + strings.ToUpper(digest) + `"}`, 400, "lower-case"},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + digest[:62] + `"}`, 400, "whole"},
		{"PUT /admin/v1/bindings", `{"resource":"demo","initdata":"` + strings.Repeat("0", 96) + `"}`, 400, "zero"},
		{"PUT /admin/v1/bindings", `{"resource":"","initdata":"` + digest + `"}`, 400, "resource"},
		{"PUT /admin/v1/bindings", `{"resource":"*","initdata":"` + digest + `"}`, 400, "resource"},
		{"PUT /admin/v1/bindings", `{"resource":"+","initdata":"` + digest + `"}`, 400, "resource"},
		{"GET /admin/v1/bindings", "", 200, `[{"resource":"+pki/issue/web","initdata":"` + second + `"},{"resource":"demo","initdata":"` + digest + `","description":"web"}]`},
		{"DELETE /admin/v1/bindings?resource=demo&initdata=" + strings.Repeat("cd", 48), "", 404, "no such binding"},
		{"DELETE /admin/v1/bindings?resource=demo&init_data=" + digest, "", 400, "init_data"},
		{"DELETE /admin/v1/bindings?resource=demo&initdata=", "", 400, "empty"},
		{"DELETE /admin/v1/bindings?resource=demo&resource=demo", "", 400, "resource"},
		{"DELETE /admin/v1/bindings?resource=demo&initdata=" + digest + ";", "", 400, "malformed"},
		{"DELETE /admin/v1/bindings?resource=demo", "", 200, ""},
		{"DELETE /admin/v1/bindings", "", 400, "resource"},

		{"GET /admin/v1/verdicts", "", 200, `[]`},
		{"GET /admin/v1/verdicts?limit=0", "", 400, "limit"},
		{"GET /admin/v1/verdicts?limit=x", "", 400, "limit"},
		{"GET /admin/v1/audit?kind=x", "", 400, "kind"},
		{"GET /admin/v1/audit?granted=x", "", 400, "granted"},
		{"GET /admin/v1/audit?from=x", "", 400, "RFC 3339"},
		{"GET /admin/v1/audit?initdata=xy", "", 400, "hexadecimal"},
		{"GET /admin/v1/audit?after=1&before=2", "", 400, "at most one"},
		{"GET /admin/v1/audit?after=-1", "", 400, "after"},
		{"GET /admin/v1/audit?limit=1001", "", 400, "limit"},
		{"GET /admin/v1/audit?other=1", "", 400, "other"},
		{"GET /admin/v1/audit?kind=attestation", "", 200, `{"entries":[]}`},
		{"GET /admin/v1/audit/checkpoints", "", 200, `[]`},
		{"GET /admin/v1/audit/checkpoints?after=x", "", 400, "after"},
		{"GET /admin/v1/audit/keys", "", 404, "checkpoints"},
		{"POST /admin/v1/audit/checkpoints", "", 404, "checkpoints"},

		{"POST /admin/v1/admins", `{"name":"n","roles":["auditor"],"public_key":` + string(quoted) + `}`, 200, `{"id":"`},
		{"POST /admin/v1/admins", `{"name":"n","roles":["auditor"],"public_key":` + string(quoted) + `}`, 409, "already"},
		{"POST /admin/v1/admins", `{"name":"n","roles":["auditor"],"tenant":"*","public_key":` + string(quoted) + `}`, 409, "already"},
		{"POST /admin/v1/admins", `{"name":"n","roles":["auditor"],"tenant":"acme","public_key":` + string(quoted) + `}`, 400, "tenant"},
		{"POST /admin/v1/admins", `{"name":"n","roles":["root"],"public_key":` + string(quoted) + `}`, 400, "roles"},
		{"POST /admin/v1/admins", `{"name":"n","roles":[],"public_key":` + string(quoted) + `}`, 400, "roles"},
		{"POST /admin/v1/admins", `{"name":"","roles":["admin"],"public_key":` + string(quoted) + `}`, 400, "name"},
		{"POST /admin/v1/admins", `{"name":"n","roles":["admin"],"public_key":"x"}`, 400, "PEM"},
		{"DELETE /admin/v1/admins/0000", "", 404, "administrator"},

		{"POST /admin/v1/tenants", `{"name":"other","description":"d"}`, 200, ""},
		{"POST /admin/v1/tenants", `{"name":"other"}`, 409, "exists"},
		{"POST /admin/v1/tenants", `{"name":"Other"}`, 400, "tenant"},
		{"POST /admin/v1/tenants", `{"name":"*"}`, 400, "tenant"},
		{"PATCH /admin/v1/tenants/other", `{}`, 400, "enabled"},
		{"PATCH /admin/v1/tenants/other", `{"enabled":null}`, 400, "enabled"},
		{"PATCH /admin/v1/tenants/other", `{"enabled":false}`, 200, ""},
		{"PATCH /admin/v1/tenants/nowhere", `{"enabled":false}`, 404, "tenant"},
		{"PATCH /admin/v1/tenants/default", `{"enabled":false}`, 409, "default"},
		{"GET /admin/v1/tenants", "", 200, `[{"name":"acme","enabled":true,"created":"2026-09-01T12:00:00Z"},`},
		{"GET /admin/v1/token-keys", "", 404, "keys"},
		{"POST /admin/v1/token-keys/rotate", "{}", 404, "keys"},
		{"GET /admin/v1/status", "", 404, "status"},
		{"GET /admin/v1/nothing", "", 404, "no such path"},
		{"GET /kbs/v0/pki/x", "", 404, "no such path"},
		{"PATCH /admin/v1/bindings", "", 405, "PUT"},
		{"GET /admin/v1/admins/", "", 404, "no such path"},
	} {
		got := e.do(tenant.Default, e.token("root", nil), tc.request, tc.body)
		ok := got.status == tc.status && strings.Contains(got.body, tc.want)
		if tc.status == 200 && got.body != tc.want && (len(tc.want) <= 5 || !strings.HasPrefix(got.body, tc.want)) {
			ok = false
		}
		if !ok {
			t.Errorf("%s %.80s: got %d %s; want %d %s", tc.request, tc.body, got.status, got.body, tc.status, tc.want)
		}
	}
	if got := e.root(tenant.Default, "POST /kbs/v0/resource/demo/key/1", "again", 200); got.header.Get(admin.HeaderResourceVersion) != "2" {
		t.Errorf("%v", got.header)
	}
	if got := e.root(tenant.Default, "GET /admin/v1/policies/resource?scope=%2Bpki/issue", "", 200); got.header.Get(admin.HeaderPolicyVersion) != "1" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%v", got.header)
	}
	if got := e.root("acme", "GET /admin/v1/policies/resource?scope=", "", 200); got.header.Get(admin.HeaderPolicyVersion) != "0" {
		t.Errorf("%v", got.header)
	}
	// Another tenant has none of all this.
	for _, path := range []string{"resources", "policies/resource", "policies/attestation", "reference-values", "bindings", "verdicts", "audit/checkpoints"} {
		if got := e.root("acme", "GET /admin/v1/"+path, "", 200); got.body != "[]" {
			t.Errorf("%s: %s", path, got.body)
		}
	}
}

// TestPages walks every list in pages of every size.
func TestPages(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	for _, x := range []string{"a", "b", "c", "d", "e"} {
		e.root("acme", "POST /kbs/v0/resource/r/t/"+x, x, 200)
		e.root("acme", "PUT /admin/v1/reference-values/"+x, `{"values":[1]}`, 200)
		e.root("acme", "PUT /admin/v1/bindings", `{"resource":"`+x+`","initdata":"`+strings.Repeat("ab", 32)+`"}`, 200)
		e.root("acme", "PUT /admin/v1/policies/resource?scope="+strings.TrimPrefix(x, "a"), "package policy", 200)
		e.root("acme", "PUT /admin/v1/policies/attestation/"+x+"_cpu", "package policy", 200)
	}
	for i := range 5 {
		if err := e.store.SaveCheckpoint(t.Context(), "acme", int64(i+1), "jws", fixed); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"resources", "resources?details=true", "reference-values", "bindings", "policies/resource", "policies/attestation", "audit/checkpoints"} {
		whole := e.root("acme", "GET /admin/v1/"+path, "", 200).body
		for limit := 1; limit <= 6; limit++ {
			var all []json.RawMessage
			after := ""
			for range 10 {
				sep := "?"
				if strings.Contains(path, "?") {
					sep = "&"
				}
				request := "GET /admin/v1/" + path + sep + "limit=" + string(rune('0'+limit))
				if after != "" {
					request += "&after=" + strings.ReplaceAll(after, " ", "+")
				}
				got := e.root("acme", request, "", 200)
				var page []json.RawMessage
				if err := json.Unmarshal([]byte(got.body), &page); err != nil || len(page) > limit+1 {
					t.Fatalf("%s: %s, %v", request, got.body, err)
				}
				all = append(all, page...)
				if after = got.header.Get(admin.HeaderNext); after == "" {
					break
				}
			}
			if joined, _ := json.Marshal(all); string(joined) != whole || len(all) != 5 {
				t.Errorf("%s by %d: %s, want %s", path, limit, joined, whole)
			}
		}
	}
}

// TestAdmins: who may add and remove whom.
func TestAdmins(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	e.addKey("acme", "owner", admin.RoleAdmin)
	add := func(name, scope string) string {
		doc, err := json.Marshal(admin.NewAdministrator{Name: name, Roles: []string{admin.RoleAdmin}, PublicKey: string(pemOf(t, name)), Tenant: scope})
		if err != nil {
			t.Fatal(err)
		}
		return string(doc)
	}
	owner := e.token("owner", nil)
	got := e.do("acme", owner, "POST /admin/v1/admins", add("second", ""))
	var second admin.Administrator
	decodeInto(t, got, &second)
	if second.Tenant != "acme" || second.ID == "" || second.Configured {
		t.Errorf("%+v", second)
	}
	if got := e.do("acme", owner, "POST /admin/v1/admins", add("third", "*")); got.status != 403 {
		t.Errorf("a key for every tenant by an administrator of one: %d %s", got.status, got.body)
	}
	if got := e.do("acme", owner, "POST /admin/v1/admins", add("root", "")); got.status != 409 {
		t.Errorf("a configured key: %d %s", got.status, got.body)
	}
	e.root("acme", "POST /admin/v1/admins", add("third", "*"), 200)
	var list []admin.Administrator
	decodeInto(t, e.do("acme", owner, "GET /admin/v1/admins", ""), &list)
	if len(list) != 4 || !list[0].Configured || list[0].Name != "root" || list[0].Tenant != "*" {
		t.Errorf("%+v", list)
	}
	for _, x := range list {
		if !strings.HasPrefix(x.PublicKey, "-----BEGIN PUBLIC KEY-----") || len(x.ID) != 32 {
			t.Errorf("%+v", x)
		}
	}
	id := func(name string) string {
		for _, x := range list {
			if x.Name == name {
				return x.ID
			}
		}
		t.Fatal(name)
		return ""
	}
	for name, want := range map[string]int{"root": 409, "owner": 409, "third": 403} {
		if got := e.do("acme", owner, "DELETE /admin/v1/admins/"+id(name), ""); got.status != want {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	if got := e.do("acme", e.token("second", nil), "DELETE /admin/v1/admins/"+id("owner"), ""); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := e.do("acme", owner, "GET /admin/v1/admins", ""); got.status != 401 {
		t.Errorf("a removed administrator: %d", got.status)
	}
	// A tenant's own key does not show elsewhere.
	decodeInto(t, e.root("beta", "GET /admin/v1/admins", "", 200), &list)
	if len(list) != 2 {
		t.Errorf("%+v", list)
	}
}

// TestExpiry: what a message or a document says of it counts, else the default.
func TestExpiry(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	e.root("acme", "PUT /admin/v1/reference-values/a", `{"values":[1]}`, 200)
	e.root("acme", "PUT /admin/v1/reference-values/b", `{"values":[1],"expires":"2026-09-01T12:10:00Z"}`, 200)
	for name, want := range map[string]time.Time{"a": fixed.Add(time.Hour), "b": fixed.Add(10 * time.Minute)} {
		r, err := e.store.Reference(t.Context(), "acme", name)
		if err != nil || !r.Entries[0].Expires.Equal(want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// Large references make short pages, and no answer that takes all memory.
func TestLargeReferences(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, name := range names {
		r := refvalues.Reference{Name: name}
		for i := range 800 {
			r.Entries = append(r.Entries, refvalues.Entry{Value: json.RawMessage(strconv.Itoa(i)), Description: strings.Repeat("x", 1000), Source: strings.Repeat("y", 1000), Inputs: json.RawMessage(`{"a":"` + strings.Repeat("z", 1000) + `"}`)})
		}
		if err := e.store.SetReferences(t.Context(), "acme", r); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.root("acme", "GET /admin/v1/reference-values", "", 507); !strings.Contains(got.body, "in pages") {
		t.Error(got.body)
	}
	var all []string
	for after, n := "", 0; ; n++ {
		got := e.root("acme", "GET /admin/v1/reference-values?limit=8&after="+after, "", 200)
		var page []struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal([]byte(got.body), &page); err != nil || len(page) == 0 || len(page) > 7 || n > 8 {
			t.Fatalf("%d references, %v", len(page), err)
		}
		for _, r := range page {
			all = append(all, r.Name)
		}
		if after = got.header.Get(admin.HeaderNext); after == "" {
			break
		}
	}
	if !slices.Equal(all, names) {
		t.Errorf("got %q", all)
	}
}
