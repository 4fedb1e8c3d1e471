package trustee_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// FuzzRequests sends any request, with and without an administrator's token:
// no panic, no failure of the trustee, and a problem document for every error.
func FuzzRequests(f *testing.F) {
	o := trustee.Options{
		Config: config.Default(), Logger: slog.New(slog.DiscardHandler),
		Verifiers: map[tee.Name]tee.Verifier{tee.SNP: fakeVerifier{name: tee.SNP, class: tee.CPU}},
	}
	o.Config.Listen, o.Config.StateDir = "127.0.0.1:0", filepath.Join(f.TempDir(), "state")
	o.Config.Limits.Rate, o.Config.Limits.Burst = 1e6, 1e6
	tr, err := trustee.New(f.Context(), o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = tr.Close() })
	h := tr.Handler()
	f.Add("POST", "/kbs/v0/auth", `{"version":"0.4.0","tee":"snp","extra-params":""}`, "", false)
	f.Add("POST", "/kbs/v0/attest", `{"tee-evidence":{}}`, "kbs-session-id=0123456789abcdef0123456789abcdef", false)
	f.Add("GET", "/kbs/v0/resource/a/b/c?x=y", ``, "", false)
	f.Add("POST", "/kbs/v0/resource/a/b/c", `x`, "", true)
	f.Add("PUT", "/admin/v1/reference-values/m", `{"values":["a",1,{"b":[]}],"expires":"2100-01-01T00:00:00Z"}`, "", true)
	f.Add("POST", "/kbs/v0/reference-value", `{"type":"sample","payload":"eyJhIjoxfQ=="}`, "", true)
	f.Add("PUT", "/admin/v1/bindings", `{"resource":"a","initdata":"00"}`, "", true)
	f.Add("POST", "/kbs/v0/attestation-policy", `{"policy_id":"x_cpu","policy":"cGFja2FnZSBwb2xpY3k"}`, "", true)
	f.Add("GET", "/admin/v1/verdicts?limit=5&session=a", ``, "", true)
	f.Fuzz(func(t *testing.T, method, target, body, cookie string, admin bool) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/", bytes.NewReader([]byte(body)))
		r.Method, r.URL = method, u
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
		}
		if admin {
			for k, v := range adminToken(t, tr.AdminKey(), time.Now(), nil) {
				r.Header.Set(k, v)
			}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%s %q %q: %s", method, target, body, w.Body)
		}
		var info kbs.ErrorInfo
		if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &info) != nil || info.Type == "") {
			t.Errorf("%s %q: %d without a problem document: %q", method, target, w.Code, w.Body)
		}
	})
}

// FuzzAttestation sends any attestation in a fresh session.
func FuzzAttestation(f *testing.F) {
	o := trustee.Options{
		Config: config.Default(), Logger: slog.New(slog.DiscardHandler),
		Verifiers: map[tee.Name]tee.Verifier{tee.SNP: fakeVerifier{name: tee.SNP, class: tee.CPU}},
	}
	o.Config.Listen, o.Config.StateDir = "127.0.0.1:0", filepath.Join(f.TempDir(), "state")
	o.Config.Limits.Rate, o.Config.Limits.Burst = 1e6, 1e6
	tr, err := trustee.New(f.Context(), o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = tr.Close() })
	h := tr.Handler()
	f.Add("0.4.0", `{"runtime-data":{"nonce":"x","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0","y":"A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw"}},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`)
	f.Add("0.1.1", `{"tee-pubkey":{"kty":"EC"},"tee-evidence":{"report_data":"00"}}`)
	f.Fuzz(func(t *testing.T, version, body string) {
		req, _ := json.Marshal(map[string]string{"version": version, "tee": "snp", "extra-params": ""})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, kbs.AuthPath, bytes.NewReader(req)))
		if w.Code != http.StatusOK {
			return
		}
		r := httptest.NewRequest(http.MethodPost, kbs.AttestPath, bytes.NewReader([]byte(body)))
		r.AddCookie(w.Result().Cookies()[0])
		w = httptest.NewRecorder()
		h.ServeHTTP(w, r)
		// The fake verifier demands a digest over the challenge's nonce: nothing passes.
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("%q: %d %s", body, w.Code, w.Body)
		}
	})
}
