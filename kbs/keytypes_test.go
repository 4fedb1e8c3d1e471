package kbs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
)

func testKey(t testing.TB, kind KeyType) *TEEKey {
	t.Helper()
	k, err := GenerateTEEKeyOf(rand.Reader, kind)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestKMAC256 checks the samples that NIST publishes for SP 800-185.
func TestKMAC256(t *testing.T) {
	t.Parallel()
	key := make([]byte, 32)
	for i := range key {
		key[i] = 0x40 + byte(i)
	}
	long := make([]byte, 200)
	for i := range long {
		long[i] = byte(i)
	}
	for _, tc := range []struct {
		data         []byte
		custom, want string
	}{
		{[]byte{0, 1, 2, 3}, "My Tagged Application", "20c570c31346f703c9ac36c61c03cb64c3970d0cfc787e9b79599d273a68d2f7f69d4cc3de9d104a351689f27cf6f5951f0103f33f4f24871024d9c27773a8dd"},
		{long, "", "75358cf39e41494e949707927cee0af20a3ff553904c86b08f21cc414bcfd691589d27cf5e15369cbbff8b9a4c2eb17800855d0235ff635da82533ec6b759b69"},
		{long, "My Tagged Application", "b58618f71f92e1d56c1b8c55ddd7cd188b97b4ca4d99831eb2699a837da2e4d970fbacfde50033aea585f1a2708510c32d07880801bd182898fe476876fc8965"},
	} {
		if got := hex.EncodeToString(kmac256(key, tc.data, 64, tc.custom)); got != tc.want {
			t.Errorf("%x %q: got %s, want %s", tc.data, tc.custom, got, tc.want)
		}
	}
	for x, want := range map[uint64]string{0: "0100", 255: "01ff", 256: "020100", 1 << 40: "06010000000000"} {
		if got := hex.EncodeToString(leftEncode(x)); got != want {
			t.Errorf("left_encode(%d) = %s, want %s", x, got, want)
		}
	}
}

func TestKeyTypes(t *testing.T) {
	t.Parallel()
	for kind, want := range map[KeyType]struct{ alg, head string }{
		KeyP256:  {AlgECDH, `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"`},
		KeyP521:  {AlgECDH, `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-521","kty":"EC","x":"`},
		KeyRSA:   {AlgOAEP, `{"alg":"RSA-OAEP-256","enc":"A256GCM"}`},
		KeyMLKEM: {AlgMLKEM, `{"alg":"ML-KEM-768+A192KW","enc":"A256GCM","ek":"`},
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			ft := newTrustee(t)
			c, _ := ft.client(func(o *ClientOptions) { o.KeyType = kind })
			if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
				t.Fatalf("got %q, %v", v.Expose(), err)
			}
			k, other := testKey(t, kind), testKey(t, kind)
			doc, err := json.Marshal(k.Public())
			if err != nil {
				t.Fatal(err)
			}
			if back, err := ParseTEEPubKey(doc); err != nil || back != k.Public() || back.Alg != want.alg {
				t.Errorf("got %v, %v", back, err)
			}
			r, err := EncryptResponse(rand.Reader, k.Public(), []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			head, err := b64.DecodeString(r.Protected)
			if err != nil || !strings.HasPrefix(string(head), want.head) {
				t.Errorf("header %s", head)
			}
			if got, err := k.Decrypt(*r); err != nil || string(got.Expose()) != "x" {
				t.Errorf("got %q, %v", got.Expose(), err)
			}
			if _, err := other.Decrypt(*r); !errors.Is(err, errDecrypt) {
				t.Errorf("another key: %v", err)
			}
			changed, err := b64.DecodeString(r.EncryptedKey)
			if err != nil {
				t.Fatal(err)
			}
			changed[3] ^= 1
			r.EncryptedKey = b64.EncodeToString(changed)
			if _, err := k.Decrypt(*r); !errors.Is(err, errDecrypt) {
				t.Errorf("changed wrapping: %v", err)
			}
			// A response for one kind of key opens with no other.
			if _, err := vectorTEEKey(t).Decrypt(*r); err == nil {
				t.Error("opened with another kind of key")
			}
		})
	}
	if _, err := GenerateTEEKeyOf(rand.Reader, "RSA1_5"); err == nil || !strings.Contains(err.Error(), "unknown kind") {
		t.Errorf("got %v", err)
	}
}

