package tests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/restapi"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// TestDataHub has a guest's data hub and REST API at two trustees: resources,
// sealed secrets, and tokens that relying parties check and that are renewed.
func TestDataHub(t *testing.T) {
	t.Parallel()
	s := embed(t, "", "attestation_service.listen = \"127.0.0.1:0\"\n")
	other := embed(t, "", "")
	a := s.populate("")
	other.must(other.populate("").SetResource(t.Context(), uri(t, "kbs:///demo/key/1"), secret.New([]byte("the other trustee's"))))

	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	jwk, err := sealed.PublicJWK(&signer.PublicKey, "kbs:///demo/sealing/key")
	s.must(err)
	kek := make([]byte, sealed.KeySize)
	_, err = rand.Read(kek)
	s.must(err,
		a.SetResource(t.Context(), uri(t, "kbs:///demo/sealing/key"), secret.New(jwk)),
		a.SetResource(t.Context(), uri(t, "kbs:///demo/sealing/kek"), secret.New(kek)),
	)
	client := s.good("")
	service, err := kbs.NewService(kbs.ServiceOptions{URL: "https://" + s.service, RootPEM: s.root, Attester: pod(t, document, "")})
	s.must(err)
	t.Cleanup(service.Close)
	hub := datahub.Open(datahub.Options{Default: client, Named: map[string]datahub.Broker{"other": other.good("")}, Service: service})
	t.Cleanup(hub.Close)
	get := restAPI(t, hub)

	// Resources, of both.
	if status, got := get("/cdh/resource/demo/key/1"); status != http.StatusOK || got != content {
		t.Errorf("got %d %s\n%s", status, got, tail(s.log.String()))
	}
	if v, err := hub.Resource(t.Context(), "kbs://other/demo/key/1"); err != nil || string(v.Expose()) != "the other trustee's" {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
	if status, got := get("/cdh/resource/demo/key/2"); status != http.StatusInternalServerError || !strings.Contains(got, "demo/key/2") {
		t.Errorf("got %d %s", status, got)
	}

	// Sealed secrets, of both kinds and both trustees.
	envelope := sealed.Payload{Type: sealed.Envelope}
	dek, err := envelope.EncryptData(rand.Reader, secret.New([]byte("enveloped")), sealed.A256GCM)
	s.must(err, envelope.WrapKey(rand.Reader, dek, secret.New(kek), "kbs:///demo/sealing/kek"))
	for want, p := range map[string]sealed.Payload{
		content:               {Type: sealed.Vault, Provider: sealed.KBS, Name: "kbs:///demo/key/1"},
		"the other trustee's": {Type: sealed.Vault, Provider: sealed.KBS, Name: "kbs://other/demo/key/1"},
		"enveloped":           envelope,
	} {
		text, err := sealed.Seal(rand.Reader, p, "kbs:///demo/sealing/key", signer)
		s.must(err)
		if v, was, err := hub.Reveal(t.Context(), []byte(text+"\n")); err != nil || !was || string(v.Expose()) != want {
			t.Errorf("got %q, %v", v.Expose(), err)
		}
	}

	// Tokens are what a relying party accepts, and the key in the document is
	// the token's.
	status, got := get("/aa/token?token_type=kbs")
	var doc struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair"`
	}
	if err := json.Unmarshal([]byte(got), &doc); err != nil || status != http.StatusOK {
		t.Fatalf("got %d, %v", status, err)
	}
	verify(t, s.keys("/.well-known/jwks.json"), doc.Token, "coffer-trustee")
	if doc.Token != client.HeldToken() || !strings.HasPrefix(doc.Key, "-----BEGIN PRIVATE KEY-----\n") {
		t.Error("the token is another than the hub's own, or its key is not there")
	}
	if x := s.do(s.http(), "GET", "/kbs/v0/resource/demo/key/1", doc.Token, ""); x.status != http.StatusOK {
		t.Errorf("the workload's token fetches nothing: %d %s", x.status, x.body)
	}
	// The other kind is bound to nothing, which our attestation service does
	// not judge: other implementations' do.
	if status, got := get("/aa/token?token_type=coco_as"); status != http.StatusInternalServerError || !strings.Contains(got, "evidence that is bound to nothing may be anyone's") {
		t.Errorf("got %d %s\n%s", status, got, tail(s.log.String()))
	}

	// The token is renewed while it is still good, and the new one serves.
	old, err := client.Token(t.Context())
	s.must(err)
	s.clock.advance(old.Expires.Sub(old.NotBefore) * 19 / 20)
	renewed, err := client.Token(t.Context())
	s.must(err)
	if renewed.JWT == old.JWT || !renewed.Expires.After(old.Expires) {
		t.Errorf("not renewed: expires %s, then %s", old.Expires, renewed.Expires)
	}
	if _, err := client.Resource(t.Context(), uri(t, "kbs:///demo/key/1")); err != nil || client.HeldToken() != renewed.JWT {
		t.Errorf("the new token does not serve: %v", err)
	}
}

// restAPI serves the REST API of a hub and returns how to ask it.
func restAPI(t *testing.T, hub *datahub.Hub) func(path string) (int, string) {
	t.Helper()
	api, err := restapi.New(restapi.Options{Features: restapi.Features{Resource: true, Attestation: true}, Hub: hub, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = api.Serve(t.Context(), l) }()
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
}
