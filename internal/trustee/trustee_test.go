package trustee_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// refusal is the StatusError a guest's request must end in.
func refusal(t *testing.T, err error, status int, rule string) kbs.Reason {
	t.Helper()
	se, ok := errors.AsType[*kbs.StatusError](err)
	if !ok {
		t.Fatalf("got %v, want a status error", err)
	}
	if se.Status != status {
		t.Fatalf("got %v, want status %d", err, status)
	}
	if rule == "" {
		return kbs.Reason{}
	}
	if se.Info.Reason == nil || se.Info.Reason.Rule != rule {
		t.Fatalf("got %v, want rule %s", err, rule)
	}
	return *se.Info.Reason
}

func TestRelease(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.populate("the secret")
	g := e.guest(fakeAttester{measurement: measurement, field: fieldOf(t, document)}, document)
	got, err := g.Resource(t.Context(), uri(t, "demo/key/1"))
	if err != nil || string(got.Expose()) != "the secret" {
		t.Fatalf("got %q, %v", got.Expose(), err)
	}
	// 404 is told to those who were allowed only.
	_, err = g.Resource(t.Context(), uri(t, "demo/key/missing"))
	refusal(t, err, http.StatusNotFound, "")
	_, err = g.Resource(t.Context(), uri(t, "other/key/missing"))
	refusal(t, err, http.StatusForbidden, "initdata.registered")

	v, err := a.Verdicts(t.Context(), admin.VerdictQuery{})
	if err != nil || len(v) != 4 {
		t.Fatalf("verdicts %+v, %v", v, err)
	}
	// Newest first.
	for i, want := range []struct {
		kind, resource string
		granted        bool
		status         int
	}{{"resource", "other/key/missing", false, 403}, {"resource", "demo/key/missing", false, 404}, {"resource", "demo/key/1", true, 200}, {"attestation", "", true, 200}} {
		if v[i].Kind != want.kind || v[i].Resource != want.resource || v[i].Granted != want.granted || v[i].Status != want.status ||
			v[i].Session != v[3].Session || v[i].Session == "" || v[i].TEE != "snp" || v[i].Simulated || v[i].InitData == "" || v[i].At.IsZero() ||
			!bytes.Contains(v[i].Claims, []byte(`"measurement":"aa11"`)) {
			t.Errorf("verdict %d: %+v", i, v[i])
		}
	}
	if v[0].Reason == nil || v[0].Reason.Rule != "initdata.registered" {
		t.Errorf("reason %+v", v[0].Reason)
	}
	if one, err := a.Verdicts(t.Context(), admin.VerdictQuery{Limit: 1, Session: v[0].Session}); err != nil || len(one) != 1 {
		t.Errorf("%+v, %v", one, err)
	}
}

