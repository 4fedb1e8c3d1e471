package token

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// TrustOptions of [NewTrust].
type TrustOptions struct {
	// Issuer is the iss of the other service's tokens.
	Issuer string
	// Audience is required of its tokens; empty: not looked at, for services
	// that name none.
	Audience string
	// JWKSets are files, file:// or https:// URLs of JWK sets; an https:// URL
	// may be an OIDC issuer's, whose discovery document names the set.
	JWKSets []string
	// Certificates are PEM: a token whose header carries a key with an x5c
	// chain that ends at one of them is accepted.
	Certificates []byte
	// Tenants are those that take the service's word; empty: all.
	Tenants []tenant.Name
	// Client fetches JWK sets; required where one is an URL. It has to have a
	// timeout.
	Client *http.Client
	Now    func() time.Time
}

// Trust is another attestation service whose tokens are accepted. It is safe
// for concurrent use.
type Trust struct {
	o     TrustOptions
	roots *x509.CertPool
	sets  *remoteKeys
}

// NewTrust checks the options and reads the sets that are files. Sets behind
// URLs are fetched when a token needs them.
func NewTrust(o TrustOptions) (*Trust, error) {
	if o.Issuer == "" || o.Now == nil {
		return nil, errors.New("token: trusted attestation service: an issuer and a clock are required")
	}
	if len(o.JWKSets) == 0 && len(o.Certificates) == 0 {
		return nil, fmt.Errorf("token: trusted attestation service %q: expected JWK sets or certificates to check its tokens with", o.Issuer)
	}
	t := &Trust{o: o, sets: newRemoteKeys(o.Client, o.Now)}
	if len(o.Certificates) > 0 {
		var err error
		if t.roots, err = parseRoots(o.Certificates); err != nil {
			return nil, fmt.Errorf("token: trusted attestation service %q: certificates: %w", o.Issuer, err)
		}
	}
	for _, s := range o.JWKSets {
		if err := t.sets.add(s); err != nil {
			return nil, fmt.Errorf("token: trusted attestation service %q: %w", o.Issuer, err)
		}
	}
	return t, nil
}

// maxRoots bounds the certificates of one service.
const maxRoots = 64

func parseRoots(text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	n := 0
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil || b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d: expected a certificate", n)
		}
		if n++; n > maxRoots {
			return nil, fmt.Errorf("expected at most %d", maxRoots)
		}
		pool.AddCert(c)
	}
	if n == 0 {
		return nil, errors.New("expected PEM certificates, got none")
	}
	return pool, nil
}

// verify checks a token whose iss is the service's.
func (t *Trust) verify(ctx context.Context, n tenant.Name, sig *jose.JSONWebSignature, now time.Time) (*ear.Claims, json.RawMessage, error) {
	if len(t.o.Tenants) > 0 && !slices.Contains(t.o.Tenants, n) {
		return nil, nil, fmt.Errorf("token: iss: the attestation service %q is not trusted here", t.o.Issuer)
	}
	keys, err := t.candidates(ctx, sig.Signatures[0].Protected)
	if err != nil {
		return nil, nil, err
	}
	var payload []byte
	for _, k := range keys {
		if payload, err = sig.Verify(k.Key); err == nil {
			break
		}
	}
	if payload == nil {
		return nil, nil, errors.New("token: the signature does not verify")
	}
	var c ear.Claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, nil, fmt.Errorf("token: payload: %w", err)
	}
	if err := t.check(&c, n, now); err != nil {
		return nil, nil, err
	}
	// What this trustee's own tokens have besides.
	c.Tenant = string(n)
	if c.Protocol == "" {
		c.Protocol = string(kbs.V040)
	}
	if c.ID == "" {
		sum := sha256.Sum256(payload)
		c.ID = hex.EncodeToString(sum[:16])
	}
	return &c, payload, nil
}

