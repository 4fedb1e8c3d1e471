package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// TestRecords: what a handshake and a release leave behind.
func TestRecords(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) {
		b.o.AllowSimulated = true
		b.o.ClientAddr = func(*http.Request) string { return "192.0.2.7" }
	})
	g, tok := b.attested(t, "acme")
	r := b.store.last(t)
	id := b.evaluator.asked[0].Session
	if r.Kind != audit.KindAttestation || !r.Granted || r.Status != 200 || r.Session != id || r.TEE != "snp" || r.Protocol != "0.4.0" || r.EARStatus != "affirming" ||
		r.Policy != "default_cpu@1" || r.InitData != strings.Repeat("01", 32) || r.Client != "192.0.2.7" || !r.AllowSimulated || r.Challenged.IsZero() || r.Tenant != "acme" {
		t.Errorf("%+v", r)
	}
	if !json.Valid(r.Claims) || strings.Contains(string(r.Claims), "coffer.claims_omitted") {
		t.Errorf("claims %s", r.Claims)
	}
	if doc, err := json.Marshal(r); err != nil || strings.Contains(string(doc), g.cookie) || strings.Contains(string(doc), tok) {
		t.Errorf("a record with a credential: %s, %v", doc, err)
	}
	if f := b.store.finished["acme/"+id]; f.Token != tok || !f.Expires.After(b.now.Add(5*time.Minute)) {
		t.Errorf("%+v", f)
	}
	b.do(call{tenant: "acme", method: "GET", path: secretPath, bearer: tok})
	r = b.store.last(t)
	if r.Kind != audit.KindResource || !r.Granted || r.Status != 200 || r.Session != id || r.Resource != "kbs:///a/b/c" || r.Version != 3 || r.Policy != "resource-policy@4" ||
		string(r.Data) != `{"plugin":"x"}` || r.InitData != strings.Repeat("01", 32) || r.Simulated || r.TEE != "snp" || r.Claims != nil {
		t.Errorf("%+v", r)
	}
	b.do(call{tenant: "acme", method: "GET", path: "/kbs/v0/resource/deny/b/c?x=1", bearer: tok})
	r = b.store.last(t)
	if r.Granted || r.Status != 403 || len(r.Reasons) == 0 || r.Reasons[0].Rule != "initdata.registered" || r.Data == nil || r.Detail == "" || r.Version != 0 {
		t.Errorf("%+v", r)
	}
	b.do(call{tenant: "acme", method: "GET", path: "/kbs/v0/resource/a/b/none", bearer: tok})
	if r = b.store.last(t); r.Granted || r.Status != 404 {
		t.Errorf("%+v", r)
	}
	b.do(call{tenant: "acme", method: "POST", path: "/kbs/v0/echo/x", bearer: tok})
	if r = b.store.last(t); !r.Granted || r.Resource != "kbs+echo:///x" || r.Detail != "serial 7" {
		t.Errorf("%+v", r)
	}
	b.do(call{tenant: "acme", method: "POST", path: "/kbs/v0/echo/refused", bearer: tok})
	if r = b.store.last(t); r.Granted || r.Status != 403 || r.Reasons[0].Rule != "echo.rule" {
		t.Errorf("%+v", r)
	}
}

