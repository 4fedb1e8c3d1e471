package adminapi

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
)

// maxToken bounds an administrator's token, in bytes.
const maxToken = 16 << 10

// maxSubject bounds what records keep of a token's subject, in bytes.
const maxSubject = 256

// skew is how far an administrator's clock may be ahead.
const skew = time.Minute

// Key is an administrator's public key, and with it the most that tokens it
// signs may claim.
type Key struct {
	Public ed25519.PublicKey
	// Name is for people.
	Name string
	// Roles the key may claim; the admin role includes all.
	Roles []string
	// Tenant the key is for, [tenant.All] for every tenant.
	Tenant tenant.Name
}

// Auth says who is an administrator.
type Auth struct {
	// Keys are those of the configuration. The store may have more.
	Keys []Key
	// Issuer is required of tokens where it is not empty, Audience always.
	// They hold for tokens signed with a key, not for an OpenID provider's.
	Issuer, Audience string
	// MaxLifetime bounds exp − iat.
	MaxLifetime time.Duration
	// Providers are the OpenID providers whose tokens are accepted.
	Providers []*Provider
	// RequireClientCertificate: a token alone is not enough, the connection
	// must show a certificate that was verified too.
	RequireClientCertificate bool
	Now                      func() time.Time
}

// check refuses a configuration in which a key or a token could mean two things.
func (a *Auth) check() error {
	if a.Audience == "" || a.MaxLifetime <= 0 || a.Now == nil {
		return errors.New("admin: expected an audience, a maximal token lifetime and a clock")
	}
	seen := map[string]bool{}
	for i, k := range a.Keys {
		if len(k.Public) != ed25519.PublicKeySize {
			return fmt.Errorf("admin key %d: expected an Ed25519 key of %d bytes, got %d", i, ed25519.PublicKeySize, len(k.Public))
		}
		if err := checkRoles(k.Roles); err != nil {
			return fmt.Errorf("admin key %d: %w", i, err)
		}
		if k.Tenant != tenant.All {
			if _, err := tenant.Parse(string(k.Tenant)); err != nil {
				return fmt.Errorf("admin key %d: %w", i, err)
			}
		}
		if id := store.AdminID(k.Public); seen[id] {
			return fmt.Errorf("admin key %d: the key %s is configured twice", i, id)
		} else {
			seen[id] = true
		}
	}
	for _, p := range a.Providers {
		if a.Issuer != "" && p.o.Issuer == a.Issuer {
			return fmt.Errorf("admin: the OpenID provider's issuer %q is that of tokens signed with keys: expected another one", a.Issuer)
		}
	}
	return nil
}

// checkRoles refuses roles that do not exist, and none.
func checkRoles(roles []string) error {
	if len(roles) == 0 {
		return fmt.Errorf("roles: expected at least one of %s", strings.Join(Roles(), ", "))
	}
	for i, r := range roles {
		if !slices.Contains(Roles(), r) {
			return fmt.Errorf("roles: expected some of %s, got %.64q", strings.Join(Roles(), ", "), r)
		}
		if slices.Contains(roles[:i], r) {
			return fmt.Errorf("roles: %q is named twice", r)
		}
	}
	return nil
}

// audience is a string or an array of strings.
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// unauthorized is a token that proves nothing.
func unauthorized(format string, args ...any) *problem.Error {
	return problem.New(http.StatusUnauthorized, problem.AdminAccess, "administrator's token: "+format, args...)
}

// forbidden is a token that is genuine and not enough.
func forbidden(format string, args ...any) *problem.Error {
	return problem.New(http.StatusForbidden, problem.AdminAccess, "administrator's token: "+format, args...)
}

// authenticate returns who a token speaks for. A principal beside an error is
// that of a genuine token that claims what it may not.
func (a *API) authenticate(ctx context.Context, bearer string, t tenant.Name) (*Principal, *problem.Error) {
	if bearer == "" || len(bearer) > maxToken {
		return nil, unauthorized("expected Authorization: Bearer with a JWT %s", a.o.Auth.signers())
	}
	for _, p := range a.o.Auth.Providers {
		if p.issued(bearer) {
			return p.authenticate(ctx, bearer)
		}
	}
	return a.authenticateKey(ctx, bearer, t)
}

func (a *Auth) signers() string {
	if len(a.Providers) == 0 {
		return "signed by an administrator's Ed25519 key"
	}
	return "signed by an administrator's Ed25519 key or issued by a configured OpenID provider"
}

// keyClaims are those of a token that an administrator's key signed.
type keyClaims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Role      string   `json:"role"`
	Tenant    string   `json:"tenant"`
	IssuedAt  int64    `json:"iat"`
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
}

