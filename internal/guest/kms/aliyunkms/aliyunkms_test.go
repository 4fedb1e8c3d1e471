package aliyunkms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sampleKey(t testing.TB) *clientKey {
	t.Helper()
	k, err := parseClientKey(secret.New(read(t, "clientKey.json")), secret.New(read(t, "password.txt")))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestClientKey opens a client key as Alibaba Cloud makes them.
func TestClientKey(t *testing.T) {
	t.Parallel()
	k := sampleKey(t)
	if k.id != "KAAP.test-id" || k.key.Size() != 256 || k.key.Validate() != nil {
		t.Errorf("got %s, %d bytes", k.id, k.key.Size())
	}
	good, password := read(t, "clientKey.json"), read(t, "password.txt")
	for name, tt := range map[string]struct{ doc, password, want string }{
		"password": {string(good), "other", "is no PKCS #12, or the password is another's"},
		"no JSON":  {"x", string(password), "expected a JSON object"},
		"no id":    {`{"PrivateKeyData":"AA=="}`, "", "KeyId: expected printable ASCII"},
		"id":       {`{"KeyId":"a\nb","PrivateKeyData":"AA=="}`, "", "KeyId: expected printable ASCII"},
		"base64":   {`{"KeyId":"a","PrivateKeyData":"!"}`, "", "PrivateKeyData: expected padded base64"},
		"PKCS #12": {`{"KeyId":"a","PrivateKeyData":"AA=="}`, "", "is no PKCS #12"},
	} {
		_, err := parseClientKey(secret.New([]byte(tt.doc)), secret.New([]byte(tt.password)))
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), strings.TrimSpace(string(password))) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// instance is a key management service that checks what it is sent.
type instance struct {
	t      *testing.T
	api    string
	body   []byte
	status int
	answer []byte
}

func (f *instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	f.body = body
	sum := sha256.Sum256(body)
	hash := strings.ToUpper(hex.EncodeToString(sum[:]))
	text := strings.Join([]string{
		"POST", hash, "application/x-protobuf", "Fri, 02 Jan 2026 03:04:05 GMT",
		"x-kms-acccesskeyid:KAAP.test-id", "x-kms-apiname:" + f.api, "x-kms-apiversion:dkms-gcs-0.2", "x-kms-signaturemethod:RSA_PKCS1_SHA_256", "/",
	}, "\n")
	signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	digest := sha256.Sum256([]byte(text))
	if err != nil || rsa.VerifyPKCS1v15(&sampleKey(f.t).key.PublicKey, crypto.SHA256, digest[:], signature) != nil {
		f.t.Errorf("the signature is not over\n%s", text)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/x-protobuf", "Accept": "application/x-protobuf", "Date": "Fri, 02 Jan 2026 03:04:05 GMT", "Content-Sha256": hash,
		"X-Kms-Acccesskeyid": "KAAP.test-id", "X-Kms-Apiname": f.api,
	} {
		if got := r.Header.Get(name); got != want {
			f.t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	w.WriteHeader(f.status)
	_, _ = w.Write(f.answer)
}

func start(t *testing.T, f *instance) (*Provider, kms.Request) {
	t.Helper()
	f.t = t
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	files := map[string][]byte{
		"aliyun/PrivateKmsCA_kst-1.pem":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}),
		"aliyun/clientKey_KAAP.test-id.json": read(t, "clientKey.json"),
		"aliyun/password_KAAP.test-id.json":  read(t, "password.txt"),
		"aliyun/PrivateKmsCA_kst-2.pem":      []byte("nothing"),
		"aliyun/clientKey_KAAP.other.json":   []byte("{}"),
		"aliyun/password_KAAP.other.json":    []byte("x"),
		"aliyun/clientKey_KAAP.no-word.json": []byte("{}"),
	}
	p := New(Options{
		Host: func(string) string { return strings.TrimPrefix(srv.URL, "https://") },
		Now:  func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
	})
	return p, kms.Request{
		Name: "name", Ciphertext: []byte("blob"),
		Settings:    sealed.Object(`{"client_type":"client_key","client_key_id":"KAAP.test-id","kms_instance_id":"kst-1"}`),
		Annotations: sealed.Object(`{}`),
		Credential: func(_ context.Context, name string) (secret.Bytes, error) {
			if b, ok := files[name]; ok {
				return secret.New(b), nil
			}
			return secret.Bytes{}, errors.New("no credential " + name)
		},
	}
}

func bytesField(n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), v)
}

