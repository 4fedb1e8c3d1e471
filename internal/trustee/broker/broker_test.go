package broker

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

const secretPath = "/kbs/v0/resource/a/b/c"

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func rsaPub(alg string) kbs.TEEPubKey {
	b64 := base64.RawURLEncoding.EncodeToString
	return kbs.TEEPubKey{KTY: "RSA", Alg: alg, N: b64(rsaKey().N.Bytes()), E: b64(big.NewInt(int64(rsaKey().E)).Bytes())}
}

// TestHandshakes runs every protocol version with every kind of key.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	keys := map[string]*kbs.TEEKey{}
	for _, kind := range []kbs.KeyType{kbs.KeyP256, kbs.KeyP521, kbs.KeyMLKEM} {
		k, err := kbs.GenerateTEEKeyOf(rand.Reader, kind)
		if err != nil {
			t.Fatal(err)
		}
		keys[string(kind)] = k
	}
	for _, version := range []kbs.Version{kbs.V010, kbs.V011, kbs.V020, kbs.V030, kbs.V040} {
		for _, kind := range []string{string(kbs.KeyP256), string(kbs.KeyP521), string(kbs.KeyMLKEM), kbs.AlgOAEP, kbs.AlgRSA15} {
			b := newBench(t, nil)
			g := b.begin(t, "acme", version, tee.SNP)
			pub := rsaPub(kind)
			if k := keys[kind]; k != nil {
				pub = k.Public()
			}
			w := b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: g.body(pub), cookie: g.cookie})
			if legacy := version == kbs.V010 || version == kbs.V011; legacy && kind != kbs.AlgRSA15 {
				if e := info(t, w); w.Code != 400 || !strings.Contains(e.Detail, "expected RSA1_5") || len(b.store.finished) != 0 {
					t.Errorf("%s %s: %d %s", version, kind, w.Code, w.Body)
				}
				continue
			}
			tok := token(t, w)
			asked := b.evaluator.asked[0]
			var additional *string
			if empty := ""; version == kbs.V030 || version == kbs.V040 {
				additional = &empty
			}
			want, err := kbs.RuntimeDigest("", g.nonce, pub, additional)
			if err != nil || string(asked.Primary.ReportData) != string(want) || asked.Tenant != "acme" || asked.Protocol != string(version) {
				t.Errorf("%s %s: asked %+v", version, kind, asked)
			}
			for _, c := range []call{{cookie: g.cookie}, {bearer: tok}} {
				c.tenant, c.method, c.path = "acme", "GET", secretPath
				w := b.do(c)
				if w.Code != 200 {
					t.Errorf("%s %s: %d %s", version, kind, w.Code, w.Body)
					continue
				}
				if strings.Contains(w.Body.String(), "secret of") {
					t.Fatal("not encrypted")
				}
				if k := keys[kind]; k != nil {
					r, err := kbs.ParseResponse(w.Body.Bytes())
					if err != nil {
						t.Fatal(err)
					}
					if plain, err := k.Decrypt(*r); err != nil || string(plain.Expose()) != "secret of acme" {
						t.Errorf("%s %s: %q, %v", version, kind, plain.Expose(), err)
					}
				}
				if legacy := strings.Contains(w.Body.String(), `"protected":"{`); legacy != (version == kbs.V010 || version == kbs.V011) {
					t.Errorf("%s: form %s", version, w.Body)
				}
			}
		}
	}
}

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
		if len(r.Claims) > maxClaims || !strings.Contains(string(r.Claims), `"coffer.claims_omitted":true`) || strings.Contains(string(r.Claims), "aa") != (name == "initdata") {
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

// TestSingleUse: a nonce is good for one verdict, whatever it is and however
// many ask at once.
func TestSingleUse(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	g, _ := b.attested(t, "acme")
	if w := b.attest(g); w.Code != 401 || !strings.Contains(info(t, w).Detail, "used up") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	// A replica that has not seen it yet finds out when it records.
	b.store.blind = true
	if w := b.attest(g); w.Code != 401 || len(b.store.records) != 1 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	b.store.blind = false

	refused := problem.Denied(problem.Attestation, "refused", kbs.Reason{Rule: "snp.signature"})
	b = newBench(t, func(b *bench) { b.evaluator.refuse = refused })
	g = b.begin(t, "acme", kbs.V040, tee.SNP)
	if w := b.attest(g); w.Code != 403 || info(t, w).Reason.Rule != "snp.signature" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if r := b.store.last(t); r.Granted || r.Status != 403 || r.InitData == "" || r.Reasons[0].Rule != "snp.signature" {
		t.Errorf("%+v", r)
	}
	b.evaluator.refuse = nil
	if w := b.attest(g); w.Code != 401 {
		t.Errorf("after a refusal: %d %s", w.Code, w.Body)
	}

	b = newBench(t, func(b *bench) { b.evaluator.gate = make(chan struct{}) })
	other, err := New(b.o) // another replica
	if err != nil {
		t.Fatal(err)
	}
	first := b.broker
	g = b.begin(t, "acme", kbs.V040, tee.SNP)
	var wg sync.WaitGroup
	codes := make(chan int, 16)
	for i := range cap(codes) {
		replica := *b
		if replica.broker = first; i%2 == 1 {
			replica.broker = other
		}
		wg.Go(func() { codes <- replica.attest(g).Code })
	}
	close(b.evaluator.gate)
	wg.Wait()
	close(codes)
	count := map[int]int{}
	for c := range codes {
		count[c]++
	}
	if count[200] != 1 || count[401] != cap(codes)-1 || len(b.store.records) != 1 {
		t.Errorf("statuses %v, %d records", count, len(b.store.records))
	}
	// A malformed body is no verdict.
	g = b.begin(t, "acme", kbs.V040, tee.SNP)
	if w := b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: "{", cookie: g.cookie}); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	token(t, b.attest(g))
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
		tok := token(t, b.attest(g))
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

