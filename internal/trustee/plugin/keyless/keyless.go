// Package keyless is a plugin that verifies keyless image signatures (Fulcio
// certificates that a Rekor log has seen) for attested guests, which do not
// link what that takes:
//
//	POST /kbs/v0/keyless/verify   body: package oci/signature/remote; answer encrypted to the guest
//
// What is trusted, authorities, logs, issuer and e-mail address, comes with the
// request, out of the image policy of the guest's owner. An operator may pin
// authorities and logs besides; then only those count, whoever asks.
//
// A signature that is not good is a refusal (403) with its reason, and on
// record. The resource policy says which workloads may ask, as for any
// resource: the path is kbs+keyless:///verify, bindings name "+keyless".
package keyless

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	"github.com/coffer-project/coffer/internal/trustee/plugin"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

// Name is the plugin's.
const Name = "keyless"

// Options of [New].
type Options struct {
	// Verifier is required.
	Verifier signature.Keyless
	// Authorities are certificates in PEM: the only ones that requests may
	// trust. None: those that they say.
	Authorities [][]byte
	// Logs are public keys in PEM, likewise.
	Logs [][]byte
}

// Plugin verifies signatures. It is safe for concurrent use.
type Plugin struct {
	verifier signature.Keyless
	// The pinned, by their DER; nil: there are none.
	authorities, logs map[string]bool
}

var (
	_ plugin.Plugin  = (*Plugin)(nil)
	_ plugin.Checker = (*Plugin)(nil)
	_ plugin.Sized   = (*Plugin)(nil)
)

// New reads what is pinned.
func New(o Options) (*Plugin, error) {
	if o.Verifier == nil {
		return nil, errors.New("keyless: a verifier is required")
	}
	p := &Plugin{verifier: o.Verifier}
	var err error
	if p.authorities, err = pins(o.Authorities, "CERTIFICATE", func(der []byte) error { _, err := x509.ParseCertificate(der); return err }); err != nil {
		return nil, fmt.Errorf("keyless: authorities: %w", err)
	}
	if p.logs, err = pins(o.Logs, "PUBLIC KEY", func(der []byte) error { _, err := x509.ParsePKIXPublicKey(der); return err }); err != nil {
		return nil, fmt.Errorf("keyless: logs: %w", err)
	}
	return p, nil
}

// pins are the blocks of all texts; nil where there are no texts.
func pins(texts [][]byte, kind string, check func(der []byte) error) (map[string]bool, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	out := map[string]bool{}
	for _, text := range texts {
		list, err := blocks(text, kind)
		if err != nil {
			return nil, err
		}
		for _, der := range list {
			if err := check([]byte(der)); err != nil {
				return nil, err
			}
			out[der] = true
		}
	}
	return out, nil
}

// blocks are the contents of PEM blocks, of which there is at least one.
func blocks(text []byte, kind string) ([]string, error) {
	var out []string
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != kind {
			return nil, fmt.Errorf("expected PEM blocks %s, got %.40q", kind, block.Type)
		}
		out, text = append(out, string(block.Bytes)), rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("expected PEM blocks %s, found none", kind)
	}
	return out, nil
}

// Name implements [plugin.Plugin].
func (*Plugin) Name() string { return Name }

// MaxBody implements [plugin.Sized].
func (*Plugin) MaxBody() int { return remote.MaxRequest }

// Access implements [plugin.Plugin].
func (*Plugin) Access(method string, path []string) plugin.Access {
	if method == http.MethodPost && len(path) == 1 && path[0] == "verify" {
		return plugin.Guest
	}
	return plugin.None
}

// Check implements [plugin.Checker]: a request that cannot be read.
func (*Plugin) Check(r plugin.Request) *problem.Error {
	_, e := parse(r)
	return e
}

func parse(r plugin.Request) (*remote.Request, *problem.Error) {
	if len(r.Query) > 0 {
		return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "keyless: query: expected none, what is asked is the body")
	}
	q, err := remote.ParseRequest(r.Body)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	return q, nil
}

// Handle implements [plugin.Plugin].
func (p *Plugin) Handle(ctx context.Context, r plugin.Request) (*plugin.Response, *problem.Error) {
	q, e := parse(r)
	if e != nil {
		return nil, e
	}
	artifact := "sha256:" + hex.EncodeToString(q.Signature.ArtifactSHA256)
	if e := p.pinned(q.Trust); e != nil {
		return nil, e
	}
	key, err := p.verifier.Verify(ctx, q.Signature, q.Trust)
	if err != nil && ctx.Err() != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	if err != nil {
		return nil, refusal("keyless.signature", "signature", "a keyless signature of "+artifact+" by "+who(q.Trust), err.Error(),
			"have the image signed by that identity, and pin the authority and the log that its signature comes from")
	}
	doc, err := q.Answer(key)
	if err != nil {
		return nil, problem.Internal(problem.PluginInternal, err)
	}
	id := sha256.Sum256(key)
	return &plugin.Response{
		Body: secret.New(doc), Encrypt: true, Detail: fmt.Sprintf("%s is signed by %s, key %x", artifact, who(q.Trust), id),
	}, nil
}

func who(t signature.KeylessTrust) string {
	return fmt.Sprintf("%.200q (%.200q)", t.SubjectEmail, t.OIDCIssuer)
}

// pinned tells whether the operator lets all be trusted that a request trusts.
func (p *Plugin) pinned(t signature.KeylessTrust) *problem.Error {
	if e := among(p.authorities, [][]byte{t.CACertificates}, "CERTIFICATE", "ca_certificates", "plugins.keyless.authorities"); e != nil {
		return e
	}
	return among(p.logs, t.LogKeys, "PUBLIC KEY", "log_keys", "plugins.keyless.logs")
}

func among(pinned map[string]bool, texts [][]byte, kind, field, key string) *problem.Error {
	if pinned == nil {
		return nil
	}
	help := "name only what this trustee pins in the image policy, or have its operator add it to " + key
	for _, text := range texts {
		list, err := blocks(text, kind)
		if err != nil {
			return refusal("keyless.pinned", field, "what the trustee pins ("+key+")", err.Error(), help)
		}
		for _, der := range list {
			if !pinned[der] {
				return refusal("keyless.pinned", field, "what the trustee pins ("+key+")", fmt.Sprintf("a %s with the sha256 %x", kind, sha256.Sum256([]byte(der))), help)
			}
		}
	}
	return nil
}

func refusal(rule, claim, expected, got, help string) *problem.Error {
	return problem.Denied(problem.PolicyDeny, "the signature does not count", kbs.Reason{Rule: rule, Claim: claim, Expected: expected, Got: got, Help: help})
}