func (a *API) authenticateKey(ctx context.Context, bearer string, t tenant.Name) (*Principal, *problem.Error) {
	sig, err := jose.ParseSignedCompact(bearer, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, unauthorized("is no JWT signed with EdDSA")
	}
	key, payload := verifyWith(sig, a.o.Auth.Keys)
	if payload == nil {
		stored, e := a.storedKeys(ctx, t)
		if e != nil {
			return nil, e
		}
		if key, payload = verifyWith(sig, stored); payload == nil {
			return nil, unauthorized("the signature is not of a configured administrator's key")
		}
	}
	var c keyClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, unauthorized("its claims are no JSON of the expected types")
	}
	if e := a.o.Auth.checkClaims(&c); e != nil {
		return nil, e
	}
	p := &Principal{Subject: plainSubject(c.Subject), Method: "key", KeyID: store.AdminID(key.Public), Roles: []string{c.Role}, Tenants: []tenant.Name{key.Tenant}}
	if may := key.may(); !slices.Contains(may, c.Role) {
		return p, forbidden("role: expected one of %s, got %.64q", strings.Join(may, ", "), c.Role)
	}
	if c.Tenant == "" {
		return p, nil
	}
	// A claim narrows what the key may, and cannot widen it.
	if c.Tenant != string(key.Tenant) && key.Tenant != tenant.All {
		return p, forbidden("tenant: the key is for %q, got %.64q", key.Tenant, c.Tenant)
	}
	p.Tenants = []tenant.Name{tenant.Name(c.Tenant)}
	return p, nil
}

// may lists the roles that a key's tokens may claim.
func (k Key) may() []string {
	if slices.Contains(k.Roles, admin.RoleAdmin) {
		return Roles()
	}
	return k.Roles
}

// verifyWith finds the key that signed. The one that the token names goes
// first; the name itself proves nothing.
func verifyWith(sig *jose.JSONWebSignature, keys []Key) (Key, []byte) {
	kid := sig.Signatures[0].Protected.KeyID
	ordered := keys
	if i := slices.IndexFunc(keys, func(k Key) bool { return kid != "" && store.AdminID(k.Public) == kid }); i > 0 {
		ordered = append([]Key{keys[i]}, append(slices.Clone(keys[:i]), keys[i+1:]...)...)
	}
	for _, k := range ordered {
		if payload, err := sig.Verify(k.Public); err == nil {
			return k, payload
		}
	}
	return Key{}, nil
}

// storedKeys are those of the tenant and of every tenant, from the store. They
// are read for every token that no configured key signed, so that a key that
// is revoked on one replica is refused by all at once.
func (a *API) storedKeys(ctx context.Context, t tenant.Name) ([]Key, *problem.Error) {
	list, err := a.o.Store.Admins(ctx, t)
	if err != nil {
		return nil, storeProblem(err)
	}
	var keys []Key
	for _, x := range list {
		// The store is asked for these two; nothing else may slip in.
		if (x.Tenant == t || x.Tenant == tenant.All) && len(x.PublicKey) == ed25519.PublicKeySize {
			keys = append(keys, Key{Public: x.PublicKey, Name: x.Name, Roles: x.Roles, Tenant: x.Tenant})
		}
	}
	return keys, nil
}

func (a *Auth) checkClaims(c *keyClaims) *problem.Error {
	now := a.Now()
	switch {
	case a.Issuer != "" && c.Issuer != a.Issuer:
		return unauthorized("iss: expected %q, got %.128q", a.Issuer, c.Issuer)
	case !slices.Contains(c.Audience, a.Audience):
		return unauthorized("aud: expected %q, got %.256q", a.Audience, []string(c.Audience))
	case c.IssuedAt <= 0 || c.Expires <= 0: // and no difference of them overflows
		return unauthorized("iat and exp are required, in seconds since 1970")
	case !now.Before(time.Unix(c.Expires, 0)):
		return unauthorized("expired at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case now.Add(skew).Before(time.Unix(max(c.IssuedAt, c.NotBefore), 0)):
		return unauthorized("is from the future: its iat or nbf is %s", time.Unix(max(c.IssuedAt, c.NotBefore), 0).UTC().Format(time.RFC3339))
	case c.Expires-c.IssuedAt > int64(a.MaxLifetime/time.Second):
		return unauthorized("lifetime: expected at most %v (admin.max_token_lifetime), got %v", a.MaxLifetime, time.Duration(c.Expires-c.IssuedAt)*time.Second)
	}
	return nil
}

// plainSubject is a subject that a record and a terminal can take.
func plainSubject(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxSubject)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