func (t *Trust) check(c *ear.Claims, n tenant.Name, now time.Time) error {
	switch {
	case c.Issuer != t.o.Issuer:
		return fmt.Errorf("token: iss: expected %q, got %q", t.o.Issuer, clip(c.Issuer))
	case t.o.Audience != "" && !slices.Contains(c.Audience, t.o.Audience):
		return fmt.Errorf("token: aud: expected %q, got %q", t.o.Audience, c.Audience)
	case c.Expires == 0 || !now.Before(time.Unix(c.Expires, 0)):
		return fmt.Errorf("token: expired at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case now.Add(skew).Before(time.Unix(c.NotBefore, 0)):
		return fmt.Errorf("token: not valid before %s", time.Unix(c.NotBefore, 0).UTC().Format(time.RFC3339))
	case now.Add(skew).Before(time.Unix(c.IssuedAt, 0)):
		return fmt.Errorf("token: iat: expected a time that has passed, got %s", time.Unix(c.IssuedAt, 0).UTC().Format(time.RFC3339))
	case c.Tenant != "" && c.Tenant != string(n):
		return fmt.Errorf("token: coffer.tenant: expected %q, got another", n)
	}
	return nil
}

// candidates are the trusted keys that may have signed. A key in the token's
// header is one only if its chain or a trusted set says so.
func (t *Trust) candidates(ctx context.Context, h jose.Header) ([]jose.JSONWebKey, error) {
	if h.JSONWebKey != nil && len(h.JSONWebKey.Certificates) > 0 && t.roots != nil {
		if err := t.chain(h.JSONWebKey); err != nil {
			return nil, err
		}
		return usable([]jose.JSONWebKey{*h.JSONWebKey}, h.Algorithm)
	}
	if len(t.o.JWKSets) == 0 {
		return nil, errors.New("token: jwk: expected a key with an x5c chain to a trusted certificate")
	}
	match := func(jose.JSONWebKey) bool { return true } // neither kid nor jwk: any may be it
	switch {
	case h.KeyID != "":
		match = func(k jose.JSONWebKey) bool { return k.KeyID == h.KeyID }
	case h.JSONWebKey != nil:
		want, err := h.JSONWebKey.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("token: jwk: %w", err)
		}
		match = func(k jose.JSONWebKey) bool {
			got, err := k.Thumbprint(crypto.SHA256)
			return err == nil && slices.Equal(got, want)
		}
	}
	keys, err := t.sets.find(ctx, match)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("token: kid: expected one of the keys of %q, got %q", t.o.Issuer, clip(h.KeyID))
	}
	return usable(keys, h.Algorithm)
}

// minRSA is the least size of an RSA key, in bits.
const minRSA = 2048

// usable leaves the keys that may sign with an algorithm.
func usable(keys []jose.JSONWebKey, alg string) ([]jose.JSONWebKey, error) {
	var out []jose.JSONWebKey
	reason := errors.New("there is no key")
	for _, k := range keys {
		switch {
		case k.Algorithm != "" && k.Algorithm != alg:
			reason = fmt.Errorf("alg: expected %s, got %s", clip(k.Algorithm), clip(alg))
		case k.Use != "" && k.Use != "sig":
			reason = fmt.Errorf("the key's use: expected sig, got %q", clip(k.Use))
		case !k.IsPublic() || weak(k.Key):
			reason = fmt.Errorf("expected a public EC key, or an RSA key of at least %d bits", minRSA)
		default:
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("token: %w", reason)
	}
	return out, nil
}

// chain checks that the leaf holds the key and that the certificates, in any
// order, lead to a trusted one.
func (t *Trust) chain(k *jose.JSONWebKey) error {
	const what = "token: jwk: x5c"
	certs := k.Certificates
	if len(certs) > maxChain {
		return fmt.Errorf("%s: expected at most %d certificates, got %d", what, maxChain, len(certs))
	}
	leaf := jose.JSONWebKey{Key: certs[0].PublicKey}
	want, err1 := k.Thumbprint(crypto.SHA256)
	got, err2 := leaf.Thumbprint(crypto.SHA256)
	if err := errors.Join(err1, err2); err != nil || !slices.Equal(want, got) {
		return fmt.Errorf("%s: the first certificate holds another key", what)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{
		Roots: t.roots, Intermediates: between, CurrentTime: t.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("%s: does not lead to a trusted certificate: %w", what, err)
	}
	return nil
}

// maxChain bounds an x5c chain.
const maxChain = 8

// setURL tells files and URLs apart; it refuses what could be fetched from
// anyone.
func setURL(s string) (file string, remote *url.URL, err error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("JWK set %q: %w", s, err)
	case u.Scheme == "file":
		return u.Path, nil, nil
	case u.Scheme == "https" && u.Host != "":
		return "", u, nil
	case strings.Contains(s, "://"):
		return "", nil, fmt.Errorf("JWK set: expected a file, file:// or https://, got %q", s)
	}
	return s, nil, nil
}
