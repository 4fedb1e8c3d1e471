package datahub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// fakeBroker holds resources by URI, the trustee's name left out, and counts.
type fakeBroker struct {
	mu        sync.Mutex
	resources map[string]string
	// err is what every request ends with, if it is set; gate is received
	// from before any is answered.
	err    error
	gate   chan struct{}
	counts map[string]int
}

func newBroker(resources map[string]string) *fakeBroker {
	return &fakeBroker{resources: resources, counts: map[string]int{}}
}

func (b *fakeBroker) Attest(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *fakeBroker) Token(context.Context) (kbs.Token, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return kbs.Token{JWT: "a.b.c", Key: secret.New([]byte("-----BEGIN PRIVATE KEY-----\n"))}, b.err
}

func (b *fakeBroker) Resource(ctx context.Context, uri kbs.ResourceURI) (secret.Bytes, error) {
	b.mu.Lock()
	name := "/" + uri.Path()
	b.counts[name]++
	gate := b.gate
	b.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return secret.Bytes{}, context.Cause(ctx)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return secret.Bytes{}, b.err
	}
	v, ok := b.resources[name]
	if !ok {
		return secret.Bytes{}, &kbs.StatusError{Op: "GET", Status: http.StatusNotFound, Info: kbs.ErrorInfo{Detail: "no such resource"}}
	}
	return secret.New([]byte(v)), nil
}

func (b *fakeBroker) count(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[name]
}

