package keyless_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/plugin/keyless"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
	sigstore "github.com/coffer-project/coffer/oci/signature/keyless"
	"github.com/coffer-project/coffer/oci/signature/keyless/keylesstest"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

const (
	issuer = "https://accounts.example.com"
	email  = "release@example.com"
)

var digest = oci.FromBytes([]byte("image"))

func newPlugin(t testing.TB, o keyless.Options) *keyless.Plugin {
	t.Helper()
	o.Verifier = sigstore.New()
	p, err := keyless.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// signed is a signature of digest that the log took in at a time.
func signed(t testing.TB, s *keylesstest.Sigstore, at time.Time) (signature.KeylessSignature, []byte) {
	t.Helper()
	e, err := s.AttestAtTime(email, issuer, []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"`+digest.Hex()+`"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`), at, true)
	if err != nil {
		t.Fatal(err)
	}
	v, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("image"))
	return signature.KeylessSignature{Bundle: s.BundleOf(t, e), ArtifactSHA256: sum[:]}, v.Certificate().RawSubjectPublicKeyInfo
}

func trust(s *keylesstest.Sigstore) signature.KeylessTrust {
	return signature.KeylessTrust{CACertificates: []byte(s.Authority), OIDCIssuer: issuer, SubjectEmail: email, LogKeys: [][]byte{[]byte(s.Log)}}
}

// ask has the guest's side ask the plugin.
func ask(t *testing.T, p *keyless.Plugin, s signature.KeylessSignature, tr signature.KeylessTrust) (key []byte, resp *plugin.Response, err error) {
	t.Helper()
	key, err = remote.New(func(ctx context.Context, body []byte) (secret.Bytes, error) {
		r := plugin.Request{Tenant: "acme", Method: http.MethodPost, Path: []string{"verify"}, Body: body}
		if e := p.Check(r); e != nil {
			return secret.Bytes{}, e
		}
		var e *problem.Error
		if resp, e = p.Handle(ctx, r); e != nil {
			return secret.Bytes{}, e
		}
		if !resp.Encrypt {
			t.Error("the answer is in the clear")
		}
		return secret.New(bytes.Clone(resp.Body.Expose())), nil
	}).Verify(t.Context(), s, tr)
	return key, resp, err
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s, other := keylesstest.New(t), keylesstest.New(t)
	now := time.Now().Add(5 * time.Minute)
	good, key := signed(t, s, now)
	expired, _ := signed(t, s, now.Add(24*time.Hour))
	early, _ := signed(t, s, now.Add(-24*time.Hour))
	with := func(change func(*signature.KeylessTrust)) signature.KeylessTrust {
		tr := trust(s)
		change(&tr)
		return tr
	}
	another := good
	another.ArtifactSHA256 = make([]byte, 32)
	garbage := good
	garbage.Bundle = []byte("{")
	own := keyless.Options{Authorities: [][]byte{[]byte(s.Authority)}, Logs: [][]byte{[]byte(s.Log)}}
	both := keyless.Options{Authorities: [][]byte{[]byte(s.Authority), []byte(other.Authority)}, Logs: [][]byte{[]byte(s.Log + other.Log)}}
	for name, tt := range map[string]struct {
		o    keyless.Options
		s    signature.KeylessSignature
		t    signature.KeylessTrust
		rule string
	}{
		"good":                         {keyless.Options{}, good, trust(s), ""},
		"good, pinned":                 {own, good, trust(s), ""},
		"good, pinned with others":     {both, good, trust(s), ""},
		"wrong person":                 {keyless.Options{}, good, with(func(t *signature.KeylessTrust) { t.SubjectEmail = "mallory@example.com" }), "keyless.signature"},
		"wrong issuer":                 {keyless.Options{}, good, with(func(t *signature.KeylessTrust) { t.OIDCIssuer = "https://evil.example.com" }), "keyless.signature"},
		"expired when it signed":       {keyless.Options{}, expired, trust(s), "keyless.signature"},
		"not valid yet when it signed": {keyless.Options{}, early, trust(s), "keyless.signature"},
		"other digest":                 {keyless.Options{}, another, trust(s), "keyless.signature"},
		"no bundle":                    {keyless.Options{}, garbage, trust(s), "keyless.signature"},
		"another authority":            {keyless.Options{}, good, with(func(t *signature.KeylessTrust) { t.CACertificates = []byte(other.Authority) }), "keyless.signature"},
		"another log":                  {keyless.Options{}, good, with(func(t *signature.KeylessTrust) { t.LogKeys = [][]byte{[]byte(other.Log)} }), "keyless.signature"},
		"authority not pinned":         {keyless.Options{Authorities: [][]byte{[]byte(other.Authority)}}, good, trust(s), "keyless.pinned"},
		"log not pinned":               {keyless.Options{Logs: [][]byte{[]byte(other.Log)}}, good, trust(s), "keyless.pinned"},
		"one authority more":           {own, good, with(func(t *signature.KeylessTrust) { t.CACertificates = []byte(s.Authority + other.Authority) }), "keyless.pinned"},
		"one log more":                 {own, good, with(func(t *signature.KeylessTrust) { t.LogKeys = append(t.LogKeys, []byte(other.Log)) }), "keyless.pinned"},
		"log of no PEM":                {own, good, with(func(t *signature.KeylessTrust) { t.LogKeys = [][]byte{[]byte("x")} }), "keyless.pinned"},
	} {
		got, resp, err := ask(t, newPlugin(t, tt.o), tt.s, tt.t)
		if tt.rule == "" {
			if err != nil || !bytes.Equal(got, key) || !strings.Contains(resp.Detail, string(digest)) || !strings.Contains(resp.Detail, email) {
				t.Errorf("%s: %x, %v, %+v", name, got, err, resp)
			}
			continue
		}
		e, ok := errors.AsType[*problem.Error](err)
		if !ok || got != nil || e.Status != http.StatusForbidden || e.Info.Reason == nil || e.Info.Reason.Rule != tt.rule || e.Info.Reason.Help == "" {
			t.Errorf("%s: want %s, got %x, %v", name, tt.rule, got, err)
		}
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, keyless.Options{})
	for _, tt := range []struct {
		method, path string
		want         plugin.Access
	}{
		{"POST", "verify", plugin.Guest}, {"GET", "verify", plugin.None}, {"PUT", "verify", plugin.None}, {"POST", "", plugin.None}, {"POST", "verify/x", plugin.None}, {"POST", "other", plugin.None},
	} {
		if got := p.Access(tt.method, strings.Split(tt.path, "/")); got != tt.want {
			t.Errorf("%s %s: %d", tt.method, tt.path, got)
		}
	}
	if p.Access("POST", nil) != plugin.None || p.Name() != "keyless" || p.MaxBody() != remote.MaxRequest {
		t.Error("name, access or size")
	}
	large, err := json.Marshal(strings.Repeat("a", remote.MaxRequest))
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range [][]byte{nil, []byte("{}"), []byte("x"), []byte(`{"unknown":1}`), large} {
		r := plugin.Request{Method: "POST", Path: []string{"verify"}, Body: body}
		if e := p.Check(r); e == nil || e.Status != http.StatusBadRequest {
			t.Errorf("%.40q: %v", body, e)
		}
		if _, e := p.Handle(t.Context(), r); e == nil || e.Status != http.StatusBadRequest {
			t.Errorf("%.40q: %v", body, e)
		}
	}
	if e := p.Check(plugin.Request{Path: []string{"verify"}, Query: map[string]string{"a": "b"}}); e == nil || !strings.Contains(e.Error(), "query") {
		t.Error(e)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	s := keylesstest.New(t)
	bad := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	if _, err := x509.ParseCertificate([]byte("x")); err == nil {
		t.Fatal("a certificate")
	}
	for want, o := range map[string]keyless.Options{
		"verifier is required": {},
		"authorities: expected PEM blocks CERTIFICATE, found none": {Verifier: sigstore.New(), Authorities: [][]byte{[]byte("x")}},
		"authorities: expected PEM blocks CERTIFICATE, got":        {Verifier: sigstore.New(), Authorities: [][]byte{[]byte(s.Log)}},
		"authorities: x509":           {Verifier: sigstore.New(), Authorities: [][]byte{bad}},
		"logs: expected PEM blocks P": {Verifier: sigstore.New(), Logs: [][]byte{[]byte(s.Authority)}},
	} {
		if _, err := keyless.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestCancelled: a guest that has gone is no verdict about a signature.
func TestCancelled(t *testing.T) {
	t.Parallel()
	s := keylesstest.New(t)
	in, _ := signed(t, s, time.Now().Add(5*time.Minute))
	var body []byte
	_, _ = remote.New(func(_ context.Context, b []byte) (secret.Bytes, error) {
		body = bytes.Clone(b)
		return secret.Bytes{}, errors.New("seen")
	}).Verify(t.Context(), in, trust(s))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, e := newPlugin(t, keyless.Options{}).Handle(ctx, plugin.Request{Method: "POST", Path: []string{"verify"}, Body: body})
	if e == nil || e.Status < 500 {
		t.Errorf("got %v", e)
	}
}