// TestTenants: cookies and tokens are one tenant's, and so are paths.
func TestTenants(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	g, tok := b.attested(t, "acme")
	for _, other := range []tenant.Name{tenant.Default, "other"} {
		if w := b.do(call{tenant: other, method: "GET", path: secretPath, cookie: g.cookie}); w.Code != 401 || info(t, w).Type != kbs.ErrorType("TokenNotFound") {
			t.Errorf("cookie at %s: %d %s", other, w.Code, w.Body)
		}
		if w := b.do(call{tenant: other, method: "GET", path: secretPath, bearer: tok}); w.Code != 401 {
			t.Errorf("token at %s: %d %s", other, w.Code, w.Body)
		}
		fresh := b.begin(t, "acme", kbs.V040, tee.SNP)
		fresh.tenant = other
		if w := b.attest(fresh); w.Code != 401 {
			t.Errorf("session at %s: %d %s", other, w.Code, w.Body)
		}
		fresh.tenant = "acme"
		token(t, b.attest(fresh))
	}
	for n, want := range map[tenant.Name]string{tenant.Default: "/kbs/v0", "acme": "/tenants/acme/kbs/v0"} {
		w := b.do(call{tenant: n, method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":""}`})
		c := w.Result().Cookies()[0]
		if c.Path != want || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.MaxAge != 300 || len(c.Value) > 256 {
			t.Errorf("%+v", c)
		}
	}
}

// TestExpiry: a session ends on time, and with it its token.
func TestExpiry(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	g, tok := b.attested(t, "acme")
	fresh := b.begin(t, "acme", kbs.V040, tee.SNP)
	b.now = b.now.Add(5 * time.Minute)
	if w := b.attest(fresh); w.Code != 401 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	c := call{tenant: "acme", method: "GET", path: secretPath, cookie: g.cookie}
	if w := b.do(c); w.Code != 401 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if c.bearer = tok; b.do(c).Code != 200 {
		t.Error("an expired session stands in the bearer's way")
	}
	// Of a replica whose clock is far ahead, or one that was set back.
	b.now = b.now.Add(-time.Hour)
	if w := b.attest(fresh); w.Code != 401 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestDowngrade: a session's version is the one its request named.
func TestDowngrade(t *testing.T) {
	t.Parallel()
	versions := []kbs.Version{kbs.V010, kbs.V020, kbs.V040}
	for _, begun := range versions {
		for _, sent := range versions {
			if begun == sent {
				continue
			}
			b := newBench(t, nil)
			g := b.begin(t, "acme", begun, tee.SNP)
			g.version = sent
			w := b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: g.body(rsaPub(kbs.AlgRSA15)), cookie: g.cookie})
			if w.Code == 200 && b.evaluator.asked[0].Protocol != string(begun) {
				t.Errorf("%s in a session of %s: %d", sent, begun, w.Code)
			}
			if w.Code != 400 && (w.Code != 200 || sent == kbs.V040) {
				t.Errorf("%s in a session of %s: %d %s", sent, begun, w.Code, w.Body)
			}
		}
	}
	// A token of the new protocol is never answered in the form of the old one.
	b := newBench(t, nil)
	g := b.begin(t, "acme", kbs.V040, tee.SNP)
	w := b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: g.body(rsaPub(kbs.AlgRSA15)), cookie: g.cookie})
	w = b.do(call{tenant: "acme", method: "GET", path: secretPath, bearer: token(t, w)})
	if r, err := kbs.ParseResponse(w.Body.Bytes()); err != nil || r.Tag == "" || strings.HasPrefix(r.Protected, "{") {
		t.Errorf("%s, %v", w.Body, err)
	}
}

