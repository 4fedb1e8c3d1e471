package adminapi

import (
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/internal/trustee/problem"
)

// maxToken bounds an administrator's token, in bytes.
const maxToken = 16 << 10

// role is the only role there is.
const role = "admin"

// skew is how far an administrator's clock may be ahead.
const skew = time.Minute

// Auth says who is an administrator.
type Auth struct {
	// Keys are the administrators' public keys.
	Keys []ed25519.PublicKey
	// Issuer is required of tokens where it is not empty, Audience always.
	Issuer, Audience string
	// MaxLifetime bounds exp − iat.
	MaxLifetime time.Duration
	Now         func() time.Time
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

// authenticate returns the token's subject.
func (a *Auth) authenticate(r *http.Request) (string, *problem.Error) {
	deny := func(format string, args ...any) *problem.Error {
		return problem.New(http.StatusUnauthorized, problem.AdminAccess, "administrator's token: "+format, args...)
	}
	compact, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || len(compact) > maxToken {
		return "", deny("expected Authorization: Bearer with a JWT signed by an administrator's Ed25519 key")
	}
	sig, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return "", deny("is no JWT signed with EdDSA")
	}
	var payload []byte
	for _, k := range a.Keys {
		if payload, err = sig.Verify(k); err == nil {
			break
		}
	}
	if payload == nil || err != nil {
		return "", deny("the signature is not of a configured administrator's key")
	}
	var c struct {
		Issuer    string   `json:"iss"`
		Subject   string   `json:"sub"`
		Audience  audience `json:"aud"`
		Role      string   `json:"role"`
		IssuedAt  int64    `json:"iat"`
		NotBefore int64    `json:"nbf"`
		Expires   int64    `json:"exp"`
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return "", deny("its claims are no JSON of the expected types")
	}
	now := a.Now()
	switch {
	case a.Issuer != "" && c.Issuer != a.Issuer:
		return "", deny("iss: expected %q, got %q", a.Issuer, c.Issuer)
	case !slices.Contains(c.Audience, a.Audience):
		return "", deny("aud: expected %q, got %q", a.Audience, []string(c.Audience))
	case c.IssuedAt <= 0 || c.Expires <= 0: // and no difference of them overflows
		return "", deny("iat and exp are required, in seconds since 1970")
	case !now.Before(time.Unix(c.Expires, 0)):
		return "", deny("expired at %s", time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	case now.Add(skew).Before(time.Unix(max(c.IssuedAt, c.NotBefore), 0)):
		return "", deny("is from the future: its iat or nbf is %s", time.Unix(max(c.IssuedAt, c.NotBefore), 0).UTC().Format(time.RFC3339))
	case c.Expires-c.IssuedAt > int64(a.MaxLifetime/time.Second):
		return "", deny("lifetime: expected at most %v (admin.max_token_lifetime), got %v", a.MaxLifetime, time.Duration(c.Expires-c.IssuedAt)*time.Second)
	case c.Role != role:
		return "", problem.New(http.StatusForbidden, problem.AdminAccess, "administrator's token: role: expected %q, got %q", role, c.Role)
	}
	return c.Subject, nil
}