// TestDenials: a denied resource says which claim, what was expected and what came.
func TestDenials(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	relaxed := start(t, "", func(o *trustee.Options) { o.Config.Policy.AllowSimulated = true })
	for _, x := range []*env{e, relaxed} {
		x.populate("the secret")
	}
	other := strings.Replace(document, "x = 1", "x = 2", 1)
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	for _, tc := range []struct {
		name           string
		env            *env
		attester       fakeAttester
		doc            string
		rule, claim    string
		expected, got  string
		atAttest       bool
		granted        bool
		detailContains string
	}{
		{name: "good", env: e, attester: good, doc: document, granted: true},
		{name: "good without the document", env: e, attester: good, granted: true},
		{name: "unknown measurement", env: e, attester: fakeAttester{measurement: "cc33", field: good.field}, doc: document,
			rule: "snp.launch-measurement", claim: "measurement", expected: "snp_launch_measurement, which allows [aa11 (guest 1.2), bb22 (guest 1.2)]", got: "cc33"},
		{name: "initdata of another pod", env: e, attester: fakeAttester{measurement: measurement, field: fieldOf(t, other)}, doc: other,
			rule: "initdata.registered", claim: "init_data", expected: digestOf(t, document)[:64] + " (web)", got: digestOf(t, other)[:64]},
		{name: "initdata swapped", env: e, attester: good, doc: other, atAttest: true,
			rule: "fake.host_data", claim: "host_data", expected: digestOf(t, other), got: digestOf(t, document)[:64]},
		{name: "unsealed", env: e, attester: fakeAttester{measurement: measurement, field: make([]byte, 32)},
			rule: "initdata.sealed", claim: "init_data", expected: "registered for demo/key/1", got: "no initdata"},
		{name: "simulated", env: e, attester: fakeAttester{measurement: measurement, field: good.field, simulated: true}, doc: document,
			rule: "evidence.simulated", claim: "simulated", expected: "false", got: "true"},
		{name: "simulated, allowed", env: relaxed, attester: fakeAttester{measurement: measurement, field: good.field, simulated: true}, doc: document, granted: true},
		{name: "simulated, allowed, drifted", env: relaxed, attester: fakeAttester{measurement: "cc33", field: good.field, simulated: true}, doc: document,
			rule: "snp.launch-measurement", claim: "measurement", expected: "aa11", got: "cc33"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := tc.env.guest(tc.attester, tc.doc)
			err := g.Attest(t.Context())
			if (err != nil) != tc.atAttest {
				t.Fatalf("attest: %v", err)
			}
			if err == nil {
				var got secret.Bytes
				got, err = g.Resource(t.Context(), uri(t, "demo/key/1"))
				if tc.granted {
					if err != nil || string(got.Expose()) != "the secret" {
						t.Fatalf("got %v", err)
					}
					return
				}
			}
			r := refusal(t, err, http.StatusForbidden, tc.rule)
			if r.Claim != tc.claim || !strings.Contains(r.Expected, tc.expected) || !strings.Contains(r.Got, tc.got) || r.Help == "" {
				t.Errorf("reason %+v", r)
			}
			v, err := tc.env.admin().Verdicts(t.Context(), admin.VerdictQuery{Limit: 1})
			if err != nil || len(v) != 1 || v[0].Granted || v[0].Reason == nil || *v[0].Reason != r {
				t.Errorf("verdict %+v, %v", v, err)
			}
		})
	}
	v := relaxed.do(relaxed.raw(), "GET", "/admin/v1/verdicts?limit=1000", nil, adminToken(t, relaxed.AdminKey(), relaxed.clock.now(), nil))
	if n, m := bytes.Count(v.body, []byte(`"allow_simulated":true`)), bytes.Count(v.body, []byte(`"at":`)); n != m || n == 0 {
		t.Errorf("the relaxation is in %d of %d verdicts", n, m)
	}
	if log := relaxed.log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "policy.allow_simulated") {
		t.Error("the relaxation is not in the log")
	}
}

// TestReplay: evidence serves one handshake and one key.
func TestReplay(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.populate("the secret")
	c := e.raw()
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}

	first := e.begin(c, "0.4.0")
	body := e.attestation(first, good, document)
	if got := e.do(c, "POST", "/kbs/v0/attest", body, first.header()); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	// The same attestation again, in the same session: its nonce is used up. No old token.
	if got := e.do(c, "POST", "/kbs/v0/attest", body, first.header()); got.status != 401 || bytes.Contains(got.body, []byte("token\"")) {
		t.Errorf("%d %s", got.status, got.body)
	}
	// The same attestation in another session: its nonce is foreign.
	second := e.begin(c, "0.4.0")
	got := e.do(c, "POST", "/kbs/v0/attest", body, second.header())
	if got.status != 403 || got.info.Reason == nil || got.info.Reason.Rule != "session.nonce" || got.info.Reason.Expected != second.nonce || got.info.Reason.Got != first.nonce {
		t.Errorf("%d %s", got.status, got.body)
	}
	// And that session is used up, too.
	if got := e.do(c, "POST", "/kbs/v0/attest", e.attestation(second, good, document), second.header()); got.status != 401 {
		t.Errorf("%d %s", got.status, got.body)
	}
	// Old evidence under the right nonce and a new key: report_data differs.
	third := e.begin(c, "0.4.0")
	var m, n map[string]json.RawMessage
	if err := json.Unmarshal(e.attestation(third, good, document), &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, &n); err != nil {
		t.Fatal(err)
	}
	m["tee-evidence"] = n["tee-evidence"]
	forged, _ := json.Marshal(m)
	got = e.do(c, "POST", "/kbs/v0/attest", forged, third.header())
	if got.status != 403 || got.info.Reason == nil || got.info.Reason.Claim != "report_data" || got.info.Reason.Expected == got.info.Reason.Got {
		t.Errorf("%d %s", got.status, got.body)
	}
	v, err := a.Verdicts(t.Context(), admin.VerdictQuery{})
	if err != nil || len(v) != 3 || v[0].Granted || v[0].Reason.Claim != "report_data" || v[1].Reason.Rule != "session.nonce" || !v[2].Granted {
		t.Errorf("verdicts %+v, %v", v, err)
	}
	if v[0].Session == "" || strings.Contains(third.cookie, v[0].Session) || strings.Contains(e.log.String(), third.cookie) {
		t.Error("verdict's session")
	}
}

