package trustee_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// TestStatuses is the table of statuses a guest can meet (docs/trustee.md).
func TestStatuses(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("the secret")
	c := e.raw()
	auth := func(body string) func() answer {
		return func() answer { return e.do(c, "POST", "/kbs/v0/auth", []byte(body), nil) }
	}
	get := func(method, path string, header map[string]string) func() answer {
		return func() answer { return e.do(c, method, path, nil, header) }
	}
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	h := e.begin(c, "0.4.0")
	tok := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, good, document), h.header())
	token, err := kbs.ParseTokenResponse(tok.body)
	if err != nil {
		t.Fatal(err)
	}
	bearer := map[string]string{"Authorization": "Bearer " + token.Token}
	attest := func(change func(m map[string]any)) func() answer {
		return func() answer {
			h := e.begin(c, "0.4.0")
			var m map[string]any
			if err := json.Unmarshal(e.attestation(h, good, document), &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			body, _ := json.Marshal(m)
			return e.do(c, "POST", "/kbs/v0/attest", body, h.header())
		}
	}
	key := func(change func(k map[string]any)) func(m map[string]any) {
		return func(m map[string]any) {
			change(m["runtime-data"].(map[string]any)["tee-pubkey"].(map[string]any))
		}
	}
	for _, tc := range []struct {
		name    string
		do      func() answer
		status  int
		variant string
		detail  string
	}{
		{"auth: not JSON", auth(`{`), 400, "SerdeError", ""},
		{"auth: duplicate member", auth(`{"version":"0.4.0","tee":"snp","tee":"sample","extra-params":""}`), 400, "SerdeError", ""},
		{"auth: unknown version", auth(`{"version":"0.9.0","tee":"snp","extra-params":""}`), 400, "AttestationError", "KBS Client Protocol Version Mismatch"},
		{"auth: unknown TEE", auth(`{"version":"0.4.0","tee":"abacus","extra-params":""}`), 400, "SerdeError", ""},
		{"auth: TEE not enabled", auth(`{"version":"0.4.0","tee":"sample","extra-params":""}`), 403, "AttestationError", "one of snp"},
		{"auth: unknown selector", auth(`{"version":"0.4.0","tee":"snp","extra-params":{"attestation-policy-selector":"x"}}`), 400, "AttestationError", "selector"},
		{"auth: too large", auth(`{"version":"` + strings.Repeat("x", kbs.MaxRequestBytes) + `"}`), 413, "LimitExceeded", "65536"},
		{"auth: GET", get("GET", "/kbs/v0/auth", nil), 405, "InvalidRequestPath", "POST"},
		{"attest: GET", get("GET", "/kbs/v0/attest", nil), 405, "InvalidRequestPath", "POST"},
		{"attest: no cookie", get("POST", "/kbs/v0/attest", nil), 401, "AttestationError", "cookie"},
		{"attest: odd cookie", get("POST", "/kbs/v0/attest", map[string]string{"Cookie": "kbs-session-id=../../x"}), 401, "AttestationError", "cookie"},
		{"attest: unknown session", get("POST", "/kbs/v0/attest", map[string]string{"Cookie": "kbs-session-id=" + strings.Repeat("a", 32)}), 401, "AttestationError", "session"},
		{"attest: not JSON", func() answer {
			h := e.begin(c, "0.4.0")
			return e.do(c, "POST", "/kbs/v0/attest", []byte("x"), h.header())
		}, 400, "SerdeError", ""},
		{"attest: too large", func() answer {
			h := e.begin(c, "0.4.0")
			return e.do(c, "POST", "/kbs/v0/attest", make([]byte, 3<<20), h.header())
		}, 413, "LimitExceeded", "2097152"},
		{"attest: initdata format", attest(func(m map[string]any) { m["init-data"].(map[string]any)["format"] = "json" }), 400, "SerdeError", "toml"},
		{"attest: initdata malformed", attest(func(m map[string]any) { m["init-data"].(map[string]any)["body"] = "version = 7" }), 400, "SerdeError", "init-data"},
		{"attest: initdata unknown algorithm", attest(func(m map[string]any) {
			m["init-data"].(map[string]any)["body"] = strings.Replace(document, "sha384", "md5", 1)
		}), 400, "SerdeError", "algorithm"},
		{"attest: short coordinate", attest(key(func(k map[string]any) { k["x"] = "AAAA" })), 400, "SerdeError", ""},
		{"attest: off the curve", attest(key(func(k map[string]any) { k["y"] = k["x"] })), 400, "SerdeError", ""},
		{"attest: unknown algorithm", attest(key(func(k map[string]any) { k["alg"] = "dir" })), 400, "SerdeError", "alg"},
		{"attest: evidence refused", attest(func(m map[string]any) { m["tee-evidence"].(map[string]any)["primary_evidence"] = "x" }), 403, "AttestationError", "fake.format"},
		{"attest: device not enabled", attest(func(m map[string]any) { m["tee-evidence"].(map[string]any)["additional_evidence"] = `{"nvidia":{}}` }), 403, "AttestationError", "report_data"},
		{"resource: no token", get("GET", "/kbs/v0/resource/demo/key/1", nil), 401, "TokenNotFound", "POST /kbs/v0/auth"},
		{"resource: bad token", get("GET", "/kbs/v0/resource/demo/key/1", map[string]string{"Authorization": "Bearer x.y.z"}), 401, "TokenVerifierError", ""},
		{"resource: denied", get("GET", "/kbs/v0/resource/other/key/1", bearer), 403, "PolicyDeny", "initdata.registered"},
		{"resource: missing", get("GET", "/kbs/v0/resource/demo/key/none", bearer), 404, "ResourceNotFound", "demo/key/none"},
		{"resource: segments", get("GET", "/kbs/v0/resource/demo/key", bearer), 400, "InvalidRequestPath", "three segments"},
		{"resource: dots", get("GET", "/kbs/v0/resource/demo/../key", bearer), 400, "InvalidRequestPath", "dot"},
		{"resource: escaped dots", get("GET", "/kbs/v0/resource/demo/%2e%2e/key", bearer), 400, "InvalidRequestPath", "percent"},
		{"resource: escaped slash", get("GET", "/kbs/v0/resource/demo%2fkey/1", bearer), 400, "InvalidRequestPath", "percent"},
		{"resource: NUL", get("GET", "/kbs/v0/resource/demo/key/1%00", bearer), 400, "InvalidRequestPath", "percent"},
		{"resource: empty segment", get("GET", "/kbs/v0/resource/demo//1", bearer), 400, "InvalidRequestPath", "empty"},
		{"resource: long", get("GET", "/kbs/v0/resource/demo/key/"+strings.Repeat("a", 500), bearer), 400, "InvalidRequestPath", "bytes"},
		{"resource: query", get("GET", "/kbs/v0/resource/demo/key/1?a=%zz", bearer), 400, "InvalidRequestPath", "query"},
		{"resource: POST without a right", get("POST", "/kbs/v0/resource/demo/key/1", bearer), 401, "AdminAuthAccess", ""},
		{"unknown plugin", get("GET", "/kbs/v0/pkcs11/x", bearer), 404, "PluginNotFound", ""},
		{"unknown path", get("GET", "/nothing", nil), 404, "InvalidRequestPath", ""},
		{"health: POST", get("POST", "/healthz", nil), 405, "InvalidRequestPath", "GET"},
	} {
		a := tc.do()
		if a.status != tc.status || a.info.Type != kbs.ErrorType(tc.variant) || !strings.Contains(a.info.Detail, tc.detail) {
			t.Errorf("%s: got %d %s; want %d %s with %q", tc.name, a.status, a.body, tc.status, tc.variant, tc.detail)
		}
		if a.status == 403 && (a.info.Reason == nil || a.info.Reason.Rule == "") {
			t.Errorf("%s: a denial without a reason: %s", tc.name, a.body)
		}
		if a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: header %v", tc.name, a.header)
		}
	}
	if a := e.do(c, "GET", "/healthz", nil, nil); a.status != 200 || len(a.body) != 0 {
		t.Errorf("health: %d %q", a.status, a.body)
	}
	// A malformed attestation does not use the nonce up.
	h = e.begin(c, "0.4.0")
	e.do(c, "POST", "/kbs/v0/attest", []byte("{"), h.header())
	if a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, good, document), h.header()); a.status != 200 {
		t.Errorf("after a malformed body: %d %s", a.status, a.body)
	}
}

