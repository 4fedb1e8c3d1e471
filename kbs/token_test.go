package kbs

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// clock is a clock that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// datedTokens makes the trustee's tokens carry times relative to what now says.
func (ft *fakeTrustee) datedTokens(now func() time.Time, life time.Duration) {
	ft.claims = func(n int) string {
		t := now()
		return fmt.Sprintf(`{"jti":"%d","iat":%d,"nbf":%d,"exp":%d}`, n, t.Unix(), t.Unix(), t.Add(life).Unix())
	}
}

// TestTokenIsSharedAndRenewed also shows that a wrong clock renews at the
// right time: the trustee's is an hour ahead.
func TestTokenIsSharedAndRenewed(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	clk := &clock{now: time.Now()}
	ft.datedTokens(clk.Now, 10*time.Minute)
	c, _ := ft.client(func(o *ClientOptions) { o.Now = clk.Now })
	uri, err := ParseResourceURI("kbs:///repo/type/tag")
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resource(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	again, err := c.Token(t.Context())
	if err != nil || again.JWT != first.JWT || ft.count(AttestPath) != 1 {
		t.Fatalf("%v; %d attestations", err, ft.count(AttestPath))
	}
	clk.add(7*time.Minute + 50*time.Second)
	if s, err := c.Token(t.Context()); err != nil || s.JWT != first.JWT {
		t.Errorf("renewed too early, or %v", err)
	}
	clk.add(time.Minute + 11*time.Second) // nine tenths and a second
	if _, err := c.Resource(t.Context(), uri); err != nil {
		t.Error(err)
	}
	renewed, err := c.Token(t.Context())
	if err != nil || renewed.JWT == first.JWT || ft.count(AttestPath) != 2 || !renewed.Expires.After(clk.Now().Add(9*time.Minute)) {
		t.Errorf("not renewed before it expired: %v, %d attestations, expires %s", err, ft.count(AttestPath), renewed.Expires)
	}
}

func TestTokenDocumentAndKey(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	c, _ := ft.client(nil)
	tok, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := tok.Document()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(doc.Expose(), &got); err != nil || len(got) != 2 || got["token"] != c.HeldToken() {
		t.Fatalf("document %v, %v", got, err)
	}
	block, rest := pem.Decode([]byte(got["tee_keypair"]))
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		t.Fatalf("key is no PEM of PKCS #8")
	}
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		t.Error(err)
	}
	if s := fmt.Sprintf("%v %+v %#v", tok, tok, tok); strings.Contains(s, "PRIVATE") {
		t.Errorf("a token prints its key: %s", s)
	}
	for kind, want := range map[KeyType]string{KeyRSA: "RSA PRIVATE KEY", KeyP521: "PRIVATE KEY"} {
		k, err := GenerateTEEKeyOf(rand.Reader, kind)
		if err != nil {
			t.Fatal(err)
		}
		text, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if block, _ := pem.Decode(text.Expose()); block == nil || block.Type != want {
			t.Errorf("%s: not a PEM block %s", kind, want)
		}
	}
	k, err := GenerateTEEKeyOf(rand.Reader, KeyMLKEM)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.PEM(); err == nil || !strings.Contains(err.Error(), "no PEM form") {
		t.Errorf("got %v", err)
	}
}

// TestTokenWithAClockInThePast must say that it is the clock.
func TestTokenWithAClockInThePast(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		off  time.Duration
		want string
	}{
		"in the past": {-time.Hour, "not valid before"},
		"ahead":       {time.Hour, "expired at"},
	} {
		ft := newTrustee(t)
		ft.datedTokens(time.Now, 10*time.Minute)
		clk := &clock{now: time.Now().Add(tt.off)}
		c, _ := ft.client(func(o *ClientOptions) { o.Now = clk.Now })
		_, err := c.Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "one of the two clocks is wrong") {
			t.Errorf("%s: got %v", name, err)
		}
		// Nor does it attest for every request.
		uri, _ := NewResourceURI("repo", "type", "tag")
		for range 3 {
			if _, err := c.Resource(t.Context(), uri); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := ft.count(AttestPath); n != 1 {
			t.Errorf("%s: %d attestations", name, n)
		}
	}
}

// TestRenewalThatFails keeps a token that is good, and gives it up where the
// trustee refuses.
func TestRenewalThatFails(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	clk := &clock{now: time.Now()}
	ft.datedTokens(clk.Now, 10*time.Minute)
	status := 0
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != AuthPath || status == 0 {
			return false
		}
		refuse(w, status, "AttestationError", "no")
		return true
	}
	c, _ := ft.client(func(o *ClientOptions) { o.Now = clk.Now })
	first, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clk.add(9*time.Minute + time.Second)
	status = http.StatusInternalServerError
	for range 3 {
		if s, err := c.Token(t.Context()); err != nil || s.JWT != first.JWT {
			t.Fatalf("a good token was given up: %v", err)
		}
	}
	if n := ft.count(AuthPath); n != 2 {
		t.Errorf("%d handshakes for three calls: the broker is not left alone", n)
	}
	clk.add(renewPause + time.Second)
	status = http.StatusForbidden
	if _, err := c.Token(t.Context()); !Refused(err) {
		t.Errorf("got %v, want a refusal", err)
	}
	clk.add(time.Minute)
	status = http.StatusInternalServerError
	if _, err := c.Token(t.Context()); err == nil || Refused(err) {
		t.Errorf("an expired token was used, or %v", err)
	}
}