func TestConcurrentAttestsUseANonceOnce(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	c := e.raw()
	h := e.begin(c, "0.4.0")
	body := e.attestation(h, fakeAttester{measurement: measurement, field: fieldOf(t, document)}, document)
	var mu sync.Mutex
	count := map[int]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			a := e.do(c, "POST", "/kbs/v0/attest", body, h.header())
			mu.Lock()
			defer mu.Unlock()
			count[a.status]++
		})
	}
	wg.Wait()
	if count[200] != 1 || count[401] != 7 {
		t.Errorf("statuses %v", count)
	}
}

// TestRestart: sessions, tokens, keys and resources survive.
func TestRestart(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("the secret")
	c := e.raw()
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	attested, open := e.begin(c, "0.4.0"), e.begin(c, "0.4.0")
	a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(attested, good, document), attested.header())
	token, err := kbs.ParseTokenResponse(a.body)
	if err != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	root, key := e.RootPEM(), e.AdminKey()
	e.stop()

	e = start(t, e.dir, nil)
	c = e.raw()
	if !bytes.Equal(root, e.RootPEM()) || !key.Equal(e.AdminKey()) {
		t.Error("authority or administrator's key changed")
	}
	// The half-done handshake goes on.
	if a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(open, good, document), open.header()); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	// Cookie and bearer still work, and open to the handshake's key.
	for name, header := range map[string]map[string]string{"cookie": attested.header(), "bearer": {"Authorization": "Bearer " + token.Token},
		"bad cookie, bearer": {"Cookie": kbs.SessionCookie + "=" + strings.Repeat("0", 32), "Authorization": "Bearer " + token.Token}} {
		a := e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, header)
		if a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
			continue
		}
		r, err := kbs.ParseResponse(a.body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := attested.key.Decrypt(*r); err != nil || string(got.Expose()) != "the secret" {
			t.Errorf("%s: %v", name, err)
		}
		if bytes.Contains(a.body, []byte("the secret")) {
			t.Error("not encrypted")
		}
	}
	// Everything expires: the session by its own time, the token by its.
	e.clock.advance(6 * time.Minute)
	for _, header := range []map[string]string{attested.header(), {"Authorization": "Bearer " + token.Token}, nil} {
		if a := e.do(c, "GET", "/kbs/v0/resource/demo/key/1", nil, header); a.status != 401 {
			t.Errorf("%v: %d %s", header, a.status, a.body)
		}
	}
	late := e.begin(c, "0.4.0")
	e.clock.advance(6 * time.Minute)
	if a := e.do(c, "POST", "/kbs/v0/attest", e.attestation(late, good, document), late.header()); a.status != 401 {
		t.Errorf("late: %d %s", a.status, a.body)
	}
}

// TestReattestation: the production client gets over an expired token alone.
func TestReattestation(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("the secret")
	g := e.guest(fakeAttester{measurement: measurement, field: fieldOf(t, document)}, document)
	for range 2 {
		if _, err := g.Resource(t.Context(), uri(t, "demo/key/1")); err != nil {
			t.Fatal(err)
		}
		e.clock.advance(10 * time.Minute)
	}
}

// TestExpiredReferenceValue: expiry is enforced.
func TestExpiredReferenceValue(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	a := e.populate("the secret")
	soon := e.clock.now().Add(time.Hour)
	if err := a.SetReferenceValue(t.Context(), admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{measurement}, Expires: &soon}); err != nil {
		t.Fatal(err)
	}
	good := fakeAttester{measurement: measurement, field: fieldOf(t, document)}
	if _, err := e.guest(good, document).Resource(t.Context(), uri(t, "demo/key/1")); err != nil {
		t.Fatal(err)
	}
	e.clock.advance(2 * time.Hour)
	_, err := e.guest(good, document).Resource(t.Context(), uri(t, "demo/key/1"))
	if r := refusal(t, err, 403, "snp.launch-measurement"); !strings.Contains(r.Expected, "has expired") {
		t.Errorf("reason %+v", r)
	}
}

// TestTLS: 1.3 only, and every connection shows the certificate.
func TestTLS(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.RootPEM())
	c := &tls.Config{RootCAs: pool, ServerName: "localhost", Time: e.clock.now, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	for range 2 {
		conn, err := tls.Dial("tcp", e.Addr(), c)
		if err != nil {
			t.Fatal(err)
		}
		// A ticket would come before the answer.
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil {
			t.Fatal(err)
		}
		if s := conn.ConnectionState(); s.Version != tls.VersionTLS13 || s.DidResume {
			t.Errorf("version %#x, resumed %t", s.Version, s.DidResume)
		}
		_ = conn.Close()
	}
	old := c.Clone()
	old.MaxVersion = tls.VersionTLS12
	if conn, err := tls.Dial("tcp", e.Addr(), old); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}