type challenger struct {
	nonce string
	err   error
}

func (c challenger) Challenge(context.Context, tenant.Name, *kbs.Request) (string, error) {
	return c.nonce, c.err
}

// TestSecureExecution: a challenge that is a document, and SHA-512.
func TestSecureExecution(t *testing.T) {
	t.Parallel()
	with := func(c Challenger) func(*bench) {
		return func(b *bench) { b.o.Challengers = map[tee.Name]Challenger{tee.SE: c} }
	}
	doc := `{"request_blob":"` + strings.Repeat("A<", 20_000) + `"}`
	b := newBench(t, with(challenger{nonce: doc}))
	const auth = `{"version":"0.4.0","tee":"se","extra-params":%s}`
	for extra, want := range map[string]string{
		`""`: "", `{"supported-hash-algorithms":["sha256","SHA512"]}`: "sha512", `{"supported-hash-algorithms":["sha384"]}`: "400",
	} {
		w := b.do(call{method: "POST", path: kbs.AuthPath, body: fmt.Sprintf(auth, extra)})
		if w.Code != 200 {
			if want != "400" || w.Code != 400 {
				t.Errorf("%s: %d %s", extra, w.Code, w.Body)
			}
			continue
		}
		ch, err := kbs.ParseChallenge(w.Body.Bytes())
		if err != nil || ch.HashAlgorithm != want || ch.Nonce != doc {
			t.Errorf("%s: %q, %v", extra, ch.HashAlgorithm, err)
		}
	}
	g := b.begin(t, "acme", kbs.V040, tee.SE)
	token(t, b.attest(g))
	want, err := kbs.RuntimeDigest(kbs.SHA512, doc, g.key.Public(), new(string))
	if err != nil || string(b.evaluator.asked[0].Primary.ReportData) != string(want) {
		t.Errorf("%x, %v", b.evaluator.asked[0].Primary.ReportData, err)
	}
	g = b.begin(t, "acme", kbs.V040, tee.SE)
	g.nonce = "another document, of another handshake"
	if w := b.attest(g); w.Code != 403 || info(t, w).Reason.Rule != "session.nonce" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for name, tc := range map[string]struct {
		change func(*bench)
		status int
	}{
		"no challenger": {nil, 403}, "broken": {with(challenger{err: errDown}), 500}, "no nonce": {with(challenger{nonce: "x"}), 500},
	} {
		b := newBench(t, tc.change)
		w := b.do(call{method: "POST", path: kbs.AuthPath, body: fmt.Sprintf(auth, `""`)})
		if e := info(t, w); w.Code != tc.status || tc.status == 403 && (e.Reason.Rule != "tee.enabled" || len(b.store.records) != 1) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func TestNegotiation(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for list, want := range map[string]string{
		`["sha256","sha384","sha512","sm3"]`: "", `[]`: "", `null`: "", `["sha256","sha512"]`: "sha512", `["SHA256"]`: "sha256", `["sm3"]`: "400",
	} {
		w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":` + list + `}}`})
		if want == "400" {
			if w.Code != 400 || info(t, w).Type != kbs.ErrorType("AttestationError") {
				t.Errorf("%s: %d %s", list, w.Code, w.Body)
			}
			continue
		}
		ch, err := kbs.ParseChallenge(w.Body.Bytes())
		if err != nil || ch.HashAlgorithm != want {
			t.Errorf("%s: %+v, %v", list, ch, err)
		}
		if want == "" && !strings.Contains(w.Body.String(), `"extra-params":""`) {
			t.Errorf("%s: %s", list, w.Body)
		}
		// What was negotiated is what is expected.
		if want != "" {
			k, err := kbs.GenerateTEEKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			g := &guest{tenant: tenant.Default, version: kbs.V040, cookie: w.Result().Cookies()[0].Value, nonce: ch.Nonce, key: k}
			token(t, b.attest(g))
			digest, err := kbs.RuntimeDigest(want, ch.Nonce, k.Public(), new(string))
			if asked := b.evaluator.asked; err != nil || string(asked[len(asked)-1].Primary.ReportData) != string(digest) {
				t.Errorf("%s: %v", list, err)
			}
		}
	}
	w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"attestation-policy-selector":"strict"}}`})
	k, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := kbs.ParseChallenge(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	token(t, b.attest(&guest{tenant: tenant.Default, version: kbs.V040, cookie: w.Result().Cookies()[0].Value, nonce: ch.Nonce, key: k}))
	if asked := b.evaluator.asked; asked[len(asked)-1].Policy != "strict-id" {
		t.Errorf("policy %q", asked[len(asked)-1].Policy)
	}
}

// TestDevices: each kind gets its own digest, the primary one of all.
func TestDevices(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	g := b.begin(t, "acme", kbs.V040, tee.SNP)
	devices := `{"sampledevice":{"b":2},"nvidia":{"a":1}}`
	body := strings.Replace(g.body(g.key.Public()), `"additional_evidence":""`, `"additional_evidence":`+string(quote(devices)), 1)
	token(t, b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: body, cookie: g.cookie}))
	asked := b.evaluator.asked[0]
	primary, err1 := kbs.RuntimeDigest("", g.nonce, g.key.Public(), &devices)
	device, err2 := kbs.RuntimeDigest("", g.nonce, g.key.Public(), nil)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if string(asked.Primary.ReportData) != string(primary) || asked.Runtime["additional-evidence"] != devices || len(asked.Devices) != 2 {
		t.Errorf("%+v", asked)
	}
	for i, name := range []tee.Name{tee.NVIDIA, tee.SampleDevice} {
		d := asked.Devices[i]
		if d.TEE != name || string(d.ReportData) != string(device) || d.Runtime["additional-evidence"] != nil || d.Runtime["nonce"] != g.nonce {
			t.Errorf("%+v", d)
		}
	}
}

func TestInitData(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for doc, status := range map[string]int{
		`{"format":"toml","body":"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"}`: 200,
		`{"format":"json","body":"{}"}`: 400, `{"format":"toml","body":"version = 7"}`: 400, `{"format":"toml","body":7}`: 400,
	} {
		g := b.begin(t, "acme", kbs.V040, tee.SNP)
		body := strings.Replace(g.body(g.key.Public()), `{"runtime-data"`, `{"init-data":`+doc+`,"runtime-data"`, 1)
		w := b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: body, cookie: g.cookie})
		if w.Code != status {
			t.Errorf("%s: %d %s", doc, w.Code, w.Body)
		}
	}
	if x := b.evaluator.asked[0].Primary.InitData; len(b.evaluator.asked) != 1 || x == nil || len(x.Digest) != 32 || x.Document == nil {
		t.Errorf("%+v", x)
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

// TestStatuses: one row for each way out.
func TestStatuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	_, tok := b.attested(t, tenant.Default)
	fresh := func() string { return b.begin(t, tenant.Default, kbs.V040, tee.SNP).cookie }
	for name, tc := range map[string]struct {
		call
		status  int
		variant string
		detail  string
	}{
		"auth: GET":              {call{method: "GET", path: kbs.AuthPath}, 405, "InvalidRequestPath", "POST"},
		"auth: HEAD":             {call{method: "HEAD", path: kbs.AuthPath}, 405, "InvalidRequestPath", "POST"},
		"auth: JSON":             {call{method: "POST", path: kbs.AuthPath, body: "{"}, 400, "SerdeError", ""},
		"auth: version":          {call{method: "POST", path: kbs.AuthPath, body: `{"version":"9","tee":"snp"}`}, 400, "AttestationError", "Mismatch"},
		"auth: TEE":              {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"abacus"}`}, 400, "SerdeError", "unknown TEE"},
		"auth: not enabled":      {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"tdx"}`}, 403, "AttestationError", "one of sample, snp"},
		"auth: selector":         {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"attestation-policy-selector":"x"}}`}, 400, "AttestationError", "selector"},
		"auth: metadata":         {call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":{"tee-metadata":{"primary_tee":{"tee":"se"}}}}`}, 400, "SerdeError", "expected \"snp\""},
		"auth: large":            {call{method: "POST", path: kbs.AuthPath, body: strings.Repeat(" ", kbs.MaxRequestBytes+1)}, 413, "LimitExceeded", "65536"},
		"attest: GET":            {call{method: "GET", path: kbs.AttestPath}, 405, "InvalidRequestPath", "POST"},
		"attest: no cookie":      {call{method: "POST", path: kbs.AttestPath}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: odd cookie":     {call{method: "POST", path: kbs.AttestPath, cookie: "../x"}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: long cookie":    {call{method: "POST", path: kbs.AttestPath, cookie: strings.Repeat("a", 5000)}, 401, "AttestationError", "no kbs-session-id cookie"},
		"attest: unknown cookie": {call{method: "POST", path: kbs.AttestPath, cookie: strings.Repeat("a", 130)}, 401, "AttestationError", "used up"},
		"attest: JSON":           {call{method: "POST", path: kbs.AttestPath, cookie: fresh(), body: "x"}, 400, "SerdeError", ""},
		"attest: large":          {call{method: "POST", path: kbs.AttestPath, cookie: fresh(), body: strings.Repeat(" ", 3<<20)}, 413, "LimitExceeded", "2097152"},
		"no token":               {call{method: "GET", path: secretPath}, 401, "TokenNotFound", "POST /kbs/v0/auth"},
		"unattested session":     {call{method: "GET", path: secretPath, cookie: fresh()}, 401, "TokenNotFound", "POST /kbs/v0/auth"},
		"bad token":              {call{method: "GET", path: secretPath, bearer: "x.y.z"}, 401, "TokenVerifierError", "token"},
		"huge token":             {call{method: "GET", path: secretPath, bearer: strings.Repeat("a", 600<<10)}, 401, "TokenVerifierError", "POST /kbs/v0/auth"},
		"denied":                 {call{method: "GET", path: "/kbs/v0/resource/deny/b/c", bearer: tok}, 403, "PolicyDeny", "resource deny/b/c is denied"},
		"denied plugin":          {call{method: "GET", path: "/kbs/v0/echo/deny", bearer: tok}, 403, "PolicyDeny", "kbs+echo:///deny is denied"},
		"missing":                {call{method: "GET", path: "/kbs/v0/resource/a/b/none", bearer: tok}, 404, "ResourceNotFound", "a/b/none"},
		"segments":               {call{method: "GET", path: "/kbs/v0/resource/a/b", bearer: tok}, 400, "InvalidRequestPath", "three segments"},
		"dots":                   {call{method: "GET", path: "/kbs/v0/resource/a/../c", bearer: tok}, 400, "InvalidRequestPath", "dot"},
		"long":                   {call{method: "GET", path: "/kbs/v0/resource/a/b/" + strings.Repeat("a", 500), bearer: tok}, 400, "InvalidRequestPath", "bytes"},
		"query":                  {call{method: "GET", path: secretPath + "?a=%zz", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: NUL":             {call{method: "GET", path: secretPath + "?a=%00", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: UTF-8":           {call{method: "GET", path: secretPath + "?a=%ff", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: many":            {call{method: "GET", path: secretPath + "?" + strings.Repeat("a=1&", 1000), bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: names":           {call{method: "GET", path: secretPath + "?a1&a2&a3&a4&a5&a6&a7&a8&a9&b1&b2&b3&b4&b5&b6&b7&b8&b9&c1&c2&c3&c4&c5&c6&c7&c8&c9&d1&d2&d3&d4&d5&d6", bearer: tok}, 400, "InvalidRequestPath", "query"},
		"query: long":            {call{method: "GET", path: secretPath + "?a=" + strings.Repeat("a", 9000), bearer: tok}, 400, "InvalidRequestPath", "query"},
		"body: large":            {call{method: "POST", path: "/kbs/v0/echo/x", bearer: tok, body: strings.Repeat(" ", 70<<10)}, 413, "LimitExceeded", "65536"},
		"plugin":                 {call{method: "GET", path: "/kbs/v0/none/x", bearer: tok}, 404, "PluginNotFound", "plugin"},
		"plugin: no path":        {call{method: "DELETE", path: "/kbs/v0/echo/x", bearer: tok}, 404, "InvalidRequestPath", "no such path"},
		"plugin: method":         {call{method: "PATCH", path: "/kbs/v0/echo/x", bearer: tok}, 405, "InvalidRequestPath", "GET, POST, PUT or DELETE"},
		"plugin: admin":          {call{method: "GET", path: "/kbs/v0/echo/admin", bearer: tok}, 403, "AdminAuthAccess", "administrators"},
	} {
		w := b.do(tc.call)
		e := info(t, w)
		if w.Code != tc.status || e.Type != kbs.ErrorType(tc.variant) || !strings.Contains(e.Detail, tc.detail) || len(e.Detail) > 1000 && tc.status != 403 {
			t.Errorf("%s: got %d %.500s; want %d %s with %q", name, w.Code, w.Body, tc.status, tc.variant, tc.detail)
		}
		if w.Code == 403 && tc.variant != "AdminAuthAccess" && (e.Reason == nil || len(e.Reasons) == 0) {
			t.Errorf("%s: a denial without a reason: %s", name, w.Body)
		}
		if w.Header().Get("Cache-Control") != "no-store" || w.Code == 405 && w.Header().Get("Allow") == "" {
			t.Errorf("%s: header %v", name, w.Header())
		}
	}
	for cause, status := range map[error]int{errDown: 500, store.ErrUnavailable: 503} {
		c := fresh()
		b.store.read = cause
		for _, call := range []call{{method: "POST", path: kbs.AttestPath, cookie: c}, {method: "GET", path: secretPath, cookie: c}} {
			if w := b.do(call); w.Code != status || status == 503 && w.Header().Get("Retry-After") == "" {
				t.Errorf("%v: %s: %d %s", cause, call.path, w.Code, w.Body)
			}
		}
		b.store.read = nil
	}
	b = newBench(t, func(b *bench) { b.o.Tokens = fakeTokens{err: store.ErrUnavailable} })
	if w := b.do(call{method: "GET", path: secretPath, bearer: "x"}); w.Code != 503 {
		t.Errorf("keys cannot be looked up: %d %s", w.Code, w.Body)
	}
	b = newBench(t, func(b *bench) { b.o.Rand = io.LimitReader(rand.Reader, 10) })
	if w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":"0.4.0","tee":"snp","extra-params":""}`}); w.Code != 500 {
		t.Errorf("no randomness: %d %s", w.Code, w.Body)
	}
}

func TestHandles(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for path, want := range map[string]bool{
		"POST /kbs/v0/auth": true, "GET /kbs/v0/attest": true, "GET /kbs/v0/resource/a/b/c": true, "GET /kbs/v0/resource/a": true, "GET /kbs/v0/resource/../x": true,
		"GET /kbs/v0/resource": false, "GET /kbs/v0/resource/": false, "POST /kbs/v0/resource/a/b/c": false, "DELETE /kbs/v0/resource/a/b/c": false, "POST /kbs/v0/resource/../x": false,
		"GET /kbs/v0/echo": true, "POST /kbs/v0/echo/x": true, "GET /kbs/v0/echo/admin": false, "DELETE /kbs/v0/echo/x": true,
		"GET /kbs/v0/none": false, "GET /kbs/v0/resource-policy": false, "GET /kbs/v0": false, "GET /kbs/v0/": false, "GET /healthz": false, "GET /admin/v1/x": false, "POST /kbs/v1/auth": false,
	} {
		method, p, _ := strings.Cut(path, " ")
		if got := b.broker.Handles(httptest.NewRequest(method, p, nil)); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		"store": func(o *Options) { o.Store = nil }, "plugins": func(o *Options) { o.Plugins = nil }, "clock": func(o *Options) { o.Now = nil },
		"timeout": func(o *Options) { o.SessionTimeout = 0 }, "body": func(o *Options) { o.MaxBody = 0 },
	} {
		o := newBench(t, nil).o
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

func FuzzAttest(f *testing.F) {
	f.Add("0.4.0", `{"runtime-data":{"nonce":"x","tee-pubkey":{}},"tee-evidence":{"primary_evidence":{}}}`)
	f.Add("0.1.0", `{"tee-pubkey":{"kty":"RSA"},"tee-evidence":"{}"}`)
	f.Fuzz(func(t *testing.T, version, body string) {
		b := newBench(t, nil)
		w := b.do(call{method: "POST", path: kbs.AuthPath, body: `{"version":` + string(quote(version)) + `,"tee":"snp","extra-params":""}`})
		if w.Code != 200 {
			info(t, w)
			return
		}
		w = b.do(call{method: "POST", path: kbs.AttestPath, body: body, cookie: w.Result().Cookies()[0].Value})
		if w.Code >= 500 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if len(b.store.finished) != len(b.store.records) {
			t.Fatal("a verdict without its record")
		}
	})
}