// TestLargeRecords: what does not fit is left out, and the rest is recorded.
func TestLargeRecords(t *testing.T) {
	t.Parallel()
	for name, claims := range map[string]map[string]any{
		"initdata":   {"init_data_claims": strings.Repeat("<", 60<<10)},
		"everything": {"other": strings.Repeat("&", 300<<10)},
	} {
		b := newBench(t, func(b *bench) { b.evaluator.claims, b.decider.data = claims, `{"x":"`+strings.Repeat("<", 60<<10)+`"}` })
		_, tok := b.attested(t, tenant.Default)
		r := b.store.last(t)
		if len(r.Claims) > maxClaims || !strings.Contains(string(r.Claims), `"coffer.claims_omitted":true`) || strings.Contains(string(r.Claims), `"measurement":"aa"`) != (name == "initdata") {
			t.Errorf("%s: %d bytes: %.300s", name, len(r.Claims), r.Claims)
		}
		// A token of eight GPUs: the header takes it, and a denial with long
		// texts fits both into its record and into what clients read.
		w := b.do(call{method: "GET", path: "/kbs/v0/resource/deny/b/c", bearer: tok})
		if e := info(t, w); w.Code != 403 || w.Body.Len() > kbs.MaxErrorBytes || len(e.Reasons) != 2 || e.Reason.Rule != e.Reasons[0].Rule {
			t.Errorf("%s: %d, %d bytes", name, w.Code, w.Body.Len())
		}
		if r = b.store.last(t); r.Kind != audit.KindResource || r.Data != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestNothingWithoutItsRecord: what cannot be recorded is not given.
func TestNothingWithoutItsRecord(t *testing.T) {
	t.Parallel()
	for cause, status := range map[error]int{errDown: 500, fmt.Errorf("x: %w", store.ErrUnavailable): 503, context.DeadlineExceeded: 503} {
		b := newBench(t, nil)
		b.store.finish = cause
		g := b.begin(t, "acme", kbs.V040, tee.SNP)
		if w := b.attest(g); w.Code != status || strings.Contains(w.Body.String(), `token":`) || strings.Contains(w.Body.String(), "disk") {
			t.Errorf("%v: %d %s", cause, w.Code, w.Body)
		}
		// A verdict that is not recorded is none, the guest may try again.
		b.evaluator.refuse = problem.Denied(problem.Attestation, "refused", kbs.Reason{Rule: "r"})
		if w := b.attest(g); w.Code != status {
			t.Errorf("%v: %d %s", cause, w.Code, w.Body)
		}
		b.store.finish, b.evaluator.refuse = nil, nil
		tok := tokenOf(t, b.attest(g))
		for _, path := range []string{secretPath, "/kbs/v0/echo/x", "/kbs/v0/echo/encrypt"} {
			c := call{tenant: "acme", method: "GET", path: path, bearer: tok}
			if w := b.do(c); w.Code != 200 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			b.store.append = cause
			if w := b.do(c); w.Code != status || strings.Contains(w.Body.String(), "ciphertext") || strings.Contains(w.Body.String(), "Tenant") {
				t.Errorf("%s: %v: %d %s", path, cause, w.Code, w.Body)
			}
			// A refusal stays a refusal.
			c.path = "/kbs/v0/resource/deny/b/c"
			if w := b.do(c); w.Code != 403 {
				t.Errorf("%v: %d %s", cause, w.Code, w.Body)
			}
			b.store.append = nil
		}
		b.decider.err = cause
		if w := b.do(call{tenant: "acme", method: "GET", path: secretPath, bearer: tok}); w.Code != status || info(t, w).Type != kbs.ErrorType("PolicyEngineError") {
			t.Errorf("%v: %d %s", cause, w.Code, w.Body)
		}
	}
}

func TestPlugins(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) { b.o.MaxPluginBody = 100 })
	g, tok := b.attested(t, "acme")
	w := b.do(call{tenant: "acme", method: "POST", path: "/kbs/v0/echo/a/b?x=1&x=2&y=%C3%A4", body: "hello", bearer: tok})
	var got struct {
		Tenant, Method, Session, InitData string
		Path                              []string
		Query                             map[string]string
		Body                              []byte
		Simulated                         bool
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	if got.Tenant != "acme" || got.Method != http.MethodPost || got.Session == "" || got.InitData == "" || got.Simulated || strings.Join(got.Path, "/") != "a/b" ||
		got.Query["x"] != "2" || got.Query["y"] != "ä" || string(got.Body) != "hello" {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Length": fmt.Sprint(w.Body.Len())} {
		if w.Header().Get(name) != want {
			t.Errorf("%s: %q", name, w.Header().Get(name))
		}
	}
	if d := b.decider.asked[0]; d.Plugin != "echo" || d.Tenant != "acme" || strings.Join(d.Path, "/") != "a/b" || d.Query["x"] != "2" || d.Claims == nil || len(d.Payload) == 0 {
		t.Errorf("%+v", d)
	}
	w = b.do(call{tenant: "acme", method: "GET", path: "/kbs/v0/echo/encrypt", cookie: g.cookie})
	r, err := kbs.ParseResponse(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := g.key.Decrypt(*r); err != nil || !strings.Contains(string(plain.Expose()), "encrypt") {
		t.Errorf("%q, %v", plain.Expose(), err)
	}
	if w := b.do(call{tenant: "acme", method: "GET", path: "/kbs/v0/echo/nothing", bearer: tok}); w.Code != 500 || info(t, w).Type != kbs.ErrorType("PluginInternalError") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
