package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// ProviderOptions describe an OpenID provider.
type ProviderOptions struct {
	// Issuer and Audience are required of its tokens. Without JWKS, Issuer is
	// an https URL below which the provider's configuration is found.
	Issuer, Audience string
	// JWKS is where its keys are: a file's path, file:// or https://. Empty:
	// what the configuration below Issuer says (OpenID Connect Discovery 1.0).
	JWKS string
	// RoleClaim is where tokens name roles: a JSON pointer ("/a/b", RFC 6901)
	// or names joined by dots ("a.b"), to a string or an array of strings.
	// Empty: "role".
	RoleClaim string
	// RoleMap translates what stands there to roles; what is not in it gives
	// none. Empty: the roles' own names.
	RoleMap map[string]string
	// Tenant is the most that the provider's tokens are for: one tenant, or
	// [tenant.All].
	Tenant tenant.Name
	// TenantClaim, written like RoleClaim, narrows Tenant: a token is for what
	// stands there, and for nothing where nothing does. Empty: for Tenant.
	TenantClaim string
	// Algorithms of signatures that are accepted; empty: RS256, PS256, ES256,
	// ES384 and EdDSA. Only public-key signatures can be.
	Algorithms []string
	// HTTP fetches keys; nil: a client with the system's roots. Redirects
	// are not followed.
	HTTP *http.Client
	Now  func() time.Time
}

// Provider accepts the tokens of an OpenID provider. It is safe for
// concurrent use.
type Provider struct {
	o    ProviderOptions
	algs []jose.SignatureAlgorithm
	keys *keySet
}

