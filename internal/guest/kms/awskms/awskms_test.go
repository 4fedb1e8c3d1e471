package awskms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// The access key and the time of Amazon's signature test suite
// (aws-sig-v4-test-suite).
const (
	suiteID  = "AKIDEXAMPLE"
	suiteKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

func suiteTime() time.Time { return time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC) }

// TestSignatureSuite repeats cases of the suite whose path and query are plain.
func TestSignatureSuite(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		method string
		header http.Header
		body   string
		want   string
	}{
		"get-vanilla": {http.MethodGet, http.Header{}, "",
			"SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"post-vanilla": {http.MethodPost, http.Header{}, "",
			"SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		"post-header-key-sort": {http.MethodPost, http.Header{"My-Header1": {"value1"}}, "",
			"SignedHeaders=host;my-header1;x-amz-date, Signature=c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
		"post-x-www-form-urlencoded": {http.MethodPost, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "Param1=value1",
			"SignedHeaders=content-type;host;x-amz-date, Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		err := sign(signing{
			method: tt.method, url: "https://example.amazonaws.com/", header: tt.header, body: []byte(tt.body),
			now: suiteTime(), region: "us-east-1", service: "service", credential: credential{ID: suiteID, Key: suiteKey},
		})
		want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, " + tt.want
		if got := tt.header.Get("Authorization"); err != nil || got != want {
			t.Errorf("%s: got  %s\nwant %s, %v", name, got, want, err)
		}
	}
	if err := sign(signing{url: "https://x/?a=b", header: http.Header{}}); err == nil {
		t.Error("a query was signed")
	}
}

// fake is a service that checks what it is sent, and answers what it is told.
type fake struct {
	t      *testing.T
	target string
	status int
	answer string
	body   map[string]any
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	f.body = nil
	if err := json.Unmarshal(body, &f.body); err != nil {
		f.t.Error(err)
	}
	if r.Method != http.MethodPost || r.URL.Path != "/" || r.Header.Get("X-Amz-Target") != f.target || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		f.t.Errorf("%s %s for %q", r.Method, r.URL, r.Header.Get("X-Amz-Target"))
	}
	// The service signs what it received, and must come to the same.
	header := http.Header{}
	for _, name := range []string{"Content-Type", "X-Amz-Target"} {
		header.Set(name, r.Header.Get(name))
	}
	service, _, _ := strings.Cut(strings.ToLower(f.target), ".")
	if service == "trentservice" {
		service = "kms"
	}
	err = sign(signing{
		method: r.Method, url: "https://" + r.Host + "/", header: header, body: body, now: suiteTime(),
		region: "eu-west-1", service: service, credential: credential{ID: suiteID, Key: suiteKey, Token: r.Header.Get("X-Amz-Security-Token")},
	})
	if err != nil || header.Get("Authorization") != r.Header.Get("Authorization") || r.Header.Get("X-Amz-Security-Token") != "session" {
		f.t.Errorf("signature %s, want %s, %v", r.Header.Get("Authorization"), header.Get("Authorization"), err)
	}
	w.WriteHeader(f.status)
	_, _ = io.WriteString(w, f.answer)
}

func credentialOf(text string) func(context.Context, string) (secret.Bytes, error) {
	return func(_ context.Context, name string) (secret.Bytes, error) {
		if name != "aws/credential.json" {
			return secret.Bytes{}, errors.New("no such credential")
		}
		return secret.New([]byte(text)), nil
	}
}

const goodCredential = `{"access_key_id":"` + suiteID + `","secret_access_key":"` + suiteKey + `","session_token":"session"}`

func request(name string) kms.Request {
	return kms.Request{
		Name: name, Ciphertext: []byte("blob"), Settings: sealed.Object(`{"region":"eu-west-1"}`), Annotations: sealed.Object(`{}`),
		Credential: credentialOf(goodCredential),
	}
}

func provider(t *testing.T, f *fake) *Provider {
	t.Helper()
	f.t = t
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return New(Options{Now: suiteTime, Endpoint: func(string, string) string { return srv.URL }})
}

