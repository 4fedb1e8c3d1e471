package tests

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// handshake is one of the KBS protocol that a test makes by hand.
type handshake struct {
	*site

	cookie    string
	challenge *kbs.Challenge
	att       kbs.Attestation
}

// begin asks for a challenge; algorithms are those that the client knows.
func (s *site) begin(name tee.Name, algorithms ...string) *handshake {
	s.t.Helper()
	extra := `""`
	if len(algorithms) > 0 {
		doc, err := json.Marshal(map[string]any{"supported-hash-algorithms": algorithms})
		s.must(err)
		extra = string(doc)
	}
	x := s.do(s.http(), "POST", "/kbs/v0/auth", "", fmt.Sprintf(`{"version":"0.4.0","tee":%q,"extra-params":%s}`, name, extra))
	if x.status != http.StatusOK {
		s.t.Fatalf("auth: %d %s", x.status, x.body)
	}
	c, err := kbs.ParseChallenge([]byte(x.body))
	s.must(err)
	key, err := kbs.GenerateTEEKey(rand.Reader)
	s.must(err)
	cookies := (&http.Response{Header: x.header}).Cookies()
	if len(cookies) != 1 {
		s.t.Fatalf("cookies %v", cookies)
	}
	empty := ""
	return &handshake{site: s, cookie: cookies[0].Value, challenge: c, att: kbs.Attestation{Version: kbs.V040, Nonce: c.Nonce, TEEKey: key.Public(), Additional: &empty}}
}

// digest is what the primary evidence has to carry.
func (h *handshake) digest(algorithm string) []byte {
	h.t.Helper()
	d, err := h.att.Digest(algorithm, h.challenge.Nonce)
	h.must(err)
	return d
}

// attest sends evidence to a replica.
func (h *handshake) attest(to *site, evidence json.RawMessage) (token string, e *kbs.StatusError) {
	h.t.Helper()
	h.att.Evidence = evidence
	body, err := json.Marshal(h.att)
	h.must(err)
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, to.url+"/kbs/v0/attest", strings.NewReader(string(body)))
	h.must(err)
	req.Header.Set("Cookie", kbs.SessionCookie+"="+h.cookie)
	x := to.send(to.http(), req)
	if x.status != http.StatusOK {
		return "", kbs.NewStatusError("POST /attest", x.status, []byte(x.body))
	}
	answer, err := kbs.ParseTokenResponse([]byte(x.body))
	h.must(err)
	return answer.Token, nil
}

func secureExecution(t testing.TB, dir string, machine *ultravisor) string {
	t.Helper()
	write(t, filepath.Join(dir, "host-key.pem"), string(machine.document))
	write(t, filepath.Join(dir, "image"), string(vector(t, "se/testdata/secure_guest.hdr")))
	return "tee.se.enabled = true\ntee.se.development_host_keys = [\"host-key.pem\"]\ntee.se.image = \"image\"\n"
}

// TestSecureExecution: the challenge is a request that only the machine can open,
// good once; SHA-512 is agreed on; an emulated machine's evidence gets a token
// that says so, also from another replica than the one that made the request; and
// anything else is refused by name.
func TestSecureExecution(t *testing.T) {
	t.Parallel()
	machine := newUltravisor(t)
	url := the.postgres.URL(t)
	var replicas [2]*site
	for i := range replicas {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "url"), url+"\n")
		write(t, filepath.Join(dir, "kek"), strings.Repeat("07", 32)+"\n")
		replicas[i] = launch(t, the.plain, dir, "storage.database.url_file = \"url\"\nstorage.kek.file = \"kek\"\n"+secureExecution(t, dir, machine))
	}
	a, b := replicas[0], replicas[1]

	h := a.begin(tee.SE)
	if h.challenge.HashAlgorithm != "" {
		t.Errorf("algorithm %q: who lists none gets none", h.challenge.HashAlgorithm)
	}
	if again := a.begin(tee.SE); again.challenge.Nonce == h.challenge.Nonce {
		t.Error("the same request twice")
	}
	evidence := machine.answer(t, h.challenge.Nonce, h.digest(kbs.SHA512))
	token, e := h.attest(b, evidence)
	if e != nil {
		t.Fatalf("%v\n%s", e, tail(b.log.String()))
	}
	cpu := verify(t, b.keys("/.well-known/jwks.json"), token, "coffer-trustee").Submods["cpu0"]
	if claims, ok := cpu.Evidence["se"].(map[string]any); !ok || claims["simulated"] != true || claims["tag"] == "" || cpu.Status == "affirming" {
		t.Errorf("%+v", cpu)
	}
	// A request is good once, at any replica.
	for _, s := range replicas {
		if _, e := h.attest(s, evidence); e == nil || e.Status != http.StatusUnauthorized {
			t.Errorf("the second time: %v", e)
		}
	}

	h = a.begin(tee.SE, kbs.SHA256, kbs.SHA512)
	if h.challenge.HashAlgorithm != kbs.SHA512 {
		t.Errorf("algorithm %q, want %s", h.challenge.HashAlgorithm, kbs.SHA512)
	}
	x := a.do(a.http(), "POST", "/kbs/v0/auth", "", `{"version":"0.4.0","tee":"se","extra-params":{"supported-hash-algorithms":["sha256"]}}`)
	if x.status != http.StatusBadRequest || !strings.Contains(x.body, kbs.SHA512) {
		t.Errorf("without SHA-512: %d %s", x.status, x.body)
	}

	refuse := func(what string, want string, make func(h *handshake) json.RawMessage) {
		t.Helper()
		h := a.begin(tee.SE)
		_, e := h.attest(b, make(h))
		if e == nil || e.Status != http.StatusForbidden || e.Info.Reason == nil || e.Info.Reason.Rule != want {
			t.Errorf("%s: got %v; want 403 %s", what, e, want)
		}
	}
	refuse("garbage", "se.format", func(*handshake) json.RawMessage { return json.RawMessage(`{"se":"garbage"}`) })
	refuse("another measurement", "se.measurement", func(h *handshake) json.RawMessage {
		return flip(t, machine.answer(t, h.challenge.Nonce, h.digest(kbs.SHA512)), "measurement", 3)
	})
	refuse("another request's key", "se.request", func(h *handshake) json.RawMessage {
		return flip(t, machine.answer(t, h.challenge.Nonce, h.digest(kbs.SHA512)), "encr_measurement_key", 20)
	})
	refuse("another image", "se.measurement", func(h *handshake) json.RawMessage {
		return flip(t, machine.answer(t, h.challenge.Nonce, h.digest(kbs.SHA512)), "image_hdr_tags", 0)
	})
	refuse("another hash", "se.report_data", func(h *handshake) json.RawMessage {
		return machine.answer(t, h.challenge.Nonce, tee.Fit(h.digest(kbs.SHA384), 64))
	})
	refuse("another handshake's request", "se.report_data", func(*handshake) json.RawMessage { return evidence })

	// Another trustee's request is not this one's.
	dir := t.TempDir()
	stranger := launch(t, the.plain, dir, secureExecution(t, dir, machine))
	theirs := stranger.begin(tee.SE)
	refuse("another trustee's request", "se.request", func(h *handshake) json.RawMessage {
		return machine.answer(t, theirs.challenge.Nonce, h.digest(kbs.SHA512))
	})
}