// publicKeyAlgorithms are what a provider may be configured to sign with.
// Those with a shared secret are not among them: a public key would be one.
func publicKeyAlgorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// NewProvider checks the options. It opens no connection and reads no file:
// keys are fetched when the first token comes, so that a provider that is down
// does not keep the trustee from starting.
func NewProvider(o ProviderOptions) (*Provider, error) {
	if o.Issuer == "" || o.Audience == "" {
		return nil, errors.New("OpenID provider: expected an issuer and an audience")
	}
	if o.Tenant != tenant.All {
		if _, err := tenant.Parse(string(o.Tenant)); err != nil {
			return nil, fmt.Errorf("OpenID provider %s: %w, or * for every tenant", o.Issuer, err)
		}
	}
	if o.RoleClaim == "" {
		o.RoleClaim = "role"
	}
	for from, to := range o.RoleMap {
		if !slices.Contains(Roles(), to) {
			return nil, fmt.Errorf("OpenID provider %s: role map: %q: expected one of %s, got %q", o.Issuer, from, strings.Join(Roles(), ", "), to)
		}
	}
	if len(o.Algorithms) == 0 {
		o.Algorithms = []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"}
	}
	p := &Provider{}
	for _, a := range o.Algorithms {
		if !slices.Contains(publicKeyAlgorithms(), a) {
			return nil, fmt.Errorf("OpenID provider %s: algorithm: expected some of %s, got %q", o.Issuer, strings.Join(publicKeyAlgorithms(), ", "), a)
		}
		p.algs = append(p.algs, jose.SignatureAlgorithm(a))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var err error
	if p.keys, err = newKeySet(o); err != nil {
		return nil, fmt.Errorf("OpenID provider %s: %w", o.Issuer, err)
	}
	p.o = o
	return p, nil
}

// issued reports whether a token says that it is this provider's. It is only
// asked whom to ask; nothing is verified.
func (p *Provider) issued(bearer string) bool {
	sig, err := jose.ParseSignedCompact(bearer, p.algs)
	if err != nil {
		return false
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	return json.Unmarshal(sig.UnsafePayloadWithoutVerification(), &c) == nil && c.Issuer == p.o.Issuer
}

// authenticate returns who a token of this provider speaks for. A principal
// beside an error is that of a genuine token that is not enough.
func (p *Provider) authenticate(ctx context.Context, bearer string) (*Principal, *problem.Error) {
	sig, err := jose.ParseSignedCompact(bearer, p.algs)
	if err != nil {
		return nil, unauthorized("is no JWT signed with one of %s", strings.Join(p.o.Algorithms, ", "))
	}
	payload, err := p.keys.verify(ctx, sig)
	if _, ok := errors.AsType[*outage](err); ok {
		e := problem.Busy(problem.AdminAccess, "the keys of the OpenID provider "+p.o.Issuer+" cannot be had")
		e.Cause = err
		return nil, e
	}
	if err != nil {
		e := unauthorized("the signature is not by a key of the OpenID provider %s", p.o.Issuer)
		e.Cause = err
		return nil, e
	}
	// The signature is verified; what remains are the claims.
	token, err := oidc.NewVerifier(p.o.Issuer, verified(payload), &oidc.Config{
		ClientID: p.o.Audience, SupportedSigningAlgs: p.o.Algorithms, Now: p.o.Now,
	}).Verify(ctx, bearer)
	if err != nil {
		return nil, p.refused(payload, err)
	}
	if token.IssuedAt.Unix() <= 0 {
		return nil, unauthorized("iat is required, in seconds since 1970")
	}
	if p.o.Now().Add(skew).Before(token.IssuedAt) {
		return nil, unauthorized("is from the future: its iat is %s", token.IssuedAt.UTC().Format(time.RFC3339))
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return nil, unauthorized("its claims are no JSON object")
	}
	principal := &Principal{Subject: plainSubject(token.Subject), Method: "oidc"}
	values := stringsAt(claims, p.o.RoleClaim)
	principal.Roles = p.roles(values)
	if len(principal.Roles) == 0 {
		return principal, forbidden("role: expected the claim %s to name one of %s, got %.256q", p.o.RoleClaim, strings.Join(p.expected(), ", "), values)
	}
	if p.o.TenantClaim == "" {
		principal.Tenants = []tenant.Name{p.o.Tenant}
		return principal, nil
	}
	for _, v := range stringsAt(claims, p.o.TenantClaim) {
		name := tenant.Name(v)
		if _, err := tenant.Parse(v); err != nil && name != tenant.All {
			continue
		}
		// What the provider may not give is dropped.
		if p.o.Tenant == tenant.All || p.o.Tenant == name {
			principal.Tenants = append(principal.Tenants, name)
		}
	}
	if len(principal.Tenants) == 0 {
		return principal, forbidden("tenant: expected the claim %s to name a tenant that the provider is for", p.o.TenantClaim)
	}
	return principal, nil
}

// verified is an oidc.KeySet for a token whose signature was verified before.
type verified []byte

// VerifySignature implements oidc.KeySet.
func (v verified) VerifySignature(context.Context, string) ([]byte, error) { return v, nil }

// refused says which of a genuine token's claims is wrong.
func (p *Provider) refused(payload []byte, err error) *problem.Error {
	var c struct {
		Audience audience `json:"aud"`
	}
	e := unauthorized("its claims are no JSON of the expected types")
	expired, isExpired := errors.AsType[*oidc.TokenExpiredError](err)
	switch {
	case json.Unmarshal(payload, &c) != nil:
	case isExpired && expired.Expiry.Unix() <= 0:
		e = unauthorized("exp is required, in seconds since 1970")
	case isExpired:
		e = unauthorized("expired at %s", expired.Expiry.UTC().Format(time.RFC3339))
	case !slices.Contains(c.Audience, p.o.Audience):
		e = unauthorized("aud: expected %q, got %.256q", p.o.Audience, []string(c.Audience))
	default:
		e = unauthorized("its claims have other types than expected, or its iss or nbf is wrong")
	}
	e.Cause = err
	return e
}

// expected lists what the role claim may say.
func (p *Provider) expected() []string {
	if len(p.o.RoleMap) == 0 {
		return Roles()
	}
	var out []string
	for from := range p.o.RoleMap {
		out = append(out, from)
	}
	slices.Sort(out)
	return out
}

// roles are what the claim's values stand for.
func (p *Provider) roles(values []string) []string {
	var out []string
	for _, v := range values {
		if len(p.o.RoleMap) > 0 {
			v = p.o.RoleMap[v]
		}
		if slices.Contains(Roles(), v) && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// maxValues bounds what is read from a claim.
const maxValues = 256

// stringsAt reads a string or the strings of an array at a JSON pointer or a
// dotted path; what is no string, and what is not there, is nothing.
func stringsAt(claims map[string]any, path string) []string {
	var at any = claims
	for _, name := range steps(path) {
		object, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = object[name]
	}
	switch v := at.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, x := range v[:min(len(v), maxValues)] {
			if s, ok := x.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// steps splits a path. A pointer begins with a slash, and escapes "~" as "~0"
// and "/" as "~1" (RFC 6901, section 3).
func steps(path string) []string {
	pointer, ok := strings.CutPrefix(path, "/")
	if !ok {
		return strings.Split(path, ".")
	}
	out := strings.Split(pointer, "/")
	for i, s := range out {
		out[i] = strings.ReplaceAll(strings.ReplaceAll(s, "~1", "/"), "~0", "~")
	}
	return out
}
