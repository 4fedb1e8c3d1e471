package broker

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/problem"
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
			tok := tokenOf(t, w)
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
	tokenOf(t, b.attest(g))
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
		tokenOf(t, b.attest(fresh))
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