// TestEncryptRSA15 opens what a guest gets that asks for PKCS #1 v1.5.
func TestEncryptRSA15(t *testing.T) {
	t.Parallel()
	r, err := EncryptResponse(rand.Reader, testRSAKey(AlgRSA15), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if head, err := b64.DecodeString(r.Protected); err != nil || string(head) != `{"alg":"RSA1_5","enc":"A256GCM"}` {
		t.Errorf("header %s, %v", head, err)
	}
	wrapped, _ := b64.DecodeString(r.EncryptedKey)
	cek, err := rsa.DecryptPKCS1v15(nil, rsaKey(), wrapped) //nolint:staticcheck // what the guest chose
	if err != nil || len(cek) != cekSize {
		t.Fatalf("%d bytes, %v", len(cek), err)
	}
	gcm, err := newGCM(cek)
	if err != nil {
		t.Fatal(err)
	}
	iv, _ := b64.DecodeString(r.IV)
	ct, _ := b64.DecodeString(r.Ciphertext)
	tag, _ := b64.DecodeString(r.Tag)
	if plain, err := gcm.Open(nil, iv, append(ct, tag...), []byte(r.Protected)); err != nil || string(plain) != "x" {
		t.Errorf("got %q, %v", plain, err)
	}
}

// TestMLKEMDigest: the canonical document of an AKP key has its members in order.
func TestMLKEMDigest(t *testing.T) {
	t.Parallel()
	k := testKey(t, KeyMLKEM).Public()
	doc, err := runtimeJSON("n", k, nil)
	if want := `{"nonce":"n","tee-pubkey":{"alg":"ML-KEM-768+A192KW","kty":"AKP","pub":"` + k.Pub + `"}}`; err != nil || string(doc) != want {
		t.Errorf("got %s, %v", doc, err)
	}
}

// TestDecryptMLKEMRefuses: what is no encapsulated key is refused as such.
func TestDecryptMLKEMRefuses(t *testing.T) {
	t.Parallel()
	k := testKey(t, KeyMLKEM)
	r, err := EncryptResponse(rand.Reader, k.Public(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for ek, want := range map[string]string{"": "is missing", `"ek":"AA"`: "1088 bytes", `"ek":7`: "expected a string"} {
		head := `{"alg":"ML-KEM-768+A192KW","enc":"A256GCM"`
		if ek != "" {
			head += "," + ek
		}
		r.Protected = b64.EncodeToString([]byte(head + "}"))
		if _, err := k.Decrypt(*r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", ek, err)
		}
	}
}

// deviceAttester is a device; it keeps the report data it was asked for.
type deviceAttester struct {
	fakeAttester
	name tee.Name
	got  *[]byte
	// absent: nothing is attached.
	absent bool
}

func (d deviceAttester) TEE() tee.Name { return d.name }

func (d deviceAttester) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	*d.got = reportData
	if d.absent {
		return nil, nil
	}
	return json.RawMessage(`{"list": ["<` + string(d.name) + `>"]}`), nil
}

func TestDevicesOfClient(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"", SHA512} {
		ft := newTrustee(t)
		ft.challenge.HashAlgorithm = alg
		var body []byte
		ft.hook = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			if r.URL.Path == AttestPath {
				var b bytes.Buffer
				_, _ = b.ReadFrom(r.Body)
				body = b.Bytes()
				r.Body = readCloser{bytes.NewReader(body)}
			}
			return false
		}
		var gpu, sample []byte
		c, _ := ft.client(func(o *ClientOptions) {
			o.Devices = []tee.Attester{deviceAttester{name: tee.SampleDevice, got: &sample}, deviceAttester{name: tee.NVIDIA, got: &gpu}}
		})
		// The fake broker checks that the primary evidence is bound to the string.
		if err := c.Attest(t.Context()); err != nil {
			t.Fatal(err)
		}
		a, err := ParseAttestation(V040, body)
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"nvidia":{"list":["<nvidia>"]},"sampledevice":{"list":["<sampledevice>"]}}`; *a.Additional != want {
			t.Errorf("got %s", *a.Additional)
		}
		want, err := a.DeviceDigest(alg, a.Nonce)
		if err != nil || !bytes.Equal(gpu, want) || !bytes.Equal(sample, want) {
			t.Errorf("devices were asked for %x and %x, want %x", gpu, sample, want)
		}
	}
}

// TestAbsentDevices: what is not attached is not in the evidence.
func TestAbsentDevices(t *testing.T) {
	t.Parallel()
	var gpu, sample []byte
	absent := deviceAttester{name: tee.NVIDIA, got: &gpu, absent: true}
	for _, tt := range []struct {
		devices []tee.Attester
		want    string
	}{
		{[]tee.Attester{absent}, ""},
		{[]tee.Attester{absent, deviceAttester{name: tee.SampleDevice, got: &sample}}, `{"sampledevice":{"list":["<sampledevice>"]}}`},
	} {
		ft := newTrustee(t)
		var body []byte
		ft.hook = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			if r.URL.Path == AttestPath {
				var b bytes.Buffer
				_, _ = b.ReadFrom(r.Body)
				body = b.Bytes()
				r.Body = readCloser{bytes.NewReader(body)}
			}
			return false
		}
		c, _ := ft.client(func(o *ClientOptions) { o.Devices = tt.devices })
		if err := c.Attest(t.Context()); err != nil {
			t.Fatal(err)
		}
		a, err := ParseAttestation(V040, body)
		if err != nil {
			t.Fatal(err)
		}
		if gpu == nil || *a.Additional != tt.want {
			t.Errorf("got %q, want %q", *a.Additional, tt.want)
		}
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

func TestClientOptionsRefused(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	var got []byte
	d := deviceAttester{name: tee.NVIDIA, got: &got}
	for name, change := range map[string]func(*ClientOptions){
		"twice":            func(o *ClientOptions) { o.Devices = []tee.Attester{d, d} },
		"nil":              func(o *ClientOptions) { o.Devices = []tee.Attester{nil} },
		"key type":         func(o *ClientOptions) { o.KeyType = "RSA1_5" },
		"selector":         func(o *ClientOptions) { o.PolicySelector = strings.Repeat("x", 257) },
		"selector's bytes": func(o *ClientOptions) { o.PolicySelector = "\xff" },
	} {
		o := ClientOptions{URL: ft.server.URL, Attester: fakeAttester{}, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader}
		change(&o)
		if _, err := NewClient(o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

// TestTenantAndSelector: a base with a path, and a policy asked for by name.
func TestTenantAndSelector(t *testing.T) {
	t.Parallel()
	ft := newTrustee(t)
	cookie := strings.Repeat("Ab-_", 400)
	ft.hook = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		path, ok := strings.CutPrefix(r.URL.Path, "/tenants/acme")
		if !ok {
			t.Errorf("asked for %s", r.URL.Path)
		}
		switch r.URL.Path = path; path {
		case AuthPath:
			var b bytes.Buffer
			_, _ = b.ReadFrom(r.Body)
			if req, err := ParseRequest(b.Bytes()); err != nil || req.PolicySelector != "strict" {
				t.Errorf("got %+v, %v", req, err)
			}
			ft.mu.Lock()
			ft.sessions[cookie] = "n"
			ft.mu.Unlock()
			http.SetCookie(w, &http.Cookie{Name: SessionCookie, Value: cookie, Path: "/tenants/acme/kbs/v0"})
			_, _ = w.Write([]byte(`{"nonce":"n","extra-params":""}`))
			return true
		default:
			return false
		}
	}
	c, _ := ft.client(func(o *ClientOptions) { o.URL, o.PolicySelector = o.URL+"tenants/acme/", "strict" })
	if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
		t.Errorf("got %q, %v", v.Expose(), err)
	}
}

// TestBrokenOffOnce: what breaks off once is no failure, wherever it happens.
func TestBrokenOffOnce(t *testing.T) {
	t.Parallel()
	for _, path := range []string{AuthPath, AttestPath, testURI.RequestPath()} {
		for name, answer := range map[string]func(w http.ResponseWriter){
			"502":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
			"503":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
			"504":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusGatewayTimeout) },
			"closed": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		} {
			ft := newTrustee(t)
			ft.hook = func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.URL.Path != path || n > 1 {
					return false
				}
				answer(w)
				return true
			}
			c, _ := ft.client(nil)
			if v, err := c.Resource(t.Context(), testURI); err != nil || string(v.Expose()) != "the value" {
				t.Errorf("%s %s: got %q, %v", name, path, v.Expose(), err)
			}
		}
	}
}
