package broker

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
)

// nonceBytes is the challenge's size before base64.
const nonceBytes = 32

// sessionRequest is what later stages need of the client's request.
type sessionRequest struct {
	// Policy is the id of the selected attestation policy, "" for the default.
	Policy string `json:"policy,omitempty"`
}

// auth answers a request with a challenge and opens a session.
func (b *Broker) auth(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	ctx := r.Context()
	body, e := problem.Body(w, r, kbs.MaxRequestBytes)
	if e != nil {
		return nil, e
	}
	req, err := kbs.ParseRequest(body)
	if err != nil {
		variant := problem.Serde
		if _, ok := errors.AsType[*kbs.VersionError](err); ok {
			variant = problem.Attestation
		}
		return nil, problem.New(http.StatusBadRequest, variant, "%v", err)
	}
	if _, ok := b.o.Verifiers[req.TEE]; !ok {
		reason := kbs.Reason{
			Rule: "tee.enabled", Claim: "tee", Expected: "one of " + strings.Join(b.tees(), ", "), Got: string(req.TEE),
			Help: "enable the environment in the trustee's configuration, or run on one that is",
		}
		e := problem.Denied(problem.Attestation, "this trustee does not accept the environment", reason)
		b.record(ctx, store.Verdict{Kind: store.KindAttestation, TEE: string(req.TEE)}, e.Status, &reason, e.Info.Detail)
		return nil, e
	}
	var sr sessionRequest
	if req.PolicySelector != "" {
		id, ok := b.o.Selectors[req.PolicySelector]
		if !ok {
			return nil, problem.New(http.StatusBadRequest, problem.Attestation,
				"extra-params: attestation-policy-selector %q is not offered by this trustee", req.PolicySelector)
		}
		sr.Policy = id
	}
	x, cookie, err := b.newSession(req, sr)
	if err != nil {
		return nil, problem.Internal(problem.Attestation, err)
	}
	switch err := b.o.Store.CreateSession(ctx, x); {
	case errors.Is(err, store.ErrFull):
		e := problem.New(http.StatusTooManyRequests, problem.Limit, "too many handshakes are under way")
		e.RetryAfter = 5 * time.Second
		return nil, e
	case err != nil:
		return nil, problem.Internal(problem.Storage, err)
	}
	b.o.Logger.DebugContext(ctx, "challenge sent", "session", x.ID, "tee", x.TEE, "protocol", x.Protocol)
	b.setCookie(w, cookie, x.Expires)
	return kbs.Challenge{Nonce: x.Nonce}, nil
}

func (b *Broker) newSession(req *kbs.Request, sr sessionRequest) (x store.Session, cookie string, err error) {
	random := make([]byte, nonceBytes+cookieLength/2)
	if _, err := io.ReadFull(b.o.Rand, random); err != nil {
		return x, "", fmt.Errorf("random nonce: %w", err)
	}
	request, err := json.Marshal(sr)
	if err != nil {
		return x, "", err
	}
	cookie = hex.EncodeToString(random[nonceBytes:])
	now := b.o.Now().UTC().Truncate(time.Millisecond)
	return store.Session{
		ID: store.SessionID(cookie), Protocol: string(req.Version), TEE: string(req.TEE), Request: request,
		Nonce: base64.StdEncoding.EncodeToString(random[:nonceBytes]), Created: now, Expires: now.Add(b.o.SessionTimeout),
	}, cookie, nil
}

// tees lists the enabled environments.
func (b *Broker) tees() []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(b.o.Verifiers)) {
		out = append(out, string(n))
	}
	return out
}
