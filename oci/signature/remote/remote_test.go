package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

func good() (signature.KeylessSignature, signature.KeylessTrust) {
	sum := sha256.Sum256([]byte("image"))
	return signature.KeylessSignature{Bundle: []byte(`{"a":1}`), ArtifactSHA256: sum[:]},
		signature.KeylessTrust{CACertificates: []byte("ca"), OIDCIssuer: "https://i", SubjectEmail: "a@b", LogKeys: [][]byte{[]byte("one"), []byte("two")}}
}

// asked runs a verifier and returns what was sent.
func asked(t *testing.T, s signature.KeylessSignature, trust signature.KeylessTrust, answer func(*remote.Request) ([]byte, error)) ([]byte, []byte, error) {
	t.Helper()
	var sent []byte
	key, err := remote.New(func(_ context.Context, body []byte) (secret.Bytes, error) {
		sent = bytes.Clone(body)
		r, err := remote.ParseRequest(body)
		if err != nil {
			t.Fatal(err)
		}
		out, err := answer(r)
		return secret.New(out), err
	}).Verify(t.Context(), s, trust)
	return sent, key, err
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	s, trust := good()
	_, key, err := asked(t, s, trust, func(r *remote.Request) ([]byte, error) {
		if !bytes.Equal(r.Signature.Bundle, s.Bundle) || !bytes.Equal(r.Signature.ArtifactSHA256, s.ArtifactSHA256) ||
			!bytes.Equal(r.Trust.CACertificates, trust.CACertificates) || r.Trust.OIDCIssuer != trust.OIDCIssuer || r.Trust.SubjectEmail != trust.SubjectEmail ||
			!bytes.Equal(bytes.Join(r.Trust.LogKeys, []byte("|")), []byte("one|two")) {
			t.Errorf("got %+v", r)
		}
		return r.Answer([]byte("key"))
	})
	if err != nil || string(key) != "key" {
		t.Errorf("%q, %v", key, err)
	}
}

// TestAnswers: nothing but the answer to this request counts.
func TestAnswers(t *testing.T) {
	t.Parallel()
	s, trust := good()
	other := s
	other.ArtifactSHA256 = make([]byte, 32)
	body, _, err := asked(t, other, trust, func(r *remote.Request) ([]byte, error) { return r.Answer([]byte("key")) })
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := remote.ParseRequest(body)
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for want, answer := range map[string]func(*remote.Request) ([]byte, error){
		"answers another question": func(*remote.Request) ([]byte, error) { return elsewhere.Answer([]byte("key")) },
		"public_key: missing":      func(r *remote.Request) ([]byte, error) { return r.Answer(nil) },
		"the trustee's answer":     func(*remote.Request) ([]byte, error) { return []byte("yes"), nil },
		"unknown":                  func(*remote.Request) ([]byte, error) { return []byte(`{"good":true}`), nil },
		"refused":                  func(*remote.Request) ([]byte, error) { return nil, refused },
	} {
		if _, key, err := asked(t, s, trust, answer); err == nil || key != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %q, %v", want, key, err)
		}
	}
}

// TestLimits: what cannot be asked is not, and what is asked all the same is
// refused.
func TestLimits(t *testing.T) {
	t.Parallel()
	for want, spoil := range map[string]func(*signature.KeylessSignature, *signature.KeylessTrust){
		"bundle:":          func(s *signature.KeylessSignature, _ *signature.KeylessTrust) { s.Bundle = nil },
		"bundle: expected": func(s *signature.KeylessSignature, _ *signature.KeylessTrust) { s.Bundle = make([]byte, 1<<20) },
		"artifact_sha256:": func(s *signature.KeylessSignature, _ *signature.KeylessTrust) { s.ArtifactSHA256 = make([]byte, 64) },
		"ca_certificates:": func(_ *signature.KeylessSignature, t *signature.KeylessTrust) { t.CACertificates = nil },
		"oidc_issuer:":     func(_ *signature.KeylessSignature, t *signature.KeylessTrust) { t.OIDCIssuer = "" },
		"subject_email:": func(_ *signature.KeylessSignature, t *signature.KeylessTrust) {
			t.SubjectEmail = strings.Repeat("a", 4096)
		},
		"log_keys:":    func(_ *signature.KeylessSignature, t *signature.KeylessTrust) { t.LogKeys = nil },
		"log_keys: ":   func(_ *signature.KeylessSignature, t *signature.KeylessTrust) { t.LogKeys = make([][]byte, 65) },
		"log_keys[0]:": func(_ *signature.KeylessSignature, t *signature.KeylessTrust) { t.LogKeys = [][]byte{nil} },
		"request of at most": func(_ *signature.KeylessSignature, t *signature.KeylessTrust) {
			t.LogKeys = bytes.SplitAfter(bytes.Repeat([]byte(strings.Repeat("a", 100<<10)+"\n"), 12), []byte("\n"))[:12]
		},
	} {
		s, trust := good()
		spoil(&s, &trust)
		key, err := remote.New(func(context.Context, []byte) (secret.Bytes, error) {
			t.Error("was asked")
			return secret.Bytes{}, nil
		}).Verify(t.Context(), s, trust)
		if err == nil || key != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		doc, err := json.Marshal(map[string]any{
			"bundle": s.Bundle, "artifact_sha256": s.ArtifactSHA256, "ca_certificates": trust.CACertificates, "oidc_issuer": trust.OIDCIssuer, "subject_email": trust.SubjectEmail, "log_keys": trust.LogKeys,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.ParseRequest(doc); err == nil {
			t.Errorf("%s: was read", want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	s, trust := good()
	_, _ = remote.New(func(_ context.Context, body []byte) (secret.Bytes, error) {
		f.Add(bytes.Clone(body))
		return secret.Bytes{}, errors.New("seen")
	}).Verify(f.Context(), s, trust)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := remote.ParseRequest(data)
		if err != nil {
			return
		}
		if len(r.Signature.ArtifactSHA256) != 32 || len(r.Signature.Bundle) == 0 || len(r.Trust.LogKeys) == 0 || r.Trust.SubjectEmail == "" {
			t.Fatalf("%+v", r)
		}
	})
}

// An answer comes from the trustee, whom the guest believes; it is decoded like
// anything else.
func FuzzAnswer(f *testing.F) {
	s, trust := good()
	f.Add([]byte(`{"request_sha256":"","public_key":"a2V5"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := remote.New(func(context.Context, []byte) (secret.Bytes, error) { return secret.New(bytes.Clone(data)), nil }).Verify(t.Context(), s, trust)
		if err == nil && len(key) == 0 {
			t.Fatal("no key and no error")
		}
	})
}
