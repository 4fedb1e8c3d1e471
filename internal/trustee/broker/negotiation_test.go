package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

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
	w = b.do(call{tenant: "acme", method: "GET", path: secretPath, bearer: tokenOf(t, w)})
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
	tokenOf(t, b.attest(g))
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
			tokenOf(t, b.attest(g))
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
	tokenOf(t, b.attest(&guest{tenant: tenant.Default, version: kbs.V040, cookie: w.Result().Cookies()[0].Value, nonce: ch.Nonce, key: k}))
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
	tokenOf(t, b.do(call{tenant: "acme", method: "POST", path: kbs.AttestPath, body: body, cookie: g.cookie}))
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
