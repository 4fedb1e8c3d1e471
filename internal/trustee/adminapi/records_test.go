package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// seed appends a handshake and a decision in it.
func seed(t *testing.T, e *env, session string, granted bool) (resourceSeq int64, id string) {
	t.Helper()
	_, err := e.store.Append(t.Context(), "acme", audit.Record{At: fixed, Kind: audit.KindAttestation, TEE: "snp", Session: session, Granted: true, Status: 200,
		EARStatus: "affirming", InitData: "00ff", Claims: json.RawMessage(`{"measurement":"aa11"}`)})
	if err != nil {
		t.Fatal(err)
	}
	r := audit.Record{At: fixed, Kind: audit.KindResource, TEE: "snp", Session: session, Resource: "kbs:///demo/key/1", Granted: granted, Status: 200,
		Policy: "resource-policy@0", InitData: "00ff", Data: json.RawMessage(`{"plugin":"resource"}`)}
	if !granted {
		r.Status, r.Reasons = 403, []kbs.Reason{{Rule: "first"}, {Rule: "second"}}
	}
	x, err := e.store.Append(t.Context(), "acme", r)
	if err != nil {
		t.Fatal(err)
	}
	rec, p := decodeRecord(x)
	if p != nil {
		t.Fatal(p)
	}
	return x.Seq, rec.ID
}