func TestSecret(t *testing.T) {
	t.Parallel()
	f := &fake{target: targetSecret, status: 200, answer: `{"Name":"n","SecretString":"hunter2","CreatedDate":1.5}`}
	p := provider(t, f)
	r := request("prod/db")
	r.Annotations = sealed.Object(`{"version_id":"v1","version_stage":"AWSCURRENT"}`)
	got, err := p.Secret(t.Context(), r)
	if err != nil || string(got.Expose()) != "hunter2" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if f.body["SecretId"] != "prod/db" || f.body["VersionId"] != "v1" || f.body["VersionStage"] != "AWSCURRENT" || len(f.body) != 3 {
		t.Errorf("body %v", f.body)
	}
	f.answer = `{"SecretString":null,"SecretBinary":"AAEC"}`
	if got, err := p.Secret(t.Context(), request("x")); err != nil || string(got.Expose()) != "\x00\x01\x02" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	if len(f.body) != 1 {
		t.Errorf("body %v", f.body)
	}
}

func TestDecrypt(t *testing.T) {
	t.Parallel()
	f := &fake{target: targetDecrypt, status: 200, answer: `{"KeyId":"k","Plaintext":"a2V5","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`}
	p := provider(t, f)
	r := request("alias/app")
	r.Annotations = sealed.Object(`{"encryption_context":{"app":"shop"}}`)
	got, err := p.Decrypt(t.Context(), r)
	if err != nil || string(got.Expose()) != "key" {
		t.Errorf("got %q, %v", got.Expose(), err)
	}
	context, _ := f.body["EncryptionContext"].(map[string]any)
	if f.body["KeyId"] != "alias/app" || f.body["CiphertextBlob"] != base64.StdEncoding.EncodeToString([]byte("blob")) || context["app"] != "shop" {
		t.Errorf("body %v", f.body)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for want, tt := range map[string]struct {
		status int
		answer string
		change func(*kms.Request)
	}{
		`status 400: "AccessDeniedException": "no"`: {400, `{"__type":"AccessDeniedException","Message":"no"}`, nil},
		`status 400: "IncorrectKeyException"`:       {400, `{"__type":"IncorrectKeyException"}`, nil},
		"status 503":                                {503, "<html>", nil},
		"status 302":                                {302, "", nil},
		"the answer is not a JSON":                  {200, "<html>", nil},
		"has no member Plaintext":                   {200, `{}`, nil},
		"no member Plaintext":                       {200, `{"Plaintext":null}`, nil},
		"Plaintext is not base64":                   {200, `{"Plaintext":"!"}`, nil},
		"answer has more than":                      {200, strings.Repeat(" ", 300<<10), nil},
		`expected a region such as`:                 {0, "", func(r *kms.Request) { r.Settings = sealed.Object(`{"region":"evil.example/"}`) }},
		"provider_settings: JSON x":                 {0, "", func(r *kms.Request) { r.Settings = sealed.Object(`{"region":"a","x":1}`) }},
		"annotations: JSON x":                       {0, "", func(r *kms.Request) { r.Annotations = sealed.Object(`{"x":1}`) }},
		"credential aws/credential.json":            {0, "", func(r *kms.Request) { r.Credential = credentialOf(`{"access_key_id":1}`) }},
		"must be set, in printable":                 {0, "", func(r *kms.Request) { r.Credential = credentialOf(`{"access_key_id":"a\nb","secret_access_key":"x"}`) }},
		"access_key_id and":                         {0, "", func(r *kms.Request) { r.Credential = credentialOf(`{"access_key_id":"a"}`) }},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			p := provider(t, &fake{target: targetDecrypt, status: tt.status, answer: tt.answer})
			r := request("k")
			if tt.change != nil {
				tt.change(&r)
			}
			if _, err := p.Decrypt(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), suiteKey) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for in, want := range map[[2]string]string{
		{"kms", "eu-west-1"}:             "https://kms.eu-west-1.amazonaws.com",
		{"secretsmanager", "cn-north-1"}: "https://secretsmanager.cn-north-1.amazonaws.com.cn",
	} {
		if got := endpoint(in[0], in[1]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzAnswer decodes what a service may answer.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"Plaintext":"a2V5"}`))
	f.Add([]byte(`{"__type":"x","message":"y"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if refusal("kms", 400, text) == nil {
			t.Fatal("no error")
		}
		var a answer
		if json.Unmarshal(text, &a) == nil {
			_, _ = a.bytes("kms", "Plaintext")
		}
	})
}