// TestA401LoopIsBounded: a trustee that never knows the token it has just
// given costs two handshakes, not an endless row of them.
func TestA401LoopIsBounded(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == AuthPath || r.URL.Path == AttestPath {
			return false
		}
		refuse(w, http.StatusUnauthorized, "TokenNotFound", "attest first")
		return true
	}
	c, _ := ft.client(nil)
	uri, _ := NewResourceURI("repo", "type", "tag")
	_, err := c.Resource(t.Context(), uri)
	if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != http.StatusUnauthorized || Refused(err) {
		t.Errorf("got %v", err)
	}
	if a, r := ft.count(AttestPath), ft.count("/kbs/v0/resource/repo/type/tag"); a != 2 || r != 2 {
		t.Errorf("%d attestations and %d requests, want 2 and 2", a, r)
	}
}

// TestThousandsShareOneAttestation has thousands of requests for tokens and
// resources begin at once.
func TestThousandsShareOneAttestation(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	c, _ := ft.client(nil)
	uri, _ := NewResourceURI("repo", "type", "tag")
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4000 {
		wg.Go(func() {
			<-start
			var err error
			if i%100 == 0 {
				_, err = c.Resource(t.Context(), uri)
			} else {
				_, err = c.Token(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := ft.count(AttestPath); n != 1 {
		t.Errorf("%d attestations", n)
	}
}

func TestService(t *testing.T) {
	t.Parallel()
	const token = "e30.e30.c2ln"
	status, answer := http.StatusOK, token
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Requests []map[string]string `json:"verification_requests"`
			Policies []string            `json:"policy_ids"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != http.MethodPost || r.URL.Path != "/as/attestation" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		if len(in.Requests) != 1 || len(in.Requests[0]) != 2 || in.Requests[0]["tee"] != "sample" || in.Policies == nil || len(in.Policies) != 0 {
			t.Errorf("request %+v", in)
		}
		evidence, err := base64.RawURLEncoding.DecodeString(in.Requests[0]["evidence"])
		if err != nil || string(evidence) != `{"report_data":null}` {
			t.Errorf("evidence %s, %v", evidence, err)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answer))
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	s, err := NewService(ServiceOptions{URL: srv.URL + "/as/", Attester: fakeAttester{}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Token(t.Context()); err != nil || got != token {
		t.Errorf("got %q, %v", got, err)
	}
	for want, tt := range map[string]struct {
		status int
		answer string
	}{
		"500":              {500, "An internal error: policy"},
		"3 parts":          {200, "<html>"},
		"unpadded base64":  {200, "a=.b.c"},
		"the limit is":     {200, strings.Repeat("a", MaxTokenBytes+1)},
		"more than 524290": {200, strings.Repeat("b", MaxTokenBytes+3)},
	} {
		status, answer = tt.status, tt.answer
		if _, err := s.Token(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if _, err := NewService(ServiceOptions{URL: "ftp://x", Attester: fakeAttester{}}); err == nil {
		t.Error("ftp was accepted")
	}
	failing := fakeAttester{evidence: func(context.Context, []byte) (json.RawMessage, error) { return nil, errors.New("no TEE") }}
	s, err = NewService(ServiceOptions{URL: srv.URL, Attester: failing})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Token(t.Context()); err == nil || !strings.Contains(err.Error(), string(tee.Sample)+" evidence: no TEE") {
		t.Errorf("got %v", err)
	}
}

// FuzzTokenTimes reads what a token says of itself.
func FuzzTokenTimes(f *testing.F) {
	f.Add(`{"iat":1,"nbf":2,"exp":300}`)
	f.Add(`{"exp":1e300}`)
	f.Add(`{"exp":"x","nbf":-1}`)
	f.Fuzz(func(t *testing.T, claims string) {
		now := time.Unix(1e9, 0)
		s := newSession("e30."+b64.EncodeToString([]byte(claims))+".c2ln", nil, now)
		if s.renew.IsZero() != s.dead.IsZero() || !s.renew.IsZero() && (s.renew.Before(now) || s.renew.After(s.dead) || s.dead.Sub(now) > maxLifetime) {
			t.Fatalf("renewed at %s, dead at %s", s.renew, s.dead)
		}
	})
}
