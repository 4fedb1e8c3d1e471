// Package remote has keyless signatures verified by somebody else: a guest asks
// its trustee, which attested it and which the owner's configuration names, so
// that the guest need not link what parses certificates and log entries.
//
// [Verifier] is the asking side, an implementation of [signature.Keyless].
// [ParseRequest] and [Request.Answer] are for the side that is asked. What is
// asked and answered is JSON; an answer names the digest of its request, and
// nothing but an answer to this very request counts.
package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

// URI is the resource of a trustee that a request is sent to.
const URI = "kbs+keyless:///verify"

// Limits of a request, in bytes.
const (
	// MaxRequest bounds the whole of it.
	MaxRequest = 1 << 20
	maxBundle  = 512 << 10
	maxPEM     = 128 << 10
	maxName    = 2 << 10
	maxLogs    = 64

	maxAnswer = 32 << 10
)

// request is the form of a request on its way. Bytes are in base64.
type request struct {
	Bundle         []byte   `json:"bundle"`
	ArtifactSHA256 []byte   `json:"artifact_sha256"`
	CACertificates []byte   `json:"ca_certificates"`
	OIDCIssuer     string   `json:"oidc_issuer"`
	SubjectEmail   string   `json:"subject_email"`
	LogKeys        [][]byte `json:"log_keys"`
}

type answer struct {
	// Request is the SHA-256 of the request's bytes in lower-case hex.
	Request string `json:"request_sha256"`
	// PublicKey is that of the certificate that signed, in DER (PKIX).
	PublicKey []byte `json:"public_key"`
}

// Request is a question that was read: whether a signature is one that may be
// trusted. It is as hostile as whoever asks.
type Request struct {
	Signature signature.KeylessSignature
	Trust     signature.KeylessTrust
	digest    string
}

// ParseRequest reads a request and checks that nothing is missing or too large.
func ParseRequest(data []byte) (*Request, error) {
	var r request
	if err := strictjson.Decode(data, &r, strictjson.Limits{Bytes: MaxRequest, Depth: 4}); err != nil {
		return nil, fmt.Errorf("keyless request: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("keyless request: %w", err)
	}
	return &Request{
		Signature: signature.KeylessSignature{Bundle: r.Bundle, ArtifactSHA256: r.ArtifactSHA256},
		Trust:     signature.KeylessTrust{CACertificates: r.CACertificates, OIDCIssuer: r.OIDCIssuer, SubjectEmail: r.SubjectEmail, LogKeys: r.LogKeys},
		digest:    digest(data),
	}, nil
}

func (r *request) check() error {
	size := func(field string, n, most int) error {
		if n == 0 || n > most {
			return fmt.Errorf("%s: expected 1 to %d bytes, got %d", field, most, n)
		}
		return nil
	}
	if n := len(r.ArtifactSHA256); n != sha256.Size {
		return fmt.Errorf("artifact_sha256: expected %d bytes, got %d", sha256.Size, n)
	}
	if n := len(r.LogKeys); n == 0 || n > maxLogs {
		return fmt.Errorf("log_keys: expected 1 to %d keys, got %d", maxLogs, n)
	}
	errs := []error{
		size("bundle", len(r.Bundle), maxBundle), size("ca_certificates", len(r.CACertificates), maxPEM),
		size("oidc_issuer", len(r.OIDCIssuer), maxName), size("subject_email", len(r.SubjectEmail), maxName),
	}
	for i, k := range r.LogKeys {
		errs = append(errs, size(fmt.Sprintf("log_keys[%d]", i), len(k), maxPEM))
	}
	return errors.Join(errs...)
}

// Answer is the answer to a request whose signature is good; publicKey is that
// of its certificate, in DER (PKIX). There is no answer for any other signature:
// that is an error of whatever carries answers.
func (r *Request) Answer(publicKey []byte) ([]byte, error) {
	return json.Marshal(answer{Request: r.digest, PublicKey: publicKey})
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Asker sends a request to who verifies, over a channel that says who answers,
// and returns the answer, or an error where the signature is not good or nobody
// answers.
type Asker func(ctx context.Context, request []byte) (secret.Bytes, error)

// Verifier implements [signature.Keyless] by asking. It may be used by several
// goroutines at once if its asker may.
type Verifier struct{ ask Asker }

var _ signature.Keyless = Verifier{}

// New makes a verifier.
func New(ask Asker) Verifier { return Verifier{ask} }

// Verify implements [signature.Keyless].
func (v Verifier) Verify(ctx context.Context, s signature.KeylessSignature, t signature.KeylessTrust) ([]byte, error) {
	r := request{
		Bundle: s.Bundle, ArtifactSHA256: s.ArtifactSHA256,
		CACertificates: t.CACertificates, OIDCIssuer: t.OIDCIssuer, SubjectEmail: t.SubjectEmail, LogKeys: t.LogKeys,
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("the trustee cannot be asked: %w", err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxRequest {
		return nil, fmt.Errorf("the trustee cannot be asked: expected a request of at most %d bytes, got %d", MaxRequest, len(body))
	}
	got, err := v.ask(ctx, body)
	if err != nil {
		return nil, err
	}
	defer got.Clear()
	return parseAnswer(got.Expose(), digest(body))
}

func parseAnswer(data []byte, want string) ([]byte, error) {
	var a answer
	if err := strictjson.Decode(data, &a, strictjson.Limits{Bytes: maxAnswer, Depth: 2}); err != nil {
		return nil, fmt.Errorf("the trustee's answer: %w", err)
	}
	if a.Request != want {
		return nil, fmt.Errorf("the trustee's answer: request_sha256: expected %s, got %.80q: it answers another question", want, a.Request)
	}
	if len(a.PublicKey) == 0 {
		return nil, errors.New("the trustee's answer: public_key: missing")
	}
	return a.PublicKey, nil
}