func (b *fakeBroker) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func TestSeveralTrustees(t *testing.T) {
	t.Parallel()
	first, second := newBroker(map[string]string{"/a/b/c": "first"}), newBroker(map[string]string{"/a/b/c": "second"})
	hub := Open(Options{Default: first, Named: map[string]Broker{"payments": second, "eu": newBroker(nil)}})
	defer hub.Close()
	for uri, want := range map[string]string{
		"kbs:///a/b/c": "first", "kbs://payments/a/b/c": "second", "kbs://kbs.example:8080/a/b/c": "first", "kbs+resource://payments/a/b/c": "second",
	} {
		for range 2 { // the second time out of the cache
			if got, err := hub.Resource(t.Context(), uri); err != nil || string(got.Expose()) != want {
				t.Errorf("%s: got %q, %v", uri, got.Expose(), err)
			}
		}
	}
	if n := first.count("/a/b/c") + second.count("/a/b/c"); n != 2 {
		t.Errorf("%d requests for two resources", n)
	}
	_, err := hub.Resource(t.Context(), "kbs://other/a/b/c")
	if err == nil || !strings.Contains(err.Error(), `there is no trustee "other": initdata (coffer.toml) declares eu, payments`) {
		t.Errorf("got %v", err)
	}
	if _, err := New(first).Resource(t.Context(), "kbs://other/a/b/c"); err == nil || !strings.Contains(err.Error(), "declares none by name") {
		t.Errorf("got %v", err)
	}
	// The default one is not a stand-in for a named one, nor the other way.
	only := Open(Options{Named: map[string]Broker{"payments": second}})
	if _, err := only.Resource(t.Context(), "kbs:///a/b/c"); !errors.Is(err, ErrNoBroker) {
		t.Errorf("got %v", err)
	}
	if err := only.Attest(t.Context()); !errors.Is(err, ErrNoBroker) {
		t.Errorf("got %v", err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	none := time.Duration(0)
	config := &guestconfig.Config{
		URL: "https://first.example", RootPEM: "pem",
		Trustees:    []guestconfig.Trustee{{Name: "eu", URL: "https://eu.example"}, {Name: "payments", URL: "https://payments.example", RootPEM: "pem2"}},
		Credentials: []guestconfig.Credential{{Path: guestconfig.CredentialDir + "aws/credential.json", URI: "kbs:///kms/aws/credential"}},
		Resources:   guestconfig.Resources{Lifetime: &none, MaxEntries: 3, MaxBytes: 4},
	}
	asked := map[guestconfig.Trustee]int{}
	dial := func(tr guestconfig.Trustee) (Broker, error) {
		asked[tr]++
		return newBroker(map[string]string{"/a/b/c": tr.URL, "/kms/aws/credential": "key"}), nil
	}
	hub, err := Connect(config, Options{}, dial)
	if err != nil {
		t.Fatal(err)
	}
	for uri, want := range map[string]string{"kbs:///a/b/c": "https://first.example", "kbs://eu/a/b/c": "https://eu.example", "kbs://payments/a/b/c": "https://payments.example"} {
		fetch(t, hub, uri, want)
	}
	want := map[guestconfig.Trustee]int{{URL: "https://first.example", RootPEM: "pem"}: 1, config.Trustees[0]: 1, config.Trustees[1]: 1}
	if !maps.Equal(asked, want) {
		t.Errorf("asked %v", asked)
	}
	if v, err := hub.credential(t.Context(), "aws/credential.json"); err != nil || string(v.Expose()) != "key" {
		t.Errorf("got %v", err)
	}
	if hub.cache.limits != (limits{0, 3, 4}) {
		t.Errorf("limits %+v", hub.cache.limits)
	}
	if hub, err := Connect(&guestconfig.Config{}, Options{}, dial); err != nil || !errors.Is(hub.Attest(t.Context()), ErrNoBroker) {
		t.Errorf("got %v", err)
	}
	for want, refuse := range map[string]string{`trustee "eu": no`: "eu", "trustee https://first.example: no": ""} {
		_, err := Connect(config, Options{}, func(tr guestconfig.Trustee) (Broker, error) {
			if tr.Name == refuse {
				return nil, errors.New("no")
			}
			return dial(tr)
		})
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestWithoutBrokerEverythingFails(t *testing.T) {
	t.Parallel()
	hub := New(nil)
	_, err := hub.Resource(t.Context(), "kbs:///a/b/c")
	_, terr := hub.Token(t.Context(), TokenKBS)
	for _, err := range []error{hub.Attest(t.Context()), err, terr} {
		if !errors.Is(err, ErrNoBroker) {
			t.Errorf("error = %v", err)
		}
	}
	if _, err := hub.Key(t.Context(), "file:///etc/key"); err == nil {
		t.Error("a key that is no resource was accepted")
	}
}

type fakeService struct{ err error }

func (s fakeService) Token(context.Context) (string, error) { return "d.e.f", s.err }

func TestTokens(t *testing.T) {
	t.Parallel()
	broker := newBroker(nil)
	hub := Open(Options{Default: broker, Service: fakeService{}})
	got, err := hub.Token(t.Context(), "kbs")
	if want := `{"token":"a.b.c","tee_keypair":"-----BEGIN PRIVATE KEY-----\n"}`; err != nil || string(got.Expose()) != want {
		t.Errorf("got %s, %v", got.Expose(), err)
	}
	if got, err := hub.Token(t.Context(), "coco_as"); err != nil || string(got.Expose()) != "d.e.f" {
		t.Errorf("got %s, %v", got.Expose(), err)
	}
	for kind, want := range map[string]string{"": `token type "": expected kbs or coco_as`, "KBS": "expected kbs or coco_as"} {
		if _, err := hub.Token(t.Context(), kind); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", kind, err)
		}
	}
	if _, err := New(broker).Token(t.Context(), "coco_as"); err == nil || !strings.Contains(err.Error(), "token_configs.coco_as.url") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(Options{Service: fakeService{errors.New("no")}}).Token(t.Context(), "coco_as"); err == nil {
		t.Error("a failure was no error")
	}
	broker.set(errors.New("no"))
	if _, err := hub.Token(t.Context(), "kbs"); err == nil {
		t.Error("a failure was no error")
	}
	if _, err := New(struct{ Broker }{broker}).Token(t.Context(), "kbs"); err == nil || !strings.Contains(err.Error(), "gives no tokens") {
		t.Errorf("got %v", err)
	}
}

// TestAKeyringFetchesEachKeyOnce for the layers of one pull, where the cache
// keeps nothing at all.
func TestAKeyringFetchesEachKeyOnce(t *testing.T) {
	t.Parallel()
	broker := newBroker(map[string]string{"/image/key/1": "k1", "/image/key/2": "k2"})
	hub := Open(Options{Default: broker, Resources: nothingKept()})
	ring := hub.Keyring()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			uri := fmt.Sprintf("kbs:///image/key/%d", i%2+1)
			if got, err := ring.Key(t.Context(), uri); err != nil || string(got.Expose()) != fmt.Sprintf("k%d", i%2+1) {
				t.Errorf("%s: %q, %v", uri, got.Expose(), err)
			} else {
				got.Clear() // a copy: the next one is not changed
			}
		})
	}
	wg.Wait()
	if a, b := broker.count("/image/key/1"), broker.count("/image/key/2"); a != 1 || b != 1 {
		t.Errorf("%d and %d requests", a, b)
	}
	if _, err := ring.Key(t.Context(), "key"); err == nil {
		t.Error("a key that is no resource was accepted")
	}
	ring.Close()
	if _, err := ring.Key(t.Context(), "kbs:///image/key/1"); err != nil || broker.count("/image/key/1") != 2 {
		t.Errorf("after the end: %d requests, %v", broker.count("/image/key/1"), err)
	}
}

func TestEnvValue(t *testing.T) {
	t.Parallel()
	if s, err := EnvValue("A", secret.New([]byte("x y\n"))); err != nil || s != "x y\n" {
		t.Errorf("%q, %v", s, err)
	}
	for _, bad := range [][]byte{[]byte("a\x00b"), []byte("a\xffb"), make([]byte, maxEnv+1)} {
		if _, err := EnvValue("A", secret.New(bad)); err == nil || strings.Contains(err.Error(), "a\x00b") {
			t.Errorf("error = %v", err)
		}
	}
}
