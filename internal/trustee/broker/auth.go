package broker

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// nonceBytes is the challenge's size before base64.
const nonceBytes = 32

// auth answers a request with a challenge. Nothing is kept of it here: the
// session is in the cookie.
func (b *Broker) auth(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	ctx := r.Context()
	t := tenant.Of(ctx)
	b.o.Metrics.AttestationRequest()
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
	if !slices.Contains(b.o.TEEs, req.TEE) {
		e := b.notAccepted(req.TEE)
		b.refused(r, b.newRecord(r, audit.KindAttestation, func(x *audit.Record) {
			x.TEE, x.Protocol = string(req.TEE), string(req.Version)
		}), e)
		return nil, e
	}
	now := b.o.Now().UTC().Truncate(time.Millisecond)
	s := session.Session{Tenant: t, TEE: req.TEE, Protocol: req.Version, Created: now, Expires: now.Add(b.o.SessionTimeout)}
	if req.PolicySelector != "" {
		id, ok := b.o.Selectors[req.PolicySelector]
		if !ok {
			return nil, problem.New(http.StatusBadRequest, problem.Attestation,
				"extra-params: attestation-policy-selector %q is not offered by this trustee", clip(req.PolicySelector))
		}
		s.Policy = id
	}
	challenge := kbs.Challenge{}
	if s.Hash, challenge.HashAlgorithm, e = negotiate(req); e != nil {
		return nil, e
	}
	if s.Nonce, err = b.nonce(r, t, req); err != nil {
		return nil, problem.Internal(problem.Attestation, err)
	}
	challenge.Nonce = s.Nonce
	cookie, err := b.o.Sessions.Seal(&s)
	if err != nil {
		return nil, problem.Internal(problem.Attestation, err)
	}
	b.o.Logger.DebugContext(ctx, "challenge sent", "session", s.ID, "tee", s.TEE, "protocol", s.Protocol)
	b.setCookie(w, t, cookie, s.Expires)
	return challenge, nil
}

func (b *Broker) notAccepted(name tee.Name) *problem.Error {
	accepted := make([]string, len(b.o.TEEs))
	for i, n := range b.o.TEEs {
		accepted[i] = string(n)
	}
	return problem.Denied(problem.Attestation, "this trustee does not accept the environment", kbs.Reason{
		Rule: "tee.enabled", Claim: "tee", Expected: "one of " + strings.Join(accepted, ", "), Got: string(name),
		Help: "enable the environment in the trustee's configuration, or run on one that is",
	})
}

// nonce makes the challenge.
func (b *Broker) nonce(r *http.Request, t tenant.Name, req *kbs.Request) (string, error) {
	if c := b.o.Challengers[req.TEE]; c != nil {
		nonce, err := c.Challenge(r.Context(), t, req)
		if err == nil && len(nonce) < base64.StdEncoding.EncodedLen(nonceBytes) {
			err = fmt.Errorf("got %d bytes, which hold no nonce", len(nonce))
		}
		if err != nil {
			return "", fmt.Errorf("challenge for %s: %w", req.TEE, err)
		}
		return nonce, nil
	}
	random := make([]byte, nonceBytes)
	if _, err := io.ReadFull(b.o.Rand, random); err != nil {
		return "", fmt.Errorf("random nonce: %w", err)
	}
	return base64.StdEncoding.EncodeToString(random), nil
}

// negotiate chooses the hash of runtime data, and what the challenge says of
// it. The default, SHA-384, goes unsaid: clients of the ecosystem know no
// other for most environments. For IBM Secure Execution it is SHA-512, and a
// client that lists algorithms has to know it.
func negotiate(req *kbs.Request) (hash, told string, e *problem.Error) {
	offered := func(alg string) bool {
		return slices.ContainsFunc(req.HashAlgorithms, func(s string) bool { return strings.EqualFold(s, alg) })
	}
	none := len(req.HashAlgorithms) == 0
	switch {
	case req.TEE == tee.SE && none:
		return kbs.SHA512, "", nil
	case req.TEE == tee.SE && offered(kbs.SHA512):
		return kbs.SHA512, kbs.SHA512, nil
	case req.TEE == tee.SE:
		return "", "", problem.New(http.StatusBadRequest, problem.Attestation,
			"extra-params: supported-hash-algorithms: expected %s among them for %s, got %.200q", kbs.SHA512, req.TEE, req.HashAlgorithms)
	case none || offered(kbs.SHA384):
		return "", "", nil
	}
	for _, alg := range []string{kbs.SHA512, kbs.SHA256} {
		if offered(alg) {
			return alg, alg, nil
		}
	}
	return "", "", problem.New(http.StatusBadRequest, problem.Attestation,
		"extra-params: supported-hash-algorithms: expected one of %s, %s and %s, got %.200q", kbs.SHA384, kbs.SHA512, kbs.SHA256, req.HashAlgorithms)
}