func TestSecret(t *testing.T) {
	t.Parallel()
	f := &instance{api: "GetSecretValue", status: 200, answer: append(bytesField(1, "name"), bytesField(3, "hunter2")...)}
	p, r := start(t, f)
	r.Annotations = sealed.Object(`{"version_stage":"ACSCurrent","version_id":"v1"}`)
	got, err := p.Secret(t.Context(), r)
	if err != nil || string(got.Expose()) != "hunter2" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if want := "\x0a\x04name\x12\x0aACSCurrent\x1a\x02v1\x20\x01"; string(f.body) != want {
		t.Errorf("body %q, want %q", f.body, want)
	}
}

func TestDecrypt(t *testing.T) {
	t.Parallel()
	f := &instance{api: "Decrypt", status: 200, answer: append(bytesField(1, "name"), bytesField(2, "key")...)}
	p, r := start(t, f)
	r.Annotations = sealed.Object(`{"iv":"AAEC"}`)
	got, err := p.Decrypt(t.Context(), r)
	if err != nil || string(got.Expose()) != "key" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if want := "\x0a\x04blob\x12\x04name\x1a\x07AES_GCM\x2a\x03\x00\x01\x02"; string(f.body) != want {
		t.Errorf("body %q, want %q", f.body, want)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	settings := func(s string) func(*kms.Request) { return func(r *kms.Request) { r.Settings = sealed.Object(s) } }
	for want, tt := range map[string]struct {
		status int
		answer string
		change func(*kms.Request)
	}{
		`status 403: "Forbidden": "no such key"`: {403, string(append(bytesField(2, "Forbidden"), bytesField(3, "no such key")...)), nil},
		`status 500: "": ""`:                     {500, "<html>", nil},
		"the answer has no result":               {200, string(bytesField(1, "x")), nil},
		"Decrypt: the answer has no":             {200, "\xff\xff", nil},
		"client_type: expected client_key":       {0, "", settings(`{"client_type":"ecs_ram_role","client_key_id":"a","kms_instance_id":"b"}`)},
		"client_key_id: expected":                {0, "", settings(`{"client_key_id":"../x","kms_instance_id":"b"}`)},
		"kms_instance_id: expected":              {0, "", settings(`{"client_key_id":"a","kms_instance_id":"evil.example/"}`)},
		"provider_settings: JSON x":              {0, "", settings(`{"x":1}`)},
		"no credential aliyun/clientKey_b":       {0, "", settings(`{"client_key_id":"b","kms_instance_id":"kst-1"}`)},
		"no credential aliyun/password_KAAP.no":  {0, "", settings(`{"client_key_id":"KAAP.no-word","kms_instance_id":"kst-1"}`)},
		"clientKey_KAAP.other.json: KeyId":       {0, "", settings(`{"client_key_id":"KAAP.other","kms_instance_id":"kst-1"}`)},
		"no credential aliyun/PrivateKmsCA_z":    {0, "", settings(`{"client_key_id":"KAAP.test-id","kms_instance_id":"z"}`)},
		"holds no certificate in PEM":            {0, "", settings(`{"client_key_id":"KAAP.test-id","kms_instance_id":"kst-2"}`)},
		"annotations.iv: expected padded":        {0, "", func(r *kms.Request) { r.Annotations = sealed.Object(`{"iv":"!"}`) }},
		"annotations: JSON x":                    {0, "", func(r *kms.Request) { r.Annotations = sealed.Object(`{"x":"!"}`) }},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			p, r := start(t, &instance{api: "Decrypt", status: tt.status, answer: []byte(tt.answer)})
			if tt.change != nil {
				tt.change(&r)
			}
			if _, err := p.Decrypt(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzFind reads what an instance may answer.
func FuzzFind(f *testing.F) {
	f.Add(append(bytesField(1, "name"), bytesField(2, "key")...))
	f.Add([]byte("\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, _ := find(b, 2); len(v) > len(b) {
			t.Fatal("more than there was")
		}
	})
}
