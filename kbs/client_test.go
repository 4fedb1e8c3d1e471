package kbs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
)

var testURI = func() ResourceURI {
	u, err := NewResourceURI("repo", "type", "tag")
	if err != nil {
		panic(err)
	}
	return u
}()

func TestResource(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"", SHA256, SHA512} {
		ft := newTrustee(t)
		ft.initData = "version = \"0.1.0\" # <&>\n"
		ft.challenge.HashAlgorithm = alg
		ft.resources["/kbs/v0/plugin/x?a=1&b=%20"] = ""
		c, waits := ft.client(func(o *ClientOptions) { o.InitData = []byte(ft.initData) })
		if c.HeldToken() != "" {
			t.Error("a token before the first handshake")
		}
		for range 3 {
			v, err := c.Resource(t.Context(), testURI)
			if err != nil || string(v.Expose()) != "the value" {
				t.Fatalf("%q: got %q, %v", alg, v.Expose(), err)
			}
		}
		u, err := ParseResourceURI("kbs+plugin:///x?a=1&b=%20")
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.Resource(t.Context(), u); err != nil || v.Len() != 0 {
			t.Errorf("got %q, %v", v.Expose(), err)
		}
		if n := ft.count(AttestPath); n != 1 || len(*waits) != 0 {
			t.Errorf("%d handshakes, %v waits", n, *waits)
		}
		old := c.HeldToken()
		if err := c.Attest(t.Context()); err != nil || c.HeldToken() == old || ft.count(AttestPath) != 2 {
			t.Errorf("Attest did not run a handshake: %v", err)
		}
		c.Close()
		if c.HeldToken() != "" {
			t.Error("Close keeps the token")
		}
		if _, err := c.Resource(t.Context(), testURI); err != nil {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestResourceNonceIsADocument(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.challenge.Nonce = "{\"request_blob\":\"<\\u0001\\n\u2028>\"}"
	ft.challenge.HashAlgorithm = SHA512
	c, _ := ft.client(nil)
	if _, err := c.Resource(t.Context(), testURI); err != nil {
		t.Error(err)
	}
}

func TestTokenRefusedAttestsOnceMore(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	c, waits := ft.client(nil)
	if err := c.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	ft.forget()
	if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
	if n := ft.count(AuthPath); n != 2 || len(*waits) != 0 {
		t.Errorf("%d handshakes, %v waits", n, *waits)
	}
}

func TestTokenAlwaysRefused(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodGet {
			refuse(w, http.StatusUnauthorized, "PolicyDeny", "denied by a broker that answers 401 to everything")
			return true
		}
		return false
	}
	c, _ := ft.client(nil)
	_, err := c.Resource(t.Context(), testURI)
	se, ok := errors.AsType[*StatusError](err)
	if !ok || se.Status != http.StatusUnauthorized || se.Info.Type != ErrorType("PolicyDeny") {
		t.Errorf("got %v", err)
	}
	if auth, get := ft.count(AuthPath), ft.count(testURI.RequestPath()); auth != 2 || get != 2 {
		t.Errorf("%d handshakes and %d requests, want 2 and 2", auth, get)
	}
}

func TestSessionLost(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	ft.hook = func(_ http.ResponseWriter, r *http.Request, n int) bool {
		if r.URL.Path == AttestPath && n == 1 {
			ft.forget()
		}
		return false
	}
	c, waits := ft.client(nil)
	if err := c.Attest(t.Context()); err != nil || ft.count(AuthPath) != 2 || len(*waits) != 0 {
		t.Errorf("%v after %d handshakes, %v waits", err, ft.count(AuthPath), *waits)
	}

	ft = newTrustee(t)
	ft.hook = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == AttestPath {
			ft.forget()
		}
		return false
	}
	c, _ = ft.client(nil)
	err := c.Attest(t.Context())
	if se, ok := errors.AsType[*StatusError](err); !ok || se.Status != http.StatusUnauthorized || ft.count(AuthPath) != 2 {
		t.Errorf("got %v after %d handshakes, want 401 after 2", err, ft.count(AuthPath))
	}
	if c.HeldToken() != "" {
		t.Error("a failed handshake left a token")
	}
}

func TestConcurrentUseAttestsOnce(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	const calls = 16
	// The first handshake waits until all calls have begun.
	var begun sync.WaitGroup
	begun.Add(calls)
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(_ context.Context, rd []byte) (json.RawMessage, error) {
			begun.Wait()
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			begun.Done()
			if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
				t.Errorf("got %q, %v", v.Expose(), err)
			}
		})
	}
	wg.Wait()
	if n := ft.count(AuthPath); n != 1 {
		t.Errorf("%d handshakes, want 1", n)
	}
	// And once more when the token becomes unknown. (A call that was refused
	// with the old token after another has attested uses the new one.)
	ft.forget()
	for range calls {
		wg.Go(func() {
			if _, err := c.Resource(t.Context(), testURI); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := ft.count(AuthPath); n != 2 {
		t.Errorf("%d handshakes, want 2", n)
	}
}

// A call that joined a handshake must not fail because the call that ran it
// was cancelled.
func TestFollowerOutlivesLeader(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	started := make(chan struct{}, 2)
	leaderCtx, cancel := context.WithCancel(t.Context())
	first := true
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(ctx context.Context, rd []byte) (json.RawMessage, error) {
			if first {
				first = false
				started <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	leader := make(chan error, 1)
	go func() { leader <- c.Attest(leaderCtx) }()
	<-started
	// A follower whose own context has ended does not wait.
	ended, end := context.WithCancel(t.Context())
	end()
	if err := c.Attest(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("ended follower: %v", err)
	}
	follower := make(chan error, 1)
	go func() { follower <- c.Attest(t.Context()) }()
	cancel()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("leader: %v", err)
	}
	if err := <-follower; err != nil {
		t.Errorf("follower: %v", err)
	}
	if c.HeldToken() == "" {
		t.Error("no token")
	}
}

func TestPanickingAttesterLeavesNoFlight(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	broken := true
	c, _ := ft.client(func(o *ClientOptions) {
		o.Attester = fakeAttester{func(_ context.Context, rd []byte) (json.RawMessage, error) {
			if broken {
				panic("broken")
			}
			return json.Marshal(map[string][]byte{"report_data": rd})
		}}
	})
	func() {
		defer func() { _ = recover() }()
		_ = c.Attest(t.Context())
	}()
	broken = false
	if err := c.Attest(t.Context()); err != nil {
		t.Error(err)
	}
}

// What the client logs and prints at the most talkative level holds neither
// token, key nor resource.
func TestLogsNoSecrets(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	var log strings.Builder
	c, _ := ft.client(func(o *ClientOptions) {
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	if err := c.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens := []string{c.HeldToken()}
	ft.forget()
	if _, err := c.Resource(t.Context(), testURI); err != nil {
		t.Fatal(err)
	}
	tokens = append(tokens, c.HeldToken())
	if !strings.Contains(log.String(), "attested") || !strings.Contains(log.String(), "attesting again") {
		t.Errorf("log: %s", log.String())
	}
	for _, s := range append(tokens, "the value") {
		if strings.Contains(log.String(), s) {
			t.Errorf("the log holds %q", s)
		}
	}
}
