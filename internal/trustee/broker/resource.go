package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
)

// maxQuery bounds the query parameters a policy gets to see.
const maxQuery = 32

// resource decides on a resource and answers with it, encrypted to the key
// that the token's evidence is bound to.
func (b *Broker) resource(r *http.Request) (any, *problem.Error) {
	ctx := r.Context()
	claims, payload, e := b.token(r)
	if e != nil {
		return nil, e
	}
	path, err := resource.Parse(strings.TrimPrefix(r.URL.Path, resourcePrefix))
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "%v", err)
	}
	query, e := queryOf(r.URL.RawQuery)
	if e != nil {
		return nil, e
	}
	v := b.resourceVerdict(path, claims)
	d, err := b.o.Decider.Decide(ctx, release.Request{Path: path, Query: query, Claims: claims, Payload: payload})
	if err != nil {
		e := problem.Internal(problem.PolicyEngine, err)
		b.record(ctx, v, e.Status, nil, e.Info.Detail)
		return nil, e
	}
	v.PolicyID = d.PolicyID
	if !d.Granted {
		e := problem.Denied(problem.PolicyDeny, "resource "+path.String()+" is denied", d.Reasons...)
		b.record(ctx, v, e.Status, e.Info.Reason, e.Info.Detail)
		return nil, e
	}
	content, err := b.o.Store.Resource(ctx, path)
	if errors.Is(err, store.ErrNotFound) {
		e := problem.New(http.StatusNotFound, problem.ResourceNotFound, "resource %s does not exist; its owner may not have stored it yet", path)
		b.record(ctx, v, e.Status, nil, e.Info.Detail)
		return nil, e
	}
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	defer content.Clear()
	key, err := teeKey(claims)
	if err != nil {
		return nil, problem.Internal(problem.TokenVerifier, err)
	}
	var response *kbs.Response
	if isLegacy(kbs.Version(claims.Protocol)) {
		response, err = encryptLegacy(b.o.Rand, key, content.Expose())
	} else {
		response, err = kbs.EncryptResponse(b.o.Rand, key, content.Expose())
	}
	if err != nil {
		return nil, problem.Internal("JweError", err)
	}
	v.Granted, v.Status = true, http.StatusOK
	if err := b.o.Store.AddVerdict(ctx, v); err != nil {
		return nil, problem.Internal(problem.Storage, fmt.Errorf("a release that cannot be recorded is refused: %w", err))
	}
	b.o.Logger.InfoContext(ctx, "resource released", "session", v.Session, "resource", v.Resource, "simulated", v.Simulated)
	return response, nil
}

// token finds and verifies the attestation token: that of an attested
// session, or else, also where the session's has expired, the bearer's.
func (b *Broker) token(r *http.Request) (*ear.Claims, json.RawMessage, *problem.Error) {
	e := again("there is neither an attested session nor a bearer token")
	e.Info.Type = kbs.ErrorType(problem.TokenNotFound)
	if cookie := sessionCookie(r); cookie != "" {
		x, err := b.o.Store.AttestedSession(r.Context(), store.SessionID(cookie))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, nil, problem.Internal(problem.Storage, err)
		}
		if err == nil {
			claims, payload, err := b.o.Tokens.Verify(x.Token)
			if err == nil {
				return claims, payload, nil
			}
			e = badToken(err)
		}
	}
	compact, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if compact == "" {
		return nil, nil, e
	}
	claims, payload, err := b.o.Tokens.Verify(compact)
	if err != nil {
		return nil, nil, badToken(err)
	}
	return claims, payload, nil
}

func badToken(err error) *problem.Error {
	e := again(err.Error())
	e.Info.Type = kbs.ErrorType(problem.TokenVerifier)
	return e
}

// queryOf reads query parameters; of several of a name the last counts.
func queryOf(raw string) (map[string]string, *problem.Error) {
	values, err := url.ParseQuery(raw)
	if err != nil || len(values) > maxQuery {
		return nil, problem.New(http.StatusBadRequest, problem.InvalidPath, "query: expected at most %d well-formed parameters", maxQuery)
	}
	out := make(map[string]string, len(values))
	for k, v := range values {
		out[k] = v[len(v)-1]
	}
	return out, nil
}

// teeKey is the key in the token, which the CPU's evidence is bound to.
func teeKey(c *ear.Claims) (kbs.TEEPubKey, error) {
	var e struct {
		Runtime struct {
			Key json.RawMessage `json:"tee-pubkey"`
		} `json:"runtime_data_claims"`
	}
	if err := json.Unmarshal(c.Submods[ear.CPU].Evidence, &e); err != nil {
		return kbs.TEEPubKey{}, fmt.Errorf("token: annotated evidence: %w", err)
	}
	return kbs.ParseTEEPubKey(e.Runtime.Key)
}

func (b *Broker) resourceVerdict(path resource.Path, c *ear.Claims) store.Verdict {
	v := store.Verdict{Kind: store.KindResource, Session: c.ID, Resource: path.String(), EARStatus: string(c.Status()),
		InitData: hex.EncodeToString(release.InitDataField(c)), Claims: verdictClaims(c.Submods), AllowSimulated: b.o.AllowSimulated}
	for _, m := range c.Submods {
		v.Simulated = v.Simulated || simulated(m)
	}
	v.TEE = teeOf(c)
	return v
}

// record logs and stores a verdict that releases nothing: a failure to store
// it changes no decision.
func (b *Broker) record(ctx context.Context, v store.Verdict, status int, reason *kbs.Reason, detail string) {
	v.Status, v.Detail, v.AllowSimulated = status, clipDetail(detail), b.o.AllowSimulated
	rule := ""
	if reason != nil {
		rule = reason.Rule
		if doc, err := json.Marshal(reason); err == nil {
			v.Reason = doc
		}
	}
	b.o.Logger.WarnContext(ctx, "refused", "kind", v.Kind, "session", v.Session, "tee", v.TEE, "resource", v.Resource, "status", status,
		"rule", rule, "detail", v.Detail, "simulated", v.Simulated)
	// The client may be gone; the record is made all the same.
	if err := b.o.Store.AddVerdict(context.WithoutCancel(ctx), v); err != nil {
		b.o.Logger.ErrorContext(ctx, "verdict could not be recorded", "error", err)
	}
}

// maxDetail bounds what a record keeps of an error's text.
const maxDetail = 4 << 10

func clipDetail(s string) string {
	if len(s) > maxDetail {
		return strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}