func TestVerdictsAndEntries(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	seed(t, e, "s1", true)
	e.root("acme", "PUT /admin/v1/reference-values/m", `{"values":[1]}`, 200)
	seed(t, e, "s2", false)
	var v []admin.Verdict
	decodeInto(t, e.root("acme", "GET /admin/v1/verdicts", "", 200), &v)
	if len(v) != 4 || v[0].Kind != "resource" || v[0].Resource != "demo/key/1" || v[0].Reason.Rule != "first" || v[0].Status != 403 || v[0].TEE != "snp" ||
		string(v[0].Claims) != `{"measurement":"aa11"}` || v[1].Kind != "attestation" || v[1].EARStatus != "affirming" || v[3].Session != "s1" {
		t.Errorf("%+v", v)
	}
	decodeInto(t, e.root("acme", "GET /admin/v1/verdicts?limit=1&session=s1", "", 200), &v)
	if len(v) != 1 || v[0].Session != "s1" || !v[0].Granted {
		t.Errorf("%+v", v)
	}
	entries := func(query string) []admin.AuditEntry {
		var out admin.AuditEntries
		decodeInto(t, e.root("acme", "GET /admin/v1/audit"+query, "", 200), &out)
		return out.Entries
	}
	for query, want := range map[string]string{
		"": "54321", "?limit=2": "54", "?before=3": "21", "?after=0": "12345", "?after=0&limit=1": "1", "?after=0&limit=2": "12", "?after=1&limit=2": "23", "?after=5": "",
		"?kind=admin": "3", "?kind=resource&granted=false": "5", "?session=s1": "21", "?subject=someone": "3", "?resource=kbs:///demo": "52",
		"?initdata=00FF&after=0": "1245", "?from=2026-09-01T12:00:00Z&to=2026-09-01T12:00:01Z": "54321", "?to=2026-09-01T12:00:00Z": "",
		"?after=0&kind=resource": "25", "?from=2026-09-01T14:00:00%2B02:00": "54321",
	} {
		got := ""
		for _, x := range entries(query) {
			got += fmt.Sprint(x.Seq)
			if x.Hash != audit.Hash("acme", x.Seq, x.Previous, x.Body) {
				t.Errorf("%s: entry %d is not as it was hashed", query, x.Seq)
			}
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}

// TestLongRecords: an answer is bounded, and asking on gets them all.
func TestLongRecords(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil)
	claims, _ := json.Marshal(map[string]string{"x": strings.Repeat("y", audit.MaxBody-2000)})
	const n = entriesAtOnce + 4
	for range n {
		if _, err := e.store.Append(t.Context(), "acme", audit.Record{Kind: audit.KindAttestation, Claims: claims}); err != nil {
			t.Fatal(err)
		}
	}
	for _, form := range []string{"after", "before"} {
		seen, pages := 0, 0
		for last := int64(0); ; {
			pages++
			query := fmt.Sprintf("?limit=1000&%s=%d", form, last)
			if form == "before" && last == 0 {
				query = "?limit=1000"
			}
			var out admin.AuditEntries
			got := e.root("acme", "GET /admin/v1/audit"+query, "", 200)
			decodeInto(t, got, &out)
			if len(got.body) > entriesBytes+(entriesAtOnce+1)*audit.MaxBody {
				t.Errorf("%d bytes", len(got.body))
			}
			if len(out.Entries) == 0 {
				break
			}
			seen += len(out.Entries)
			if last = out.Entries[len(out.Entries)-1].Seq; last == 1 && form == "before" {
				break
			}
		}
		if seen != n || pages < 2 {
			t.Errorf("%s: %d entries in %d pages", form, seen, pages)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	var asked Replay
	e := newEnv(t, func(o *Options) {
		o.PolicyText = func(_ context.Context, at tenant.Name, label string) (string, error) {
			if at != "acme" || label != "resource-policy@0" {
				return "", store.ErrNotFound
			}
			return "recorded text", nil
		}
		o.Explain = func(_ context.Context, in Replay) (admin.Explanation, error) {
			asked = in
			switch in.Text {
			case "bad":
				return admin.Explanation{}, &policy.CompileError{Err: errors.New("x:1")}
			case "broken":
				return admin.Explanation{}, errors.New(marker)
			}
			return admin.Explanation{Granted: true, Policy: in.Label}, nil
		}
	})
	seq, id := seed(t, e, "s", false)
	for _, body := range []string{fmt.Sprintf(`{"seq":%d}`, seq), `{"id":"` + id + `"}`} {
		var x admin.Explanation
		decodeInto(t, e.root("acme", "POST /admin/v1/explain", body, 200), &x)
		if x.Seq != seq || x.Recorded || !x.Granted || x.Policy != "resource-policy@0" || string(x.Data) != `{"plugin":"resource"}` {
			t.Errorf("%+v", x)
		}
		if asked.Text != "recorded text" || string(asked.Claims) != `{"measurement":"aa11"}` {
			t.Errorf("%+v", asked)
		}
	}
	e.root("acme", "POST /admin/v1/explain", `{"seq":2,"text":"mine"}`, 200)
	if asked.Text != "mine" || asked.Label != "candidate" {
		t.Errorf("%+v", asked)
	}
	for body, status := range map[string]int{
		`{}`: 400, `{"seq":1,"id":"x"}`: 400, `{"seq":-1}`: 400, `{"seq":9}`: 404, `{"id":"x"}`: 404, `{"seq":1}`: 409,
		`{"seq":2,"text":"bad"}`: 400, `{"seq":2,"text":"broken"}`: 500, `{"seq":2,"more":1}`: 400,
	} {
		e.root("acme", "POST /admin/v1/explain", body, status)
	}
	// Another tenant's records are not there.
	e.root("beta", "POST /admin/v1/explain", `{"seq":2}`, 404)
	e.root("beta", "POST /admin/v1/explain", `{"id":"`+id+`"}`, 404)
	for _, r := range []audit.Record{
		{Kind: audit.KindResource, Session: "gone", Policy: "resource-policy@0", Data: json.RawMessage(`{}`)},
		{Kind: audit.KindResource, Session: "s", Policy: "resource-policy@7", Data: json.RawMessage(`{}`)},
		{Kind: audit.KindResource, Session: "s", Status: 404},
	} {
		x, err := e.store.Append(t.Context(), "acme", r)
		if err != nil {
			t.Fatal(err)
		}
		e.root("acme", "POST /admin/v1/explain", fmt.Sprintf(`{"seq":%d}`, x.Seq), 409)
	}
}

// TestInjected: what other packages do for the administration.
func TestInjected(t *testing.T) {
	t.Parallel()
	refuse := problem.New(http.StatusConflict, problem.Serde, "not now")
	var sawTenant tenant.Name
	e := newEnv(t, func(o *Options) {
		o.AuditKeys = func(context.Context) (json.RawMessage, error) { return json.RawMessage(`{"keys":[]}`), nil }
		o.Checkpoint = func(_ context.Context, at tenant.Name) (admin.Checkpoint, error) {
			if at == "beta" {
				return admin.Checkpoint{}, refuse
			}
			return admin.Checkpoint{Seq: 3, At: fixed, JWS: "j"}, nil
		}
		o.TokenKeys = func(context.Context) ([]admin.TokenKey, error) {
			return []admin.TokenKey{{KeyID: "k", Algorithm: "ES256"}}, nil
		}
		o.RotateTokenKey = func(context.Context, string) (admin.TokenKey, error) { return admin.TokenKey{}, refuse }
		o.Status = func(_ context.Context, at tenant.Name) (admin.Status, error) {
			return admin.Status{Version: "v", Started: fixed, Database: "sqlite", Schema: 3}, nil
		}
		o.Provenance = func(_ context.Context, at tenant.Name, message []byte) ([]refvalues.Reference, error) {
			sawTenant = at
			switch string(message) {
			case "unsigned":
				return nil, errors.New("the signature does not verify")
			case "away":
				return nil, problem.Busy(problem.ReferenceValue, "no roots")
			case "empty":
				return nil, nil
			}
			return []refvalues.Reference{{Name: "n", Entries: []refvalues.Entry{{Value: json.RawMessage(`1`), Source: "s", Expires: fixed.Add(time.Minute)}}}}, nil
		}
		o.CheckReference = func(_ context.Context, _ tenant.Name, r refvalues.Reference) error {
			switch r.Name {
			case "clash":
				return &policy.CompileError{Err: errors.New("expected a list")}
			case "broken":
				return errors.New(marker)
			}
			return nil
		}
		o.Plugin = func(_ context.Context, r PluginCall) (*PluginAnswer, *problem.Error) {
			if r.Plugin != "pki" {
				return nil, problem.New(http.StatusNotFound, problem.PluginNotFound, "no such plugin")
			}
			body, _ := json.Marshal(map[string]any{"tenant": r.Tenant, "method": r.Method, "path": r.Path, "query": r.Query, "body": string(r.Body)})
			return &PluginAnswer{Body: secret.New(body)}, nil
		}
	})
	for _, tc := range []struct {
		at            tenant.Name
		request, body string
		status        int
		want          string
	}{
		{"acme", "GET /admin/v1/audit/keys", "", 200, `{"keys":[]}`},
		{"acme", "POST /admin/v1/audit/checkpoints", "", 200, `{"seq":3,"at":"2026-09-01T12:00:00Z","jws":"j"}`},
		{"beta", "POST /admin/v1/audit/checkpoints", "", 409, "not now"},
		{"acme", "GET /admin/v1/token-keys", "", 404, "default tenant"},
		{tenant.Default, "GET /admin/v1/token-keys", "", 200, `[{"kid":"k","alg":"ES256"}]`},
		{tenant.Default, "POST /admin/v1/token-keys/rotate", `{"alg":"RS256"}`, 400, "ES256"},
		{tenant.Default, "POST /admin/v1/token-keys/rotate", `{}`, 409, "not now"},
		{"acme", "GET /admin/v1/status", "", 200, `"tenant":"acme"`},
		{"acme", "POST /admin/v1/provenance", "fine", 200, `{"names":["n"]}`},
		{"acme", "POST /admin/v1/provenance", "unsigned", 400, "does not verify"},
		{"acme", "POST /kbs/v0/reference-value", "unsigned", 400, "does not verify"},
		{"acme", "POST /kbs/v0/reference-value", "fine", 200, ""},
		{"acme", "POST /admin/v1/provenance", "away", 503, "no roots"},
		{"acme", "POST /admin/v1/provenance", "empty", 400, "no reference value"},
		{"acme", "PUT /admin/v1/reference-values/clash", `{"values":[1]}`, 409, "expected a list"},
		{"acme", "POST /admin/v1/reference-values/clash", `{"values":[1]}`, 409, "expected a list"},
		{"acme", "PUT /admin/v1/reference-values/broken", `{"values":[1]}`, 500, "its log"},
		{"acme", "PUT /kbs/v0/pki/role/web?a=1&b=2", "body", 200, `{"body":"body","method":"PUT","path":["role","web"],"query":{"a":"1","b":"2"},"tenant":"acme"}`},
		{"acme", "PATCH /kbs/v0/pki/role", "", 405, "GET"},
		{"acme", "GET /kbs/v0/other/x", "", 404, "plugin"},
		{"acme", "GET /kbs/v0/pki/" + strings.Repeat("a/", 16) + "a", "", 400, "segments"},
		{"acme", "GET /kbs/v0/pki/a?x=1&x=2", "", 400, "x"},
		{"acme", "GET /kbs/v0/pki/a?x=%zz", "", 400, "malformed"},
	} {
		if got := e.do(tc.at, e.token("root", nil), tc.request, tc.body); got.status != tc.status || !strings.Contains(got.body, tc.want) {
			t.Errorf("%s %s: got %d %s; want %d %s", tc.request, tc.body, got.status, got.body, tc.status, tc.want)
		}
	}
	if r, err := e.store.Reference(t.Context(), "acme", "n"); err != nil || !r.Entries[0].Expires.Equal(fixed.Add(time.Minute)) || sawTenant != "acme" {
		t.Errorf("%+v, %v, %s", r, err, sawTenant)
	}
}