var rsaKey = func() func(t *testing.T) *rsa.PrivateKey {
	var once sync.Once
	var k *rsa.PrivateKey
	return func(t *testing.T) *rsa.PrivateKey {
		t.Helper()
		once.Do(func() {
			var err error
			if k, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
				t.Fatal(err)
			}
		})
		return k
	}
}()

func TestCookieAndChallenge(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.do(e.raw(), "POST", "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"snp","extra-params":{}}`), nil)
	if !strings.HasPrefix(string(a.body), `{"nonce":"`) || !strings.HasSuffix(strings.TrimSpace(string(a.body)), `,"extra-params":""}`) {
		t.Errorf("challenge %s", a.body)
	}
	ch, err := kbs.ParseChallenge(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := base64.StdEncoding.DecodeString(ch.Nonce); err != nil || len(n) != 32 {
		t.Errorf("nonce %q", ch.Nonce)
	}
	c := (&http.Response{Header: a.header}).Cookies()[0]
	// A guest's clock is its host's: the life counts from the answer.
	if c.MaxAge < 290 || c.MaxAge > 300 {
		t.Errorf("cookie's Max-Age %d", c.MaxAge)
	}
	if c.Path != "/kbs/v0" || !c.Secure || !c.HttpOnly || len(c.Value) > 1024 || c.Expires.IsZero() {
		t.Errorf("cookie %+v", c)
	}
	if sealed, err := base64.RawURLEncoding.DecodeString(c.Value); err != nil || bytes.Contains(sealed, []byte(ch.Nonce)) {
		t.Errorf("cookie %q: %v; want it sealed", c.Value, err)
	}
}

// TestOlderProtocols runs a whole handshake of each version.
func TestOlderProtocols(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("the secret")
	c := e.raw()
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	oaep := kbs.TEEPubKey{KTY: "RSA", Alg: kbs.AlgOAEP, N: base64.RawURLEncoding.EncodeToString(rsaKey(t).N.Bytes()), E: "AQAB"}
	pkcs1 := oaep
	pkcs1.Alg = kbs.AlgRSA15
	for _, tc := range []struct {
		version kbs.Version
		key     *kbs.TEEPubKey // nil: the handshake's EC key
		status  int
	}{
		{kbs.V010, &pkcs1, 200}, {kbs.V011, &pkcs1, 200}, {kbs.V020, &oaep, 200}, {kbs.V020, nil, 200}, {kbs.V030, nil, 200}, {kbs.V040, nil, 200}, {kbs.V040, &oaep, 200},
		{kbs.V020, &pkcs1, 200}, {kbs.V040, &pkcs1, 200}, {kbs.V010, nil, 400},
	} {
		h := e.begin(c, string(tc.version))
		key := h.key.Public()
		if tc.key != nil {
			key = *tc.key
		}
		var additional *string
		empty := ""
		if tc.version == kbs.V030 || tc.version == kbs.V040 {
			additional = &empty
		}
		digest, err := kbs.RuntimeDigest("", h.nonce, key, additional)
		if err != nil {
			t.Fatal(err)
		}
		evidence, _ := good.Evidence(t.Context(), digest)
		keyDoc, _ := json.Marshal(key)
		var body string
		switch tc.version {
		case kbs.V010:
			quoted, _ := json.Marshal(string(evidence))
			body = fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":%s}`, keyDoc, quoted)
		case kbs.V011, kbs.V020:
			body = fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":%s}`, keyDoc, evidence)
		case kbs.V030:
			body = fmt.Sprintf(`{"tee-pubkey":%s,"tee-evidence":{"primary_evidence":%s,"additional_evidence":""}}`, keyDoc, evidence)
		default:
			body = fmt.Sprintf(`{"runtime-data":{"nonce":%q,"tee-pubkey":%s},"tee-evidence":{"primary_evidence":%s,"additional_evidence":""}}`, h.nonce, keyDoc, evidence)
		}
		a := e.do(c, "POST", "/kbs/v0/attest", []byte(body), h.header())
		if a.status != tc.status {
			t.Errorf("%s %s: %d %s", tc.version, key.Alg, a.status, a.body)
		}
		if tc.status != 200 {
			continue
		}
		a = e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, h.header())
		if a.status != 200 {
			t.Errorf("%s: %d %s", tc.version, a.status, a.body)
			continue
		}
		var got string
		switch {
		case tc.version == kbs.V010 || tc.version == kbs.V011:
			got = openLegacy(t, a.body)
		case tc.key == nil:
			r, err := kbs.ParseResponse(a.body)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := h.key.Decrypt(*r)
			if err != nil {
				t.Fatal(err)
			}
			got = string(plain.Expose())
		default:
			continue // RSA responses are tested in package kbs
		}
		if got != "the secret" {
			t.Errorf("%s: got %q", tc.version, got)
		}
	}
}

// openLegacy is the guest of protocol 0.1.
func openLegacy(t *testing.T, body []byte) string {
	t.Helper()
	var r kbs.Response
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	if r.Protected != `{"alg":"RSA1_5","enc":"A256GCM"}` || r.Tag != "" {
		t.Errorf("response %+v", r)
	}
	b64 := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cek, err := rsa.DecryptPKCS1v15(nil, rsaKey(t), b64(r.EncryptedKey)) //nolint:staticcheck // the protocol's first version
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher(cek)
	aead, _ := cipher.NewGCM(block)
	plain, err := aead.Open(nil, b64(r.IV), b64(r.Ciphertext), nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

func TestDevices(t *testing.T) {
	t.Parallel()
	e := start(t, "", func(o *trustee.Options) {
		o.Verifiers[tee.NVIDIA] = fakeVerifier{name: tee.NVIDIA, class: tee.GPU}
		o.Verifiers[tee.TDX] = fakeVerifier{name: tee.TDX, class: tee.CPU}
		o.Config.Attestation.Selectors = map[string]string{"strict": "strict"}
	})
	a := e.populate("the secret")
	c := e.raw()
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	attest := func(device string) (handshake, answer) {
		h := e.begin(c, "0.4.0")
		att := kbs.Attestation{Version: kbs.V040, Nonce: h.nonce, TEEKey: h.key.Public()}
		digest, err := att.DeviceDigest("", h.nonce)
		if err != nil {
			t.Fatal(err)
		}
		evidence, _ := good.Evidence(t.Context(), digest)
		additional := fmt.Sprintf(`{%q:%s}`, device, evidence)
		att.Additional = &additional
		if digest, err = att.Digest("", h.nonce); err != nil {
			t.Fatal(err)
		}
		att.Evidence, _ = good.Evidence(t.Context(), digest)
		body, err := json.Marshal(att)
		if err != nil {
			t.Fatal(err)
		}
		return h, e.do(c, "POST", "/kbs/v0/attest", body, h.header())
	}
	h, got := attest("nvidia")
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	// Nothing says which GPUs are good: the default denies, and says so.
	r := e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, h.header())
	if r.status != 403 || r.info.Reason.Rule != "nvidia.measurements" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if err := a.SetAttestationPolicy(t.Context(), "default_gpu", "package policy\ntrust_claims := {\"hardware\": 2, \"executables\": 3, \"configuration\": 2}"); err != nil {
		t.Fatal(err)
	}
	h, _ = attest("nvidia")
	if r := e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, h.header()); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	// A second CPU is no device.
	if _, got := attest("tdx"); got.status != 400 || !strings.Contains(got.info.Detail, "no device") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestOverload(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	broken.Store(true)
	e := start(t, "", func(o *trustee.Options) {
		o.Config.Limits.Rate, o.Config.Limits.Burst = 0.001, 3
		o.Verifiers = map[tee.Name]tee.Verifier{tee.SNP: fakeVerifier{name: tee.SNP, class: tee.CPU, broken: &broken}}
	})
	c := e.raw()
	h := e.begin(c, "0.4.0")
	e.begin(c, "0.4.0")
	// Evidence that cannot be judged is neither good nor bad.
	a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, fakeAttester{field: fieldOf(t, document)}, ""), h.header())
	if a.status != 503 || a.header.Get("Retry-After") == "" || strings.Contains(string(a.body), "collateral") {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if !strings.Contains(e.log.String(), "collateral is unreachable") {
		t.Error("the cause is not in the log")
	}
	// One client has only so many requests; whether the trustee is well is not one of them.
	a = e.do(c, "POST", "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"snp","extra-params":""}`), nil)
	if a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := e.do(c, "GET", path, nil, nil); a.status != 200 {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// TestSlowVerification: a handshake that waits holds nobody else up, and time out is 503.
func TestSlowVerification(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	e := start(t, "", func(o *trustee.Options) {
		o.Config.Limits.RequestTimeout = config.Duration(500 * time.Millisecond)
		o.Verifiers = map[tee.Name]tee.Verifier{tee.SNP: fakeVerifier{name: tee.SNP, class: tee.CPU, gate: gate}}
	})
	c := e.raw()
	slow := e.begin(c, "0.4.0")
	body := e.attestation(slow, fakeAttester{field: fieldOf(t, document)}, "")
	done := make(chan answer, 1)
	go func() { done <- e.do(c, "POST", "/kbs/v0/attest", body, slow.header()) }()
	for range 5 {
		e.begin(c, "0.4.0")
	}
	if a := <-done; a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
	close(gate)
}

func TestLargeHeader(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	// A token of eight GPUs reaches the handler: 401 and not 431.
	a := e.do(e.raw(), "GET", "/kbs/v0/resource/demo/key/1", nil, map[string]string{"Authorization": "Bearer " + strings.Repeat("a", 200<<10)})
	if a.status != 401 {
		t.Errorf("%d", a.status)
	}
}

// TestCookieAndBearer: a session whose token has expired is no worse than none.
func TestCookieAndBearer(t *testing.T) {
	t.Parallel()
	e := start(t, "", func(o *trustee.Options) { o.Config.Token.Lifetime = config.Duration(time.Minute) })
	e.populate("the secret")
	c := e.raw()
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	attest := func() (handshake, string) {
		h := e.begin(c, "0.4.0")
		token, err := kbs.ParseTokenResponse(e.do(c, "POST", "/kbs/v0/attest", e.attestation(h, good, document), h.header()).body)
		if err != nil {
			t.Fatal(err)
		}
		return h, token.Token
	}
	get := func(h handshake, token string) answer {
		header := h.header()
		if token != "" {
			header["Authorization"] = "Bearer " + token
		}
		return e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, header)
	}
	old, expired := attest()
	e.clock.advance(2 * time.Minute)
	_, fresh := attest()
	if a := get(old, fresh); a.status != 200 {
		t.Errorf("expired session, good bearer: %d %s", a.status, a.body)
	}
	for name, a := range map[string]answer{"alone": get(old, ""), "with its own token": get(old, expired)} {
		if a.status != 401 || !strings.Contains(a.info.Detail, "expired") {
			t.Errorf("expired session %s: %d %s", name, a.status, a.body)
		}
	}
}
