package attestationservice

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// handler answers with a document (nil: an empty 200; a text: as it is).
type handler func(w http.ResponseWriter, r *http.Request) (any, *problem.Error)

// text is an answer that is no JSON.
type text string

func (s *Service) routes() *http.ServeMux {
	m := http.NewServeMux()
	for pattern, h := range map[string]handler{
		"POST /attestation":          s.attestation,
		"POST /policy":               s.setPolicy,
		"GET /policy":                s.policies,
		"GET /policy/{id}":           s.policy,
		"POST /challenge":            s.challenge,
		"GET /.well-known/jwks.json": s.jwks,
		"GET /healthz":               func(http.ResponseWriter, *http.Request) (any, *problem.Error) { return nil, nil },
	} {
		m.Handle(pattern, s.answer(h))
		method, path, _ := strings.Cut(pattern, " ")
		if path != "/policy" {
			m.Handle(path, s.answer(notAllowed(method)))
		}
	}
	m.Handle("/policy", s.answer(notAllowed("GET, POST")))
	m.Handle("/", s.answer(func(_ http.ResponseWriter, r *http.Request) (any, *problem.Error) {
		return nil, problem.New(http.StatusNotFound, problem.InvalidPath, "path %.200q: there is no such endpoint", r.URL.Path)
	}))
	return m
}

func notAllowed(allow string) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
		w.Header().Set("Allow", allow)
		return nil, problem.New(http.StatusMethodNotAllowed, problem.InvalidPath, "method %.20q: expected %s", r.Method, allow)
	}
}

func (s *Service) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		doc, e := h(w, r)
		if e != nil {
			problem.Write(r.Context(), s.o.Logger, w, e)
			return
		}
		switch doc := doc.(type) {
		case nil:
			w.WriteHeader(http.StatusOK)
		case text:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			// The header is out: a failure to write can only be the connection's.
			_, _ = io.WriteString(w, string(doc))
		default:
			problem.JSON(w, http.StatusOK, doc)
		}
	})
}

// bearer is the token of an Authorization header, "" where there is none.
func bearer(header string) string {
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

// admin checks the request's token.
func (s *Service) admin(r *http.Request, permission string) (tenant.Name, Admin, *problem.Error) {
	t := tenant.Of(r.Context())
	a, e := s.authorize(r.Context(), bearer(r.Header.Get("Authorization")), t, permission)
	return t, a, e
}

func (s *Service) attestation(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	body, e := problem.Body(w, r, s.o.MaxBody)
	if e != nil {
		return nil, e
	}
	q, e := parseREST(body)
	if e != nil {
		return nil, e
	}
	token, e := s.evaluate(r.Context(), tenant.Of(r.Context()), q)
	return text(token), e
}

// setPolicyLimit bounds POST /policy: the text grows by a third in base64.
const setPolicyLimit = policy.MaxText*4/3 + 4096

func (s *Service) setPolicy(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	t, who, e := s.admin(r, PolicyWrite)
	if e != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, e
	}
	body, e := problem.Body(w, r, setPolicyLimit)
	if e != nil {
		return nil, e
	}
	var doc struct {
		ID     string `json:"policy_id"`
		Policy string `json:"policy"`
	}
	if err := strictjson.Decode(body, &doc, strictjson.Limits{Bytes: setPolicyLimit, Depth: 2}); err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "policy request: %v", err)
	}
	return nil, s.storePolicy(r.Context(), t, who, doc.ID, doc.Policy)
}

func (s *Service) policies(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	t, _, e := s.admin(r, PolicyRead)
	if e != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, e
	}
	ids, err := s.o.Policies.PolicyIDs(r.Context(), t)
	if err != nil {
		return nil, asProblem(err, problem.Storage)
	}
	type entry struct {
		ID string `json:"policy-id"`
	}
	out := []entry{}
	for _, id := range ids {
		out = append(out, entry{id})
	}
	return out, nil
}

func (s *Service) policy(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	t, _, e := s.admin(r, PolicyRead)
	if e != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return nil, e
	}
	id := r.PathValue("id")
	if e := checkID("policy id", id); e != nil {
		return nil, e
	}
	body, found, err := s.o.Policies.Policy(r.Context(), t, id)
	switch {
	case err != nil:
		return nil, asProblem(err, problem.Storage)
	case !found:
		return nil, problem.New(http.StatusNotFound, problem.PolicyEngine, "policy %q: none is stored; the built-in one may be in force", id)
	}
	return text(body), nil
}

// challengeLimit bounds POST /challenge.
const challengeLimit = 64 << 10

func (s *Service) challenge(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	body, e := problem.Body(w, r, challengeLimit)
	if e != nil {
		return nil, e
	}
	var doc struct {
		TEE    string  `json:"tee"`
		Params *string `json:"tee_params"`
	}
	if err := strictjson.Decode(body, &doc, strictjson.Limits{Bytes: challengeLimit, Depth: 2}); err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "challenge request: %v", err)
	}
	nonce, e := s.nonce(r.Context(), doc.TEE)
	return text(nonce), e
}

// nonceBytes is the size of a challenge.
const nonceBytes = 32

// nonce makes a challenge. Nobody remembers it here: who asked for it compares
// it with what the evidence is bound to.
func (s *Service) nonce(ctx context.Context, name string) (string, *problem.Error) {
	n, err := teeName(name)
	if err != nil {
		return "", invalid("tee", "expected a TEE's name, for example \"snp\", got %.40q", name)
	}
	if make := s.o.Challengers[n]; make != nil {
		challenge, err := make(ctx)
		if err != nil {
			return "", asProblem(err, problem.Attestation)
		}
		return challenge, nil
	}
	if n == tee.SE {
		return "", problem.New(http.StatusNotImplemented, problem.Attestation,
			"challenge for se: IBM Secure Execution needs a request that is encrypted to the host's key: enable tee.se in the trustee's configuration")
	}
	raw := make([]byte, nonceBytes)
	if _, err := io.ReadFull(s.o.Rand, raw); err != nil {
		return "", problem.Internal(problem.Attestation, err)
	}
	return base64.StdEncoding.EncodeToString(raw), nil
}

func (s *Service) jwks(_ http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	set, err := s.o.JWKS(r.Context())
	if err != nil {
		return nil, asProblem(err, problem.Attestation)
	}
	return set, nil
}

// asProblem is nil for nil.
func asProblem(err error, variant string) *problem.Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return e
	}
	if bad, ok := errors.AsType[*policy.CompileError](err); ok {
		return problem.New(http.StatusBadRequest, problem.ParsePolicy, "%v", bad)
	}
	return problem.Internal(variant, err)
}

// decodePolicy reads a policy's text.
func decodePolicy(encoded string) (string, *problem.Error) {
	raw, e := decode("policy", encoded)
	if e != nil {
		return "", e
	}
	if !utf8.Valid(raw) || len(raw) > policy.MaxText {
		return "", invalid("policy", "expected at most %d bytes of UTF-8", policy.MaxText)
	}
	return string(raw), nil
}
